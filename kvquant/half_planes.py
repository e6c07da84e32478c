"""The paper's storage: halves in 8 + 4 + 4 bits, K channel by channel in blocks of 64 tokens, V token by token.

K's width is chosen per channel, so the tokens of a channel lie together: planes of K are [B, H, blocks, D, 64] (32 bytes
in the 4-bit planes); V's width is chosen per token: planes of V are [B, H, tokens, D] (D / 2). Every bit stays stored.
"""

from __future__ import annotations

import torch

from kvquant.growing import Growing
from kvquant.planes import join_half, pack, split_half, to_half, unpack

BLOCK = 64


class HalfPlanes:
    """Keys and values of whole blocks of tokens.

    keys, values: ``high``, ``middle``, ``low`` planes (uint8), see the head of this file. k_peak, v_peak, v_mean: float32
    [B, H, D], upper bounds of each channel's size, and the mean of all values that were appended.
    """

    def __init__(self) -> None:
        self.keys, self.values, self.counted = Growing(), Growing(), 0
        self.k_peak = self.v_peak = self.v_mean = None

    @property
    def length(self) -> int:
        return self.values.length

    def append(self, k: torch.Tensor, v: torch.Tensor) -> None:
        """k, v: [B, H, T, D], any floating type, T a multiple of 64, D even. Raises ValueError as ``to_half`` does."""
        k, v = to_half(k), to_half(v)
        for rows, name in ((k, "k_peak"), (v, "v_peak")):
            peak, old = rows.abs().amax(2).float(), getattr(self, name)
            setattr(self, name, peak if old is None else torch.maximum(peak, old))
        mean, added = v.float().mean(2), v.shape[2]
        self.counted += added
        self.v_mean = mean if self.v_mean is None else self.v_mean + (mean - self.v_mean) * (added / self.counted)
        blocks = k.unflatten(2, (-1, BLOCK)).transpose(-1, -2)
        for growing, rows in ((self.keys, blocks), (self.values, v)):
            high, middle, low = split_half(rows.contiguous())
            growing.append(high=high, middle=pack(middle), low=pack(low))

    def dense(self, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """All bits: (k, v), each [B, H, length, D], exactly the halves that were appended."""
        k, v = (join_half(g["high"], unpack(g["middle"]), unpack(g["low"]), 16).to(dtype) for g in (self.keys, self.values))
        return k.transpose(-1, -2).flatten(2, 3), v

    def crop(self, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keeps the whole blocks among the first ``length`` tokens and returns the tokens after them, (k, v) float16.

        The peaks stay, an upper bound is safe, and so does the mean.
        """
        start = length // BLOCK * BLOCK
        k, v = (x[:, :, start:length] for x in self.dense(torch.float16))
        self.keys.crop(start // BLOCK)
        self.values.crop(start)
        return k, v

    def select(self, index: torch.Tensor) -> None:
        """Rearranges the batch, int64 [new B]."""
        self.keys.select(index)
        self.values.select(index)
        self.k_peak, self.v_peak, self.v_mean = (x.index_select(0, index) for x in (self.k_peak, self.v_peak, self.v_mean))

    @property
    def bytes_stored(self) -> int:
        return self.keys.bytes_stored + self.values.bytes_stored + self.constants_read

    @property
    def bytes_used(self) -> int:
        return self.keys.bytes_used + self.values.bytes_used + self.constants_read

    @property
    def constants_read(self) -> int:
        """Bytes of the peaks and the mean, which one step of attention reads."""
        return 0 if self.k_peak is None else self.k_peak.nbytes + self.v_peak.nbytes + self.v_mean.nbytes
