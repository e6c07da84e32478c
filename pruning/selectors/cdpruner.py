"""CDPruner: a determinantal point process conditioned on the question."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pruning.kernels import dpp_order, unit_rows
from pruning.selectors.base import Selector
from pruning.tokens import VisualTokens


@dataclass(frozen=True)
class CDPruner(Selector):
    """Greedy MAP of the DPP with L_ij = r_i cos(x_i, x_j) r_j, r the relevance to the question in [floor, 1 + floor].

    CDPruner, arXiv 2506.10967; floor 1e-6, which its code adds before it divides by the range, not behind it. Its
    relevance is negated for CLIP, whose image-text cosines run the wrong way; here, as in openvino.genai for Qwen, it is the
    plain cosine with the mean question embedding.
    """

    floor: float = 1e-6

    def __post_init__(self) -> None:
        if not self.floor > 0.0:
            raise ValueError(f"floor must be positive, or the least relevant token could never be told apart, got {self.floor}.")

    def select(self, tokens: VisualTokens, importance: np.ndarray) -> np.ndarray:
        return dpp_order(unit_rows(tokens.features), importance + np.float32(self.floor))
