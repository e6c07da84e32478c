"""The named pruning methods, each a scorer and a selector; a lookup that knows all names."""

from __future__ import annotations

import time
from dataclasses import dataclass, fields, replace

import torch

from pruning.scorers import MeanQueryAttention, NegCosMean, Norm, Relevance, Scorer, Trained
from pruning.selectors import MMR, FarthestPoint, KeepAll, Random, Selector, TopK, UniformGrid
from pruning.tokens import Ranking, VisualTokens


@dataclass(frozen=True)
class Method:
    """A way to prune: who scores, who selects, where it comes from and what it costs.

    scorer None means that the order does not depend on importance. needs_attention_maps: whether it needs the
    N x N attention weights that FlashAttention never writes. trained: what scores instead where the model has it.
    """

    key: str
    label: str
    paper: str
    scorer: Scorer | None
    selector: Selector
    needs_attention_maps: bool = False
    note: str = ""
    trained: Scorer | None = None

    @property
    def takes_lambda(self) -> bool:
        return _has_field(self.selector, "lam")

    @property
    def takes_seed(self) -> bool:
        return _has_field(self.selector, "seed")

    @property
    def takes_scorer(self) -> bool:
        return self.scorer is not None

    def with_(self, *, lam: float | None = None, scorer: str | Scorer | None = None, seed: int | None = None):
        """A changed copy; None leaves a setting alone. Raises ValueError for a setting the method lacks."""
        selector = self.selector
        for name, value, allowed in (("lam", lam, self.takes_lambda), ("seed", seed, self.takes_seed)):
            if value is None:
                continue
            if not allowed:
                raise ValueError(f"The method '{self.label}' has no {'lambda' if name == 'lam' else name} to set.")
            selector = replace(selector, **{name: value})
        if scorer is not None and not self.takes_scorer:
            raise ValueError(f"The method '{self.label}' does not use importance, so it takes no scorer.")
        return replace(self, selector=selector, scorer=self.scorer if scorer is None else _scorer(scorer))

    def __call__(self, tokens: VisualTokens) -> Ranking:
        """Rank all tokens, timing scoring and selection apart (seconds, synchronised on a GPU).

        Where importance is not used, one is still attached for display, outside the timed part.
        Raises ValueError when the scorer lacks an input.
        """
        start = _now(tokens.features)
        importance = None if self.scorer is None else self.scorer(tokens)
        scoring_s = 0.0 if importance is None else _now(tokens.features) - start
        if importance is None:
            importance = NegCosMean()(tokens)
        start = _now(tokens.features)
        order = self.selector(tokens, importance)
        return Ranking(order, importance, scoring_s, _now(tokens.features) - start, self.key)


def get_method(key: str, trained: bool = False) -> Method:
    """The registered method; with its trained scorer, if it has one, where the model is ``trained`` for it.

    Raises ValueError that lists the known names.
    """
    if key not in METHODS:
        raise ValueError(f"Unknown pruning method '{key}'. Known: {', '.join(METHODS)}.")
    method = METHODS[key]
    return replace(method, scorer=method.trained, note="") if trained and method.trained else method


def _scorer(scorer: str | Scorer) -> Scorer:
    if isinstance(scorer, Scorer):
        return scorer
    if scorer not in SCORERS:
        raise ValueError(f"Unknown scorer '{scorer}'. Known: {', '.join(SCORERS)}.")
    return SCORERS[scorer]


def _has_field(selector: Selector, name: str) -> bool:
    return any(field.name == name for field in fields(selector))


def _now(features: torch.Tensor) -> float:
    if features.is_cuda:
        torch.cuda.synchronize(features.device)
    return time.perf_counter()


SCORERS: dict[str, Scorer] = {s.key: s for s in (NegCosMean(), Norm(), Relevance(), MeanQueryAttention(), Trained())}

_IDPRUNER = "IDPruner, arXiv 2602.13315"
_ALL = (
    Method("none", "Keep every token", "baseline", None, KeepAll(), note="The model as it is."),
    Method(
        "idpruner",
        "IDPruner: importance + diversity",
        _IDPRUNER,
        NegCosMean(),
        MMR(lam=0.5),
        note="The paper's importance is trained; without a trained scorer this is the training-free one.",
        trained=Trained(),
    ),
    Method("topk", "Top-k: importance only", "baseline", NegCosMean(), TopK()),
    Method("farthest", "Farthest point: diversity only", "Gonzalez 1985", NegCosMean(), FarthestPoint()),
    Method("random", "Random", "baseline", None, Random(), note="Report it with several seeds."),
    Method("uniform", "Uniform grid", "baseline", None, UniformGrid(), note="Ignores the image's content."),
)
METHODS: dict[str, Method] = {method.key: method for method in _ALL}
