"""Top-k: importance alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pruning.selectors.base import Selector, best_first
from pruning.tokens import VisualTokens


@dataclass(frozen=True)
class TopK(Selector):
    """Most important first; among equals the one that comes first in the image."""

    def select(self, tokens: VisualTokens, importance: np.ndarray) -> np.ndarray:
        return best_first(importance)
