"""Weights of tokens from their keys: the high plane in passing, then both planes of the rows that a list names.

A *unit* is a run of tokens of one KV head, done by one thread. A token's weight is 2**(t - peak), with t its score over
log 2 and peak the largest t of the unit, so that no unit need know the others.
"""

from __future__ import annotations

import numpy as np

from kvquant.kernels.cpu.dots import HEADS, turn_rows, turned_dots
from kvquant.kernels.cpu.numbers import address, exp2, floats, jit, line
from kvquant.planes import BASE

LOG2E = np.float32(1.4426950408889634)
# A masked token's score. Its weight, at most 2**-126, is as good as zero, and it is finite.
MASKED = np.float32(-1e30)
LOW = np.float32(1.0 / BASE)
BYTE = np.float32(256.0)


@jit
def row_dots(rows, turned, dim, digits, start, group, used, out, stride):
    """out float32 [group, 16], ``stride`` bytes per head: the 16 rows whose addresses lie at ``rows``, before those wanted next."""
    for channel in range(0, dim, 64):
        turn_rows(rows, channel, turned + 16 * channel)
    for head in range(0, group, HEADS):
        count = min(group - head, HEADS)
        place = 12 * head
        turned_dots(turned, rows + 128, digits + place, 12 * group, start + place, dim // 4, out + stride * head, stride, count, used)


@jit
def high_weights(plane, steps, first, stop, query, visible, weights, peaks, totals):
    """Fills weights float32 [g, first..stop] and peaks, totals [g] of one unit.

    plane: the address of the KV head's first row; steps: float32 [tokens]; visible: uint8 [tokens], or [0] where all are.
    """
    group, dim = len(query.unit), query.dim
    rows, turned = np.empty(32, np.int64), np.empty(16 * dim, np.uint8)
    for i in range(first, stop, 16):
        for k in range(32):
            rows[k] = plane + dim * min(i + k, stop - 1)
        place = address(weights) + 4 * i
        row_dots(address(rows), address(turned), dim, query.digits, query.start, group, 2, place, weights.strides[0])
    steps = floats(address(steps) + 4 * first, stop - first)
    for j in range(group):
        row = floats(address(weights[j]) + 4 * first, stop - first)
        unit, shift, peak = BYTE * query.unit[j], query.shift[j], MASKED
        if len(visible):
            for i in range(len(row)):
                t = row[i] * steps[i] * unit + shift
                row[i] = t if visible[first + i] else MASKED
                peak = max(peak, row[i])
        else:
            for i in range(len(row)):
                row[i] = row[i] * steps[i] * unit + shift
                peak = max(peak, row[i])
        total = np.float32(0.0)
        for i in range(len(row)):
            row[i] = exp2(row[i] - peak)
            total += row[i]
        peaks[j], totals[j] = peak, total


@jit
def refine(chosen, high, low, steps, query, weights):
    """Weights of the tokens ``chosen`` again, as if from both planes of K and all 24 bits of the query.

    What is missing is the product of the query's last digit with the high row, and of the query with the low row.
    """
    group, dim, count = len(query.unit), query.dim, len(chosen)
    rows, turned, out = np.empty((2, 32), np.int64), np.empty(16 * dim, np.uint8), np.empty((2, group, 16), np.float32)
    step = np.empty(16, np.float32)
    for first in range(0, count, 16):
        for k in range(32):
            i = chosen[min(first + k, count - 1)]
            rows[0, k], rows[1, k] = high + dim * i, low + dim * i
            if k < 16:
                step[k] = steps[i]
        for plane in range(2):
            at, place = address(rows[plane]), address(out[plane])
            row_dots(at, address(turned), dim, query.digits, query.start, group, 1 + plane, place, 64)
        for j in range(group):
            factor, low_part, unit, row = line(out[0], j), line(out[1], j), query.unit[j], line(weights, j)
            for k in range(16):
                factor[k] = exp2((factor[k] + low_part[k] * (BYTE * LOW)) * step[k] * unit)
            for k in range(min(16, count - first)):
                row[chosen[first + k]] *= factor[k]
