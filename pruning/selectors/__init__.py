"""Selectors, one per file."""

from pruning.selectors.base import Selector
from pruning.selectors.cdpruner import CDPruner
from pruning.selectors.dart import Dart
from pruning.selectors.divprune import DivPrune
from pruning.selectors.down_sampling import DownSampling
from pruning.selectors.farthest import FarthestPoint
from pruning.selectors.fastv import FastV
from pruning.selectors.hiprune import HiPrune
from pruning.selectors.id_selection import IDSelection
from pruning.selectors.mmr import MMR
from pruning.selectors.none import KeepAll
from pruning.selectors.random import Random
from pruning.selectors.scope import Scope
from pruning.selectors.topk import TopK
from pruning.selectors.topk_farthest import TopKFarthest
from pruning.selectors.uniform import UniformGrid
from pruning.selectors.visionzip import VisionZip
from pruning.selectors.vispruner import VisPruner

__all__ = [
    "MMR",
    "CDPruner",
    "Dart",
    "DivPrune",
    "DownSampling",
    "FarthestPoint",
    "FastV",
    "HiPrune",
    "IDSelection",
    "KeepAll",
    "Random",
    "Scope",
    "Selector",
    "TopK",
    "TopKFarthest",
    "UniformGrid",
    "VisPruner",
    "VisionZip",
]
