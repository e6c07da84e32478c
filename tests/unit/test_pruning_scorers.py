"""Importance scorers against their formulas, and the messages of what they refuse."""

import numpy as np
import pytest
import torch

from pruning.scorers import MeanQueryAttention, NegCosMean, Norm, Relevance
from pruning.tokens import VisualTokens, normalise

SCORERS = (NegCosMean(), Norm(), Relevance(), MeanQueryAttention())


@pytest.fixture
def tokens() -> VisualTokens:
    g = torch.Generator().manual_seed(0)
    return VisualTokens(
        features=torch.randn(12, 8, generator=g) + 0.5,
        grid=(3, 4),
        question=torch.randn(5, 8, generator=g),
        attention=torch.rand(12, generator=g),
    )


def cosines(rows: np.ndarray, other: np.ndarray) -> np.ndarray:
    return rows @ other / (np.linalg.norm(rows, axis=1) * np.linalg.norm(other))


def test_scorers_follow_their_formulas(tokens):
    x = tokens.features.double().numpy()
    raw = {
        "neg-cos-mean": -cosines(x, x.mean(0)),
        "norm": np.linalg.norm(x, axis=1),
        "relevance": cosines(x, tokens.question.double().numpy().mean(0)),
        "mean-query-attention": tokens.attention.double().numpy(),
    }
    for scorer in SCORERS:
        r = raw[scorer.key]
        expected = (r - r.min()) / (r.max() - r.min())
        difference = np.abs(scorer(tokens) - expected).max()
        assert difference < 1e-5, f"{scorer.key}: largest difference {difference:.3g}"


@pytest.mark.parametrize("scorer", SCORERS, ids=lambda s: s.key)
def test_importance_is_float32_in_the_unit_interval(scorer, tokens):
    importance = scorer(tokens)
    assert importance.dtype == np.float32
    assert importance.shape == (12,)
    assert importance.min() == 0.0
    assert importance.max() == 1.0
    assert scorer.label and scorer.paper


@pytest.mark.parametrize(("scorer", "name"), [(Relevance(), "question"), (MeanQueryAttention(), "attention")])
def test_a_missing_input_is_named_with_its_remedy(scorer, name):
    bare = VisualTokens(features=torch.randn(4, 3), grid=(2, 2))
    with pytest.raises(ValueError, match=rf"needs the {name}: pass VisualTokens\({name}=.*another scorer"):
        scorer(bare)


def test_half_precision_questions_are_accepted(tokens):
    half = VisualTokens(tokens.features, tokens.grid, tokens.question.bfloat16())
    assert np.abs(Relevance()(half) - Relevance()(tokens)).max() < 0.05


def test_equal_features_are_equally_important():
    flat = VisualTokens(features=torch.full((6, 50), 0.1), grid=(2, 3))
    assert NegCosMean()(flat).tolist() == [0.0] * 6
    zero = VisualTokens(features=torch.zeros(6, 5), grid=(2, 3))
    assert NegCosMean()(zero).tolist() == [0.0] * 6


def test_normalise_is_min_max():
    assert normalise(np.array([2, 4, 3])).tolist() == [0.0, 1.0, 0.5]
    assert normalise(torch.tensor([5.0, 5.0])).tolist() == [0.0, 0.0]
    assert normalise(np.array([-1e38, 1e38], dtype=np.float32)).tolist() == [0.0, 1.0]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_normalise_refuses_what_cannot_be_ranked(bad):
    with pytest.raises(ValueError, match="nan or inf"):
        normalise(np.array([0.0, bad]))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"features": torch.zeros(4)}, "features must"),
        ({"features": torch.zeros(4, 3, dtype=torch.float16)}, "float32"),
        ({"features": torch.full((4, 3), float("nan"))}, "nan or inf"),
        ({"middle": torch.tensor([0.1, 0.2, float("nan"), 0.4])}, "middle holds nan or inf"),
        ({"grid": (2, 3)}, "grid 2 x 3 does not hold 4 tokens"),
        ({"grid": (-2, -2)}, "grid"),
        ({"question": torch.zeros(2, 4)}, "question must"),
        ({"question": torch.zeros(0, 3)}, "question must"),
        ({"attention": torch.zeros(5)}, "attention must"),
    ],
)
def test_malformed_tokens_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        VisualTokens(**({"features": torch.zeros(4, 3), "grid": (2, 2)} | fields))
