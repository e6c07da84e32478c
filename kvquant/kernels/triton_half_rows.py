"""Triton kernels over half planes: K's widths per channel, V's per token, each plane touched only where it is asked for.

Numbers are float16 bit patterns; a product with them takes its float32 factor in two float16 parts, as in triton_parts.
"""

import triton
import triton.language as tl

from kvquant.kernels import triton_columns as col
from kvquant.kernels.triton_parts import NOTHING, TOP, halves, in_column

TOKENS = tl.constexpr(64)
PACKED = tl.constexpr(32)


@triton.jit
def join(high, middle, low, has_middle, has_low):
    """As kvquant.planes.join_half: the mid-point of what was read, zeros where the exponent is 31."""
    fill = tl.where((high & 124) == 124, 0, 8)
    bits = (high << 8) | (tl.where(has_middle, middle, fill) << 4)
    bits |= tl.where(has_low, low, tl.where(has_middle, fill, 0))
    return bits.to(tl.int16).to(tl.float16, bitcast=True)


@triton.jit
def score_halves(
    k_high, k_middle, k_low, k_bits, visible, first, second, heads, scores, top, sums, group, planed, whole, k_room, rows, slots,
    MASKED: tl.constexpr, GP: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, KV_HEADS: tl.constexpr,
):  # fmt: skip
    """Grid (BH, splits of ``rows`` tokens). k_high: [BH, k_room, D, 64], the others with 32 bytes; k_bits: int32 [BH, D].

    Writes scores [BH, g, planed], and of every split the largest score and the sum of exp(score - largest).
    """
    pair, split = tl.program_id(0).to(tl.int64), tl.program_id(1)
    g, d, j = tl.arange(0, GP), tl.arange(0, DP), tl.arange(0, TOKENS)
    at = (pair * GP + g[:, None]) * DP + d
    one, two = tl.load(first + at), tl.load(second + at)
    factor = tl.load(heads + (pair * GP + g) * 4 + col.FACTOR)
    bits = tl.load(k_bits + pair * D + d, mask=d < D, other=0)[:, None]
    peak, mass = tl.full([GP], NOTHING, tl.float32), tl.zeros([GP], tl.float32)
    stop = tl.minimum((split + 1) * rows, planed)
    for start in range(split * rows, stop, TOKENS):
        i = start + j
        channel = (pair * k_room + start // TOKENS) * D + d[:, None]
        packed, shift = channel * PACKED + (j % PACKED)[None, :], (j // PACKED * 4)[None, :]
        every = (d[:, None] < D) & (bits >= 8) & (j[None, :] >= 0)
        high = tl.load(k_high + channel * TOKENS + j[None, :], mask=every, other=0).to(tl.int32)
        middle = (tl.load(k_middle + packed, mask=every & (bits >= 12), other=0).to(tl.int32) >> shift) & 15
        low = (tl.load(k_low + packed, mask=every & (bits >= 16), other=0).to(tl.int32) >> shift) & 15
        k = tl.where(every, join(high, middle, low, bits >= 12, bits >= 16), 0.0)
        seen = i < stop
        if MASKED:
            seen &= tl.load(visible + (pair // KV_HEADS) * (planed + whole) + i, mask=i < stop, other=0) != 0
        s = tl.where(seen[None, :], (tl.dot(one, k) + tl.dot(two, k)) * factor[:, None], float("-inf"))
        tl.store(scores + (pair * group + g[:, None]) * planed + i, s, mask=(g[:, None] < group) & (i < stop))
        higher = tl.maximum(peak, tl.max(s, 1))
        mass = mass * tl.exp(peak - higher) + tl.sum(tl.exp(s - higher[:, None]), 1)
        peak = higher
    slot = (pair * slots + 1 + split) * GP + g
    tl.store(top + slot, peak)
    tl.store(sums + slot[:, None] * 16 + tl.arange(0, 16), in_column(mass, col.MASS, 16))


@triton.jit
def sum_halves(
    v_high, v_middle, v_low, scores, total, room, v_bits, acc, steps_high, steps_middle, steps_low, group, planed, v_room, rows,
    slots, GP: tl.constexpr, D: tl.constexpr, DP: tl.constexpr,
):  # fmt: skip
    """Grid (BH, splits). Sums p v over a split's tokens; p = exp(score - total).

    total: [BH, GP], log of the sum of all exp(score); room: int32 [BH, GP], what kvquant.alignment.wasted_in_output takes the
    exponent of p from; steps_high, steps_middle, steps_low: wasted bits below which a plane is read; v_bits: uint8 [BH, planed],
    not zero where the high plane has been read already, written.
    """
    pair, split = tl.program_id(0).to(tl.int64), tl.program_id(1)
    g, d, j = tl.arange(0, GP), tl.arange(0, DP), tl.arange(0, TOKENS)
    norm, space = tl.load(total + pair * GP + g), tl.load(room + pair * GP + g)
    out = tl.zeros([GP, DP], tl.float32)
    stop = tl.minimum((split + 1) * rows, planed)
    for start in range(split * rows, stop, TOKENS):
        i = start + j
        inside = (g[:, None] < group) & (i < stop)[None, :]
        s = tl.load(scores + (pair * group + g[:, None]) * planed + i, mask=inside, other=float("-inf"))
        p = tl.exp(s - norm[:, None])
        # floor(log2 p) from its bits; zero and subnormals are at -127, far below any that matters.
        wasted = space[:, None] - ((p.to(tl.int32, bitcast=True) >> 23) - 127)
        wasted = tl.maximum(tl.min(tl.where(g[:, None] < group, wasted, 1 << 20), 0), 0)[:, None]
        has_middle, has_low = wasted < steps_middle, wasted < steps_low
        has_high = (wasted < steps_high) | (tl.load(v_bits + pair * planed + i, mask=i < stop, other=0) != 0)[:, None]
        row, every = pair * v_room + i[:, None], (i[:, None] < stop) & (d < D) & has_high
        packed, shift = row * (D // 2) + d % (D // 2), d // (D // 2) * 4
        high = tl.load(v_high + row * D + d, mask=every, other=0).to(tl.int32)
        middle = (tl.load(v_middle + packed, mask=every & has_middle, other=0).to(tl.int32) >> shift) & 15
        low = (tl.load(v_low + packed, mask=every & has_low, other=0).to(tl.int32) >> shift) & 15
        v = tl.where(every, join(high, middle, low, has_middle, has_low), 0.0)
        large, small = halves(p * TOP)
        out += tl.dot(large, v) + tl.dot(small, v)
        width = 8 * has_high.to(tl.int32) + 4 * has_middle.to(tl.int32) + 4 * has_low.to(tl.int32)
        tl.store(v_bits + pair * planed + i, tl.reshape(width, [TOKENS]).to(tl.uint8), mask=i < stop)
    slot = (pair * slots + 1 + split) * GP + g
    tl.store(acc + slot[:, None] * DP + d, out / TOP)
