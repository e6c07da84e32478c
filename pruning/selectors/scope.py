"""SCOPE: what covers most, weighted by saliency."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pruning.kernels import scope_order, unit_rows
from pruning.selectors.base import Selector
from pruning.tokens import VisualTokens


@dataclass(frozen=True)
class Scope(Selector):
    """argmax a_i**alpha * sum_j max(0, cos(i, j) - max_{s kept} cos(s, j)): gain in coverage times saliency.

    SCOPE, arXiv 2510.24214; alpha 1 as in AngelSlim's scope.py. The saliency a is the attention as it is received, not stretched
    to [0, 1]: a product is not indifferent to where zero lies.
    """

    needs = frozenset({"received"})
    alpha: float = 1.0

    def __post_init__(self) -> None:
        if not self.alpha >= 0.0:
            raise ValueError(f"alpha must not be negative (0 leaves coverage alone), got {self.alpha}.")

    def select(self, tokens: VisualTokens, importance: np.ndarray) -> np.ndarray:
        saliency = tokens.received.float().cpu().numpy()
        return scope_order(unit_rows(tokens.features), saliency, self.alpha)
