"""Importance as distance from the average token."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn.functional import cosine_similarity

from pruning.scorers.base import Scorer
from pruning.tokens import VisualTokens


@dataclass(frozen=True)
class NegCosMean(Scorer):
    """-cos(x_i, mean token): what differs from the image's average is taken to be informative.

    The training-free analogue of VisionSelector's bilinear score of a token with the mean token. It knows
    nothing of the question, and a rare background patch scores as high as a rare object.
    """

    key = "neg-cos-mean"
    label = "Unlike the average"
    paper = "training-free form of VisionSelector's score"

    def score(self, tokens: VisualTokens) -> torch.Tensor:
        return -cosine_similarity(tokens.features, tokens.features.mean(dim=0, keepdim=True))
