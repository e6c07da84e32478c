"""The skeleton of every importance scorer: a subclass writes only ``score``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from pruning.tokens import VisualTokens, normalise


@dataclass(frozen=True)
class Scorer(ABC):
    """How important each visual token is. ``needs`` names the optional inputs it cannot do without."""

    key: ClassVar[str]
    label: ClassVar[str]
    paper: ClassVar[str]
    needs: ClassVar[frozenset[str]] = frozenset()

    @abstractmethod
    def score(self, tokens: VisualTokens) -> torch.Tensor:
        """Raw importance [N], larger is more important, on any scale."""

    def __call__(self, tokens: VisualTokens) -> np.ndarray:
        """Importance float32 [N], min-max normalised. Raises ValueError when a needed input is missing."""
        tokens.require(self.needs, f"The scorer '{self.label}'", "scorer")
        raw = self.score(tokens)
        if tuple(raw.shape) != (len(tokens.features),):
            raise ValueError(f"The scorer '{self.label}' returned {tuple(raw.shape)}, not one score per token.")
        return normalise(raw)
