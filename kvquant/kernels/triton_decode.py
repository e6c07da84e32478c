"""Decode attention on a GPU by Triton, behind a door that opens without it: ``available`` says whether it runs, and why.

Split-KV flash decoding, of the planes as they are stored. Exact over fixed planes is one pass over K and V, a split of the
tokens per program, and a merge. Certified and Paper choose what to read by the probabilities, so they take two passes, K's
scores and then V (and K's low rows), with the scores between them; why not one: see triton_plan.

Not measured on a GPU. The kernels run in Triton's interpreter against the reference and compile for sm_90 (both in
tests/unit/test_kv_triton.py); block sizes are a guess from what ptxas says of registers (see triton_step).
"""

from __future__ import annotations

import os
from functools import lru_cache

import torch

from kvquant.alignment import fold
from kvquant.kernels import reference
from kvquant.modes import Certified, Exact, Mode, Paper, Trace
from kvquant.store import Store

_failures: list[str] = []


def interpreted() -> bool:
    """Whether Triton's interpreter runs the kernels, on the CPU; set before triton is first imported. For tests only."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def available() -> tuple[bool, str]:
    """Whether the kernels run here, and why, in one sentence. Compiles and tries them on the first call."""
    return (False, _failures[0]) if _failures else _tried()


def give_up(error: Exception) -> None:
    """After a failure in use: from now on the kernels are not available, for this reason."""
    _failures.append(f"no Triton kernel: it failed in use ({type(error).__name__}: {error}).")


@lru_cache(maxsize=1)
def _tried() -> tuple[bool, str]:
    if not (interpreted() or torch.cuda.is_available()):
        return False, "no Triton kernel: there is no NVIDIA GPU here."
    try:
        import triton

        difference = _self_test("cpu" if interpreted() else "cuda")
    except Exception as error:  # triton fails in many ways: no wheel, no compiler, an old driver, a GPU it does not know
        return False, f"no Triton kernel: it is not usable ({type(error).__name__}: {error})."
    if not difference < 1e-3:
        return False, f"no Triton kernel: it failed its self-test (off by {difference:.2g})."
    if interpreted():
        return True, f"Triton kernel (triton {triton.__version__}) in the interpreter: for tests, very slow."
    return True, f"Triton kernel (triton {triton.__version__}, {torch.cuda.get_device_name()}, split-KV flash decoding)."


def decode_attention(
    q: torch.Tensor, store: Store, mode: Mode, mask: torch.Tensor | None = None, scale: float | None = None
) -> tuple[torch.Tensor, Trace]:
    """As :func:`kvquant.kernels.reference.decode_attention`: the same bounds kept, by bits chosen a little differently.

    q: [B, Hq, D], floating, on the device of the store; mask: bool [B, L]; scale: 1 / sqrt(D) when None. Returns float32
    [B, Hq, D] and the trace; its bounds count the rounding of query and probabilities, too. Raises ValueError as the reference
    does, and off the GPU; ImportError where triton is missing.
    """
    reference.check(q, store, mode, mask)
    if not store.planed:
        return reference.decode_attention(q, store, mode, mask, scale)
    if not (interpreted() or q.is_cuda):
        raise ValueError(f"The Triton kernel reads from a GPU's memory, but the query is on the {q.device.type}.")
    from kvquant.kernels.triton_fixed import read_fixed
    from kvquant.kernels.triton_half import read_half

    _, heads, _, dim = store.shape
    read = {"fixed": read_fixed, "half": read_half}[store.format]
    out, trace = read(fold(q, heads).float(), store, mode, mask, dim**-0.5 if scale is None else float(scale))
    return out.flatten(1, 2), trace


def _self_test(device: str) -> float:
    """Largest difference to the reference, exact, or above the error certified, on a small problem."""
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(shape, generator=g).to(device) for shape in ((1, 2, 64), (1, 1, 160, 64), (1, 1, 160, 64)))
    worst = 0.0
    for format, mode in (("fixed", Certified(0.05)), ("half", Paper())):
        store = Store(format)
        store.append(k, v)
        exact, _ = reference.decode_attention(q, store, Exact())
        found, _ = decode_attention(q, store, Exact())
        bounded, trace = decode_attention(q, store, mode)
        beyond = (bounded - exact).norm(dim=-1) - trace.bound
        worst = max(worst, float((found - exact).abs().max()), float(beyond.max()))
    return worst
