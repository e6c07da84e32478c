"""Weights of tokens from their keys: the high plane in passing, then both planes of the rows that a list names.

A *unit* is a run of tokens of one KV head, done by one thread. A token's weight is 2**(t - peak), with t its score over
log 2 and peak the largest t of the unit, so that no unit need know the others.
"""

from __future__ import annotations

import numpy as np

from kvquant.kernels.cpu.dots import HEADS, WIDTH
from kvquant.kernels.cpu.numbers import address, exp2, floats, jit, largest, line
from kvquant.kernels.cpu.rows import AHEAD
from kvquant.kernels.cpu.vectors import call_at
from kvquant.planes import BASE

# A masked token's score. Its weight, at most 2**-126, is as good as zero, and it is finite.
MASKED = np.float32(-1e30)
LOW = np.float32(1.0 / BASE)
BYTE = np.float32(256.0)
# Rows refined in one go, a multiple of 16: vector code needs loops of some length.
SHARE = 128


@jit
def exponentials(row, visible, first):
    """Scores become 2**(t - peak), in place; returns peak and the sum. visible: of all tokens, ``row`` begins at ``first``."""
    if len(visible):
        for i in range(len(row)):
            row[i] = row[i] if visible[first + i] else MASKED
    peak, total = largest(row), np.float32(0.0)
    for i in range(len(row)):
        row[i] = exp2(row[i] - peak)
        total += row[i]
    return peak, total


@jit
def row_dots(turn, dots, plane, tokens, turned, dim, digits, start, group, used, out, stride):
    """Fills out float32 [group, 16], ``stride`` bytes per head, with the products of 16 rows of a plane.

    tokens: the address of their numbers, int64 [16], and of those of 16 rows wanted next; used: digits of the query.
    """
    for channel in range(0, dim, 64):
        call_at(turn, (plane, dim, tokens, channel, turned + 16 * WIDTH * channel))
    for head in range(0, group, HEADS):
        count = min(group - head, HEADS)
        place = 12 * head
        at = (digits + place, np.int64(12 * group), start + place, dim // 4, out + stride * head, stride, count, used)
        call_at(dots, (turned, plane, dim, tokens + 128, *at))


@jit
def high_weights(plane, steps, first, stop, query, visible, weights, peaks, totals):
    """Fills weights float32 [g, first..stop] and peaks, totals [g] of one unit.

    plane: the address of the KV head's first row, with room for a multiple of 16; steps: float32 [tokens]; visible: uint8
    [tokens], or [0] where all are.
    """
    group, dim = len(query.unit), query.dim
    tokens, turned = np.arange(32), np.empty(16 * WIDTH * dim, np.uint8)
    for i in range(first, stop, 16):
        place, rows = address(weights) + 4 * i, plane + dim * i
        query_of = (dim, query.digits, query.start, group, 2, place, weights.strides[0])
        row_dots(query.turn, query.dots, rows, address(tokens), address(turned), *query_of)
    steps = floats(address(steps) + 4 * first, stop - first)
    for j in range(group):
        row, unit, shift = floats(address(weights[j]) + 4 * first, stop - first), BYTE * query.unit[j], query.shift[j]
        for i in range(len(row)):
            row[i] = row[i] * steps[i] * unit + shift
        peaks[j], totals[j] = exponentials(row, visible, first)


@jit
def refine(chosen, count, low, steps, query, weights):
    """Weights of the tokens chosen[:count] again, as if from both planes of K: times 2**(what the low rows add to the score).

    chosen: int64, with room for AHEAD more, which are filled with the last.
    """
    if count == 0:
        return
    chosen[count : count + AHEAD] = chosen[count - 1]
    group, dim = len(query.unit), query.dim
    turned, out, step = np.empty(16 * WIDTH * dim, np.uint8), np.empty((group, SHARE), np.float32), np.empty(SHARE, np.float32)
    for first in range(0, count, SHARE):
        here = min(SHARE, count - first)
        for i in range(0, here, 16):
            place, tokens = address(out) + 4 * i, address(chosen) + 8 * (first + i)
            query_of = (dim, query.digits, query.start, group, 2, place, np.int64(4 * SHARE))
            row_dots(query.turn, query.dots, low, tokens, address(turned), *query_of)
        for k in range(here):
            step[k] = steps[chosen[first + k]] * (BYTE * LOW)
        for j in range(group):
            factor, unit, row = floats(address(out) + 4 * SHARE * j, here), query.unit[j], line(weights, j)
            for k in range(here):
                factor[k] = exp2(factor[k] * step[k] * unit)
            for k in range(here):
                row[chosen[first + k]] *= factor[k]
