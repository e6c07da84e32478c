"""The trade-off bench on the tiny model: it resumes, its numbers follow from the scores, and it ends with one JSON line."""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from bench import tradeoff
from bench.suite import stored
from bench.suite.evaluate import Setting
from bench.suite.tasks import Item
from pruning.registry import METHODS
from tests.unit.tiny import noise


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch, tmp_path, vlm):
    """Runs the bench's command line on the tiny model, with its answers and its file in a folder of their own."""
    monkeypatch.setattr(tradeoff, "open_vlm", lambda name: vlm)
    monkeypatch.setattr(stored, "RUNS", tmp_path)
    out = tmp_path / "out.json"

    def start(*arguments: str, capsys) -> dict:
        assert tradeoff.main([*arguments, "--out", str(out)]) == 0
        record = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert record == json.loads(out.read_text())
        return record

    return start


def test_settings_are_the_curve_and_its_neighbours():
    groups = tradeoff.settings_of(0.75, 5, "norm")
    assert [g[0].lam for g in groups if g[0].method == "idpruner"] == [0, 0.25, 0.5, 0.75, 1]
    sizes = {g[0].method: len(g) for g in groups}
    assert {"topk", "farthest", "random", "uniform"} <= set(sizes) and sizes["random"] == tradeoff.SEEDS and sizes["topk"] == 1
    for setting in (s for g in groups for s in g):
        assert setting.configured() and setting.prune == 0.75


def test_a_run_measures_and_a_second_one_asks_nothing(bench, capsys, monkeypatch):
    arguments = ("--prune", "0.75", "--limit", "2", "--tasks", "naming", "--steps", "3")
    record = bench(*arguments, capsys=capsys)
    points = record["prune"]["0.75"]["points"]
    assert record["n"] == 2 and [p["lam"] for p in points[:3]] == [0, 0.5, 1] and record["scorer"] == "neg-cos-mean"
    ends = {p["method"]: p for p in points[3:]}
    same = ("mean", "retention", "hopkins", "coverage")
    assert [ends["topk"][k] for k in same] == [points[2][k] for k in same], "lambda 1 is top-k"
    assert [ends["farthest"][k] for k in same] == [points[0][k] for k in same], "lambda 0 is farthest point"
    assert ends["topk"]["retention"] >= max(p["retention"] for p in points)

    def fail(*arguments):
        raise AssertionError("answers that were written must not be asked for again")

    monkeypatch.setattr(stored, "run", fail)
    assert bench(*arguments, capsys=capsys) == record


def test_curves_average_over_pictures(bench, capsys, tmp_path, vlm):
    paths = []
    for seed in range(2):
        paths.append(str(tmp_path / f"{seed}.png"))
        noise(seed).save(paths[-1])
    both = bench("--images", *paths, "--steps", "3", capsys=capsys)
    single = [bench("--images", path, "--steps", "3", capsys=capsys) for path in paths]
    for index, point in enumerate(both["prune"]["0.75"]["points"]):
        ones = [one["prune"]["0.75"]["points"][index] for one in single]
        assert point["retention"] == pytest.approx(np.mean([p["retention"] for p in ones]), abs=1e-4)
    assert both["images"] == 2 and 0 <= both["prune"]["0.75"]["hybrids_matched"] <= 1 and len(both["commit"]) >= 7


def test_interval_and_correlations():
    low, high = tradeoff.interval({"a": np.array([1.0, 0.0] * 50), "b": np.ones(10)})
    assert low < 75 < high
    points = [{"method": "idpruner", "mean": m, "retention": m, "hopkins": -m, "coverage": 1, "mean_distance": m} for m in range(4)]
    found = tradeoff.correlations([*points, {"method": "topk", "mean": 99, "retention": 0}])
    assert found == {"retention": 1.0, "hopkins": -1.0, "coverage": None, "mean_distance": 1.0}


def test_other_settings_and_other_questions_have_other_keys():
    picture = Image.new("RGB", (8, 8))
    item = Item("naming", picture, "What is this?", "A cat.")
    asked = [[item], [item, item], [replace(item, answer="A dog.")], [replace(item, picture=Image.new("RGB", (8, 8), "red"))]]
    digests = [stored._digest(one) for one in asked]
    types, shares = ("float32", "bfloat16"), (0.5, 0.75)
    keys = {stored._key(d, Setting("topk", share), dtype) for d in digests for share in shares for dtype in types}
    assert len(keys) == 16 and stored._digest(asked[0]) == digests[0]


def test_another_scorer_makes_other_keys_only_where_it_scores(monkeypatch):
    settings = [Setting("none"), Setting("blank"), Setting("uniform", 0.5), Setting("idpruner", 0.5, 0.5, scorer="neg-cos-mean")]
    scored = [Setting("idpruner", 0.5, 0.5, scorer="trained"), Setting("topk", 0.5, scorer="trained"), Setting("visionselector")]
    found = []
    for scorer in ("one", "another"):
        monkeypatch.setattr(stored, "_hash", lambda names, scorer=scorer: scorer if names == stored.FILE else "model")
        found.append([stored._key("questions", setting, "float32") for setting in settings + scored])
    assert [a == b for a, b in zip(*found, strict=True)] == [True] * len(settings) + [False] * len(scored)


def test_another_parameter_of_a_method_makes_another_key(monkeypatch):
    asked, other = Setting("id-selection", 0.5), Setting("topk", 0.5)
    before = [stored._key("questions", setting, "float32") for setting in (asked, other)]
    changed = replace(METHODS["id-selection"], selector=replace(METHODS["id-selection"].selector, gamma=10.0))
    monkeypatch.setitem(METHODS, "id-selection", changed)
    after = [stored._key("questions", setting, "float32") for setting in (asked, other)]
    assert after[0] != before[0] and after[1] == before[1]
