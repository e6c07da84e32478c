"""Importance as attention received in the vision tower."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pruning.scorers.base import Scorer
from pruning.tokens import VisualTokens


@dataclass(frozen=True)
class MeanQueryAttention(Scorer):
    """softmax(mean query . K) of the last full-attention vision layer, as the caller computed it.

    One query row, O(N d): no N x N attention map, so it works beside FlashAttention. The stand-in for the
    class-token attention of VisionZip in towers that have no class token.
    """

    key = "mean-query-attention"
    label = "Attention in the vision tower"
    paper = "VisionZip, arXiv 2412.04467, with the mean query for the class token"
    needs = frozenset({"attention"})

    def score(self, tokens: VisualTokens) -> torch.Tensor:
        return tokens.attention
