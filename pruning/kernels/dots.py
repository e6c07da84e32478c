"""The exact dot product of unit vectors, and the rounding to int16 with the bound on its error.

Numba's disk cache does not notice that ``lazy_greedy`` inlines this file: after an edit here, touch that one.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

# No sum overflows int32: |sum| <= scale**2 |x| |y| < 2**31 for unit vectors. A little below 32767, so that a
# coordinate of 1.0001 (a length is rounded, too) still fits int16.
INT16_SCALE = 32760.0


def screening_slack(dim: int) -> float:
    """Upper bound of |int16 dot / scale**2 - float32(exact dot)| for two unit vectors of ``dim`` coordinates.

    Rounding moves a row by at most e = sqrt(dim) / (2 * scale), so by Cauchy-Schwarz a dot product by
    2e + e**2; 1e-6 covers lengths not exactly one and the final rounding to float32.
    """
    error = math.sqrt(dim) / (2 * INT16_SCALE)
    return (2 * error + error * error) * (1 + 1e-6) + 1e-6


def jit(function=None, **options):
    """njit with an on-disk cache where one can be written (a container's site-packages may be read-only)."""
    if function is None:
        return lambda inner: jit(inner, **options)
    try:
        return njit(cache=True, **options)(function)
    except RuntimeError:
        return njit(**options)(function)


@jit(fastmath={"reassoc", "contract"})
def dot_exact(x, y):
    total = 0.0
    for d in range(x.shape[0]):
        total += np.float64(x[d]) * np.float64(y[d])
    return np.float32(total)


@jit
def quantise(units, scale, out):
    """Round units float32 [N, D] times scale into out int16 [N, >= D]; the padding is left alone."""
    for i in range(units.shape[0]):
        for d in range(units.shape[1]):
            out[i, d] = np.int32(np.rint(units[i, d] * scale))
