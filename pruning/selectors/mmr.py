"""Maximal marginal relevance: the selector of IDPruner."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pruning.kernels import mmr_order_of
from pruning.selectors.base import Selector
from pruning.tokens import VisualTokens


@dataclass(frozen=True)
class MMR(Selector):
    """argmax lam * importance_i - (1 - lam) * max_{j kept} cos(x_i, x_j), the most important token first.

    IDPruner, arXiv 2602.13315, section 4. lam: 1 keeps the most important, 0 the most diverse tokens. Of several images each
    is ordered, and keeps its share, by itself; the code behind the paper (AngelSlim) lets all compete for one budget.
    """

    lam: float = 0.5

    def __post_init__(self) -> None:
        if not 0.0 <= self.lam <= 1.0:
            raise ValueError(f"lambda must lie between 0 (diversity only) and 1 (importance only), got {self.lam}.")

    def select(self, tokens: VisualTokens, importance: np.ndarray) -> np.ndarray:
        return mmr_order_of(tokens.features, importance, self.lam)
