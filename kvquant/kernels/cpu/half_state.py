"""What the compiled passes over half planes work on; see kvquant.kernels.cpu.state for rows, units and waves."""

from __future__ import annotations

from collections import namedtuple

import numpy as np
import torch

from kvquant.alignment import LEAST_HALF, exponent, wasted_in_scores, widths
from kvquant.kernels.cpu.leaves import half_leaves
from kvquant.kernels.cpu.state import WAVE_BYTES, contiguous, unit_of, visible_of
from kvquant.kernels.reference_half import CLASSES
from kvquant.modes import Exact, Paper
from kvquant.store import Store

# Addresses of the planes' first rows; k_room: blocks, v_room: tokens that a KV head has room for; the leaves.
Planes = namedtuple("Planes", "k_high k_middle k_low v_high v_middle v_low k_room v_room tokens dim scores add_8 add_12 add_16")
# query, scaled (times scale / log 2) float32 [R, g, D]; k_bits int32 [R, D]; v_peak: exponents of V's peaks, int32 [R, D]; v_mean:
# float32 [R, D], what unread values are taken as; steps: wasted bits from which 12, 8, and none are read; the rest as in
# kvquant.kernels.cpu.state.
Request = namedtuple("Request", "query scaled tail_k tail_v visible heads scale k_bits v_peak v_mean steps")
# As in kvquant.kernels.cpu.state, and best float32, token int64 [W, U, g, CLASSES], the likeliest tokens; room int64 [W, g]: the
# exponent of p from which all bits count; mass float64 [W, U, g, 3] of tokens read with 12, 8 and no bits; bits uint8 [W, tokens].
Wave = namedtuple("Wave", "weights tail peaks totals level rest best token room mass bits counter")
# out float32 [R, g, D]; mass float64 [R, g, 3]; value_bits float32 [R, L], or [R, 0] where nobody asks; counts int64 [R, 3], rows
# of V read with 8 bits at least, 12, 16.
Result = namedtuple("Result", "out mass value_bits counts")


def planes_of(store: Store) -> Planes:
    """Addresses in a store's planes."""
    planes, dim = store.planes, store.shape[3]
    parts = [g[name] for g in (planes.keys, planes.values) for name in ("high", "middle", "low")]
    rooms = parts[0].stride(1) // parts[0].stride(2), parts[3].stride(1) // dim
    return Planes(*(x.data_ptr() for x in parts), *rooms, store.planed, dim, *half_leaves())


def request_of(q: torch.Tensor, store: Store, mask: torch.Tensor | None, scale: float, mode: Exact | Paper) -> Request:
    """q: [B, Hq, D]; mask: bool [B, L]."""
    steps = mode.steps if isinstance(mode, Paper) else None
    (batch, heads, _, dim), planes = store.shape, store.planes
    rows = batch * heads
    query, k, v = contiguous(rows, q, store.tail["k"], store.tail["v"])
    scaled = (query * np.float32(scale / np.log(2))).astype(np.float32)
    k_bits = widths(wasted_in_scores(q.float(), planes.k_peak), steps) if steps else torch.full_like(planes.k_peak, 16)
    v_peak = exponent(planes.v_peak).clamp(min=LEAST_HALF)
    bits, peak = (np.ascontiguousarray(x.to(torch.int32).reshape(rows, dim).numpy()) for x in (k_bits, v_peak))
    mean = np.ascontiguousarray(planes.v_mean.reshape(rows, dim).numpy())
    never = 1 << 30
    limits = np.array(steps or (never, never, never), np.int64)
    return Request(query, scaled, k, v, visible_of(batch, mask), heads, np.float32(scale), bits, peak, mean, limits)


def wave_of(rows: int, group: int, tokens: int, tail: int, dim: int) -> Wave:
    """Scratch for as many of ``rows`` rows as fit; its contents mean nothing."""
    waves, units = min(rows, max(1, WAVE_BYTES // (4 * group * tokens))), -(-tokens // unit_of(tokens))

    def floats(*shape: int) -> np.ndarray:
        return np.empty((waves, *shape), np.float32)

    return Wave(
        weights=floats(group, tokens),
        tail=floats(group, tail),
        peaks=floats(units + 1, group),
        totals=floats(units + 1, group),
        level=floats(group),
        rest=floats(units + 1, group, dim),
        best=floats(units, group, CLASSES),
        token=np.empty((waves, units, group, CLASSES), np.int64),
        room=np.empty((waves, group), np.int64),
        mass=np.empty((waves, units, group, 3)),
        bits=np.empty((waves, tokens), np.uint8),
        counter=np.zeros(1, np.int64),
    )


def result_of(store: Store, group: int, traced: bool) -> Result:
    """Room for the answer, and where it is traced for the bits of every token; the tail's are there already."""
    batch, heads, length, dim = store.shape
    rows = batch * heads
    bits = np.empty((rows, length if traced else 0), np.float32)
    bits[:, store.planed :] = 8.0 * store.tail["k"].element_size()
    return Result(np.empty((rows, group, dim), np.float32), np.empty((rows, group, 3)), bits, np.zeros((rows, 3), np.int64))
