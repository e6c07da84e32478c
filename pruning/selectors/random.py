"""Random order: the baseline that many published methods fail to beat."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pruning.selectors.base import Selector
from pruning.tokens import VisualTokens


@dataclass(frozen=True)
class Random(Selector):
    """A uniform permutation from its own generator; global seeds neither matter nor change."""

    seed: int = 0

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ValueError(f"seed must be 0 or larger, got {self.seed}.")

    def select(self, tokens: VisualTokens, importance: np.ndarray) -> np.ndarray:
        return np.random.default_rng(self.seed).permutation(len(importance)).astype(np.int64)
