"""DART: what duplicates the pivots least."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from pruning.kernels import unit_rows
from pruning.selectors.base import Selector, best_first, completed
from pruning.tokens import VisualTokens


@dataclass(frozen=True)
class Dart(Selector):
    """A few pivots by key norm, visual and text; then for each pivot the visual tokens least like it.

    DART, arXiv 2502.11494; defaults of its code: after layer 2, four visual and four text pivots, the L1 norm of
    the keys, cosine of the hidden states behind that layer. The visual pivots are kept. The published code keeps
    floor(k / pivots) per pivot beside the visual pivots; here the shares are rounded up and the last is cut, so k are kept.
    """

    budgeted = True
    needs = frozenset({"layer"})
    after: int = 2
    visual_pivots: int = 4
    text_pivots: int = 4

    def __post_init__(self) -> None:
        if self.after < 1 or self.visual_pivots < 0 or self.text_pivots < 0 or not self.visual_pivots + self.text_pivots:
            raise ValueError(
                "DART needs at least one pivot and prunes after layer 1 or later, got "
                f"{self.visual_pivots} + {self.text_pivots} pivots after layer {self.after}."
            )

    def select(self, tokens: VisualTokens, importance: np.ndarray, k: int) -> np.ndarray:
        view = tokens.layer
        visual, text = (unit_rows(x).astype(np.float64) for x in (view.visual, view.text))
        kept = longest(view.visual_keys)[: min(self.visual_pivots, k)]
        pivots = np.concatenate([visual[kept], text[longest(view.text_keys)[: self.text_pivots]]])
        share = -(-(k - len(kept)) // max(1, len(pivots)))
        for pivot in pivots:
            likeness = (visual @ pivot).astype(np.float32)
            likeness[kept] = np.inf
            least = np.argsort(likeness, kind="stable")[: min(share, k - len(kept))]
            kept = np.concatenate([kept, least])
        return completed(kept, importance)


def longest(keys: torch.Tensor) -> np.ndarray:
    """int64 [N]: tokens by the L1 norm of their keys [N, C], longest first."""
    return best_first(keys.float().abs().sum(1).cpu().numpy())
