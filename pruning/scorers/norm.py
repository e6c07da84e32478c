"""Importance as length."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pruning.scorers.base import Scorer
from pruning.tokens import VisualTokens


@dataclass(frozen=True)
class Norm(Scorer):
    """L2 norm of the token. High-norm tokens may carry global, not local, content (arXiv 2309.16588)."""

    key = "norm"
    label = "Feature norm"
    paper = "baseline"

    def score(self, tokens: VisualTokens) -> torch.Tensor:
        return torch.linalg.vector_norm(tokens.features, dim=1)
