"""Caches that read every token with the same number of bits: what the precision-aligned ones are compared with.

Numbers are float16 first, in the newest tokens as well; what leaves the window of whole tokens is rounded once. The window
is that of ``kvquant.store``, so that all caches treat the same tokens as new.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from transformers import Cache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer

from kvquant.growing import Growing
from kvquant.half_planes import BLOCK

FP8_MAX = torch.finfo(torch.float8_e4m3fn).max


class Truncated:
    """The leading ``bits`` of every half; the middle of what was cut off is filled in, as ``kvquant.planes`` does."""

    def __init__(self, bits: int) -> None:
        self.bits, self.row_bytes = float(bits), 0

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x: float16 [B, H, T, D]; returns float32."""
        drop = 16 - int(self.bits)
        kept = x.view(torch.int16).int() >> drop << drop
        return (kept + (1 << drop >> 1)).to(torch.int16).view(torch.float16).float()


class Int8:
    """Signed bytes with one float32 scale per row of D numbers."""

    def __init__(self) -> None:
        self.bits, self.row_bytes = 8.0, 4

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x: float16 [B, H, T, D]; returns float32."""
        scale = (x.float().abs().amax(-1, keepdim=True) / 127).clamp(min=1e-30)
        return (x / scale).round() * scale


class Fp8:
    """e4m3 with one scale per tensor, frozen at the first rows, as transformers' fp8 cache; larger numbers saturate."""

    def __init__(self) -> None:
        self.bits, self.row_bytes, self.scale = 8.0, 0, None

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x: float16 [B, H, T, D]; returns float32."""
        if self.scale is None:
            self.scale = x.float().abs().amax() / FP8_MAX
        return (x / self.scale).clamp(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn).float() * self.scale


class RoundedLayer(DynamicLayer):
    """A layer whose older tokens have been through ``make()``, one rounding for K and one for V."""

    def __init__(self, make: Callable, window: int) -> None:
        super().__init__()
        self.roundings, self.window, self.rounded, self.room = (make(), make()), window, 0, Growing()

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs) -> tuple[torch.Tensor, torch.Tensor]:
        """As a default layer; a prompt is attended to as it is."""
        was_empty = self.room.length == 0
        self.room.append(k=key_states.half().float(), v=value_states.half().float())
        stop = self.rounded + max(0, self.room.length - self.rounded - self.window) // BLOCK * BLOCK
        if stop > self.rounded:
            for name, rounding in zip("kv", self.roundings, strict=True):
                rows = self.room[name][:, :, self.rounded : stop]
                rows.copy_(rounding(rows.half()))
            self.rounded = stop
        if was_empty:
            return key_states, value_states
        return self.room["k"].to(key_states.dtype), self.room["v"].to(value_states.dtype)

    def get_seq_length(self) -> int:
        """Tokens stored."""
        return self.room.length

    def read(self) -> tuple[int, float]:
        """(bytes, bits of numbers) that a decode step over this layer reads."""
        batch, heads, length, dim = self.room["k"].shape
        rows, rounding = 2 * batch * heads, self.roundings[0]
        bits = rows * dim * (self.rounded * rounding.bits + (length - self.rounded) * 16)
        return int(bits / 8) + rows * self.rounded * rounding.row_bytes, bits


def rounded_cache(config: PreTrainedConfig, make: Callable, window: int) -> Cache:
    """One :class:`RoundedLayer` per layer of the model."""
    return Cache(layers=[RoundedLayer(make, window) for _ in range(config.get_text_config(decoder=True).num_hidden_layers)])
