"""Kernels of decode attention over a store. ``reference`` defines what every other must return.

``decode_attention`` is the one door: a compiled kernel where it serves the request (``fast`` on a CPU, ``triton_decode`` on a
GPU), the reference elsewhere; ``reason`` says which, and why.
"""

from __future__ import annotations

import torch

from kvquant.kernels import fast, reference, triton_decode, warming
from kvquant.modes import Mode, Trace
from kvquant.store import Store

__all__ = ["decode_attention", "kernel_reason", "reason", "triton_ready", "unserved", "warm_up"]


def decode_attention(
    q: torch.Tensor,
    store: Store,
    mode: Mode,
    mask: torch.Tensor | None = None,
    scale: float | None = None,
    dtype: torch.dtype = torch.float32,
    traced: bool = True,
) -> tuple[torch.Tensor, Trace | None]:
    """softmax(scale q.K) V of one query per head, by the fastest kernel there is; see :func:`reference.decode_attention`.

    traced: where False, a kernel may leave the trace out.
    """
    reference.check(q, store, mode, mask)
    if unserved(q, store, dtype) is None:
        if not q.is_cuda:
            return fast.decode_attention(q, store, mode, mask, scale, traced)
        try:
            with torch.cuda.device(q.device):
                return triton_decode.decode_attention(q, store, mode, mask, scale)
        except torch.OutOfMemoryError:  # this request's, not the kernel's
            raise
        except Exception as error:  # what triton raises is no RuntimeError: no room for a launch, a failed compilation
            triton_decode.give_up(error)
    return reference.decode_attention(q, store, mode, mask, scale, dtype)


def unserved(q: torch.Tensor, store: Store, dtype: torch.dtype = torch.float32) -> str | None:
    """Why the compiled kernel does not answer this request now, in one sentence; None where it does."""
    if why := fast.unserved(q, store, dtype):
        return why
    usable, why = _ready(q, store)
    return None if usable else why


def reason(q: torch.Tensor, store: Store) -> str:
    """One sentence for the page: which kernel answers this query, and why."""
    return unserved(q, store) or _ready(q, store)[1]


def _ready(q: torch.Tensor, store: Store) -> tuple[bool, str]:
    return triton_ready() if q.is_cuda else warming.ready(store.format)


def triton_ready() -> tuple[bool, str]:
    """Whether a GPU's query is answered by Triton, and which kernel answers it, and why."""
    usable, why = triton_decode.available()
    return usable, why if usable else f"plain torch reference: {why}"


def kernel_reason(format: str = "fixed") -> str:
    """One sentence for the page: whether the compiled kernel of a storage format runs on this machine now."""
    return warming.ready(format)[1]


def warm_up() -> str:
    """Compiles the kernels of both formats, or loads them; waits for it. Returns :func:`kernel_reason`."""
    for format in ("half", "fixed"):
        warming.make(format)
    return kernel_reason()
