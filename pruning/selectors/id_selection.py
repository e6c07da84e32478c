"""ID-Selection: take the best, play down what is like it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pruning.kernels import id_selection_order, unit_rows
from pruning.selectors.base import Selector
from pruning.tokens import VisualTokens


@dataclass(frozen=True)
class IDSelection(Selector):
    """The highest score S_i, then S_j -= exp(-gamma (1 - cos)**2) S_i for all others, and so on.

    ID-Selection, arXiv 2604.05601, gamma 20; written from a third-party re-implementation, its own code was not to be had. S
    starts as the importance in [0, 1]. A score that has fallen below zero suppresses nothing, where that code lifts it to zero.
    """

    gamma: float = 20.0

    def __post_init__(self) -> None:
        if not self.gamma >= 0.0:
            raise ValueError(f"gamma must not be negative (0 suppresses all alike), got {self.gamma}.")

    def select(self, tokens: VisualTokens, importance: np.ndarray) -> np.ndarray:
        return id_selection_order(unit_rows(tokens.features), importance, self.gamma)
