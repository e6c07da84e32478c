"""Keys, values and queries to time decode attention on: synthetic ones like a real model's, or plain noise.

How much of a cache must be read depends on how attention is spread, so data decides what the certified mode costs.
``like``: made to resemble the embedded model (SmolLM2's geometry: 270 query heads), the last query of 4096 tokens of a licence
text; median (10%, 90%) over heads:
                                                              measured            made here, 28/4 heads of 128, 8192 tokens
    tokens attended, as the exponential of the entropy:       17 (1.6, 276)       49 (2.4, 865)
    standard deviation of a head's scores:                    3.2 (2.0, 4.9)      2.9 (1.9, 3.8)
    probability of the first token:                           0.07 (0, 0.94)      0.007 (0, 0.72)
    probability of the last 64 tokens together:               0.29 (0.01, 0.88)   0.13 (0.004, 0.73)
    operator norm of V about its mean, 1 for noise:           2.1 (1.9, 2.8)      2.6 (2.5, 2.6)
    mean of V over its deviation:                             0.45 (0.31, 0.70)   0.41 (0.38, 0.46)
    largest deviation of a channel of K over the median:      2.7 (1.9, 3.6)      3.2 (2.8, 4.8)
    largest mean of a channel of K over the median deviation: 7.9 (4.3, 12)       8.0 (6.4, 11)
So attention here is a little less peaked than in the model, which asks for more reading.
``noise``: independent normal numbers, every token alike: the worst case for reading less.
Numbers are rounded to bfloat16, as a model in that type would hold them.
"""

from __future__ import annotations

import torch

KINDS = ("like", "noise")
# Directions that V has beyond noise, and how large they are.
RANK, LOUD = 8, 0.25


def make(
    kind: str, heads: int, kv_heads: int, dim: int, tokens: int, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """q [1, heads, dim], k, v [1, kv_heads, tokens, dim], float32 numbers that bfloat16 holds."""
    maker = {"like": _like, "noise": _noise}[kind]
    made = maker(torch.Generator().manual_seed(seed), heads, kv_heads, dim, tokens)
    return tuple(x[None].bfloat16().float() for x in made)


def _noise(g: torch.Generator, heads: int, kv_heads: int, dim: int, tokens: int) -> tuple[torch.Tensor, ...]:
    return torch.randn(heads, dim, generator=g), *torch.randn(2, kv_heads, tokens, dim, generator=g)


def _like(g: torch.Generator, heads: int, kv_heads: int, dim: int, tokens: int) -> tuple[torch.Tensor, ...]:
    group = heads // kv_heads

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=g)

    def uniform(low: float, high: float) -> torch.Tensor:
        return low + (high - low) * torch.rand(kv_heads, group, 1, generator=g)

    # K: independent directions of equal size; one marks the first token, one how recent a token is. A query has some of either,
    # and a direction of its own.
    basis = torch.linalg.qr(normal(kv_heads, dim, dim))[0]
    first, recent = basis[:, :, 0], basis[:, :, 1]

    def apart(x: torch.Tensor) -> torch.Tensor:
        return x - (x @ basis[:, :, :2]) @ basis[:, :, :2].transpose(1, 2)

    age = torch.arange(tokens).flip(0).float()
    rows = apart(normal(kv_heads, tokens, dim))
    near = 2.0 * torch.exp(-age / 30) + 1.5 * torch.exp(-age / 1000) + 0.3 * normal(kv_heads, tokens)
    rows += near[..., None] * recent[:, None]
    rows[:, 0] = 20 * first
    # Channels differ in size and have means, as after rotary embedding; the queries undo the sizes.
    spread = torch.exp(0.5 * normal(kv_heads, 1, dim))
    k = (rows + 2.0 * normal(kv_heads, 1, dim)) * spread
    sharp, away = uniform(1.5, 3.8), apart(normal(kv_heads, group, dim))
    away = away / away.norm(dim=-1, keepdim=True)
    q = sharp * (away + uniform(0, 1.5) * recent[:, None] + uniform(0, 0.35) * first[:, None]) * dim**0.5 / spread

    v = normal(kv_heads, tokens, dim) + LOUD * normal(kv_heads, tokens, RANK) @ normal(kv_heads, RANK, dim)
    return q.reshape(heads, dim), k, v + 0.5 * normal(kv_heads, 1, dim)
