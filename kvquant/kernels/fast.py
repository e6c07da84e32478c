"""Decode attention on a CPU, compiled by numba on the user's machine: no compiler has to be installed.

``decode_attention`` answers as the reference does, from the same planes within the same bounds; ``available`` says whether the
kernels run here, ``unserved`` why a request has to go to the reference.

Where it pays is measured by bench.kv_attention. Two cores are bound by arithmetic, not by memory: where query heads share a KV
head, reading every bit (Exact) can be nearly as fast as choosing half of them. 28/4 heads of 128, 16384 tokens, an error of 0.1
(three quarters of it K's): on two Zen 4 cores with AVX2 alone 1.0 ms for K's high plane, 0.3 for the spread of the probabilities,
1.7 for rows over the thresholds and the sums of the bound, where all bits in one pass take 4.2 ms; on two Emerald Rapids cores
with AVX-512, before the changes that made it 1.6 times as fast with AVX2, 0.93, 0.27 and 1.57, where they took 2.5.
A row of V is read when one of seven query heads wants it, 41 to 92% of them are, and is added up for all seven; for each head only
the 16 to 33% that it wants itself took no less time (four runs in turn: control over certified 1.30 to 1.35 so, 1.17 to 1.34 head
by head), as a row is then converted again and again, and lists are made. Threads meet several times per step: beside other
busy processes all of the gain is lost.
"""

from __future__ import annotations

import importlib.util
from functools import lru_cache

import torch

from kvquant.kernels import reference
from kvquant.modes import Certified, Exact, Mode, Paper, Trace
from kvquant.store import Store

# The innermost kernels take whole 64-byte lines of a row; over the longest, a 32-bit sum of 16-bit products could overflow.
LINE, LONGEST = 64, 512


@lru_cache(maxsize=2)
def available(format: str = "fixed") -> tuple[bool, str]:
    """Whether the kernels of a storage format run here, and why, in one sentence.

    Compiles and tries them on the first call: about a minute, unless the machine code of an earlier time is on the disk; where
    somebody waits, ask :func:`kvquant.kernels.warming.ready` instead.
    """
    if importlib.util.find_spec("numba") is None:
        return False, "plain torch reference: numba is not installed."
    threads = torch.get_num_threads()
    try:
        from kvquant.kernels.cpu.vectors import converts_halves

        if format == "half" and not converts_halves():
            return False, "plain torch reference: this processor has no instructions for halves (F16C)."
        difference = _self_test(format)
    except Exception as error:  # numba fails in many ways: a CPU it does not know, no LLVM, no room
        return False, f"plain torch reference: numba does not run here ({type(error).__name__}: {error})."
    # numba and torch may share one OpenMP, whose threads numba counts anew when it starts.
    torch.set_num_threads(threads)
    if not difference < 1e-3:
        return False, f"plain torch reference: the compiled kernel failed its self-test (off by {difference:.2g})."
    from kvquant.kernels.cpu.dots import VNNI, WORDS

    unit = "8-bit products of AVX-512 VNNI" if VNNI else "16-bit products of AVX2" if WORDS else "plain vector code"
    return True, f"compiled kernel (numba, {unit}, {torch.get_num_threads()} threads)."


def unserved(q: torch.Tensor, store: Store, dtype: torch.dtype = torch.float32) -> str | None:
    """Why no compiled kernel, of the CPU or of Triton, can answer this request, in one sentence; None where one can."""
    dim = store.shape[3]
    if q.device.type not in ("cpu", "cuda"):
        return f"plain torch reference: the cache is on the {q.device.type}."
    if dtype != torch.float32:
        return f"plain torch reference: arithmetic in {str(dtype).removeprefix('torch.')}."
    if not store.planed:
        return "plain torch reference: every token is still whole."
    if dim % LINE or dim > LONGEST:
        return f"plain torch reference: head dimension {dim} is no multiple of {LINE} up to {LONGEST}."
    return None


def decode_attention(
    q: torch.Tensor,
    store: Store,
    mode: Mode,
    mask: torch.Tensor | None = None,
    scale: float | None = None,
    traced: bool = True,
) -> tuple[torch.Tensor, Trace | None]:
    """As :func:`kvquant.kernels.reference.decode_attention`, for requests on a CPU that are not :func:`unserved`.

    traced: where False there is no trace; with 2048 tokens of three KV heads, it takes as long as reading half of them.
    Raises ValueError as the reference does.
    """
    reference.check(q, store, mode, mask)
    reference.fold(q, store.shape[1])  # refuses query heads that cannot share
    answer = _compiled(q, store, mode, mask, scale, traced)
    return reference.decode_attention(q, store, mode, mask, scale) if answer is None else answer


def _compiled(
    q: torch.Tensor, store: Store, mode: Mode, mask: torch.Tensor | None, scale: float | None, traced: bool = True
) -> tuple[torch.Tensor, Trace | None] | None:
    """None where a query is not finite, or too loud for coarse scores."""
    import numba

    from kvquant.kernels.cpu import fixed_answer, half_answer

    answer = (half_answer if store.format == "half" else fixed_answer).answer
    threads = min(torch.get_num_threads(), numba.get_num_threads())
    return answer(q, store, mode, mask, store.shape[3] ** -0.5 if scale is None else float(scale), threads, traced)


def _self_test(format: str) -> float:
    """Largest difference to the reference, exact, or above an error certified, on a small problem."""
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(shape, generator=g) for shape in ((1, 2, 64), (1, 1, 160, 64), (1, 1, 160, 64)))
    store, mode = Store(format), Paper() if format == "half" else Certified(0.05)
    store.append(k, v)
    exact, _ = reference.decode_attention(q, store, Exact())
    found, _ = _compiled(q, store, Exact(), None, None)
    bounded, trace = _compiled(q, store, mode, None, None)
    return max(float((found - exact).abs().max()), float(((bounded - exact).norm(dim=-1) - trace.bound).max()))
