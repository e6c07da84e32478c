"""How to read: the modes of decode attention, and the trace of what one step has read."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from kvquant.alignment import STEPS
from kvquant.store import Store


@dataclass(frozen=True)
class Exact:
    """Every bit of every token."""


@dataclass(frozen=True)
class Paper:
    """AlignedKV (arXiv 2409.16546) on half planes: K's width per channel, V's per token, 0, 8, 12 or 16 bits; no error target.

    steps: wasted bits from which 12, 8, and no bits are read; ``kvquant.alignment.THREE_WIDTHS`` for the paper's text, which
    leaves nothing unread.
    """

    steps: tuple[int, int, int] = STEPS

    def __post_init__(self) -> None:
        if len(self.steps) != 3 or not 0 <= self.steps[0] <= self.steps[1] <= self.steps[2]:
            raise ValueError(f"The three thresholds must not be negative and must not fall, got {self.steps}.")


@dataclass(frozen=True)
class Certified:
    """Progressive reading of fixed-point planes until the proven bound meets ``error``.

    error: largest allowed ||o' - o|| / ||o|| of any query head's output o, l2 norms. key_share: how much of it K's scores may
    use up; V's rows get the rest. Where the bound cannot be met, everything is read, and the trace says what bound remains.
    Most of it is K's because its bound is the looser one: at 41% of bytes saved, shares of 0.65, 0.85 and 0.9 (with errors of
    0.015, 0.0175 and 0.02) gave a KLD of 4.0e-6, 2.0e-6 and 1.6e-6 on the same 2,048 tokens of bench.kv_quality.
    """

    error: float = 0.02
    key_share: float = 0.9

    def __post_init__(self) -> None:
        if not self.error > 0.0:
            raise ValueError(f"The error to certify must be positive, got {self.error}; for none at all, use the exact mode.")
        if not 0.0 < self.key_share < 1.0:
            raise ValueError(f"The share of the keys must lie between 0 and 1, got {self.key_share}.")


Mode = Exact | Paper | Certified


class Meter:
    """Counts the bytes of what is dereferenced through it, and nothing else."""

    def __init__(self) -> None:
        self.bytes = 0

    def read(self, x: torch.Tensor) -> torch.Tensor:
        """All of x."""
        self.bytes += x.nbytes
        return x

    def rows(self, x: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        """The rows x[chosen] and no others: chosen is bool of x's leading shape; returns [count, ...], in order."""
        return self.read(x[chosen])


@dataclass(frozen=True, eq=False)
class Trace:
    """What one step of attention has read, and how wrong it can be.

    key_bits, value_bits: float32 [B, Hkv, L], bits read per number of each token (0: the row was skipped; whole tokens
    count the bits of their type). channel_bits: float32 [B, Hkv, D], bits read per number of each channel of K. bytes_read:
    of planes, steps, whole tokens and per-head constants, each counted once however many rounds look at it (Triton's kernel
    counts every round's); bytes_whole: what an ordinary cache reads.
    norm: [B, Hq], ||o'||; bound, bound_max: [B, Hq], proven bounds of ||o' - o|| in the l2 and the maximum norm (o: exact
    attention of the numbers that were appended; for halves, of those numbers as halves), without the rounding of the
    arithmetic itself. rounds: passes over the choice of rows.
    """

    key_bits: torch.Tensor
    value_bits: torch.Tensor
    channel_bits: torch.Tensor
    bytes_read: int
    bytes_whole: int
    norm: torch.Tensor
    bound: torch.Tensor
    bound_max: torch.Tensor
    rounds: int = 1

    @classmethod
    def of(
        cls,
        store: Store,
        meter: Meter,
        out: torch.Tensor,
        key_bits: torch.Tensor | None = None,
        value_bits: torch.Tensor | None = None,
        channel_bits: torch.Tensor | None = None,
        bound: torch.Tensor | None = None,
        bound_max: torch.Tensor | None = None,
        rounds: int = 1,
    ) -> Trace:
        """From the bits of the tokens in planes (none: there are none), out [B, Hkv, g, D] and bounds [B, Hkv, g] (none: 0)."""
        (batch, heads, length, dim), planed = store.shape, store.planed
        whole = 8.0 * store.tail["k"].element_size()
        tail = out.new_full((batch, heads, length - planed), whole, dtype=torch.float32)

        def with_tail(bits: torch.Tensor | None) -> torch.Tensor:
            return tail if bits is None else torch.cat([bits.float(), tail], dim=-1)

        channels = out.new_zeros(batch, heads, dim) if channel_bits is None else channel_bits
        channels = (channels * planed + whole * (length - planed)) / length
        norm = out.norm(dim=-1).flatten(1)
        bounds = (torch.zeros_like(norm) if b is None else b.flatten(1) for b in (bound, bound_max))
        return cls(with_tail(key_bits), with_tail(value_bits), channels, meter.bytes, store.bytes_whole, norm, *bounds, rounds)

    def totals(self) -> Trace:
        """The same without the bits of every token and channel, of which the means stay: all of them are megabytes an answer."""
        few = {name: getattr(self, name).mean(-1, keepdim=True) for name in ("key_bits", "value_bits", "channel_bits")}
        return replace(self, **few)

    @property
    def mean_bits(self) -> float:
        """Average bits per number of K and V, steps and constants not included (``bytes_read`` has them)."""
        return float((self.key_bits.mean() + self.value_bits.mean()) / 2)
