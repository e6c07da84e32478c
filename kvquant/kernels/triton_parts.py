"""What the Triton kernels share: how numbers travel, and the small functions for it.

K's and V's digits are int8, exact in float16, the type of the matrix units. A float32 factor in front of them (query,
probability) is sent as two float16 parts, its rounding and what the rounding left; the low plane, 254 times smaller, meets the
first part only. Sums are float32. A tile has GP rows for the g query heads of a KV head (16 at least, what ``tl.dot`` wants);
rows from g on are never written out.
"""

import triton
import triton.language as tl

from kvquant import planes

# Scores below this cannot occur; a finite stand-in for minus infinity keeps exp(s - top) free of nan.
NOTHING = tl.constexpr(-1e30)
# float16 parts are scaled to +-2**14: within its range, and what falls below its smallest subnormal is 2**-38 of the largest.
TOP = tl.constexpr(2.0**14)
BASE = tl.constexpr(float(planes.BASE))
# With what the float16 parts of query and probability leave out: 2**-22 of them against digits up to 127, and, as the low plane
# meets the first part only, 2**-11 against digits up to 127 / 254. (The norms of residuals carry twice their slack for this.)
HIGH_ERROR = tl.constexpr(planes.HIGH_ERROR + 2.0**-15)
LOW_ERROR = tl.constexpr(planes.LOW_ERROR + 2.0**-12 + 2.0**-15)


@triton.jit
def in_column(x, column: tl.constexpr, width: tl.constexpr):
    """x [R] as column ``column`` of a tile [R, width], zeros elsewhere."""
    return tl.where(tl.arange(0, width)[None, :] == column, x[:, None], 0.0)


@triton.jit
def halves(x):
    """x, at most TOP in size -> two float16 parts with x ~ first + second."""
    first = x.to(tl.float16)
    return first, (x - first.to(tl.float32)).to(tl.float16)


@triton.jit
def pick(total, column: tl.constexpr):
    """One entry of total [16]."""
    return tl.sum(tl.where(tl.arange(0, 16) == column, total, 0.0), 0)


@triton.jit
def log_secant(delta):
    """At least log((e**delta - 1) / delta), as sinh(x) / x <= e**(x**2 / 6) with x = delta / 2; never above delta."""
    return tl.minimum(delta * 0.5 + delta * delta * (1.0 / 24.0), delta)
