"""Accuracy along lambda is drawn as it was measured, and its sentence counts what the intervals allow."""

import pytest

from viz import accuracy


def _point(method: str, lam: float | None, mean: float, low: float, high: float) -> dict:
    ahead = [low - 70.0, high - 70.0]
    return {"method": method, "lam": lam, "mean": mean, "interval": [low, high], "ahead": ahead, "retention": 0.9, "hopkins": 0.3}


def _record(first: tuple[float, float]) -> dict:
    points = [
        _point("idpruner", 0.0, 60.0, *first),
        _point("idpruner", 0.5, 70.0, 66.0, 74.0),
        _point("idpruner", 1.0, 69.0, 65.0, 73.0),
        _point("random", None, 40.0, 38.0, 42.0),
    ]
    of_share = {"points": points, "spearman": {"retention": 0.5, "hopkins": None}}
    return {
        "scorer": "norm",
        "n": 90,
        "seed": 1,
        "commit": None,
        "unpruned": {"mean": 75.0, "interval": [70, 80]},
        "prune": {"0.75": of_share},
    }


def test_the_figure_draws_the_curve_and_levels():
    fig = accuracy.figure(_record((55.0, 64.0)))
    curve, random, full = fig.data
    assert list(curve.x) == [0.0, 0.5, 1.0] and list(curve.y) == [60.0, 70.0, 69.0]
    assert list(curve.error_y.array) == pytest.approx([4.0, 4.0, 4.0]) and list(curve.error_y.arrayminus) == pytest.approx(
        [5, 4, 4]
    )
    assert set(random.y) == {40.0} and set(full.y) == {75.0}


def test_the_title_says_only_what_the_intervals_tell_apart():
    title = accuracy.title(_record((55.0, 64.0)))
    assert title.endswith("than lambda 0.5, beyond the paired 95% interval: better none, worse 0")
    assert accuracy.title(_record((55.0, 71.0))).endswith("better none, worse none")
    assert "importance retained +0.50" in accuracy.note(_record((55.0, 64.0))) and "Hopkins" not in accuracy.note(
        _record((55.0, 64.0))
    )


def test_nothing_measured_draws_nothing(tmp_path):
    assert accuracy.load(tmp_path / "none.json") is None
