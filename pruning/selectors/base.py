"""The skeleton of every selector: a subclass writes only ``select``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np

from pruning.tokens import VisualTokens, check_permutation


@dataclass(frozen=True)
class Selector(ABC):
    """In what order to keep tokens, whatever the budget: every budget is a prefix of the order."""

    @abstractmethod
    def select(self, tokens: VisualTokens, importance: np.ndarray) -> np.ndarray:
        """int64 [N], a permutation, most wanted first."""

    def __call__(self, tokens: VisualTokens, importance: np.ndarray) -> np.ndarray:
        """Order int64 [N] from importance float32 [N] in [0, 1]. Raises ValueError if either is malformed."""
        n = len(tokens.features)
        if importance.shape != (n,) or importance.dtype != np.float32:
            raise ValueError(f"importance must be float32 [{n}], got {importance.dtype} {importance.shape}.")
        # Written so that a nan fails it, too.
        if not (importance.min() >= 0.0 and importance.max() <= 1.0):
            raise ValueError("importance must lie in [0, 1]; normalise it with pruning.tokens.normalise.")
        order = self.select(tokens, importance)
        check_permutation(order, n)
        return order
