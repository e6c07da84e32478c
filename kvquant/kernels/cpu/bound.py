"""The bound of kvquant.bounds from sums over tokens, for one query head.

It differs from ``score_error`` and ``value_error`` in four places, each time upwards:
  * (e**d - 1) / d is replaced by the cubic of :func:`cubic_of`.
  * A query is read with 16 bits. With e = what is left out of q (times the spread), the score
    of row i is wrong by scale step_i (e . h_i) more, |h_i| <= 127.5 a channel: delta_i grows by scale step_i 127.5 ||e||_1;
    and as a matrix H of n rows of digits has ||H|| <= 127.5 sqrt(n D), ``noise`` grows by scale 127.5 sqrt(n D) ||e||_2.
  * Coarse rows of K are always taken together (no sum token by token).
  * Fine rows of K: sum_i p_i delta_i ||v_i - b|| is taken as it is for the likeliest token, and by Cauchy-Schwarz for the
    others, sqrt(sum p delta**2) sqrt(sum p ||v_i - b||**2), the second sum from sums over the high rows of V:
    sum p ||x_i - o||**2 = sum p ||x_i||**2 - 2 o . sum p x_i + ||o||**2 sum p.
"""

from __future__ import annotations

import numpy as np

from kvquant.kernels.cpu import values as s
from kvquant.kernels.cpu.numbers import jit
from kvquant.planes import HIGH_ERROR, LOW_ERROR

DIGIT = 127.5
# For the float32 rounding of the sums.
MARGIN = 1 + 2.0**-12
LEAST = 1e-30
# Half-widths of coarse scores from which on the reference answers. Weights have 126 octaves below the largest; the low planes may
# lift a row by 40 and lower the largest by as many, which leaves 46 for what counts.
HOPELESS = 28.0


@jit
def cubic_of(delta):
    """The least c with (e**d - 1) / d <= 1 + d / 2 + d**2 / 6 + c d**3 for all d <= delta (its series has positive terms)."""
    if delta < 0.1:
        return 1 / 24 + delta / 110
    return (np.expm1(delta) / delta - 1 - delta / 2 - delta * delta / 6) / delta**3


@jit
def slopes(size):
    """What times a row's step is the largest error of its score: with the high plane, and with both. size: see split_queries."""
    return HIGH_ERROR * size[1] + DIGIT * size[3], LOW_ERROR * size[1] + DIGIT * size[3]


@jit
def bounds(sums, near, out, centre, norms, columns, noise, slope, largest_step, limit, top):
    """Bounds of the error in the l2 and in the maximum norm, for one query head.

    sums: [SUMS], near: [D] (sum p x over near tokens); both divided by the sum of all weights. out, centre: [D]. norms: V's
    noise, spread and radius; columns: [2, D], noise and spread by channel. noise: of coarse scores; slope: of fine ones;
    largest_step: K's; limit: at least y of any coarse row. top: p, K's step, V's step and ||x - out|| of the likeliest near
    token, zeros where there is none.
    """
    dim = len(out)
    corner = np.sqrt(dim)
    v_noise, spread, radius = norms
    u1, u2, c1, c2 = sums[s.UNREAD], np.sqrt(sums[s.UNREAD2]), sums[s.COARSE], np.sqrt(sums[s.COARSE2])
    exact = LOW_ERROR * sums[s.FINE]
    value = min(spread * u2, radius * u1) + min(v_noise * c2, HIGH_ERROR * corner * c1) + corner * exact
    off, length, along = 0.0, 0.0, 0.0
    for c in range(dim):
        off += (out[c] - centre[c]) ** 2
        length += out[c] * out[c]
        along += out[c] * near[c]
    off = np.sqrt(off)

    p, k_step, v_step, reach = top
    largest = slope * largest_step
    secant = np.expm1(largest) / largest if largest > 1e-6 else 1.0 + largest
    magnitude = sums[s.NEAR_SQUARE] + length * sums[s.NEAR]
    apart = max(0.0, magnitude - 2 * along - p * reach * reach) + 1e-5 * magnitude
    apart += max(0.0, sums[s.K_MASS] - sums[s.NEAR]) * (radius + off) ** 2
    others = np.sqrt(apart) + HIGH_ERROR * corner * np.sqrt(sums[s.NEAR_STEP2]) + value * np.sqrt(sums[s.K_MASS])
    others *= np.sqrt(max(0.0, sums[s.K_STEP2] - p * k_step * k_step))
    fine = secant * slope * (p * k_step * (reach + HIGH_ERROR * corner * v_step + value) + others)

    y = np.sqrt(sums[s.Y2])
    mass = 1 - noise * y - slope * sums[s.K_STEP]
    if not mass > 0:
        return np.inf, np.inf
    peak = noise * min(limit, y)
    l2 = MARGIN * (value + (fine + spread * peak + (off + value) * noise * y) / mass)
    top_channel = 0.0
    for c in range(dim):
        v = min(columns[1, c] * u2, radius * u1) + min(columns[0, c] * c2, HIGH_ERROR * c1) + exact
        score = fine + columns[1, c] * peak + (abs(out[c] - centre[c]) + v) * noise * y
        top_channel = max(top_channel, v + score / mass)
    return l2, min(l2, MARGIN * top_channel)


@jit
def noise_of(size, k_noise, tokens, dim):
    """The l2 norm of the coarse scores' errors over their steps, at most. size: see split_queries."""
    return size[2] * k_noise + DIGIT * np.sqrt(tokens * dim) * size[4]
