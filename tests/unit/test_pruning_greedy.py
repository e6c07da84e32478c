"""DPP, SCOPE and ID-Selection kernels: the fast order is the defined order, whatever ties and copies there are."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pruning import kernels
from pruning.kernels import (
    dpp_order,
    dpp_reference,
    greedy_numba,
    id_selection_order,
    id_selection_reference,
    scope_order,
    scope_reference,
    unit_rows,
)
from pruning.kernels.greedy_reference import decay
from tests.unit.test_pruning_selectors import KINDS, problem

FAST = {
    "dpp": lambda u, values, k=None: dpp_order(u, values, k),
    "scope": lambda u, values, k=None: scope_order(u, values, 1.0, k),
    "id-selection": lambda u, values, k=None: id_selection_order(u, values, 20.0, k),
}
PLAIN = {
    "dpp": lambda u, values, k=None: dpp_reference(u, values.astype(np.float64), k),
    "scope": lambda u, values, k=None: scope_reference(u, values.astype(np.float64), k),
    "id-selection": lambda u, values, k=None: id_selection_reference(u, values, 20.0, k),
}


def test_the_compiled_kernels_are_the_ones_under_test():
    pytest.importorskip("numba")
    usable, reason = greedy_numba.available()
    assert usable, reason


@pytest.mark.parametrize("name", FAST)
@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 10**6), n=st.integers(1, 60), dim=st.integers(1, 60), kind=st.sampled_from(KINDS), share=st.floats(0.01, 1)
)
def test_the_fast_order_is_the_defined_order_and_every_budget_its_prefix(name, seed, n, dim, kind, share):
    x, values = problem(seed, n, dim, kind)
    units, k = unit_rows(x), max(1, int(n * share))
    slow = PLAIN[name](units, values)
    assert sorted(slow.tolist()) == list(range(n))
    assert np.array_equal(FAST[name](units, values), slow)
    assert np.array_equal(FAST[name](units, values, k), slow[:k])
    assert np.array_equal(PLAIN[name](units, values, k), slow[:k])


@pytest.mark.parametrize("name", FAST)
def test_a_batch_is_its_single_images(name):
    """Images are ranked one after the other; nothing of one is left for the next."""
    problems = [problem(seed, n, 20, "duplicates") for seed, n in enumerate((30, 7, 51))]
    alone = [FAST[name](unit_rows(x), values) for x, values in problems]
    again = [FAST[name](unit_rows(x), values) for x, values in reversed(problems)][::-1]
    assert all(np.array_equal(a, b) for a, b in zip(alone, again, strict=True))


def test_copies_come_last_in_a_dpp():
    x, _ = problem(3, 10, 24, "random")
    units, quality = unit_rows(x[[0, 1, 2, 0, 1, 2, 3, 4]]), np.linspace(1, 0.3, 8).astype(np.float32)
    assert set(dpp_order(units, quality)[:5].tolist()) == {0, 1, 2, 6, 7}
    assert dpp_order(units, quality)[5:].tolist() == [3, 4, 5]


def test_decay_is_the_exponential():
    x = np.concatenate([np.linspace(0, 63, 5000), [0.0, 1e-12]])
    worst = np.abs(decay(x) / np.exp(-x) - 1).max()
    print(f"decay: largest relative difference {worst:.3g}")
    assert worst < 1e-11
    assert decay(0.0) == 1.0 and math.isclose(decay(1e9), math.exp(-64), rel_tol=1e-11)


def test_without_numba_the_references_answer(monkeypatch):
    monkeypatch.setattr(greedy_numba, "available", lambda: (False, "no numba here."))
    x, values = problem(1, 20, 8, "random")
    for name in FAST:
        assert np.array_equal(FAST[name](unit_rows(x), values), PLAIN[name](unit_rows(x), values))


def test_failing_kernels_are_reported_not_raised(monkeypatch):
    def broken(*_):
        raise ImportError("no module named numba")

    monkeypatch.setattr(greedy_numba, "dpp_order", broken)
    usable, reason = greedy_numba.available.__wrapped__()
    assert not usable and "no module named numba" in reason


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda u, v: dpp_order(u, -v), "quality must not be negative"),
        (lambda u, v: scope_order(u, -v), "saliency and alpha must not be negative"),
        (lambda u, v: id_selection_order(u, v, -1.0), "gamma must not be negative"),
        (lambda u, v: dpp_order(u, v[:3]), "quality must be float32"),
        (lambda u, v: scope_order(u, v, 1.0, 21), "k must lie"),
        (lambda u, v: kernels.id_selection_order(u, v * np.float32(np.nan)), "nan"),
    ],
)
def test_wrong_arguments_are_refused_with_a_reason(call, message):
    with pytest.raises(ValueError, match=message):
        call(np.eye(20, dtype=np.float32), np.linspace(0.1, 1, 20).astype(np.float32))
