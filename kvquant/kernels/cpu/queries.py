"""Queries as integers: 24 bits in three int8 digits, of which two serve where 16 bits do."""

from __future__ import annotations

import numpy as np

from kvquant.kernels.cpu.dots import WORDS
from kvquant.kernels.cpu.numbers import jit

LOG2E = np.float32(1.4426950408889634)
# The largest |number|: three balanced digits of base 256 reach 127 (256**2 + 256 + 1).
TOP = np.float32(8.3e6)
# What float32 can still split.
LARGEST = np.float32(1e30)


@jit(fastmath=False)  # so that nan is seen
def split_query(query, spread, scale, digits, start, size):
    """query: float32 [D]; spread: float32 [D]. Returns False where a number is not finite.

    Writes digits int8 [D / 4, 3, 4] (with WORDS the first two as int16) and start int32 [3] (see kvquant.kernels.cpu.dots), and
    size float32 [6], all times ``scale``: the step of the last digit; the l1 and the l2 norm of query * spread; those of what two
    digits leave out; half the step, which is what three digits leave out of a channel.
    """
    dim, top = len(query), np.float32(1e-30)
    for c in range(dim):
        number = abs(query[c] * spread[c])
        if not number < LARGEST:
            return False
        top = max(top, number)
    step = top / TOP
    start[:] = 0
    l1, l2, rest1, rest2 = 0.0, 0.0, 0.0, 0.0
    for c in range(dim):
        x = np.float64(query[c] * spread[c])
        whole = np.int32(np.rint(x / step))
        low = ((whole + 128) & 255) - 128
        upper = (whole - low) >> 8
        middle = ((upper + 128) & 255) - 128
        high = (upper - middle) >> 8
        digits[c // 4, 2, c % 4] = low
        if WORDS:  # the bytes of one int16
            place = 2 * (c % 4)
            pair = digits[c // 4, place // 4, place % 4 : place % 4 + 2]
            pair[0], pair[1] = middle, high - (middle < 0)
        else:
            digits[c // 4, 0, c % 4], digits[c // 4, 1, c % 4] = high, middle
        start[0] -= 128 * high
        start[1] -= 128 * middle
        start[2] -= 128 * low
        rest = abs(x - 256.0 * upper * step)
        l1, l2, rest1, rest2 = l1 + abs(x), l2 + x * x, rest1 + rest, rest2 + rest * rest
    size[0], size[5] = scale * step, scale * 0.5 * step
    size[1], size[2] = scale * l1, scale * np.sqrt(l2)
    size[3], size[4] = scale * rest1, scale * np.sqrt(rest2)
    return True


@jit
def prepare(norms, ask, row):
    """Splits a row's queries; False where one is not finite.

    units: what makes a dot product times a row's step a score over log 2; shifts: what K's centre adds to it.
    """
    finite = True
    for j in range(ask.query.shape[1]):
        query, digits = ask.query[row, j], ask.digits[row, :, j]
        finite &= split_query(query, norms.k_spread[row], ask.scale, digits, ask.start[row, j], ask.size[row, j])
        shift = 0.0
        for c in range(len(query)):
            shift += query[c] * norms.k_centre[row, c]
        ask.units[row, j], ask.shifts[row, j] = ask.size[row, j, 0] * LOG2E, ask.scale * shift * LOG2E
    return finite
