"""Triton kernels: the query made ready, the whole tokens, and the scores of the high plane of K in fixed point."""

import triton
import triton.language as tl

from kvquant.kernels import triton_columns as col
from kvquant.kernels.triton_parts import NOTHING, TOP, halves, in_column


@triton.jit
def open_step(
    q, k_spread, k_centre, k_noise, v_centre, k_tail, v_tail, visible, first, second, heads, top, sums, acc,
    scale, slack, group, planed, whole, tail_room, slots,
    MASKED: tl.constexpr, GP: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, KV_HEADS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Grid (BH,). Folds K's preparation into the query and attends to the whole tokens, which become slot 0.

    q: [BH, g, D]; k_tail, v_tail: [BH, tail_room, D], of which ``whole`` rows are there; visible: uint8 [B, planed + whole].
    Writes first, second: float16 [BH, GP, DP]; heads: [BH, GP, 4]; top, sums, acc [BH, slots, GP, DP].
    """
    pair = tl.program_id(0).to(tl.int64)
    g, d, j = tl.arange(0, GP), tl.arange(0, DP), tl.arange(0, BLOCK)
    query = tl.load(q + (pair * group + g[:, None]) * D + d, mask=(g[:, None] < group) & (d < D), other=0.0).to(tl.float32)
    middle = tl.load(v_centre + pair * D + d, mask=d < D, other=0.0)
    spread_out = query * tl.load(k_spread + pair * D + d, mask=d < D, other=0.0)
    shift = scale * tl.sum(query * tl.load(k_centre + pair * D + d, mask=d < D, other=0.0), 1)
    unit = tl.maximum(tl.max(tl.abs(spread_out), 1) / TOP, 1e-30)
    one, two = halves(spread_out / unit[:, None])
    at = (pair * GP + g[:, None]) * DP + d
    tl.store(first + at, one)
    tl.store(second + at, two)
    noise = scale * tl.sqrt(tl.sum(spread_out * spread_out, 1)) * (tl.load(k_noise + pair) + slack)
    delta = scale * tl.sum(tl.abs(spread_out), 1)
    record = in_column(unit * scale, col.FACTOR, 4) + in_column(shift, col.SHIFT, 4) + in_column(delta, col.DELTA, 4)
    tl.store(heads + (pair * GP + g[:, None]) * 4 + tl.arange(0, 4), record + in_column(noise, col.NOISE, 4))

    peak, mass, around = tl.full([GP], NOTHING, tl.float32), tl.zeros([GP], tl.float32), tl.zeros([GP], tl.float32)
    out = tl.zeros([GP, DP], tl.float32)
    for start in range(0, whole, BLOCK):
        i = start + j
        there = (i[:, None] < whole) & (d < D)
        k = tl.load(k_tail + (pair * tail_room + i[:, None]) * D + d, mask=there, other=0.0).to(tl.float32)
        v = tl.load(v_tail + (pair * tail_room + i[:, None]) * D + d, mask=there, other=0.0).to(tl.float32)
        seen = i < whole
        if MASKED:
            seen &= tl.load(visible + (pair // KV_HEADS) * (planed + whole) + planed + i, mask=i < whole, other=0) != 0
        s = tl.where(seen[None, :], scale * tl.dot(query, tl.trans(k), input_precision="tf32x3"), float("-inf"))
        higher = tl.maximum(peak, tl.max(s, 1))
        fade, e = tl.exp(peak - higher), tl.exp(s - higher[:, None])
        far = tl.sum(tl.where(there, (v - middle) * (v - middle), 0.0), 1)
        mass = mass * fade + tl.sum(e, 1)
        around = around * fade + tl.sum(e * far, 1)
        out = out * fade[:, None] + tl.dot(e, v, input_precision="tf32x3")
        peak = higher
    slot = (pair * slots) * GP + g
    tl.store(top + slot, peak)
    tl.store(sums + slot[:, None] * 16 + tl.arange(0, 16), in_column(mass, col.MASS, 16) + in_column(around, col.AROUND, 16))
    tl.store(acc + slot[:, None] * DP + d, out)


@triton.jit
def score_rows(
    k_high, k_step, visible, first, second, heads, scores, top, sums, group, planed, whole, room, rows, slots,
    MASKED: tl.constexpr, GP: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, KV_HEADS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Grid (BH, splits of ``rows`` rows). Writes the scores of K's high plane, [BH, g, planed], and what the plan must know."""
    pair, split = tl.program_id(0).to(tl.int64), tl.program_id(1)
    g, d, j = tl.arange(0, GP), tl.arange(0, DP), tl.arange(0, BLOCK)
    at = (pair * GP + g[:, None]) * DP + d
    one, two = tl.load(first + at), tl.load(second + at)
    factor = tl.load(heads + (pair * GP + g) * 4 + col.FACTOR)
    shift = tl.load(heads + (pair * GP + g) * 4 + col.SHIFT)
    peak, best = tl.full([GP], NOTHING, tl.float32), tl.zeros([GP], tl.float32)
    mass, energy = tl.zeros([GP], tl.float32), tl.zeros([GP], tl.float32)
    stop = tl.minimum((split + 1) * rows, planed)
    # 64-bit offsets once per program, 32-bit ones per element.
    k_high += pair * room * D
    k_step += pair * room
    scores += pair * group * planed
    visible += (pair // KV_HEADS) * (planed + whole)
    for start in range(split * rows, stop, BLOCK):
        i = start + j
        step = tl.load(k_step + i, mask=i < stop, other=0.0)
        digits = tl.load(k_high + i[:, None] * D + d, mask=(i[:, None] < stop) & (d < D), other=0).to(tl.float16)
        product = tl.dot(one, tl.trans(digits)) + tl.dot(two, tl.trans(digits))
        seen = i < stop
        if MASKED:
            seen &= tl.load(visible + i, mask=i < stop, other=0) != 0
        s = tl.where(seen[None, :], product * factor[:, None] * step[None, :] + shift[:, None], float("-inf"))
        tl.store(scores + g[:, None] * planed + i, s, mask=(g[:, None] < group) & (i < stop))
        most, where = tl.max(s, 1, return_indices=True)
        best = tl.where(most > peak, (start + where).to(tl.float32), best)
        higher = tl.maximum(peak, most)
        fade, e = tl.exp(peak - higher), tl.exp(s - higher[:, None])
        mass, energy, peak = mass * fade + tl.sum(e, 1), energy * fade * fade + tl.sum(e * e, 1), higher
    slot = (pair * slots + 1 + split) * GP + g
    record = in_column(mass, col.MASS, 16) + in_column(energy, col.ENERGY, 16) + in_column(best, col.BEST, 16)
    tl.store(top + slot, peak)
    tl.store(sums + slot[:, None] * 16 + tl.arange(0, 16), record)
