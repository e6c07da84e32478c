"""A smaller picture: the opponent that needs no method."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pruning.selectors.base import Selector
from pruning.selectors.uniform import spread_order
from pruning.tokens import IMAGE, VisualTokens


@dataclass(frozen=True)
class DownSampling(Selector):
    """No token is dropped: the model is shown the picture in about as many tokens as would be kept.

    The only baseline that makes the vision tower cheaper, too. Whoever runs the model makes the picture smaller (``after``
    says so); the order here, an even spread, only stands for how many there are.
    """

    budgeted = True
    after = IMAGE

    def select(self, tokens: VisualTokens, importance: np.ndarray, k: int) -> np.ndarray:
        return spread_order(*tokens.grid)
