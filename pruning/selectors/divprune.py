"""DivPrune: the most diverse tokens."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pruning.kernels import mmr_order, unit_rows
from pruning.selectors.base import Selector
from pruning.tokens import VisualTokens


@dataclass(frozen=True)
class DivPrune(Selector):
    """Max-min distance: first the token farthest from its nearest neighbour, then always the one farthest from the kept.

    DivPrune, arXiv 2503.02175, distance 1 - cos. After its first pick it is farthest point, so the same kernel
    does it. The first pick needs the cosines of all pairs, O(N**2 D), which farthest point does without.
    """

    def select(self, tokens: VisualTokens, importance: np.ndarray) -> np.ndarray:
        units = unit_rows(tokens.features)
        first = np.zeros(len(units), np.float32)
        first[most_isolated(units)] = 1.0
        return mmr_order(units, first, lam=0.0)


def most_isolated(units: np.ndarray) -> int:
    """argmin over i of the largest cosine with another token, lowest index first; units: float32 [N, D]."""
    units64 = units.astype(np.float64)
    cosines = (units64 @ units64.T).astype(np.float32)
    np.fill_diagonal(cosines, -np.inf)
    return int(np.argmin(cosines.max(1)))
