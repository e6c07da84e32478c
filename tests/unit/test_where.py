"""Where a method wins: the groups, the leads, and their picture."""

import json

import numpy as np
import pytest

from bench import where as bench
from bench.suite import evaluate, stored
from tests.unit.tiny import tiny_model, tiny_vlm
from training import grounds, world
from viz import where


def test_groups_hold_every_question_of_their_ground_and_task():
    kinds = {"naming": [*["photograph"] * 25, *["plain"] * 20, *["cloudy"] * 30, *["shaded"] * 5], "charts": [None] * 40}
    found = bench.groups_of(kinds)
    assert list(found) == ["photographic ground", "patterned ground", "plain ground", "naming", "charts"]
    counts = {name: {task: int(rows.sum()) for task, rows in group.items()} for name, group in found.items()}
    assert counts["photographic ground"] == {"naming": 25} and counts["patterned ground"] == {"naming": 30}
    assert counts["plain ground"] == {"naming": 25} and counts["charts"] == {"charts": 40}
    assert bench.groups_of({"naming": ["striped"] * 19})["patterned ground"] == {}, "too few"


def test_a_lead_is_the_difference_of_what_is_kept_and_paired():
    full = {"naming": np.array([1.0, 1, 1, 1, 0, 1]), "counting": np.ones(6)}
    mine, other = {task: s.copy() for task, s in full.items()}, {task: s.copy() for task, s in full.items()}
    other["counting"][:3] = 0
    chosen = {"naming": np.ones(6, bool), "counting": np.array([1, 1, 0, 0, 1, 1], bool)}
    found = bench.compared(full, mine, {"topk": other, "same": mine}, chosen)
    assert found["n"] == 10 and found["kept"] == 100
    assert found["rivals"]["topk"]["kept"] == 75 and found["rivals"]["topk"]["lead"] == 25
    low, high = found["rivals"]["topk"]["interval"]
    assert low <= 25 <= high
    assert found["rivals"]["same"] == {"kept": 100.0, "lead": 0.0, "interval": [0.0, 0.0]}


def test_a_scene_says_what_it_stands_on():
    seen = {world.draw(np.random.default_rng(seed), (224, 224)).ground for seed in range(40)}
    assert seen == set(grounds.KINDS)
    assert world.draw_chart(np.random.default_rng(0), (224, 224)).ground is None


def test_the_bench_compares_what_was_asked(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(bench, "open_vlm", lambda name: tiny_vlm(tiny_model(0)))
    monkeypatch.setattr(stored, "RUNS", tmp_path)
    monkeypatch.setattr(bench, "NINE", ("naming", "charts"))
    monkeypatch.setattr(bench, "FEWEST", 1)
    monkeypatch.setattr(evaluate, "MAX_NEW_TOKENS", 2)
    out = tmp_path / "folder" / "where.json"
    assert bench.main(["--rivals", "uniform", "random", "--prune", "0.9", "--limit", "3", "--out", str(out)]) == 0
    record = json.loads(out.read_text())
    assert record == json.loads(capsys.readouterr().out.splitlines()[-1])
    groups = record["prune"]["0.9"]
    assert record["n"] == 6 and groups["naming"]["n"] == groups["charts"]["n"] == 3
    assert sum(group["n"] for name, group in groups.items() if name.endswith("ground")) == 3, "charts stand on none"
    assert all(set(group["rivals"]) == {"uniform", "random"} for group in groups.values())


def lead(low: float, high: float) -> dict:
    return {"kept": 90.0, "lead": (low + high) / 2, "interval": [low, high]}


RECORD = {
    "method": "idpruner",
    "n": 40,
    "seed": 1,
    "commit": "abc",
    "dtype": "float32",
    "prune": {
        "0.75": {
            "photographic ground": {"n": 30, "kept": 97.0, "rivals": {"topk": lead(-1, 2), "mmr training-free": lead(0.5, 2)}},
            "charts": {"n": 10, "kept": 85.0, "rivals": {"topk": lead(1, 3), "mmr training-free": lead(-4, -1)}},
        }
    },
}


def test_the_picture_shows_every_lead_and_the_title_counts_them():
    said = where.title(RECORD, "0.75")
    assert "Top-k: ahead in 1, behind in 0" in said and "training-free score: ahead in 1, behind in 1" in said
    assert "With all 4 comparisons at once, what holds is charts (+2.0 over Top-k), photographic ground (+1.2 over" in said
    assert where.together(lead(0.2, 3.8), 1) and not where.together(lead(0.2, 3.8), 4)
    assert where.together(lead(-3.8, -0.2), 1) and not where.together(lead(-1, 1), 1)
    fig = where.figure(RECORD, "0.75")
    assert [trace.name for trace in fig.data] == ["over Top-k", "over MMR, training-free score"]
    assert list(fig.data[0].x) == [0.5, 2.0] and list(fig.data[1].error_x.array) == pytest.approx([0.75, 1.5])
    assert list(fig.layout.yaxis.ticktext) == ["photographic ground (30)", "charts (10)"]
    assert "40 held-out questions, seed 1, commit abc" in where.note(RECORD)


def test_a_share_that_was_not_measured_is_said(tmp_path, monkeypatch):
    assert where.load(tmp_path / "none.json") is None
    (tmp_path / "where.json").write_text(json.dumps(RECORD))
    monkeypatch.setattr(where, "load", lambda: RECORD)
    said, plot = where.fill("0.5")
    assert "measured at 75% pruned" in said and not plot.visible
    said, plot = where.fill("0.75")
    assert "ahead in 1" in said and plot.visible
