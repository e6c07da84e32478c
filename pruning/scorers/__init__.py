"""Importance scorers, one per file."""

from pruning.scorers.base import Scorer
from pruning.scorers.last_token_attention import LastTokenAttention
from pruning.scorers.mean_query_attention import MeanQueryAttention
from pruning.scorers.neg_cos_mean import NegCosMean
from pruning.scorers.norm import Norm
from pruning.scorers.received_attention import ReceivedAttention
from pruning.scorers.relevance import Relevance
from pruning.scorers.trained import ScorerWeights, Trained

__all__ = [
    "LastTokenAttention",
    "MeanQueryAttention",
    "NegCosMean",
    "Norm",
    "ReceivedAttention",
    "Relevance",
    "Scorer",
    "ScorerWeights",
    "Trained",
]
