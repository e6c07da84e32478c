"""Triton kernel over fixed planes: the pieces merged, under the bound of kvquant.bounds from what they have summed."""

import triton
import triton.language as tl

from kvquant.kernels import triton_columns as col
from kvquant.kernels.triton_parts import HIGH_ERROR, LOW_ERROR, NOTHING, pick


@triton.jit
def value_part(total, spread, noise, radius, corner):
    """The value part of kvquant.bounds from the sums; spread, noise: norms and corner sqrt(D), or column norms [DP] and 1."""
    missing = tl.minimum(spread * tl.sqrt(pick(total, col.UNREAD2)), radius * pick(total, col.UNREAD))
    coarse = tl.minimum(noise * tl.sqrt(pick(total, col.COARSE2)), HIGH_ERROR * corner * pick(total, col.COARSE))
    return missing + coarse + LOW_ERROR * corner * pick(total, col.BOTH)


@triton.jit
def score_part(total, noise, wide, spread, offset, far, wander):
    """The score part of kvquant.bounds from the sums, with two simplifications upward.

    No value is farther from b than ``far``. For rows read whole Cauchy-Schwarz replaces the sum row by row:
    sum p g ||v - b|| <= (sum p g**2)**1/2 (sum p ||v - b||**2)**1/2, the last at most ``wander``.
    """
    rough, rough2 = pick(total, col.ROUGH) * wide * HIGH_ERROR, tl.sqrt(pick(total, col.ROUGH2))
    fine = tl.sqrt(pick(total, col.FINE2)) * wide * LOW_ERROR
    largest = tl.minimum(noise * pick(total, col.ROUGHEST), wide * HIGH_ERROR * rough2)
    moved = tl.minimum(noise * rough2, rough)
    mass = tl.maximum(tl.maximum(1.0 - moved - fine, 1.0 - pick(total, col.SHRUNK)), 1e-20)
    return (fine * tl.minimum(far, wander) + tl.minimum(spread * largest + offset * moved, far * rough)) / mass


@triton.jit
def merge(
    top, sums, acc, heads, v_centre, v_radius, v_spread, v_columns, v_noise, v_noise_columns, results, output,
    target, slack, slack_columns, corner, group, slots,
    GP: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, SP: tl.constexpr,
):  # fmt: skip
    """Grid (BH, g). The output of a query head, [BH, g, D], and its ``results``."""
    pair, r = tl.program_id(0).to(tl.int64), tl.program_id(1)
    d, slot, column = tl.arange(0, DP), tl.arange(0, SP), tl.arange(0, 16)
    at = (pair * slots + slot) * GP + r
    tops = tl.load(top + at, mask=slot < slots, other=NOTHING)
    fade = tl.exp(tops - tl.max(tops, 0))
    pieces = tl.load(sums + at[:, None] * 16 + column, mask=slot[:, None] < slots, other=0.0)
    squared = (column == col.ROUGH2) | (column == col.UNREAD2) | (column == col.COARSE2)
    pieces *= tl.where(squared[None, :], (fade * fade)[:, None], fade[:, None])
    total = tl.where(column == col.ROUGHEST, tl.max(pieces, 0), tl.sum(pieces, 0))
    mass = pick(total, col.MASS)
    total = total / tl.where(squared, mass * mass, mass)
    middle = tl.load(v_centre + pair * D + d, mask=d < D, other=0.0)
    out = tl.load(acc + at[:, None] * DP + d, mask=slot[:, None] < slots, other=0.0)
    out = tl.sum(out * fade[:, None], 0) / mass + pick(total, col.UNREAD) * middle
    tl.store(output + (pair * group + r) * D + d, out, mask=d < D)

    radius, spread = tl.load(v_radius + pair), tl.load(v_spread + pair)
    gap = tl.where(d < D, out - middle, 0.0)
    norm, off = tl.sqrt(tl.sum(tl.where(d < D, out * out, 0.0), 0)), tl.sqrt(tl.sum(gap * gap, 0))
    noise, wide = tl.load(heads + (pair * GP + r) * 4 + col.NOISE), tl.load(heads + (pair * GP + r) * 4 + col.DELTA)
    value = value_part(total, spread, tl.load(v_noise + pair) + slack, radius, corner)
    # sum p ||v - b||**2 = sum p ||v - c||**2 - ||b - c||**2, with a margin for float32.
    closer = tl.maximum(off - value, 0.0)
    wander = tl.sqrt(tl.maximum(pick(total, col.AROUND) * (1 + 2.0**-16) - closer * closer, 0.0))
    far = radius + off + value
    bound = value + score_part(total, noise, wide, spread, off + value, far, wander)
    columns = tl.load(v_columns + pair * D + d, mask=d < D, other=0.0)
    noisy = tl.load(v_noise_columns + pair * D + d, mask=d < D, other=0.0) + slack_columns
    channel = value_part(total, columns, noisy, radius, 1.0)
    channel += score_part(total, noise, wide, columns, tl.abs(gap) + channel, far, wander)
    most = tl.max(tl.where(d < D, channel, 0.0), 0)
    bound = tl.where(bound == bound, bound, float("inf"))
    at = results + (pair * GP + r) * 8
    tl.store(at + col.NORM, norm)
    tl.store(at + col.BOUND, bound)
    tl.store(at + col.BOUND_MAX, tl.minimum(bound, tl.where(most == most, most, float("inf"))))
    tl.store(at + col.OFF, off)
    # Where all that weighs was read whole, another round has nothing to add.
    left = pick(total, col.ROUGH) + pick(total, col.UNREAD) + pick(total, col.COARSE)
    tl.store(at + col.SHORT, tl.where((bound <= target * norm) | (left == 0.0), 0.0, 1.0))
