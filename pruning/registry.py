"""The named pruning methods, each a scorer and a selector; a lookup that knows all names."""

from __future__ import annotations

import time
from dataclasses import dataclass, fields, replace

import torch

from pruning.scorers import (
    LastTokenAttention,
    MeanQueryAttention,
    NegCosMean,
    Norm,
    ReceivedAttention,
    Relevance,
    Scorer,
    Trained,
)
from pruning.selectors import (
    MMR,
    CDPruner,
    Dart,
    DivPrune,
    DownSampling,
    FarthestPoint,
    FastV,
    HiPrune,
    IDSelection,
    KeepAll,
    Random,
    Scope,
    Selector,
    TopK,
    TopKFarthest,
    UniformGrid,
    VisionZip,
    VisPruner,
)
from pruning.tokens import IMAGE, Ranking, VisualTokens


@dataclass(frozen=True)
class Method:
    """A way to prune: who scores, who selects, where it comes from and what it costs.

    scorer None means that the order does not depend on importance. own_scorer: whether the scorer is part of the method, so
    that no other may take its place. needs_attention_maps: whether it needs attention weights, which FlashAttention never
    writes; they are computed again. trained: what scores instead where the model has it.
    """

    key: str
    label: str
    paper: str
    scorer: Scorer | None
    selector: Selector
    needs_attention_maps: bool = False
    note: str = ""
    trained: Scorer | None = None
    own_scorer: bool = False

    @property
    def budgeted(self) -> bool:
        """Whether the order serves one budget only, which must then be named."""
        return self.selector.budgeted

    @property
    def after(self) -> int:
        """Language layers that see every token; 0 drops before the first, IMAGE shows a smaller picture instead."""
        return self.selector.after

    @property
    def where(self) -> str:
        """Where in the model it prunes, in words."""
        if self.after == IMAGE:
            return "the image"
        return f"after layer {self.after}" if self.after else "before the language model"

    @property
    def needs(self) -> frozenset[str]:
        """Optional parts of the tokens that scorer and selector cannot do without."""
        return self.selector.needs | (self.scorer.needs if self.scorer else frozenset())

    @property
    def takes_lambda(self) -> bool:
        return _has_field(self.selector, "lam")

    @property
    def takes_seed(self) -> bool:
        return _has_field(self.selector, "seed")

    @property
    def takes_scorer(self) -> bool:
        return self.scorer is not None and not self.own_scorer

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
            why = "has its own importance" if self.own_scorer else "does not use importance"
            raise ValueError(f"The method '{self.label}' {why}, so it takes no scorer.")
        return replace(self, selector=selector, scorer=self.scorer if scorer is None else _scorer(scorer))

    def __call__(self, tokens: VisualTokens, k: int | None = None) -> Ranking:
        """Rank all tokens, timing scoring and selection apart (seconds, synchronised on a GPU).

        k: how many are kept, for a ``budgeted`` method; the others serve every k at once. Where importance is not used, one
        is still attached for display, outside the timed part. Raises ValueError when an input or a needed k is missing.
        """
        start = _now(tokens.features)
        importance = None if self.scorer is None else self.scorer(tokens)
        scoring_s = 0.0 if importance is None else _now(tokens.features) - start
        if importance is None:
            importance = NegCosMean()(tokens)
        start = _now(tokens.features)
        order = self.selector(tokens, importance, k)
        merged = self.selector.merge(tokens, order, k) if self.budgeted else None
        took = _now(tokens.features) - start
        return Ranking(order, importance, scoring_s, took, self.key, k if self.budgeted else None, merged, self.after)


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


_SCORERS = (NegCosMean(), Norm(), Relevance(), MeanQueryAttention(), ReceivedAttention(), LastTokenAttention(), Trained())
SCORERS: dict[str, Scorer] = {s.key: s for s in _SCORERS}

_IDPRUNER = "IDPruner, arXiv 2602.13315"
_RECEIVED = "The tower has no class token: the attention is the mean over all queries, computed again layer by layer."
_LOOKS_INSIDE = "It runs the first two language layers on all tokens"
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
    Method("visionselector", "VisionSelector: trained importance", Trained.paper, Trained(), TopK(), own_scorer=True),
    Method("divprune", "DivPrune: max-min distance", "DivPrune, arXiv 2503.02175", None, DivPrune()),
    Method(
        "cdpruner",
        "CDPruner: diversity, given the question",
        "CDPruner, arXiv 2506.10967",
        Relevance(),
        CDPruner(),
        note="Relevance is the cosine with the question's mean embedding; there is no CLIP text tower.",
        own_scorer=True,
    ),
    Method(
        "scope",
        "SCOPE: attention x coverage",
        "SCOPE, arXiv 2510.24214",
        ReceivedAttention(),
        Scope(),
        needs_attention_maps=True,
        note=_RECEIVED,
        own_scorer=True,
    ),
    Method(
        "visionzip",
        "VisionZip: keep and merge",
        "VisionZip, arXiv 2412.04467",
        ReceivedAttention(),
        VisionZip(),
        needs_attention_maps=True,
        note=f"10 of 64 kept tokens stand for all dropped ones. {_RECEIVED}",
        own_scorer=True,
    ),
    Method(
        "hiprune",
        "HiPrune: middle and last attention",
        "HiPrune, arXiv 2508.00553",
        ReceivedAttention(),
        HiPrune(),
        needs_attention_maps=True,
        note=_RECEIVED,
        own_scorer=True,
    ),
    Method(
        "vispruner",
        "VisPruner: attention, then no duplicates",
        "VisPruner, arXiv 2412.01818",
        ReceivedAttention(),
        VisPruner(),
        needs_attention_maps=True,
        note=_RECEIVED,
        own_scorer=True,
    ),
    Method(
        "id-selection",
        "ID-Selection: attention, suppressing likeness",
        "ID-Selection, arXiv 2604.05601",
        LastTokenAttention(),
        IDSelection(),
        needs_attention_maps=True,
        note=f"{_LOOKS_INSIDE} to score them, and again in the answer.",
        own_scorer=True,
    ),
    Method(
        "fastv",
        "FastV: inside the language model",
        "FastV, arXiv 2403.06764",
        LastTokenAttention(),
        FastV(),
        needs_attention_maps=True,
        note=f"{_LOOKS_INSIDE}, which the prefill's time contains.",
        own_scorer=True,
    ),
    Method(
        "dart",
        "DART: unlike the pivots, inside the language model",
        "DART, arXiv 2502.11494",
        None,
        Dart(),
        note=f"{_LOOKS_INSIDE}, which the prefill's time contains. It needs keys, no attention weights.",
    ),
    Method("mean-query", "Top-k: mean-query attention", MeanQueryAttention.paper, MeanQueryAttention(), TopK(), own_scorer=True),
    Method("topk", "Top-k: importance only", "baseline", NegCosMean(), TopK()),
    Method("farthest", "Farthest point: diversity only", "Gonzalez 1985", NegCosMean(), FarthestPoint()),
    Method("dpp", "DPP: importance x diversity", f"beside MMR in {_IDPRUNER}, table 7", NegCosMean(), CDPruner()),
    Method("topk-farthest", "Top-k, then farthest point", f"the naive hybrid of {_IDPRUNER}", NegCosMean(), TopKFarthest()),
    Method("random", "Random", "baseline", None, Random(), note="Report it with several seeds."),
    Method("uniform", "Uniform grid", "baseline", None, UniformGrid(), note="Ignores the image's content."),
    Method(
        "down-sampling",
        "Smaller picture: nothing is dropped",
        "baseline",
        None,
        DownSampling(),
        note="About as many tokens, in whole rows and columns; the vision tower gets cheaper, too.",
    ),
)
METHODS: dict[str, Method] = {method.key: method for method in _ALL}
