"""Importance as what the prompt's last token looks at."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pruning.scorers.base import Scorer
from pruning.tokens import VisualTokens


@dataclass(frozen=True)
class LastTokenAttention(Scorer):
    """Attention from the prompt's last token to each visual token in an early language layer, the mean over heads.

    FastV, arXiv 2403.06764. It knows the question, and costs the first layers on all tokens.
    """

    key = "last-token-attention"
    label = "Attention of the prompt's last token"
    paper = "FastV, arXiv 2403.06764"
    needs = frozenset({"layer"})

    def score(self, tokens: VisualTokens) -> torch.Tensor:
        return tokens.layer.attention
