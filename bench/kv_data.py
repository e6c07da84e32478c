"""Keys, values and queries to time decode attention on: those of the embedded model, synthetic ones like them, or plain noise.

How much of a cache must be read depends on how attention is spread, so data decides what the certified mode costs.
``model``: K, V and the last query of SmolLM2-135M over source code and licences that ship with Python (at most 8192 tokens).
``like``: made to resemble it, for any geometry: of that model's 270 query heads at 8192 tokens, median (and 10%, 90%)
                                                     measured                  made here
    tokens attended, as the exponential of the entropy: 31 (3.5, 281)
    probability of the first token:                     0.18 (0, 0.73)
    probability of the last 64 tokens together:         0.22 (0.04, 0.74)
    standard deviation of a head's scores:              3.7 (2.7, 5.1)
    operator norm of V about its mean, 1 for noise:     2.3 (1.8, 3.1)
    mean of V over its deviation:                       0.38 (0.25, 0.62)
    largest deviation of a channel of K over the median: 3.7 (2.3, 5.7); largest mean over it: 6.3 (3.9, 9.0)
``noise``: independent normal numbers, every token alike: the worst case for reading less. Numbers are rounded to bfloat16, as a
model in that type would hold them.
"""

from __future__ import annotations

import torch

KINDS = ("like", "noise", "model")


def make(kind: str, heads: int, kv_heads: int, dim: int, tokens: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """q [1, heads, dim], k, v [1, kv_heads, tokens, dim], float32 numbers that bfloat16 holds."""
    g = torch.Generator().manual_seed(seed)
    maker = {"like": _like, "noise": _noise}[kind]
    return tuple(x[None].bfloat16().float() for x in maker(g, heads, kv_heads, dim, tokens))


def _noise(g, heads, kv_heads, dim, tokens):
    return torch.randn(heads, dim, generator=g), *torch.randn(2, kv_heads, tokens, dim, generator=g)


def _like(g, heads, kv_heads, dim, tokens):
    def normal(*shape):
        return torch.randn(*shape, generator=g)

    # K: independent directions of equal size, of which queries use one for "first", one for "recent" and the rest at random.
    rows = normal(kv_heads, tokens, dim)
    basis = torch.linalg.qr(normal(kv_heads, dim, dim))[0]
    first, recent = basis[:, 0], basis[:, 1]
    rows = rows - (rows @ basis[:, :2].transpose(1, 2)) @ basis[:, :2]
    age = torch.arange(tokens).flip(0).float()
    rows += recent[:, None] * (2.0 * torch.exp(-age / 200) + 1.5 * torch.exp(-age / 2000) + 0.3 * normal(kv_heads, tokens))[..., None]
    rows[:, 0] = 6 * first
    spread = torch.exp(0.5 * normal(kv_heads, 1, dim))
    k = (rows + 2.0 * normal(kv_heads, 1, dim)) * spread

    group = heads // kv_heads
    bulk = 1.6 + 1.5 * torch.rand(kv_heads, group, 1, generator=g)
    near = 2.0 * torch.rand(kv_heads, group, 1, generator=g)
    sink = 0.3 * bulk * torch.rand(kv_heads, group, 1, generator=g) ** 0.5
    away = normal(kv_heads, group, dim)
    away = away - (away @ basis[:, :2].transpose(1, 2)) @ basis[:, :2]
    away = bulk * dim**0.5 * away / away.norm(dim=-1, keepdim=True)
    return None
