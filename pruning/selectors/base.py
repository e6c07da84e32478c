"""The skeleton of every selector: a subclass writes only ``select``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from pruning.tokens import VisualTokens, check_permutation


@dataclass(frozen=True)
class Selector(ABC):
    """In what order to keep tokens.

    budgeted: whether the order depends on how many are kept. If not, every budget is a prefix of one order; if so, only the
    first k are right, for that very k, which ``select`` gets as a third argument.
    needs: optional parts of the tokens that it cannot do without. after: language layers that see every token; 0 drops
    before the first of them.
    """

    budgeted: ClassVar[bool] = False
    needs: ClassVar[frozenset[str]] = frozenset()
    after: ClassVar[int] = 0

    @abstractmethod
    def select(self, tokens: VisualTokens, importance: np.ndarray) -> np.ndarray:
        """int64 [N], a permutation, most wanted first."""

    def merge(self, tokens: VisualTokens, order: np.ndarray, k: int) -> torch.Tensor | None:
        """What stands for the first ``k`` of ``order``: float32 [k, D] in raster order; None where they stay as they are."""
        return None

    def __call__(self, tokens: VisualTokens, importance: np.ndarray, k: int | None = None) -> np.ndarray:
        """Order int64 [N] from importance float32 [N] in [0, 1]; k: how many are kept, for those that depend on it.

        Raises ValueError if any of them is malformed or missing.
        """
        n = len(tokens.features)
        name = type(self).__name__
        tokens.require(self.needs, name, "method")
        if self.budgeted and (k is None or not 1 <= k <= n):
            raise ValueError(f"{name} chooses for one budget: say how many tokens are kept, k between 1 and {n}, not {k}.")
        if importance.shape != (n,) or importance.dtype != np.float32:
            raise ValueError(f"importance must be float32 [{n}], got {importance.dtype} {importance.shape}.")
        # Written so that a nan fails it, too.
        if not (importance.min() >= 0.0 and importance.max() <= 1.0):
            raise ValueError("importance must lie in [0, 1]; normalise it with pruning.tokens.normalise.")
        order = self.select(tokens, importance, k) if self.budgeted else self.select(tokens, importance)
        check_permutation(order, n)
        return order


def best_first(importance: np.ndarray) -> np.ndarray:
    """int64 [N], descending; among equals the one that comes first in the image."""
    return np.argsort(-importance, kind="stable").astype(np.int64)


def completed(first: np.ndarray, importance: np.ndarray) -> np.ndarray:
    """``first``, distinct tokens, and behind them all others, most important first: int64 [N]."""
    order = best_first(importance)
    return np.concatenate([first, order[~np.isin(order, first)]]).astype(np.int64)


def check_share(name: str, value: float) -> None:
    """Raise ValueError unless a parameter that divides the budget lies in [0, 1]."""
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"{name} is a share of the budget and must lie between 0 and 1, got {value}.")
