"""Triton kernel over fixed planes, between the scores and the values: which rows deserve their low planes.

One threshold per query head and plane, so that the reading of a row needs to know nothing of any other row. Which rows matter is
scattered: on 3000 tokens of text through SmolLM2-135M, at an error of 0.02, rows asked for one by one took about 9 + 6 bits
(K + V), blocks of 64 rows 13 + 12. So the branch is uniform per block, and the loads inside it are masked row by row, which
spares their sectors. A rule that knows only the running maximum and sum of its own split (flash decoding in a single pass)
would never read too little, but nearly everything: with 64 splits a row seems up to 64 times likelier than it is. Hence two
passes, with the scores between them (4 bytes per row and query head, which stay in the L2 cache).
"""

import triton
import triton.language as tl

from kvquant.kernels import triton_columns as col
from kvquant.kernels.triton_parts import HIGH_ERROR, NOTHING, log_secant

# The thresholds are searched for over 2**-20 .. 1 of their range, by halving it this many times: to within 6%.
OCTAVES = tl.constexpr(20.0)
HALVINGS = tl.constexpr(8)


@triton.jit
def plan(
    scores, k_step, v_step, v_high, v_centre, v_columns, v_spread, v_noise, v_radius, heads, top, sums, acc, results, plans, probed,
    allowance, key_share, slack, group, planed, room, slots, stride,
    FIRST: tl.constexpr, ALL: tl.constexpr, GP: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, SP: tl.constexpr,
    SAMPLE: tl.constexpr,
):  # fmt: skip
    """Grid (BH, g). Writes ``plans``. The error allowed is ``allowance`` of the output's norm.

    In the first round that norm is an estimate from the likeliest row of every split, by V's high plane (marked in probed, uint8
    [BH, planed]). The bulk of the rows is judged by a sample, every stride-th row. A plan may be wrong; the bound, computed from
    what was read, may not. ALL: everything is read.
    """
    pair, r = tl.program_id(0).to(tl.int64), tl.program_id(1)
    d, slot = tl.arange(0, DP), tl.arange(0, SP)
    at = (pair * slots + slot) * GP + r
    tops = tl.load(top + at, mask=slot < slots, other=NOTHING)
    peak = tl.max(tops, 0)
    fade = tl.exp(tops - peak)
    mass = tl.sum(fade * tl.load(sums + at * 16 + col.MASS, mask=slot < slots, other=0.0), 0)
    if FIRST:
        middle = tl.load(v_centre + pair * D + d, mask=d < D, other=0.0)
        columns = tl.load(v_columns + pair * D + d, mask=d < D, other=0.0)
        split = (slot > 0) & (slot < slots) & (fade > 0)
        row = tl.load(sums + at * 16 + col.BEST, mask=split, other=0.0).to(tl.int64)
        digits = tl.load(v_high + (pair * room + row[:, None]) * D + d, mask=split[:, None] & (d < D), other=0).to(tl.float32)
        value = digits * tl.load(v_step + pair * room + row, mask=split, other=0.0)[:, None]
        tl.store(probed + pair * planed + row, 1, mask=split)
        weight = tl.where(split, fade, 0.0)
        whole = tl.sum(tl.where(slot == 0, fade, 0.0), 0)
        first = (pair * slots) * GP + r
        gap = whole * (tl.load(acc + first * DP + d) - tl.load(sums + first * 16 + col.MASS) * middle)
        gap = (gap + tl.sum(weight[:, None] * (value - middle[None, :]), 0)) / mass
        energy = tl.sum(fade * fade * tl.load(sums + at * 16 + col.ENERGY, mask=split, other=0.0) - weight * weight, 0)
        # The other rows are taken as independent draws about the centre.
        rest = tl.maximum(energy, 0.0) / (mass * mass) * (tl.sum(columns * columns, 0) / planed)
        off, norm = tl.sqrt(tl.sum(gap * gap, 0) + rest), tl.sqrt(tl.sum((gap + middle) * (gap + middle), 0) + rest)
    else:
        off = tl.load(results + (pair * GP + r) * 8 + col.OFF)
        norm = tl.load(results + (pair * GP + r) * 8 + col.NORM)
    key, value_high, value_low = -1.0, -1.0, -1.0
    if not ALL:
        row = tl.arange(0, SAMPLE) * stride
        s = tl.load(scores + (pair * group + r) * planed + row, mask=row < planed, other=float("-inf")) - peak
        k_unit = tl.load(k_step + pair * room + row, mask=row < planed, other=0.0)
        v_unit = tl.load(v_step + pair * room + row, mask=row < planed, other=0.0)
        spread, far, n = tl.load(v_spread + pair), tl.load(v_radius + pair), tl.maximum(planed, 1).to(tl.float32)
        noise = tl.maximum(tl.load(heads + (pair * GP + r) * 4 + col.NOISE), 1e-30)
        high = tl.maximum(tl.load(heads + (pair * GP + r) * 4 + col.DELTA) * HIGH_ERROR, 1e-30)
        allowed = allowance * norm
        off, keys = off + allowed, key_share * allowed
        # The score part if all rows with y up to the threshold stay coarse; each at the threshold is the worst case to start from.
        y = tl.exp(s + log_secant(high * k_unit)) * k_unit / mass
        least = tl.maximum(keys / (noise * (spread + off * tl.sqrt(n))), keys / ((far + off) * high * n))
        octave, width, score = 0.0, OCTAVES / 2, 0.0
        for _ in range(HALVINGS):
            rough = tl.where(y <= least * tl.exp2(octave + width), y, 0.0)
            by_norm = noise * (spread * tl.max(rough, 0) + off * tl.sqrt(stride * tl.sum(rough * rough, 0)))
            part = tl.minimum(by_norm, (far + off) * high * stride * tl.sum(rough, 0))
            score = tl.where(part <= keys, part, score)
            octave, width = tl.where(part <= keys, octave + width, octave), width * 0.5
        key = least * tl.exp2(octave) * mass
        # The value part likewise; unread rows and coarse ones on one scale, the norms of their errors.
        p, spent = tl.exp(s) / mass, allowed - score
        v_norm = tl.load(v_noise + pair) + slack
        unread, coarse = p * spread, p * v_unit * v_norm
        least = spent * 0.5 / tl.sqrt(n)
        octave, width = 0.0, OCTAVES / 2
        for _ in range(HALVINGS):
            level = least * tl.exp2(octave + width)
            skipped = tl.where(unread <= level, unread, 0.0)
            missing = tl.minimum(tl.sqrt(stride * tl.sum(skipped * skipped, 0)), far / spread * stride * tl.sum(skipped, 0))
            rough = tl.where((unread > level) & (coarse <= level), coarse, 0.0)
            part = missing + tl.sqrt(stride * tl.sum(rough * rough, 0))
            octave, width = tl.where(part <= spent, octave + width, octave), width * 0.5
        level = least * tl.exp2(octave) * mass
        value_high, value_low = level / spread, level / v_norm
    out = plans + (pair * GP + r) * 4
    tl.store(out + col.PEAK, peak)
    tl.store(out + col.KEY, key)
    tl.store(out + col.VALUE, value_high)
    tl.store(out + col.VALUE_LOW, value_low)
