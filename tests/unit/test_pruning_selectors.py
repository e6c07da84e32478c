"""Selectors and the MMR kernel: the fast order is the defined order, and each selector keeps its promise."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.timing import measure
from pruning import kernels
from pruning.kernels import mmr_numba, mmr_order, mmr_reference, unit_rows
from pruning.selectors import MMR, FarthestPoint, KeepAll, Random, TopK, UniformGrid
from pruning.selectors.uniform import spread_order
from pruning.tokens import Ranking, VisualTokens, keep_count, normalise

LAMBDAS = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0)
SELECTORS = (MMR(), FarthestPoint(), TopK(), Random(seed=3), UniformGrid(), KeepAll())
quick = settings(deadline=None, max_examples=25)


def problem(seed: int, n: int, dim: int, kind: str) -> tuple[torch.Tensor, np.ndarray]:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, dim, generator=g)
    importance = torch.rand(n, generator=g).numpy()
    if kind == "duplicates":
        x, importance = x[torch.arange(n) // 2], importance[np.arange(n) // 2]
    elif kind == "zero rows":
        x[::3] = 0.0
    elif kind == "equal features":
        x = x[:1].repeat(n, 1)
    elif kind == "constant importance":
        importance = np.zeros(n, np.float32)
    elif kind == "coarse":
        x, importance = x.sign(), np.round(importance, 1)
    elif kind == "one loud channel":
        x[:, 0] += 50.0
    elif kind == "all equal":
        x, importance = torch.ones(n, dim), np.ones(n, np.float32)
    return x, importance


KINDS = (
    "random",
    "duplicates",
    "zero rows",
    "equal features",
    "constant importance",
    "coarse",
    "one loud channel",
    "all equal",
)


def test_the_compiled_kernel_is_the_one_under_test():
    pytest.importorskip("numba")
    usable, reason = mmr_numba.available()
    assert usable, reason
    assert "numba" in kernels.kernel_reason()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lam", LAMBDAS)
def test_fast_order_is_the_defined_order(kind, lam):
    x, importance = problem(1, 61, 37, kind)
    units = unit_rows(x)
    assert np.array_equal(mmr_order(units, importance, lam), mmr_reference(units, importance, lam))


@quick
@given(
    seed=st.integers(0, 10**6),
    n=st.integers(1, 70),
    dim=st.integers(1, 70),
    kind=st.sampled_from(KINDS),
    lam=st.floats(0.0, 1.0),
)
def test_fast_order_is_the_defined_order_for_any_size(seed, n, dim, kind, lam):
    x, importance = problem(seed, n, dim, kind)
    units = unit_rows(x)
    fast, slow = mmr_order(units, importance, lam), mmr_reference(units, importance, lam)
    assert np.array_equal(fast, slow), f"{int((fast != slow).sum())} of {n} places differ"


@quick
@given(seed=st.integers(0, 10**6), n=st.integers(2, 60), lam=st.floats(0.0, 1.0), share=st.floats(0.01, 1.0))
def test_an_order_for_k_is_a_prefix_of_the_full_order(seed, n, lam, share):
    x, importance = problem(seed, n, 16, "duplicates")
    units, k = unit_rows(x), max(1, int(n * share))
    full = mmr_order(units, importance, lam)
    assert np.array_equal(mmr_order(units, importance, lam, k), full[:k])
    assert np.array_equal(mmr_reference(units, importance, lam, k), full[:k])


def test_gains_of_fast_and_reference_picks_agree():
    x, importance = problem(5, 200, 96, "duplicates")
    units = unit_rows(x)

    def gains(order):
        similarity = (units.astype(np.float64) @ units.T.astype(np.float64)).astype(np.float32)
        return [0.5 * importance[i] - 0.5 * similarity[i, order[:t]].max() for t, i in enumerate(order) if t]

    fast, slow = mmr_order(units, importance, 0.5), mmr_reference(units, importance, 0.5)
    difference = np.abs(np.array(gains(fast)) - np.array(gains(slow)))
    message = f"largest difference {difference.max():.3g}, mean {difference.mean():.3g}"
    print(message)
    assert difference.max() == 0.0, message


def test_dot_products_do_not_depend_on_the_order_of_summation():
    units = unit_rows(problem(2, 40, 3584, "random")[0]).astype(np.float64)
    shuffled = units[:, np.random.default_rng(0).permutation(3584)]
    assert np.array_equal(units @ units.T, shuffled @ shuffled.T)
    assert np.array_equal((units[:1] * units).sum(1), units @ units[0])


def test_screening_slack_bounds_the_screening_error():
    dots = pytest.importorskip("pruning.kernels.dots")
    for dim in (1, 7, 576):
        units = unit_rows(problem(3, 50, dim, "one loud channel")[0])
        small = np.round(units * np.float32(dots.INT16_SCALE)).astype(np.int64)
        exact = units.astype(np.float64) @ units.T.astype(np.float64)
        error = np.abs(small @ small.T / dots.INT16_SCALE**2 - exact).max()
        assert error <= dots.screening_slack(dim), f"dim {dim}: error {error:.3g}"


@pytest.mark.parametrize("width", [32, 64, 576, 3584])
def test_int16_dot_product_is_the_integer_sum(width):
    numba = pytest.importorskip("numba")
    from pruning.kernels.dot_int16 import dot_int16

    @numba.njit
    def dot(x, y):
        total = dot_int16(np.uintp(x.ctypes.data), np.uintp(y.ctypes.data), x.size)
        return total + np.int32(0 * (x[0] + y[0]))  # keeps both arrays alive past the read of their memory

    rng = np.random.default_rng(width)
    x, y = rng.integers(-700, 700, (2, width)).astype(np.int16)
    assert dot(x, y) == int(x.astype(np.int64) @ y.astype(np.int64))


def test_without_numba_the_reference_answers_and_says_why(monkeypatch):
    monkeypatch.setattr(mmr_numba, "available", lambda: (False, "plain numpy loop: no numba here."))
    x, importance = problem(1, 20, 8, "random")
    units = unit_rows(x)
    assert np.array_equal(mmr_order(units, importance, 0.5), mmr_reference(units, importance, 0.5))
    assert kernels.kernel_reason() == "plain numpy loop: no numba here."


def test_a_failing_kernel_is_reported_not_raised(monkeypatch):
    def broken(*_):
        raise ImportError("no module named numba")

    monkeypatch.setattr(mmr_numba, "mmr_order", broken)
    mmr_numba.available.cache_clear()
    try:
        usable, reason = mmr_numba.available()
    finally:
        mmr_numba.available.cache_clear()
    assert not usable
    assert "no module named numba" in reason


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lam": 1.5}, "lambda"),
        ({"lam": float("nan")}, "lambda"),
        ({"k": 0}, "k must"),
        ({"k": 21}, "k must"),
        ({"importance": np.zeros(3, np.float32)}, "importance must"),
        ({"importance": np.full(20, np.nan, np.float32)}, "nan"),
        ({"units": np.zeros((20, 4))}, "units must"),
    ],
)
def test_wrong_arguments_are_refused_with_a_reason(change, message):
    arguments = {"units": np.eye(20, dtype=np.float32), "importance": np.zeros(20, np.float32), "lam": 0.5}
    with pytest.raises(ValueError, match=message):
        mmr_order(**(arguments | change))


def tokens_of(x: torch.Tensor, grid: tuple[int, int]) -> VisualTokens:
    return VisualTokens(features=x, grid=grid)


@quick
@given(seed=st.integers(0, 10**6), rows=st.integers(1, 9), cols=st.integers(1, 9), kind=st.sampled_from(KINDS))
def test_every_selector_returns_a_permutation(seed, rows, cols, kind):
    x, importance = problem(seed, rows * cols, 8, kind)
    for selector in SELECTORS:
        order = selector(tokens_of(x, (rows, cols)), importance)
        assert order.dtype == np.int64
        assert sorted(order.tolist()) == list(range(rows * cols))


def test_lambda_one_is_top_k_and_lambda_zero_is_farthest_point():
    x, importance = problem(4, 48, 16, "coarse")
    tokens = tokens_of(x, (6, 8))
    assert np.array_equal(MMR(lam=1.0)(tokens, importance), TopK()(tokens, importance))
    assert np.array_equal(MMR(lam=0.0)(tokens, importance), FarthestPoint()(tokens, importance))


def test_farthest_point_by_its_own_definition():
    x, importance = problem(6, 30, 16, "random")
    units = unit_rows(x).astype(np.float64)
    order = FarthestPoint()(tokens_of(x, (5, 6)), importance)
    assert order[0] == importance.argmax()
    for t in range(1, 30):
        rest = np.setdiff1d(np.arange(30), order[:t])
        nearest = (1 - units[rest] @ units[order[:t]].T).min(axis=1)
        assert order[t] == rest[nearest.argmax()]


def test_top_k_is_stable():
    importance = np.array([0.5, 1.0, 0.5, 1.0], np.float32)
    assert TopK()(tokens_of(torch.ones(4, 2), (2, 2)), importance).tolist() == [1, 3, 0, 2]


def test_random_follows_its_seed_alone():
    x, importance = problem(0, 40, 4, "random")
    tokens = tokens_of(x, (5, 8))
    torch.manual_seed(1)
    np.random.seed(1)
    first, state = Random(seed=7)(tokens, importance), torch.get_rng_state()
    torch.manual_seed(2)
    np.random.seed(2)
    assert np.array_equal(first, Random(seed=7)(tokens, importance))
    assert not np.array_equal(first, Random(seed=8)(tokens, importance))
    torch.manual_seed(1)
    assert torch.equal(state, torch.get_rng_state())
    with pytest.raises(ValueError, match="seed"):
        Random(seed=-1)


@pytest.mark.parametrize(("rows", "cols"), [(1, 1), (1, 17), (5, 5), (16, 16), (9, 31), (3, 40)])
def test_every_prefix_of_the_uniform_order_covers_the_grid(rows, cols):
    n = rows * cols
    order = spread_order(rows, cols)
    y, x = np.divmod(np.arange(n), cols)
    nearest = np.full(n, np.inf)
    for k, pick in enumerate(order, start=1):
        nearest = np.minimum(nearest, np.hypot(y - y[pick], x - x[pick]))
        # k discs of radius r cover all cells, so k * (2 r + 1)**2 >= n and k * (2 r + 1) >= the longer side.
        best = max((np.sqrt(n / k) - 1) / 2, (max(rows, cols) / k - 1) / 2, 0.0)
        assert nearest.max() <= 2 * best + 3, (k, nearest.max(), best)


def test_no_part_of_the_image_is_favoured_by_the_uniform_order():
    rows, cols = 37, 73
    order = spread_order(rows, cols)
    for k in (168, 400, 673, 1345, 2000):
        kept = np.zeros(rows * cols, bool)
        kept[order[:k]] = True
        kept = kept.reshape(rows, cols)
        parts = [p.mean() for half in np.array_split(kept, 2) for p in np.array_split(half, 2, axis=1)]
        assert max(parts) < 1.35 * min(parts), (k, parts)


def test_the_uniform_order_leans_neither_to_the_border_nor_away_from_it():
    order, share = spread_order(16, 16), {}
    for k in (26, 64, 128):
        y, x = np.divmod(order[:k], 16)
        share[k] = float(((y % 15 == 0) | (x % 15 == 0)).mean())
        to_kept = np.hypot(*(np.indices((16, 16)).reshape(2, -1)[:, :, None] - np.stack([y, x])[:, None, :])).min(1)
        # A square lattice of as many tokens lies at 0.3826 of its spacing on average.
        assert to_kept.mean() < 1.1 * 0.3826 * 16 / k**0.5, (k, to_kept.mean())
    print(f"share of the kept on the border, where 23% of all lie: {share}")
    assert share[26] < 0.1 and abs(share[64] - 0.23) < 0.1 and abs(share[128] - 0.23) < 0.1


@quick
@given(n=st.integers(1, 5000), prune=st.floats(0.0, 1.0, exclude_max=True))
def test_keep_count_stays_in_bounds(n, prune):
    k = keep_count(n, prune)
    assert 1 <= k <= n
    assert abs(k - n * (1 - prune)) <= 1


@pytest.mark.parametrize("prune", [-0.1, 1.0, 9.0, float("nan")])
def test_keep_count_refuses_what_is_not_a_fraction(prune):
    with pytest.raises(ValueError, match="fraction"):
        keep_count(10, prune)


def test_a_ranking_cuts_in_raster_order():
    ranking = Ranking(np.array([2, 0, 3, 1]), normalise(np.arange(4.0)), 0.0, 0.0, "test")
    assert ranking.keep(3).tolist() == [0, 2, 3]
    assert ranking.kept_mask(1).tolist() == [False, False, True, False]
    assert ranking.rank.tolist() == [1, 3, 0, 2]
    with pytest.raises(ValueError, match="Cannot keep"):
        ranking.keep(0)
    with pytest.raises(ValueError, match="permutation"):
        Ranking(np.array([0, 0]), np.zeros(2, np.float32), 0.0, 0.0, "test")


def test_measure_interleaves_and_drops_the_warm_up():
    calls = []
    timings = measure({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, repeats=3, warmup=1)
    assert calls == ["a", "b"] * 4
    assert timings["a"].n == 3
    assert timings["a"].q1 <= timings["a"].median <= timings["a"].q3
