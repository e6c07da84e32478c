"""The trade-off measures against transcriptions of their definitions, and what must hold of any sweep."""

import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pruning.kernels import unit_rows
from pruning.selectors import Random
from pruning.tokens import VisualTokens, normalise
from pruning.tradeoff import (
    AXES,
    STREAM,
    Measures,
    Point,
    falls,
    hybrid_order,
    lambdas,
    matched,
    mean_measures,
    measure,
    space,
    sweep,
)


def tokens(n: int = 40, dim: int = 16, seed: int = 0) -> tuple[torch.Tensor, np.ndarray]:
    """Clustered features [n, dim] with a common direction, and importance that follows them."""
    g = torch.Generator().manual_seed(seed)
    centres = torch.randn(5, dim, generator=g)
    x = 0.8 * torch.randn(1, dim, generator=g) + centres[torch.randint(5, (n,), generator=g)]
    x = x + 0.4 * torch.randn(n, dim, generator=g)
    return x, normalise((x @ centres[0]).numpy())


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    """Cosine distance of two vectors, as the paper has it."""
    return 1.0 - float(torch.nn.functional.cosine_similarity(a.double(), b.double(), dim=0))


def literal_hopkins(reference: list[torch.Tensor], kept: list[torch.Tensor]) -> float:
    """H(S) as its formula reads, one loop per sum."""
    outside = sum(min(distance(r, v) for v in kept) for r in reference)
    inside = sum(min(distance(v, u) for j, u in enumerate(kept) if j != i) for i, v in enumerate(kept))
    return outside / (outside + inside)


@pytest.mark.parametrize("k", [2, 9, 30])
def test_measures_equal_their_definitions(k):
    x, importance = tokens()
    kept = np.sort(np.random.default_rng(k).permutation(len(x))[:k])
    shared = space(x, importance, k, seeds=3)
    found = measure(shared, kept)
    rows = [x[i] for i in kept]
    expected = [literal_hopkins([x[i] for i in drawn], rows) for drawn in shared.draws]
    assert found.hopkins == pytest.approx(np.mean(expected), abs=1e-5)
    assert found.hopkins_std == pytest.approx(np.std(expected), abs=1e-5)
    nearest = [min(distance(row, v) for v in rows) for row in x]
    assert found.coverage == pytest.approx(1 - np.mean(nearest), abs=1e-5)
    among = [min(distance(v, u) for j, u in enumerate(rows) if j != i) for i, v in enumerate(rows)]
    assert found.mean_distance == pytest.approx(np.mean(among), abs=1e-5)
    assert found.min_distance == pytest.approx(min(among), abs=1e-5)
    assert found.retention == pytest.approx(importance[kept].sum() / importance.sum(), abs=1e-6)


def test_box_points_give_the_literal_statistic():
    x, importance = tokens(24, 6)
    kept = np.arange(0, 24, 3)
    shared = space(x, importance, len(kept), seeds=2)
    mean = x.mean(0).numpy()
    axes = np.linalg.svd(x.numpy() - mean, full_matrices=False)[2]
    inside = (x.numpy() - mean) @ axes.T
    expected = []
    for seed in range(2):
        rng = np.random.default_rng((STREAM, seed))
        rng.permutation(24)
        points = mean + rng.uniform(inside.min(0), inside.max(0), (len(kept), 6)) @ axes
        expected.append(literal_hopkins(list(torch.from_numpy(points)), [x[i] for i in kept]))
    assert measure(shared, kept).hopkins_box == pytest.approx(np.mean(expected), abs=1e-4)
    assert measure(shared, kept).hopkins_box_std == pytest.approx(np.std(expected), abs=1e-4)


def test_hopkins_tells_clusters_from_an_even_spread():
    angles = np.linspace(0, np.pi / 2, 64)
    x = torch.from_numpy(np.stack([np.cos(angles), np.sin(angles)], 1)).float()
    shared = space(x, np.ones(64, np.float32), 16, seeds=20)
    even, clustered = measure(shared, np.arange(0, 64, 4)), measure(shared, np.arange(16))
    random = measure(shared, np.sort(np.random.default_rng(0).permutation(64)[:16]))
    for axis in ("hopkins", "hopkins_box"):
        assert getattr(even, axis) < getattr(random, axis) < getattr(clustered, axis), axis
    assert clustered.hopkins > 0.95 and even.hopkins < 0.3


def test_a_random_set_is_not_compared_with_itself():
    """Hopkins' own draws once came from the generators of the method Random, so that one of five was the set itself."""
    x, importance = tokens(120)
    shared = space(x, importance, 30)
    for seed in range(5):
        kept = np.sort(Random(seed).select(VisualTokens(x, (10, 12)), importance)[:30])
        assert all(set(drawn) != set(kept) for drawn in shared.draws.tolist())
        found = measure(shared, kept)
        predicted = (1 - found.coverage) / (1 - found.coverage + found.mean_distance)
        assert found.hopkins == pytest.approx(predicted, abs=4 * found.hopkins_std)


def test_hopkins_of_tokens_is_what_coverage_and_spacing_predict():
    x, importance = tokens(120)
    found = measure(space(x, importance, 30, seeds=200), np.arange(0, 120, 4))
    predicted = (1 - found.coverage) / (1 - found.coverage + found.mean_distance)
    assert found.hopkins == pytest.approx(predicted, abs=0.01)


@settings(max_examples=25, deadline=None)
@given(n=st.integers(3, 30), share=st.floats(0.1, 1.0), seed=st.integers(0, 10**6), alike=st.booleans())
def test_every_sweep_keeps_its_promises(n, share, seed, alike):
    x, importance = tokens(n, 8, seed)
    if alike:
        x = x[:1].repeat(n, 1)
    k = max(2, round(share * n))
    found = sweep(x, importance, k, steps=5, seeds=2)
    best = found.of("topk")[0].measures.retention
    for point in found.points:
        assert len(point.kept) == k and len(set(point.kept.tolist())) == k and (np.diff(point.kept) > 0).all()
        m = point.measures
        assert 0 <= m.hopkins <= 1 and 0 <= m.hopkins_box <= 1 and -1e-6 <= m.retention <= best + 1e-9, point.method
        assert m.coverage <= 1 + 1e-6 and 0 <= m.min_distance <= m.mean_distance + 1e-6
        if k == n:
            assert m.retention == pytest.approx(1.0) and m.hopkins == (0.5 if alike else 0.0)
    mmr, hybrid = found.of("idpruner"), found.of("topk-farthest")
    assert mmr[-1].kept.tolist() == found.of("topk")[0].kept.tolist() == hybrid[-1].kept.tolist()
    assert mmr[0].kept.tolist() == found.of("farthest")[0].kept.tolist()


def test_farthest_point_spreads_more_evenly_than_importance():
    x, importance = tokens(200, 24)
    found = sweep(x, importance, 40)
    far, top = found.of("farthest")[0].measures, found.of("topk")[0].measures
    assert far.hopkins < top.hopkins and far.coverage > top.coverage and far.min_distance > top.min_distance
    assert far.retention < top.retention


def test_hybrid_stays_inside_its_pool():
    x, importance = tokens(60)
    top = np.argsort(-importance, kind="stable")
    for lam in (0.25, 0.5, 0.75):
        pool = set(top[: round(15 + (1 - lam) * 45)].tolist())
        assert set(hybrid_order(unit_rows(x), importance, lam, 15).tolist()) <= pool


def test_a_token_is_at_no_distance_from_itself_or_its_copy():
    x, importance = tokens(12)
    x[3], x[7] = 0.0, x[8]
    found = measure(space(x, importance, 12), np.arange(12))
    assert found.hopkins == 0 and found.coverage == 1 and found.min_distance == 0


def test_without_any_importance_the_share_is_that_of_the_number():
    x, _ = tokens(20)
    assert measure(space(x, np.zeros(20, np.float32), 5), np.arange(5)).retention == 0.25


def point(retention: float, hopkins: float) -> Point:
    """A point with only the two axes of the paper set."""
    return Point("m", None, np.arange(2), Measures(retention, hopkins, 0, 0, 0, -hopkins, -hopkins, -hopkins))


@pytest.mark.parametrize("axis", [a for a in AXES if a != "hopkins_box"])
def test_matched_means_at_least_as_good_in_both(axis):
    curve = [point(0.5, 0.1), point(0.9, 0.4)]
    asked = [point(0.5, 0.1), point(0.4, 0.2), point(0.6, 0.1), point(0.9, 0.39), point(0.95, 0.9)]
    assert matched(asked, curve, axis).tolist() == [True, True, False, False, False]


def test_falls_and_lambdas():
    assert falls([0.0, 0.2, 0.1, 0.3]) == (1, pytest.approx(0.1)) and falls([1.0]) == (0, 0.0)
    assert lambdas()[[0, 1, 10, 20]].tolist() == [0.0, 0.05, 0.5, 1.0]


def test_mean_over_images_carries_the_deviation_over_images():
    found = mean_measures([point(0.4, 0.1).measures, point(0.6, 0.3).measures])
    assert found.retention == pytest.approx(0.5) and found.hopkins_std == pytest.approx(0.1)


@pytest.mark.parametrize("k", [0, 1, 41])
def test_a_budget_without_a_spread_is_refused(k):
    x, importance = tokens()
    with pytest.raises(ValueError, match="at least two"):
        sweep(x, importance, k)


def test_a_sweep_of_256_tokens_is_fast_enough_for_the_page():
    x, importance = tokens(256, 576)
    sweep(x, importance, 64, steps=2)
    began = time.process_time()
    sweep(x, importance, 64)
    took = time.process_time() - began
    assert took < 1.5, f"{took:.2f} s of CPU"
    print(f"{took:.3f} s of CPU")
