"""Columns of the small records that the Triton kernels over fixed planes hand to each other, all float32.

Pieces of an output share two buffers. ``top`` [BH, slots, GP]: the largest score of a piece; ``sums`` [BH, slots, GP, 16]: what
it has summed with weights e = exp(s - top). Slot 0 holds the whole tokens, slot 1 + j split j of the tokens in planes.
"""

import triton.language as tl

# Columns of ``sums`` (w = e * K's step, c = V's step): see kvquant.bounds for what they bound.
MASS = tl.constexpr(0)  # sum of e
ROUGH = tl.constexpr(1)  # sum of y = w * secant over K's coarse rows
ROUGH2 = tl.constexpr(2)  # sum of y**2, likewise
ROUGHEST = tl.constexpr(3)  # largest y, likewise
SHRUNK = tl.constexpr(4)  # sum of e * min(delta, 1)
FINE2 = tl.constexpr(5)  # sum of e * (step * secant)**2 over K's fine rows
UNREAD = tl.constexpr(6)  # sum of e over rows of V that were not read
UNREAD2 = tl.constexpr(7)  # sum of e**2, likewise
COARSE = tl.constexpr(8)  # sum of e * c over rows of V of which the high plane was read
COARSE2 = tl.constexpr(9)  # sum of (e * c)**2, likewise
BOTH = tl.constexpr(10)  # sum of e * c over rows of V that were read whole
AROUND = tl.constexpr(11)  # sum of e * d**2, where d is at least the distance of a value from V's centre
ENERGY = tl.constexpr(12)  # sum of e**2, of the scores of high planes (for the plan)
BEST = tl.constexpr(13)  # the row with the largest score, likewise

# Columns of ``heads`` [BH, GP, 4], constants of a query head.
FACTOR = tl.constexpr(0)  # a score is FACTOR * step * (dot of the parts) + SHIFT
SHIFT = tl.constexpr(1)
DELTA = tl.constexpr(2)  # scale * ||q||_1: times step and the error of the planes read, the half-width of a score's interval
NOISE = tl.constexpr(3)  # scale * ||q||_2 * the norm of K's residuals

# Columns of ``plans`` [BH, GP, 4]: the score that e refers to, and from which y, e and e * V's step on a plane is read.
PEAK = tl.constexpr(0)
KEY = tl.constexpr(1)
VALUE = tl.constexpr(2)
VALUE_LOW = tl.constexpr(3)
# Columns of ``results`` [BH, GP, 8].
NORM = tl.constexpr(0)
BOUND = tl.constexpr(1)
BOUND_MAX = tl.constexpr(2)
OFF = tl.constexpr(3)
SHORT = tl.constexpr(4)
