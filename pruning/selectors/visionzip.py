"""VisionZip: the most attended tokens stay, the rest is merged into a few."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from pruning.kernels import unit_rows
from pruning.selectors.base import Selector, best_first, check_share, completed
from pruning.tokens import VisualTokens


@dataclass(frozen=True)
class VisionZip(Selector):
    """Dominant tokens by attention received; of the others evenly spaced targets, into which all others are averaged.

    VisionZip, arXiv 2412.04467; contextual: the targets' share, 10 of 64 in the paper. A token goes to the
    target whose key is most like its own. Three things differ from the paper's code: tokens are merged behind the tower's
    2 x 2 merger, not before the projector (AngelSlim does so on Qwen2.5-VL, too); a target is averaged with what goes into
    it, as the paper says, where the code adds the two; and keys are taken before rotary embedding, so that place is no likeness.
    """

    budgeted = True
    needs = frozenset({"received", "keys"})
    contextual: float = 10 / 64

    def __post_init__(self) -> None:
        check_share("contextual", self.contextual)

    def split(self, k: int) -> tuple[int, int]:
        """(dominant, targets), which add up to ``k``; at least one target."""
        targets = max(1, round(k * self.contextual))
        return k - targets, targets

    def select(self, tokens: VisualTokens, importance: np.ndarray, k: int) -> np.ndarray:
        dominant, targets = self.split(k)
        by_attention = best_first(tokens.received.float().cpu().numpy())[:dominant]
        others = np.setdiff1d(np.arange(len(importance)), by_attention)
        evenly = others[:: max(1, len(others) // targets)][:targets]
        return completed(np.concatenate([by_attention, evenly]), importance)

    def merge(self, tokens: VisualTokens, order: np.ndarray, k: int) -> torch.Tensor:
        dominant, _ = self.split(k)
        targets, others = order[dominant:k], order[k:]
        x = tokens.features
        stands = x.clone()
        if len(others):
            keys = unit_rows(tokens.keys).astype(np.float64)
            goes_to = torch.from_numpy((keys[others] @ keys[targets].T).astype(np.float32).argmax(1))
            # A product with zeros and ones: a GPU's scattered sums come in another order every time.
            joins = torch.nn.functional.one_hot(goes_to, len(targets)).T.to(x)
            at = torch.from_numpy(targets).to(x.device)
            stands[at] = (x[at] + joins @ x[torch.from_numpy(others).to(x.device)]) / (1 + joins.sum(1, keepdim=True))
        return stands[torch.from_numpy(np.sort(order[:k])).to(x.device)]
