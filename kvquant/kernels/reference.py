"""One decode step of attention over a store, as its definition reads: plain torch, no loop over tokens, every byte metered."""

from __future__ import annotations

import torch

from kvquant.alignment import fold
from kvquant.kernels.reference_fixed import read_fixed
from kvquant.kernels.reference_half import read_half
from kvquant.modes import Certified, Exact, Meter, Mode, Paper, Trace
from kvquant.store import Store

READERS = {"half": read_half, "fixed": read_fixed}
MODES = {"whole": (Exact,), "half": (Exact, Paper), "fixed": (Exact, Certified)}


def decode_attention(
    q: torch.Tensor,
    store: Store,
    mode: Mode,
    mask: torch.Tensor | None = None,
    scale: float | None = None,
    dtype: torch.dtype = torch.float32,
) -> tuple[torch.Tensor, Trace]:
    """softmax(scale q.K) V of one query per head over everything in ``store``, read as ``mode`` says.

    q: [B, Hq, D], floating; mask: bool [B, L], true where a token may be attended (None: everywhere), at least one per row;
    scale: 1 / sqrt(D) when None; dtype: of the arithmetic. Returns the output [B, Hq, D] in ``dtype`` and the trace.
    Raises ValueError on wrong shapes, an empty cache, or a mode that the store's planes cannot serve.
    """
    check(q, store, mode, mask)
    batch, heads, length, dim = store.shape
    visible = torch.ones(batch, length, dtype=torch.bool, device=q.device) if mask is None else mask
    # As long as every token is whole there is nothing to choose.
    read = READERS[store.format] if store.planed else read_whole
    out, trace = read(fold(q, heads).to(dtype), store, mode, visible[:, None, None], dim**-0.5 if scale is None else scale)
    return out.flatten(1, 2), trace


def check(q: torch.Tensor, store: Store, mode: Mode, mask: torch.Tensor | None) -> None:
    """What every kernel must refuse. Raises ValueError as :func:`decode_attention` says."""
    if store.length == 0:
        raise ValueError("There is nothing to attend to: the cache is empty.")
    batch, _, length, dim = store.shape
    if q.ndim != 3 or q.shape[0] != batch or q.shape[2] != dim:
        raise ValueError(f"q must be [{batch}, Hq, {dim}] for this cache, got {list(q.shape)}.")
    if mask is not None and (mask.shape != (batch, length) or mask.dtype != torch.bool):
        raise ValueError(f"mask must be bool [{batch}, {length}], got {mask.dtype} {list(mask.shape)}.")
    if not isinstance(mode, MODES[store.format]):
        names = " or ".join(m.__name__ for m in MODES[store.format])
        raise ValueError(f"A cache stored '{store.format}' can be read in mode {names}, not {type(mode).__name__}.")


def read_whole(q: torch.Tensor, store: Store, mode: Mode, visible: torch.Tensor, scale: float) -> tuple[torch.Tensor, Trace]:
    """The reader of a store that has no planes (yet). q: [B, H, g, D]; visible: bool [B, 1, 1, L]."""
    meter = Meter()
    k, v = meter.read(store.tail["k"]), meter.read(store.tail["v"])
    scores = (scale * q @ k.to(q.dtype).transpose(-1, -2)).masked_fill(~visible, -torch.inf)
    out = scores.softmax(-1) @ v.to(q.dtype)
    return out, Trace.of(store, meter, out)
