"""The reference for half planes: all bits, or the widths of AlignedKV (arXiv 2409.16546)."""

from __future__ import annotations

import torch

from kvquant.alignment import wasted_in_output, wasted_in_scores, widths
from kvquant.bounds import half_score_error, half_value_error, softmax_shift
from kvquant.half_planes import HalfPlanes
from kvquant.modes import Meter, Mode, Paper, Trace
from kvquant.planes import join_half, unpack
from kvquant.store import Store

# The output is estimated from the likeliest token of each of 32 residue classes, as the authors' code does.
CLASSES = 32


def read_half(q: torch.Tensor, store: Store, mode: Mode, visible: torch.Tensor, scale: float) -> tuple[torch.Tensor, Trace]:
    """q: [B, H, g, D]; visible: bool [B, 1, 1, L]; mode: Exact or Paper. Returns out [B, H, g, D] and the trace."""
    meter, planes, n = Meter(), store.planes, store.planed
    steps = mode.steps if isinstance(mode, Paper) else None
    k_peak, v_peak = meter.read(planes.k_peak), meter.read(planes.v_peak)
    k_bits = torch.full_like(k_peak, 16, dtype=torch.int32)
    if steps:
        k_bits = widths(wasted_in_scores(q.flatten(1, 2), k_peak), steps)
    k = torch.cat([_keys(planes, k_bits, meter).to(q.dtype), meter.read(store.tail["k"]).to(q.dtype)], dim=2)
    p = (scale * q @ k.transpose(-1, -2)).masked_fill(~visible, -torch.inf).softmax(-1)

    high = meter.read(planes.values["high"])
    v_bits = torch.full_like(high[..., 0], 16, dtype=torch.int32)
    if steps:
        estimate = _estimate(p[..., :n], join_half(high, None, None, 8).to(q.dtype))
        v_bits = widths(wasted_in_output(p[..., :n].flatten(1, 2), estimate.flatten(1, 2), v_peak), steps)
    v = torch.cat([_values(planes, high, v_bits, meter).to(q.dtype), meter.read(store.tail["v"]).to(q.dtype)], dim=2)
    out = p @ v

    mass12, mass8 = ((p[..., :n] * (v_bits == bits)[:, :, None]).sum(-1) for bits in (12, 8))
    error = half_bound(q, store, k_bits, mass12, mass8, scale)
    trace = Trace.of(
        store,
        meter,
        out,
        key_bits=k_bits.float().mean(-1, keepdim=True).expand(-1, -1, n),
        value_bits=v_bits,
        channel_bits=k_bits.float(),
        bound=error.norm(dim=-1),
        bound_max=error.amax(-1),
    )
    return out, trace


def half_bound(
    q: torch.Tensor, store: Store, k_bits: torch.Tensor, mass12: torch.Tensor, mass8: torch.Tensor, scale: float
) -> torch.Tensor:
    """Proven bound of every output channel's error, [B, H, g, D], if K's channels are read with ``k_bits`` [B, H, D].

    mass12, mass8: [B, H, g], the probabilities of tokens of which V is read with 12 and 8 bits.
    """
    planes, tail = store.planes, store.tail
    v_peak = planes.v_peak
    value = half_value_error(v_peak[:, :, None].to(q.dtype), mass12, mass8)
    delta = half_score_error(q, planes.k_peak[:, :, None], k_bits[:, :, None], scale)
    # No value is farther from another than the box of all values is long.
    box = 2 * torch.maximum(v_peak, tail["v"].abs().amax(2).float() if tail.length else v_peak)[:, :, None].to(q.dtype)
    return value + softmax_shift(delta)[..., None] * box


def _keys(planes: HalfPlanes, bits: torch.Tensor, meter: Meter) -> torch.Tensor:
    """K as read, float16 [B, H, n, D]; bits: [B, H, D]. The 4-bit planes of a channel are touched only where its width says so."""
    high = meter.read(planes.keys["high"]).transpose(2, 3)  # [B, H, D, blocks, 64]
    parts = [_part(planes.keys[name].transpose(2, 3), bits >= least, meter) for name, least in (("middle", 12), ("low", 16))]
    return join_half(high, *parts, bits[..., None, None]).flatten(3).transpose(2, 3)


def _values(planes: HalfPlanes, high: torch.Tensor, bits: torch.Tensor, meter: Meter) -> torch.Tensor:
    """V as read, float16 [B, H, n, D]; bits: [B, H, n]; ``high`` has been read already."""
    parts = [_part(planes.values[name], bits >= least, meter) for name, least in (("middle", 12), ("low", 16))]
    return join_half(high, *parts, bits[..., None])


def _part(packed: torch.Tensor, chosen: torch.Tensor, meter: Meter) -> torch.Tensor:
    """A 4-bit plane with its unread rows left zero."""
    out = torch.zeros_like(packed)
    out[chosen] = meter.rows(packed, chosen)
    return unpack(out)


def _estimate(p: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Size of the output per channel, sum of p |v| over the likeliest tokens: p [B, H, g, n], v [B, H, n, D] -> [B, H, g, D]."""
    n = p.shape[-1] // CLASSES * CLASSES
    best, row = p[..., :n].unflatten(-1, (-1, CLASSES)).max(-2)
    token = row * CLASSES + torch.arange(CLASSES, device=p.device)
    picked = v[:, :, None].expand(-1, -1, p.shape[2], -1, -1).gather(3, token[..., None].expand(*token.shape, v.shape[-1]))
    return (best[..., None] * picked.abs()).sum(-2)
