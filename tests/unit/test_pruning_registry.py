"""The named methods: each runs, is what it says, and refuses settings it does not have."""

import numpy as np
import pytest
import torch

from pruning.registry import METHODS, SCORERS, Method, get_method
from pruning.scorers import Norm, ScorerWeights
from pruning.tokens import VisualTokens


@pytest.fixture
def tokens() -> VisualTokens:
    g = torch.Generator().manual_seed(0)
    return VisualTokens(
        features=torch.randn(24, 16, generator=g),
        grid=(4, 6),
        question=torch.randn(5, 16, generator=g),
        attention=torch.rand(24, generator=g),
        weights=ScorerWeights(*(torch.randn(s, generator=g) for s in ((6, 16), (6,)) * 2)),
    )


@pytest.mark.parametrize("key", METHODS)
def test_every_method_ranks_a_small_image(key, tokens):
    method = METHODS[key]
    ranking = method(tokens)
    assert method.key == ranking.method == key
    assert method.label and method.paper
    assert sorted(ranking.order.tolist()) == list(range(24))
    assert ranking.importance.dtype == np.float32
    assert (ranking.importance.min(), ranking.importance.max()) == (0.0, 1.0)
    assert ranking.selection_s > 0.0
    assert (ranking.scoring_s > 0.0) == method.takes_scorer
    assert np.array_equal(ranking.order, method(tokens).order)


@pytest.mark.parametrize("scorer", SCORERS)
@pytest.mark.parametrize("key", [key for key, method in METHODS.items() if method.takes_scorer])
def test_every_scorer_fits_every_method_that_takes_one(key, scorer, tokens):
    ranking = METHODS[key].with_(scorer=scorer)(tokens)
    assert np.array_equal(ranking.importance, SCORERS[scorer](tokens))
    assert ranking.order[0] == ranking.importance.argmax()


def test_idpruner_is_mmr_between_its_two_extremes(tokens):
    idpruner = get_method("idpruner")
    assert idpruner.selector.lam == 0.5
    assert idpruner.takes_lambda and not idpruner.needs_attention_maps
    assert np.array_equal(idpruner.with_(lam=1.0)(tokens).order, METHODS["topk"](tokens).order)
    assert np.array_equal(idpruner.with_(lam=0.0)(tokens).order, METHODS["farthest"](tokens).order)


def test_with_leaves_the_registered_method_alone():
    changed = METHODS["idpruner"].with_(lam=0.25, scorer=Norm())
    assert isinstance(changed, Method)
    assert (changed.selector.lam, changed.scorer.key) == (0.25, "norm")
    assert (METHODS["idpruner"].selector.lam, METHODS["idpruner"].scorer.key) == (0.5, "neg-cos-mean")
    assert METHODS["idpruner"].with_() == METHODS["idpruner"]
    assert METHODS["random"].with_(seed=9).selector.seed == 9


@pytest.mark.parametrize(
    ("key", "setting", "message"),
    [
        ("topk", {"lam": 0.5}, "no lambda"),
        ("idpruner", {"seed": 1}, "no seed"),
        ("random", {"scorer": "norm"}, "takes no scorer"),
        ("idpruner", {"scorer": "nope"}, "Unknown scorer 'nope'. Known: neg-cos-mean"),
        ("idpruner", {"lam": -0.1}, "lambda must lie"),
    ],
)
def test_a_setting_the_method_lacks_is_refused(key, setting, message):
    with pytest.raises(ValueError, match=message):
        METHODS[key].with_(**setting)


def test_an_unknown_method_is_answered_with_the_known_ones():
    with pytest.raises(ValueError, match=r"Unknown pruning method 'x'.*none, idpruner, topk"):
        get_method("x")


def test_a_missing_question_reaches_the_user(tokens):
    bare = VisualTokens(tokens.features, tokens.grid)
    with pytest.raises(ValueError, match="needs the question"):
        get_method("idpruner").with_(scorer="relevance")(bare)
