"""What one layer's cache holds: older tokens in planes, the newest tokens whole."""

from __future__ import annotations

import math

import torch

from kvquant.fixed_planes import FixedPlanes
from kvquant.growing import Growing
from kvquant.half_planes import BLOCK, HalfPlanes

FORMATS = {"whole": None, "half": HalfPlanes, "fixed": FixedPlanes}


class Store:
    """Keys and values of one layer, [B, Hkv, L, D].

    The first ``planes.length`` tokens are in planes, the others whole in ``tail`` (names "k", "v"; the type they came in).
    The newest ``window`` tokens at least are whole, at most 63 more: tokens move to the planes in blocks of 64. format:
    "half" (the paper's planes), "fixed" (int8 pairs), or "whole" (no planes: every token stays as it came, the control).

    Planes save reading, not memory: every bit stays stored.
    """

    def __init__(self, format: str, window: int = 64) -> None:
        if format not in FORMATS:
            raise ValueError(f"Unknown storage format '{format}'. Known: {', '.join(FORMATS)}.")
        if window < 0:
            raise ValueError(f"The window of whole tokens cannot be negative, got {window}.")
        self.format, self.window = format, window
        self.reset()

    def reset(self) -> None:
        """Forgets everything."""
        self.planes = FORMATS[self.format]() if FORMATS[self.format] else None
        self.tail = Growing()
        self._dtype = self._shape = None

    @property
    def planed(self) -> int:
        """How many tokens are in planes."""
        return self.planes.length if self.planes is not None else 0

    @property
    def length(self) -> int:
        return self.planed + self.tail.length

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(B, Hkv, L, D), of a cache that is not empty."""
        batch, heads, dim = self._shape
        return batch, heads, self.length, dim

    def append(self, k: torch.Tensor, v: torch.Tensor) -> None:
        """k, v: [B, Hkv, T, D], T >= 1. Raises ValueError on a wrong shape or type, or where planes cannot hold a number."""
        shape = (*k.shape[:2], k.shape[-1])
        if k.ndim != 4 or k.shape != v.shape or 0 in k.shape or k.dtype != v.dtype or not k.is_floating_point():
            raise ValueError(f"Keys and values must be floating [B, H, T, D] alike, got {_named(k)} and {_named(v)}.")
        if (self._dtype, self._shape) not in ((None, None), (k.dtype, shape)):
            raise ValueError(f"This cache holds {self._dtype} [B, H, D] = {list(self._shape)}, but was given {_named(k)}.")
        if self.format == "half" and k.shape[-1] % 2:
            raise ValueError(f"The half planes need an even head dimension, got {k.shape[-1]}.")
        k, v = k.detach(), v.detach()
        count = (self.tail.length + k.shape[2] - self.window) // BLOCK * BLOCK
        if self.planes is not None and count > 0:
            # Straight to the planes: a long prompt must not leave a long tail's room behind.
            old, new = min(count, self.tail.length), max(0, count - self.tail.length)
            rows = {"k": k, "v": v}
            if old:
                rows = {name: torch.cat([self.tail[name][:, :, :old], x[:, :, :new]], dim=2) for name, x in rows.items()}
            self.planes.append(rows["k"][:, :, :count], rows["v"][:, :, :count])
            self.tail.drop(old)
            k, v = k[:, :, new:], v[:, :, new:]
        self.tail.append(k=k, v=v)
        self._dtype, self._shape = k.dtype, shape

    def dense(self, dtype: torch.dtype | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """All bits of all tokens, (k, v) [B, Hkv, L, D], by default in the type they came in. Raises ValueError when empty."""
        if self.length == 0:
            raise ValueError("The cache is empty.")
        dtype = dtype or self._dtype
        tail = (self.tail["k"].to(dtype), self.tail["v"].to(dtype))
        if self.planed == 0:
            return tail
        return tuple(torch.cat(pair, dim=2) for pair in zip(self.planes.dense(dtype), tail, strict=True))

    def crop(self, length: int) -> None:
        """Keeps the first ``length`` tokens. Where that cuts into planes, fewer than ``window`` tokens may be whole for a while.

        Raises ValueError unless 0 <= length <= L.
        """
        if not 0 <= length <= self.length:
            raise ValueError(f"Cannot keep {length} of {self.length} tokens.")
        if length == 0:
            return self.reset()
        if length >= self.planed:
            return self.tail.crop(length - self.planed)
        k, v = self.planes.crop(length)
        if not self.planes.length:
            self.planes = FORMATS[self.format]()
        self.tail.crop(0)
        if k.shape[2]:
            self.tail.append(k=k.to(self._dtype), v=v.to(self._dtype))
        return None

    def select(self, index: torch.Tensor) -> None:
        """Rearranges the batch: row b becomes what row index[b] was, int64 [new B]; for beams, repeats and choices alike."""
        if self.length == 0:
            return
        self._shape = (len(index), *self._shape[1:])
        self.tail.select(index)
        if self.planed:
            self.planes.select(index)

    @property
    def bytes_stored(self) -> int:
        """Bytes allocated, room for growth and the norms of the bounds included."""
        return self.tail.bytes_stored + (self.planes.bytes_stored if self.planes is not None else 0)

    @property
    def bytes_used(self) -> int:
        """As ``bytes_stored``, without the room for growth."""
        return self.tail.bytes_used + (self.planes.bytes_used if self.planes is not None else 0)

    @property
    def bytes_whole(self) -> int:
        """What an ordinary cache of these tokens takes, and reads at every step."""
        return 2 * math.prod(self.shape) * self._dtype.itemsize if self.length else 0


def _named(x: torch.Tensor) -> str:
    return f"{x.dtype} {list(x.shape)}"
