"""Top-k, then farthest point: the naive way to have both."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pruning.kernels import mmr_order_of
from pruning.selectors.base import Selector, best_first, completed
from pruning.tokens import VisualTokens


@dataclass(frozen=True)
class TopKFarthest(Selector):
    """A pool of the most important tokens, and farthest point inside it.

    The naive hybrid of IDPruner, arXiv 2602.13315, section 3. How large its pool is was not to be found; here lam sets it,
    k + (1 - lam)(N - k), so that 1 is top-k and 0 is farthest point, the two ends of the paper's sweep.
    """

    budgeted = True
    lam: float = 0.5

    def __post_init__(self) -> None:
        if not 0.0 <= self.lam <= 1.0:
            raise ValueError(f"lambda must lie between 0 (diversity only) and 1 (importance only), got {self.lam}.")

    def select(self, tokens: VisualTokens, importance: np.ndarray, k: int) -> np.ndarray:
        pool = pool_of(importance, self.lam, k)
        return completed(pool[mmr_order_of(tokens.features[pool], importance[pool], 0.0, k)], importance)


def pool_of(importance: np.ndarray, lam: float, k: int) -> np.ndarray:
    """int64, ascending: the most important tokens, all N at ``lam`` 0 and ``k`` of them at 1."""
    return np.sort(best_first(importance)[: k + round((1.0 - lam) * (len(importance) - k))])
