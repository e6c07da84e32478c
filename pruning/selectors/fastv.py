"""FastV: the first layers see everything, the others what the last token looked at."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pruning.selectors.base import Selector, best_first
from pruning.tokens import VisualTokens


@dataclass(frozen=True)
class FastV(Selector):
    """Top-k inside the language model, behind its first ``after`` layers.

    FastV, arXiv 2403.06764: K = 2, importance is the attention of the prompt's last token in layer K (counted
    from 1), the mean over heads. The first K layers run on all tokens, and the cache keeps all of them there.
    """

    after: int = 2

    def __post_init__(self) -> None:
        if self.after < 1:
            raise ValueError(f"FastV ranks by the attention of a layer, so it prunes after layer 1 or later, not {self.after}.")

    def select(self, tokens: VisualTokens, importance: np.ndarray) -> np.ndarray:
        return best_first(importance)
