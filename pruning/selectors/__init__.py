"""Selectors, one per file."""

from pruning.selectors.base import Selector
from pruning.selectors.farthest import FarthestPoint
from pruning.selectors.mmr import MMR
from pruning.selectors.none import KeepAll
from pruning.selectors.random import Random
from pruning.selectors.topk import TopK
from pruning.selectors.uniform import UniformGrid

__all__ = ["MMR", "FarthestPoint", "KeepAll", "Random", "Selector", "TopK", "UniformGrid"]
