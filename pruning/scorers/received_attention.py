"""Importance as attention received, averaged over everyone who pays it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pruning.scorers.base import Scorer
from pruning.tokens import VisualTokens


@dataclass(frozen=True)
class ReceivedAttention(Scorer):
    """Mean over queries and heads of softmax(Q K) in the vision tower's last full-attention layer.

    What VisionZip (arXiv 2412.04467) takes in towers without a class token, and HiPrune, VisPruner and SCOPE
    as AngelSlim runs them on Qwen2.5-VL. It costs a whole attention map, O(N**2 C), which no fast attention hands out.
    """

    key = "received-attention"
    label = "Attention received in the vision tower"
    paper = "VisionZip, arXiv 2412.04467"
    needs = frozenset({"received"})

    def score(self, tokens: VisualTokens) -> torch.Tensor:
        return tokens.received
