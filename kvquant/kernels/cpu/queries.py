"""Queries as integers: 24 bits in three int8 digits, of which two serve where 16 bits do."""

from __future__ import annotations

import numpy as np

from kvquant.kernels.cpu.dots import DIGITS
from kvquant.kernels.cpu.numbers import jit

# The largest |number|: three balanced digits of base 256 reach 127 (256**2 + 256 + 1).
TOP = np.float32(8.3e6)


@jit
def split_queries(query, spread, scale, digits, start, size):
    """query: float32 [R, g, D] of R rows (batch, KV head); spread: float32 [R, D]. Returns False where one is not finite.

    Writes digits int8 [R, fours, g, 3, 4] (padded with zeros), start int32 [R, g, 3] (see kvquant.kernels.cpu.dots) and size
    float32 [R, g, 6], all times ``scale``: the step of the last digit; the norms of query * spread, l1 and l2; the norms of what
    two digits leave out, l1 and l2; half the step, what three digits leave out of a channel.
    """
    rows, group, dim = query.shape
    number = np.empty(dim, np.float32)
    for r in range(rows):
        for j in range(group):
            top = np.float32(1e-30)
            for c in range(dim):
                number[c] = query[r, j, c] * spread[r, c]
                top = max(top, abs(number[c]))
            if not top < np.float32(1e30):
                return False
            step = top / TOP
            start[r, j] = 0
            l1, l2, rest1, rest2 = 0.0, 0.0, 0.0, 0.0
            for c in range(dim):
                x = np.float64(number[c])
                whole = np.int32(np.rint(x / step))
                low = np.int32(((whole + 128) & 255) - 128)
                upper = np.int32((whole - low) >> 8)
                middle = np.int32(((upper + 128) & 255) - 128)
                high = np.int32((upper - middle) >> 8)
                for d, digit in enumerate((high, middle, low)):
                    digits[r, c // 4, j, d, c % 4] = digit
                    start[r, j, d] -= 128 * digit
                rest = abs(x - 256.0 * upper * step)
                l1, l2, rest1, rest2 = l1 + abs(x), l2 + x * x, rest1 + rest, rest2 + rest * rest
            size[r, j, 0], size[r, j, 5] = scale * step, 0.5 * scale * step
            size[r, j, 1], size[r, j, 2] = scale * l1, scale * np.sqrt(l2)
            size[r, j, 3], size[r, j, 4] = scale * rest1, scale * np.sqrt(rest2)
    return True


def digit_room(rows: int, fours: int, group: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Empty arrays for :func:`split_queries`."""
    digits = np.zeros((rows, fours, group, DIGITS, 4), np.int8)
    return digits, np.empty((rows, group, DIGITS), np.int32), np.empty((rows, group, 6), np.float32)
