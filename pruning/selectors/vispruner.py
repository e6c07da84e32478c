"""VisPruner: half by attention, half by weeding out duplicates."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pruning.kernels import unit_rows
from pruning.selectors.base import Selector, best_first, check_share, completed
from pruning.tokens import VisualTokens

# Duplicates that go at a time, in the published code.
AT_ONCE = 8


@dataclass(frozen=True)
class VisPruner(Selector):
    """The most attended tokens; of the others, those that survive round after round of removing the most duplicated.

    VisPruner, arXiv 2412.01818; important: the attended share of the budget, 0.5. In a round the others, in the
    order of attention, are dealt out in two hands, and of the first hand the up to eight tokens go that are most like any of
    the second; what is left of the first hand goes in front, most similar first, as in the published code. That compares the
    tower's features before the projector; here, as in AngelSlim, they are those behind the merger.
    """

    budgeted = True
    needs = frozenset({"received"})
    important: float = 0.5

    def __post_init__(self) -> None:
        check_share("important", self.important)

    def select(self, tokens: VisualTokens, importance: np.ndarray, k: int) -> np.ndarray:
        attended = best_first(tokens.received.float().cpu().numpy())
        count = int(k * self.important)
        units = unit_rows(tokens.features).astype(np.float64)
        others = survivors((units @ units.T).astype(np.float32), attended[count:], k - count)
        return completed(np.concatenate([attended[:count], others]), importance)


def survivors(cosines: np.ndarray, tokens: np.ndarray, count: int) -> np.ndarray:
    """The ``count`` of ``tokens`` left by the rounds; cosines: float32 [N, N]."""
    while count and len(tokens) > count:
        first, second = tokens[::2], tokens[1::2]
        closest = cosines[np.ix_(first, second)].max(1)
        by_likeness = np.argsort(-closest, kind="stable")
        tokens = np.concatenate([first[by_likeness[min(AT_ONCE, len(tokens) - count) :]], second])
    return tokens[:count]
