"""Importance as likeness to the question."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn.functional import cosine_similarity

from pruning.scorers.base import Scorer
from pruning.tokens import VisualTokens


@dataclass(frozen=True)
class Relevance(Scorer):
    """cos(x_i, mean embedding of the question's tokens).

    The form openvino.genai uses for Qwen in its CDPruner (PR #3084): the mean instruction embedding, no text
    tower. The mean token is not subtracted. Input embeddings are not trained to align with visual tokens, so
    this is a weak signal for models whose visual tokens live far from the word embeddings.
    """

    key = "relevance"
    label = "Relevance to the question"
    paper = "CDPruner as in openvino.genai, PR #3084"
    needs = frozenset({"question"})

    def score(self, tokens: VisualTokens) -> torch.Tensor:
        instruction = tokens.question.to(tokens.features).mean(dim=0, keepdim=True)
        return cosine_similarity(tokens.features, instruction)
