"""Farthest-point order: diversity alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pruning.kernels import mmr_order_of
from pruning.selectors.base import Selector
from pruning.tokens import VisualTokens


@dataclass(frozen=True)
class FarthestPoint(Selector):
    """Each pick is the token farthest, in cosine distance, from the nearest one already kept.

    Gonzalez 1985; DivPrune (arXiv 2503.02175) up to its first pick, which is the most important token here.
    Exactly MMR with lambda 0, so the same kernel does it.
    """

    def select(self, tokens: VisualTokens, importance: np.ndarray) -> np.ndarray:
        return mmr_order_of(tokens.features, importance, lam=0.0)
