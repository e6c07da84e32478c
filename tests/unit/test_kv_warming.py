"""Nobody waits for a compiler: the reference answers until another process has made the machine code."""

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from kvquant.kernels import decode_attention, fast, reason, reference, warming
from kvquant.kernels.cpu import vectors
from kvquant.modes import Exact
from kvquant.store import Store

pytest.importorskip("numba")


@pytest.fixture
def nothing_known(monkeypatch, tmp_path):
    """A machine on which nothing was compiled, and a compiler that ends when it is told to, with words or a mark."""
    monkeypatch.setattr(warming, "_known", {})
    monkeypatch.setattr(warming, "_makers", {})
    monkeypatch.setattr(warming, "_mark", lambda format: tmp_path / f"{format}.ready")
    started, popen = [], subprocess.Popen

    def start(command, **options):
        started.append(command[1:])
        code = "import sys; sys.stdin.readline(); print('plain torch reference: no room.')"
        return popen([sys.executable, "-c", code], stdin=subprocess.PIPE, **options)

    monkeypatch.setattr(warming.subprocess, "Popen", start)
    yield tmp_path, started
    for maker in warming._makers.values():
        maker.kill()


def finish(format: str) -> None:
    maker = warming._makers[format]
    maker.stdin.write("\n")
    maker.stdin.flush()
    maker.wait(30)


def test_the_reference_answers_until_the_machine_code_is_there(nothing_known, monkeypatch):
    folder, started = nothing_known
    monkeypatch.setattr(fast, "available", lambda format: (True, "compiled kernel."))
    q, k = torch.randn(1, 2, 64), torch.randn(1, 1, 200, 64)
    store = Store("fixed", window=0)
    store.append(k, k)
    assert "in the background" in reason(q, store) and "in the background" in reason(q, store)
    assert started == [["-m", "kvquant.kernels", "fixed"]], "one process, however often it is asked"
    found, expected = (decode(q, store, Exact())[0] for decode in (decode_attention, reference.decode_attention))
    assert torch.equal(found, expected)
    (folder / "fixed.ready").write_text("")
    finish("fixed")
    assert reason(q, store) == "compiled kernel."
    assert not warming.making("fixed")


def test_a_compiler_that_fails_is_not_tried_again_and_says_why(nothing_known):
    _, started = nothing_known
    assert warming.making("half")
    finish("half")
    assert warming.ready("half") == warming.ready("half") == (False, "plain torch reference: no room.")
    assert not warming.making("half") and len(started) == 1


def test_a_compiler_that_does_not_start_leaves_the_reference(nothing_known, monkeypatch):
    def refuse(*_, **__):
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(warming.subprocess, "Popen", refuse)
    usable, why = warming.ready("fixed")
    assert not usable and "does not start (Resource temporarily unavailable)" in why
    assert not warming.making("fixed")


def test_what_cannot_be_kept_is_not_used(nothing_known, monkeypatch):
    folder, _ = nothing_known
    monkeypatch.setattr(fast, "available", lambda format: (True, "compiled kernel."))
    (folder / "file").write_text("")
    monkeypatch.setattr(warming, "_mark", lambda format: folder / "file" / "fixed.ready")
    usable, why = warming.make("fixed")
    assert not usable and "cannot be kept" in why
    assert warming.ready("fixed") == (usable, why)


def test_many_threads_start_one_compiler(nothing_known):
    _, started = nothing_known
    barrier = threading.Barrier(8)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: (barrier.wait(), warming.ready("fixed"))[1], range(8)))
    assert len(started) == 1 and all("background" in why for _, why in found)


def test_a_numba_that_does_not_start_is_no_error(nothing_known, monkeypatch):
    def broken(format):
        raise ImportError("Numba needs another NumPy")

    monkeypatch.setattr(warming, "_mark", broken)
    monkeypatch.setattr(fast, "available", lambda format: (False, "plain torch reference: numba does not run here."))
    assert not warming.making("half") and warming.ready("half")[1].endswith("does not run here.")


def test_a_processor_without_halves_gets_the_reference_for_them(monkeypatch):
    monkeypatch.setattr(vectors, "has", lambda feature: False)
    monkeypatch.setattr(vectors.platform, "machine", lambda: "x86_64")
    assert fast.available.__wrapped__("half") == (
        False,
        "plain torch reference: this processor has no instructions for halves (F16C).",
    )
