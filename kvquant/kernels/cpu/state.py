"""What the compiled passes work on: a store's planes, one request, and scratch memory. Built from a Store without copying planes.

A *row* is one KV head of one batch row, with its group of g query heads; R of them. Its *units* are runs of tokens, U of them,
and the tail (the tokens that are whole, T of them). A *wave* is as many rows as keep their weights in the cache, W of them.
"""

from __future__ import annotations

import weakref
from collections import namedtuple

import numpy as np
import torch

from kvquant.fixed_planes import FixedPlanes
from kvquant.kernels.cpu.choice import OCTAVES
from kvquant.kernels.cpu.dots import DIGITS
from kvquant.kernels.cpu.leaves import fixed_leaves
from kvquant.kernels.cpu.values import SUMS
from kvquant.store import Store

# Addresses of the planes' first rows; room: tokens that a KV head has room for; tokens: how many there are; the leaves.
Planes = namedtuple("Planes", "k_high k_low k_step v_high v_low v_step k_room v_room tokens dim turn dots add_high add_both")
# float32 [R, D]: K's spread and centre, V's centre; [R]: K's and V's noise, V's spread and radius; [2, R, D]: V's noise and spread.
Norms = namedtuple("Norms", "k_spread k_centre v_centre k_noise v_noise v_spread v_radius columns")
# query float32 [R, g, D]; tail_k, tail_v float32 [R, T, D]; visible uint8 [B, L], or [B, 0] where all tokens are; heads: KV heads
# of a batch row. The rest is what kvquant.kernels.cpu.queries makes of the queries.
Request = namedtuple("Request", "query tail_k tail_v visible heads scale digits start size units shifts")
# weights float32 [W, g, tokens], tail [W, g, T at least], peaks, totals [W, U + 1, g], level [W, g], known uint8 [W, tokens]; near,
# rest float32 [W, U + 1, g, D], sums float64 [W, U, g, SUMS], squares [W, U, g, OCTAVES + 1]; best float32 [W, U, g], the largest
# weight of a near token; limits [W, 2, g] of y and of p, ratio [W], step [W], the largest of K's; state int64 [W], see certified;
# counter: int64 [1]
Wave = namedtuple("Wave", "weights tail peaks totals level known near rest sums squares best limits ratio step state counter")
# float32 [R, g, D], three times [R, g], twice [R, L], or [R, 0] where nobody asks; counts int64 [R, 3], see judge.write_bits.
Result = namedtuple("Result", "out norm bound bound_max key_bits value_bits counts")

# Tokens of a unit: few enough that every thread gets some, many enough that adding up units costs nothing.
UNIT, LONG_UNIT, LONG = 512, 2048, 8192
# Bytes of weights in flight: a share of the second-level caches.
WAVE_BYTES = 2 << 20

_kept: weakref.WeakKeyDictionary[FixedPlanes, tuple] = weakref.WeakKeyDictionary()


def views_of(store: Store) -> tuple[Planes, Norms]:
    """Planes and norms of a store, made again only when the planes have changed: every change but a crop makes new norms."""
    planes = store.planes
    now = (planes.length, planes.k_noise.norm, planes.v_radius)
    kept = _kept.get(planes)
    if kept is None or kept[0][0] != now[0] or kept[0][1] is not now[1] or kept[0][2] is not now[2]:
        _kept[planes] = kept = (now, _planes_of(store), _norms_of(store))
    return kept[1:]


def _planes_of(store: Store) -> Planes:
    k, v, dim = store.planes.keys, store.planes.values, store.shape[3]
    parts = [g[name] for g in (k, v) for name in ("high", "low", "step")]
    addresses = (x.data_ptr() for x in parts)
    return Planes(*addresses, parts[0].stride(1) // dim, parts[3].stride(1) // dim, store.planed, dim, *fixed_leaves())


def _norms_of(store: Store) -> Norms:
    planes, (batch, heads, _, dim) = store.planes, store.shape
    rows = batch * heads

    def flat(x: torch.Tensor, *shape: int) -> np.ndarray:
        return np.ascontiguousarray(x.reshape(rows, *shape).numpy())

    columns = np.stack([flat(planes.noise(planes.v_noise, True), dim), flat(planes.v_spread.columns, dim)])
    noises = (flat(planes.noise(of)) for of in (planes.k_noise, planes.v_noise))
    by_channel = (flat(x, dim) for x in (planes.k_spread, planes.k_centre, planes.v_centre))
    return Norms(*by_channel, *noises, flat(planes.v_spread.norm), flat(planes.v_radius), columns)


def contiguous(rows: int, *parts: torch.Tensor) -> list[np.ndarray]:
    """float32 [R, ..., D] of each, always contiguous: numba compiles everything again for another layout."""
    return [np.ascontiguousarray(x.detach().float().numpy()).reshape(rows, -1, x.shape[-1]) for x in parts]


def visible_of(batch: int, mask: torch.Tensor | None) -> np.ndarray:
    """uint8 [B, L], or [B, 0] where every token may be attended."""
    if mask is None or bool(mask.all()):
        return np.empty((batch, 0), np.uint8)
    return np.ascontiguousarray(mask.numpy()).view(np.uint8)


def request_of(q: torch.Tensor, store: Store, mask: torch.Tensor | None, scale: float) -> Request:
    """q: [B, Hq, D]; mask: bool [B, L]."""
    batch, heads, _, dim = store.shape
    rows = batch * heads
    query, k, v = contiguous(rows, q, store.tail["k"], store.tail["v"])
    group = query.shape[1]
    digits, start = np.empty((rows, dim // 4, group, DIGITS, 4), np.int8), np.empty((rows, group, DIGITS), np.int32)
    size, units, shifts = (np.empty((rows, group, *more), np.float32) for more in ((6,), (), ()))
    return Request(query, k, v, visible_of(batch, mask), heads, np.float32(scale), digits, start, size, units, shifts)


def unit_of(tokens: int) -> int:
    """Tokens of a unit."""
    return UNIT if tokens < LONG else LONG_UNIT


def wave_of(rows: int, group: int, tokens: int, tail: int, dim: int) -> Wave:
    """Scratch for as many of ``rows`` rows as fit; its contents mean nothing."""
    waves = min(rows, max(1, WAVE_BYTES // (4 * group * tokens)))
    units = -(-tokens // unit_of(tokens))

    def floats(*shape: int) -> np.ndarray:
        return np.empty((waves, *shape), np.float32)

    return Wave(
        weights=floats(group, -(-tokens // 16) * 16),
        tail=floats(group, tail),
        peaks=floats(units + 1, group),
        totals=floats(units + 1, group),
        level=floats(group),
        known=np.empty((waves, tokens), np.uint8),
        near=floats(units + 1, group, dim),
        rest=floats(units + 1, group, dim),
        sums=np.empty((waves, units, group, SUMS)),
        squares=np.empty((waves, units, group, OCTAVES + 1)),
        best=floats(units, group),
        limits=floats(2, group),
        ratio=floats(),
        step=floats(),
        state=np.empty(waves, np.int64),
        counter=np.zeros(1, np.int64),
    )


def result_of(store: Store, group: int, traced: bool) -> Result:
    """Room for the answer, and where it is traced for the bits of every token; the tail's are there already."""
    batch, heads, length, dim = store.shape
    rows = batch * heads
    bits = np.empty((2, rows, length if traced else 0), np.float32)
    bits[:, :, store.planed :] = 8.0 * store.tail["k"].element_size()
    by_head = (np.empty((rows, group), np.float32) for _ in range(3))
    return Result(np.empty((rows, group, dim), np.float32), *by_head, bits[0], bits[1], np.zeros((rows, 3), np.int64))
