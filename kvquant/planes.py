"""Numbers stored in planes, so that fewer bits can be read: pure functions between tensors of numbers and of planes.

*Half*: a float16 as 8 + 4 + 4 bits (AlignedKV, arXiv 2409.16546): sign, exponent and 2 bits of the mantissa; 4 more; the
last 4. Bits left unread are taken as 1000..., the middle of what they could be. With m = 2 (8 bits) or 6 (12 bits)
mantissa bits read, |x' - x| <= half_step(x, m) = 2**(max(floor(log2|x|), -14) - m - 1). So zero reads as 2**-17 with
8 bits and as 2**-21 with 12, which is harmless, and within the bound. Exponent 31 is filled with zeros instead, so infinity
stays infinity (a nan whose leading mantissa bits are zero reads as infinity).

*Fixed*: a row x of D numbers with one step S = max|x| / 127.5, in two signed bytes, balanced digits of base 254:
x ~ S (h + l / 254) with h, l in -127..127. Rounding h to the nearest makes the high plane alone wrong by half a step, not
by a whole one, and unbiased; the remainder is at most half a step, 127 units of l, so l never overflows, as it would at
base 256. Both planes are int8, as integer matrix products want them.
  Error. float32 divides x by S with a relative error of at most 3 * 2**-24, that of preparing x (subtracting a centre,
dividing by a spread) included; as |x / S| <= 127.5 this is less than 2**-15 steps. Hence |x - S h| <= HIGH_ERROR S and
|x - S (h + l / 254)| <= LOW_ERROR S, where 254 * 2**-15 < 2**-6 units. The floor of S keeps subnormals out of it.
"""

from __future__ import annotations

import torch

BASE = 254
HIGH_ERROR = 0.5 + 2.0**-15
LOW_ERROR = (0.5 + 2.0**-6) / BASE
LEAST_STEP = 2.0**-80
HALF_MAX = 65504.0


def to_half(x: torch.Tensor) -> torch.Tensor:
    """float16 of x (any floating type), checked. Exact for bfloat16 from 2**-14 up; else 2**-11 relative, 2**-25 absolute.

    Raises ValueError where x holds nan, infinity or more than a half can hold.
    """
    if x.numel() and not bool(x.abs().amax() <= HALF_MAX):  # a nan fails this, too
        raise ValueError(
            "Keys or values exceed what float16 holds (65504) or are not finite; the exact mode without halves keeps them."
        )
    return x.to(torch.float16)


def split_half(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """float16 of any shape -> its bits as (high 0..255, middle 0..15, low 0..15), uint8 of that shape."""
    bits = x.view(torch.int16).int()
    return (bits >> 8 & 255).to(torch.uint8), (bits >> 4 & 15).to(torch.uint8), (bits & 15).to(torch.uint8)


def join_half(high: torch.Tensor, middle: torch.Tensor | None, low: torch.Tensor | None, bits: torch.Tensor | int) -> torch.Tensor:
    """The inverse of :func:`split_half` where ``bits`` (8, 12 or 16, broadcast) is 16; the mid-point of what was read elsewhere.

    middle, low: uint8 of high's shape, ignored where unread, None where nobody reads them. Returns float16.
    """
    if isinstance(bits, int) and bits == 16:  # nothing is filled in: the two bytes of a half, the lower first
        return torch.stack([low | middle << 4, high], dim=-1).view(torch.float16)[..., 0]
    bits = torch.as_tensor(bits, device=high.device)
    fill = torch.where(high & 124 == 124, 0, 8)
    middle = fill if middle is None else torch.where(bits >= 12, middle, fill)
    low_fill = torch.where(bits >= 12, fill, 0)
    low = low_fill if low is None else torch.where(bits >= 16, low, low_fill)
    return (high.int() << 8 | middle << 4 | low).to(torch.int16).view(torch.float16)


UNSTORABLE = "Keys or values hold nan or infinity, or are too large for float32; nothing can be stored."


def pack(nibbles: torch.Tensor) -> torch.Tensor:
    """uint8 0..15 [..., 2n] -> bytes [..., n]: the first half of the row in the low nibbles, so that unpacking is contiguous."""
    first, second = nibbles.chunk(2, dim=-1)
    return first | second << 4


def unpack(packed: torch.Tensor) -> torch.Tensor:
    """The inverse of :func:`pack`."""
    return torch.cat([packed & 15, packed >> 4], dim=-1)


def split_fixed(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """float32 [..., D] -> (high int8 [..., D], low int8 [..., D], step float32 [...]). Errors: see the head of this file.

    Raises ValueError where a row is not finite.
    """
    peak = rows.abs().amax(-1)
    if not bool(torch.isfinite(peak).all()):
        raise ValueError(UNSTORABLE)
    step = (peak / 127.5).clamp(min=LEAST_STEP)
    scaled = rows / step[..., None]
    high = scaled.round().clamp(-127, 127)
    low = ((scaled - high) * BASE).round()
    return high.to(torch.int8), low.to(torch.int8), step


def join_fixed(high: torch.Tensor, low: torch.Tensor, step: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """The inverse of :func:`split_fixed`, from both planes: [..., D] in ``dtype``."""
    return (high.to(dtype) + low.to(dtype) / BASE) * step.to(dtype)[..., None]


def residual(rows: torch.Tensor, high: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
    """What the high plane leaves out, in steps: rows / step - high, within +-HIGH_ERROR. float32 [..., D]."""
    return rows / step[..., None] - high
