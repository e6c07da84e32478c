"""Raster order: nothing is pruned."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pruning.selectors.base import Selector
from pruning.tokens import VisualTokens


@dataclass(frozen=True)
class KeepAll(Selector):
    """Tokens as they come. Meant to be cut at N; a shorter prefix is just the top of the image."""

    def select(self, tokens: VisualTokens, importance: np.ndarray) -> np.ndarray:
        return np.arange(len(importance), dtype=np.int64)
