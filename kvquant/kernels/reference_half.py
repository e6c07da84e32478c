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
# The least width for which a plane is touched.
PLANES = {"high": 8, "middle": 12, "low": 16}


def read_half(q: torch.Tensor, store: Store, mode: Mode, visible: torch.Tensor, scale: float) -> tuple[torch.Tensor, Trace]:
    """q: [B, H, g, D]; visible: bool [B, 1, 1, L]; mode: Exact or Paper. Returns out [B, H, g, D] and the trace."""
    meter, planes, n = Meter(), store.planes, store.planed
    steps = mode.steps if isinstance(mode, Paper) else None
    k_peak, v_peak, v_mean = (meter.read(x) for x in (planes.k_peak, planes.v_peak, planes.v_mean))
    k_bits = torch.full_like(k_peak, 16, dtype=torch.int32)
    if steps:
        k_bits = widths(wasted_in_scores(q.flatten(1, 2), k_peak), steps)
    k = torch.cat([_keys(planes, k_bits, meter).to(q.dtype), meter.read(store.tail["k"]).to(q.dtype)], dim=2)
    p = (scale * q @ k.transpose(-1, -2)).masked_fill(~visible, -torch.inf).softmax(-1)

    high = planes.values["high"]
    v_bits = torch.full_like(high[..., 0], 16, dtype=torch.int32)
    if steps:
        likely = likeliest(p[..., :n])
        estimate = _estimate(*likely, high)
        v_bits = widths(wasted_in_output(p[..., :n].flatten(1, 2), estimate.flatten(1, 2), v_peak), steps)
        v_bits = at_least_8(v_bits, likely[1].flatten(2))
    v = torch.cat([_values(planes, v_bits, meter).to(q.dtype), meter.read(store.tail["v"]).to(q.dtype)], dim=2)
    masses = torch.stack([(p[..., :n] * (v_bits == bits)[:, :, None]).sum(-1) for bits in (12, 8, 0)], dim=-1)
    out = p @ v + masses[..., 2:] * v_mean[:, :, None].to(q.dtype)
    error = half_bound(q, store, k_bits, masses, scale)
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


def half_bound(q: torch.Tensor, store: Store, k_bits: torch.Tensor, masses: torch.Tensor, scale: float) -> torch.Tensor:
    """Proven bound of every output channel's error, [B, H, g, D], if K's channels are read with ``k_bits`` [B, H, D].

    masses: [B, H, g, 3], the probabilities of tokens of which V is read with 12, 8 and no bits.
    """
    planes, tail = store.planes, store.tail
    v_peak = planes.v_peak
    value = half_value_error(v_peak[:, :, None].to(q.dtype), masses)
    delta = half_score_error(q, planes.k_peak[:, :, None], k_bits[:, :, None], scale)
    # No value is farther from another than the box of all values is long.
    box = 2 * torch.maximum(v_peak, tail["v"].abs().amax(2).float() if tail.length else v_peak)[:, :, None].to(q.dtype)
    return value + softmax_shift(delta)[..., None] * box


def likeliest(p: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The likeliest token of every residue class: p [..., n], n a multiple of 64 -> (its p, which it is int64) [..., CLASSES]."""
    best, row = p.unflatten(-1, (-1, CLASSES)).max(-2)
    return best, row * CLASSES + torch.arange(CLASSES, device=p.device)


def at_least_8(bits: torch.Tensor, token: torch.Tensor) -> torch.Tensor:
    """Widths [B, H, n] where the high plane of some tokens, int64 [B, H, m], has been read already, for the estimate."""
    return torch.maximum(bits, torch.zeros_like(bits).scatter(2, token, 8))


def _keys(planes: HalfPlanes, bits: torch.Tensor, meter: Meter) -> torch.Tensor:
    """K as read, float16 [B, H, n, D]; bits: [B, H, D]. A plane of a channel is touched only where its width says so."""
    by_channel = {name: planes.keys[name].transpose(2, 3) for name in PLANES}  # [B, H, D, blocks, 64]
    return _read(by_channel, bits, meter).flatten(3).transpose(2, 3)


def _values(planes: HalfPlanes, bits: torch.Tensor, meter: Meter) -> torch.Tensor:
    """V as read, float16 [B, H, n, D]; bits: [B, H, n]. A plane of a token is touched only where its width says so."""
    return _read({name: planes.values[name] for name in PLANES}, bits, meter)


def _read(parts: dict[str, torch.Tensor], bits: torch.Tensor, meter: Meter) -> torch.Tensor:
    """Rows of halves as read, zero where unread: the planes [..., row] of ``parts``, bits [...]."""
    read = []
    for name, least in PLANES.items():
        out = torch.zeros_like(parts[name])
        out[bits >= least] = meter.rows(parts[name], bits >= least)
        read.append(out if name == "high" else unpack(out))
    bits = bits[(...,) + (None,) * (read[0].ndim - bits.ndim)]
    return join_half(*read, bits).masked_fill(bits == 0, 0.0)


def _estimate(best: torch.Tensor, token: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    """Size of the output per channel, sum of p |v| over the likeliest tokens, of which the high plane is read.

    best, token: [B, H, g, CLASSES]; high: [B, H, n, D]. Returns [B, H, g, D].
    """
    shared = high[:, :, None].expand(-1, -1, token.shape[2], -1, -1)
    picked = shared.gather(3, token[..., None].expand(*token.shape, high.shape[-1]))
    return (best[..., None] * join_half(picked, None, None, 8).to(best.dtype).abs()).sum(-2)
