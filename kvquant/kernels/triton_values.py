"""Triton kernel over fixed planes: K's low rows and V's rows, read as a plan says or whole."""

import triton
import triton.language as tl

from kvquant.kernels import triton_columns as col
from kvquant.kernels.triton_parts import BASE, HIGH_ERROR, LOW_ERROR, NOTHING, TOP, halves, in_column, log_secant


@triton.jit
def read_rows(
    k_high, k_low, k_step, v_high, v_low, v_step, v_centre, v_radius, visible, first, second, heads, plans, results,
    scores, k_fine, v_read, top, sums, acc, corner, group, planed, whole, room, rows, slots,
    FUSED: tl.constexpr, MASKED: tl.constexpr, GP: tl.constexpr, D: tl.constexpr, DP: tl.constexpr,
    KV_HEADS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Grid (BH, splits of ``rows`` rows). Attends to a split and writes its piece; marks what it read in k_fine and v_read.

    FUSED: all bits, in one pass of flash decoding, without scores and plans. Else ``scores`` [BH, g, planed] are refined in
    place where K's low rows are read; k_fine, v_read: uint8 [BH, planed], 1 and 1 or 2 planes.
    """
    pair, split = tl.program_id(0).to(tl.int64), tl.program_id(1)
    g, d, j = tl.arange(0, GP), tl.arange(0, DP), tl.arange(0, BLOCK)
    head = pair * GP + g
    if not FUSED:
        if tl.max(tl.load(results + head * 8 + col.SHORT), 0) == 0:
            return
    one = tl.load(first + head[:, None] * DP + d)
    factor, shift = tl.load(heads + head * 4 + col.FACTOR), tl.load(heads + head * 4 + col.SHIFT)
    wide = tl.load(heads + head * 4 + col.DELTA)
    middle = tl.load(v_centre + pair * D + d, mask=d < D, other=0.0)
    radius = tl.load(v_radius + pair)
    # No step of V is larger: max|v| / 127.5 with |v| <= |v - centre| + |centre|.
    unit = tl.maximum((radius + tl.sqrt(tl.sum(middle * middle, 0))) / 127.0, 1e-30)
    if FUSED:
        two = tl.load(second + head[:, None] * DP + d)
        peak = tl.full([GP], NOTHING, tl.float32)
    else:
        peak = tl.load(plans + head * 4 + col.PEAK)
        key, high, low = (
            tl.load(plans + head * 4 + col.KEY),
            tl.load(plans + head * 4 + col.VALUE),
            tl.load(plans + head * 4 + col.VALUE_LOW),
        )
    out, total = tl.zeros([GP, DP], tl.float32), tl.zeros([GP, 16], tl.float32)
    column = tl.arange(0, 16)
    squared = (column == col.ROUGH2) | (column == col.UNREAD2) | (column == col.COARSE2)
    stop = tl.minimum((split + 1) * rows, planed)
    # 64-bit offsets once per program, 32-bit ones per element.
    k_high += pair * room * D
    k_low += pair * room * D
    v_high += pair * room * D
    v_low += pair * room * D
    k_step += pair * room
    v_step += pair * room
    k_fine += pair * planed
    v_read += pair * planed
    scores += pair * group * planed
    visible += (pair // KV_HEADS) * (planed + whole)
    for start in range(split * rows, stop, BLOCK):
        i = start + j
        real = i < stop
        at = i[:, None] * D + d
        k_unit = tl.load(k_step + i, mask=real, other=0.0)
        v_unit = tl.load(v_step + i, mask=real, other=0.0)
        inside = (g[:, None] < group) & real[None, :]
        if FUSED:
            k_digits = tl.trans(tl.load(k_high + at, mask=real[:, None] & (d < D), other=0).to(tl.float16))
            k_rest = tl.trans(tl.load(k_low + at, mask=real[:, None] & (d < D), other=0).to(tl.float16))
            product = tl.dot(one, k_digits) + tl.dot(two, k_digits) + tl.dot(one, k_rest) / BASE
            seen = inside
            if MASKED:
                seen &= (tl.load(visible + i, mask=real, other=0) != 0)[None, :]
            s = tl.where(seen, product * factor[:, None] * k_unit[None, :] + shift[:, None], float("-inf"))
            fine, moved = real, True
        else:
            s = tl.load(scores + g[:, None] * planed + i, mask=inside, other=float("-inf"))
            fine = tl.load(k_fine + i, mask=real, other=1) != 0
            y = tl.exp(s - peak[:, None] + log_secant(wide[:, None] * HIGH_ERROR * k_unit[None, :])) * k_unit[None, :]
            need = (tl.max(tl.where(inside & (y > key[:, None]), 1, 0), 0) != 0) & ~fine
            moved = tl.max(need.to(tl.int32), 0) != 0
            if moved:
                k_rest = tl.trans(tl.load(k_low + at, mask=need[:, None] & (d < D), other=0).to(tl.float16))
                s += tl.dot(one, k_rest) / BASE * factor[:, None] * k_unit[None, :]
                tl.store(scores + g[:, None] * planed + i, s, mask=inside & need[None, :])
                tl.store(k_fine + i, 1, mask=need)
                fine = fine | need
        if moved:
            higher = tl.maximum(peak, tl.max(s, 1))
            fade = tl.exp(peak - higher)
            out = out * fade[:, None]
            total = total * tl.where(squared[None, :], (fade * fade)[:, None], fade[:, None])
            peak = higher
            if not FUSED:
                key, high, low = key * fade, high * fade, low * fade
        e = tl.exp(s - peak[:, None])
        weighed = e * v_unit[None, :]
        if FUSED:
            both, any_read = real, real
        else:
            both = (tl.max(tl.where(inside & (weighed > low[:, None]), 1, 0), 0) != 0) & real
            any_read = (tl.max(tl.where(inside & (e > high[:, None]), 1, 0), 0) != 0) & real | both
        distance = tl.where(real, radius, 0.0)
        if tl.max(any_read.to(tl.int32), 0) != 0:
            digits = tl.load(v_high + at, mask=any_read[:, None] & (d < D), other=0).to(tl.float16)
            near = digits.to(tl.float32) * v_unit[:, None] - middle[None, :]
            near = tl.sqrt(tl.sum(near * near, 1)) + HIGH_ERROR * corner * v_unit
            distance = tl.where(any_read, near, distance)
            large, small = halves(tl.where(any_read[None, :], weighed, 0.0) * (TOP / unit))
            out += tl.dot(large, digits) + tl.dot(small, digits)
            if tl.max(both.to(tl.int32), 0) != 0:
                rest = tl.load(v_low + at, mask=both[:, None] & (d < D), other=0).to(tl.float16)
                out += tl.dot(large, rest) / BASE
            if not FUSED:
                tl.store(v_read + i, any_read.to(tl.uint8) + both.to(tl.uint8), mask=any_read)
        delta = wide[:, None] * tl.where(fine, LOW_ERROR, HIGH_ERROR)[None, :] * k_unit[None, :]
        y = tl.exp(s - peak[:, None] + log_secant(delta)) * k_unit[None, :]
        # (e**x - 1) / x <= 1 + x up to 1.7; wider intervals of rows that were read whole certify nothing.
        secant = tl.where(delta < 1.7, 1.0 + delta, 1e30)
        rough = tl.where(fine[None, :], 0.0, y)
        skipped = tl.where(any_read[None, :], 0.0, e)
        half = tl.where((any_read & ~both)[None, :], weighed, 0.0)
        total += in_column(tl.sum(e, 1), col.MASS, 16) + in_column(tl.sum(e * tl.minimum(delta, 1.0), 1), col.SHRUNK, 16)
        total += in_column(tl.sum(tl.where(fine[None, :], y * k_unit[None, :] * secant, 0.0), 1), col.FINE2, 16)
        total += in_column(tl.sum(tl.where(both[None, :], weighed, 0.0), 1), col.BOTH, 16)
        total += in_column(tl.sum(e * (distance * distance)[None, :], 1), col.AROUND, 16)
        if not FUSED:
            total += in_column(tl.sum(rough, 1), col.ROUGH, 16) + in_column(tl.sum(rough * rough, 1), col.ROUGH2, 16)
            total += in_column(tl.sum(skipped, 1), col.UNREAD, 16) + in_column(tl.sum(skipped * skipped, 1), col.UNREAD2, 16)
            total += in_column(tl.sum(half, 1), col.COARSE, 16) + in_column(tl.sum(half * half, 1), col.COARSE2, 16)
            total = tl.maximum(total, in_column(tl.max(rough, 1), col.ROUGHEST, 16))
    slot = (pair * slots + 1 + split) * GP + g
    tl.store(top + slot, peak)
    tl.store(sums + slot[:, None] * 16 + column, total)
    tl.store(acc + slot[:, None] * DP + d, out * (unit / TOP))
