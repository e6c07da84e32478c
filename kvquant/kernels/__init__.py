"""Kernels of decode attention over a store. ``reference`` defines what every other must return.

``decode_attention`` is the one door: a compiled CPU kernel (``fast``) where it serves the request, the reference elsewhere;
``reason`` says which, and why.
"""

from __future__ import annotations

import torch

from kvquant.kernels import fast, reference
from kvquant.modes import Mode, Trace
from kvquant.store import Store

__all__ = ["decode_attention", "kernel_reason", "reason"]


def decode_attention(
    q: torch.Tensor,
    store: Store,
    mode: Mode,
    mask: torch.Tensor | None = None,
    scale: float | None = None,
    dtype: torch.dtype = torch.float32,
) -> tuple[torch.Tensor, Trace]:
    """softmax(scale q.K) V of one query per head, by the fastest kernel there is; see :func:`reference.decode_attention`."""
    reference.check(q, store, mode, mask)
    if fast.unserved(q, store, dtype) is None:
        return fast.decode_attention(q, store, mode, mask, scale)
    return reference.decode_attention(q, store, mode, mask, scale, dtype)


def reason(q: torch.Tensor, store: Store) -> str:
    """One sentence for the page: which kernel answers this query, and why."""
    return fast.unserved(q, store) or fast.available(store.format)[1]


def kernel_reason(format: str = "fixed") -> str:
    """One sentence for the page: whether the compiled kernel of a storage format runs on this machine.

    Compiles it on the first call, so calling this where nobody waits (at start, or while an image is built) warms it up.
    """
    return fast.available(format)[1]
