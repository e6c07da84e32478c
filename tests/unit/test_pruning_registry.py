"""The named methods: each runs, is what it says, and refuses settings it does not have."""

import numpy as np
import pytest

from pruning.registry import METHODS, SCORERS, Method, get_method
from pruning.scorers import Norm
from pruning.tokens import IMAGE, VisualTokens
from tests.unit.tiny import random_tokens

PUBLISHED = (
    *("visionselector", "divprune", "cdpruner", "scope", "visionzip"),
    *("hiprune", "vispruner", "id-selection", "fastv", "dart"),
)


@pytest.fixture
def tokens() -> VisualTokens:
    return random_tokens(0, 4, 6)


@pytest.mark.parametrize("k", [1, 2, 7, 23, 24])
@pytest.mark.parametrize("key", METHODS)
def test_every_method_ranks_a_small_image(key, k, tokens):
    method = METHODS[key]
    ranking = method(tokens, k)
    assert method.key == ranking.method == key
    assert method.label and method.paper
    assert sorted(ranking.order.tolist()) == list(range(24))
    assert len(ranking.keep(k)) == k
    assert ranking.importance.dtype == np.float32
    assert (ranking.importance.min(), ranking.importance.max()) == (0.0, 1.0)
    assert ranking.selection_s > 0.0
    assert (ranking.scoring_s > 0.0) == (method.scorer is not None)
    assert np.array_equal(ranking.order, method(tokens, k).order), "not deterministic"
    assert (ranking.budget, ranking.after) == (k if method.budgeted else None, method.after)
    assert (ranking.merged is not None) == (key == "visionzip")


@pytest.mark.parametrize("scorer", SCORERS)
@pytest.mark.parametrize("key", [key for key, method in METHODS.items() if method.takes_scorer])
def test_every_scorer_fits_every_method_that_takes_one(key, scorer, tokens):
    ranking = METHODS[key].with_(scorer=scorer)(tokens, 9)
    assert np.array_equal(ranking.importance, SCORERS[scorer](tokens))
    assert ranking.order[0] == ranking.importance.argmax()


def test_where_each_method_prunes_is_said_in_words():
    places = {key: method.where for key, method in METHODS.items() if method.where != "before the language model"}
    assert places == {"fastv": "after layer 2", "dart": "after layer 2", "down-sampling": "the image"}
    assert METHODS["down-sampling"].after == IMAGE
    looks = {key for key, method in METHODS.items() if method.needs_attention_maps}
    assert looks == {"scope", "visionzip", "hiprune", "vispruner", "id-selection", "fastv"}


def test_published_methods_keep_their_own_importance(tokens):
    for key in PUBLISHED:
        assert not METHODS[key].takes_scorer
        with pytest.raises(ValueError, match="so it takes no scorer"):
            METHODS[key].with_(scorer="norm")


@pytest.mark.parametrize("key", [key for key, method in METHODS.items() if method.budgeted])
def test_a_budgeted_method_asks_for_its_budget_and_serves_no_other(key, tokens):
    with pytest.raises(ValueError, match="say how many tokens are kept, k between 1 and 24, not None"):
        METHODS[key](tokens)
    with pytest.raises(ValueError, match="not 25"):
        METHODS[key](tokens, 25)
    ranking = METHODS[key](tokens, 6)
    with pytest.raises(ValueError, match=f"'{key}' chose for 6 tokens; rank again to keep 7"):
        ranking.keep(7)


def test_the_others_serve_every_budget_with_one_order(tokens):
    for key, method in METHODS.items():
        if not method.budgeted:
            assert np.array_equal(method(tokens).order, method(tokens, 5).order), key


@pytest.mark.parametrize("key", [key for key, method in METHODS.items() if method.needs - {"features"}])
def test_a_missing_part_is_named_with_its_remedy(key, tokens):
    bare = VisualTokens(tokens.features, tokens.grid)
    with pytest.raises(ValueError, match=r"needs the (\w+): pass VisualTokens\(\1=.*, or choose another (scorer|method)\."):
        METHODS[key](bare, 6)


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
    with pytest.raises(ValueError, match=r"Unknown pruning method 'x'.*none, idpruner, visionselector.*down-sampling"):
        get_method("x")


def test_a_missing_question_reaches_the_user(tokens):
    bare = VisualTokens(tokens.features, tokens.grid)
    with pytest.raises(ValueError, match="needs the question"):
        get_method("idpruner").with_(scorer="relevance")(bare)
