"""HiPrune: objects from the middle of the tower, the scene from its end."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pruning.selectors.base import Selector, best_first, check_share, completed
from pruning.tokens import VisualTokens


@dataclass(frozen=True)
class HiPrune(Selector):
    """Anchors, most attended in the middle of the tower; their four neighbours; the rest by attention at its end.

    HiPrune, arXiv 2508.00553; alpha: the share of anchors with their neighbours, 0.1 in its code. Its middle layer is 16 of
    32 in Qwen2.5-VL, a window layer; here it is the nearest full-attention one. Neighbours end at the image's edge, where
    AngelSlim's run on into the next row.
    """

    budgeted = True
    needs = frozenset({"middle", "received"})
    alpha: float = 0.1

    def __post_init__(self) -> None:
        check_share("alpha", self.alpha)

    def select(self, tokens: VisualTokens, importance: np.ndarray, k: int) -> np.ndarray:
        count = round(k * self.alpha / 5)
        if self.alpha > 0 and k >= 5:
            count = max(1, count)
        middle, end = (x.float().cpu().numpy() for x in (tokens.middle, tokens.received))
        anchors = best_first(middle)[:count]
        near = np.setdiff1d(neighbours(anchors, *tokens.grid), anchors)
        chosen = np.concatenate([anchors, near])[:k]
        return completed(chosen, end)


def neighbours(tokens: np.ndarray, rows: int, cols: int) -> np.ndarray:
    """int64: what lies beside, above and below ``tokens`` in a grid in raster order, sorted, no repeats."""
    y, x = np.divmod(tokens, cols)
    beside = [(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)]
    inside = [(v * cols + u)[(v >= 0) & (v < rows) & (u >= 0) & (u < cols)] for v, u in beside]
    return np.unique(np.concatenate(inside)).astype(np.int64)
