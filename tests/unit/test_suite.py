"""The suite: its questions are fixed, held out and answerable; its scores follow the benchmarks' rules; its table adds up."""

import json
import shutil
from dataclasses import dataclass

import numpy as np
import pytest
from PIL import Image

from bench import cost, headline
from bench.suite import evaluate, scores, stored, tasks
from bench.suite.evaluate import Setting
from pruning.registry import METHODS, Method
from pruning.tokens import keep_count
from tests.unit.tiny import noise, tiny_model, tiny_vlm
from training import examples, packing, train_scorer, train_tower
from vlm.images import smaller
from vlm.model import Vlm, last
from vlm.open import open_vlm


@pytest.mark.parametrize("task", tasks.TASKS)
def test_a_task_is_fixed_and_its_own_answers_are_right(task):
    some, more = tasks.items(task, 3), tasks.items(task, 6)
    for a, b in zip(some, more, strict=False):
        assert (a.question, a.answer) == (b.question, b.answer)
        assert np.array_equal(np.asarray(a.picture), np.asarray(b.picture))
    assert [item.score(item.answer) for item in more] == [1.0] * 6
    assert [item.score("Something else entirely.") for item in more] == [0.0] * 6


def test_the_suite_shares_no_seed_with_training():
    used = {train_tower.SEED, packing.SEED, train_scorer.SEED, examples.SEED}
    assert len(used) == 4 and not used & {tasks.SEED, tasks.DEVELOPMENT_SEED}
    assert tasks.SEED != tasks.DEVELOPMENT_SEED
    assert len(tasks.NINE) == 9


def test_most_pictures_have_256_tokens():
    sizes = [item.picture.size for item in tasks.items("counting", 40)]
    assert sizes.count((448, 448)) > 20
    assert len(set(sizes)) > 2


@pytest.mark.parametrize(
    ("score", "said", "right", "worth"),
    [
        (scores.exact, "a CAT", "A cat.", 1.0),
        (scores.exact, "A cat and a dog.", "A cat.", 0.0),
        (scores.relaxed, "52", "50.", 1.0),
        (scores.relaxed, "$52.5", "50.", 1.0),
        (scores.relaxed, "53", "50.", 0.0),
        (scores.relaxed, "milk", "50.", 0.0),
        (scores.relaxed, "Milk.", "Milk.", 1.0),
        (scores.anls, "Paris.", "Paris.", 1.0),
        (scores.anls, "Pariz.", "Paris.", 0.8),
        (scores.anls, "Rome.", "Paris.", 0.0),
        (scores.anls, "It is Rome.", "It is Paris.", 0.0),
        (scores.anls, "Paris", "It is Paris.", 1.0),
        (scores.recall, "A dog and a cat.", "A cat and a dog.", 1.0),
        (scores.recall, "A cat.", "A cat and a dog.", 0.5),
        (scores.recall, "A cat, a cat, a dog and an owl.", "A cat and a dog.", 0.5),
        (scores.recall, "", "A cat.", 0.0),
    ],
)
def test_scores(score, said, right, worth):
    assert score(said, right) == pytest.approx(worth)


def test_a_smaller_picture_has_the_tokens_that_are_asked_for():
    for size in ((448, 448), (448, 224), (336, 336)):
        for share in (0.25, 0.1):
            wide, high = smaller(Image.new("RGB", size), share).size
            cells, full = wide * high / 784, size[0] * size[1] / 784
            assert wide % 28 == high % 28 == 0 and cells == pytest.approx(share * full, abs=max(3, 0.12 * share * full))


def test_kept_is_the_mean_of_the_tasks_ratios():
    full = {"a": np.tile([1.0, 1.0], 50), "b": np.tile([1.0, 0.0], 50)}
    pruned = {"a": np.tile([1.0, 0.0], 50), "b": np.tile([1.0, 0.0], 50)}
    assert headline.kept(full, pruned) == pytest.approx(0.75)
    low, high = headline.interval(full, full)
    assert low == high == 100.0
    assert headline.interval(full, pruned, pruned) == [0.0, 0.0]


def test_a_column_names_its_settings():
    assert [s.seed for s in headline.settings_of("random", 0.9)] == list(range(headline.RANDOM_SEEDS))
    assert headline.settings_of("idpruner", 0.75, "trained") == [Setting("idpruner", 0.75, lam=0.5, scorer="trained")]
    assert headline.settings_of("topk", 0.75, "trained") == [Setting("topk", 0.75, scorer="trained")]
    assert headline.settings_of("uniform", 0.75, "trained") == [Setting("uniform", 0.75)]
    assert headline.settings_of("mmr training-free", 0.75, "trained")[0].scorer == "neg-cos-mean"


@dataclass
class Listener:
    """An item that notes what was said instead of judging it."""

    picture: Image.Image
    question: str
    said: list[str]

    def score(self, text: str) -> float:
        self.said.append(text)
        return 0.0


def answer(vlm: Vlm, item: Listener, method: Method) -> str:
    """The answer through the code that the page runs, at 75% pruned."""
    image = vlm.encode(item.picture)
    rankings = None if method.key == "none" else [vlm.rank(image, item.question, method, keep_count(len(image.features), 0.75))]
    return last(vlm.answer([image], item.question, rankings, 0.75, max_new_tokens=evaluate.MAX_NEW_TOKENS)).text


@pytest.mark.slower
def test_batched_answers_are_single_answers():
    vlm = open_vlm()
    items = [Listener(i.picture, i.question, []) for i in tasks.items("naming", 2) + tasks.items("counting", 2)]
    result = evaluate.run(vlm, items, [Setting("none"), Setting("down-sampling", 0.75)])
    assert all(np.isfinite(values).all() for values in result.values())
    for item in items:
        alone = [answer(vlm, item, METHODS[key]) for key in ("none", "down-sampling")]
        assert sorted(item.said) == sorted(alone)


def test_costs_of_settings_and_the_table_as_a_whole(monkeypatch, tmp_path, capsys):
    vlm = tiny_vlm(tiny_model(0))
    found = cost.costs(vlm, [(noise(1), "What?"), (noise(2), "Where?")], [Setting("none"), Setting("uniform", 0.9)])
    for setting, one in found.items():
        assert one.first_token > 0 and (one.peak is None or one.peak >= 0)
        assert (one.selection > 0) == (setting.method != "none")
    out = tmp_path / "folder" / "table.json"
    monkeypatch.setattr(headline, "open_vlm", lambda name: vlm)
    monkeypatch.setattr(stored, "RUNS", tmp_path)
    monkeypatch.setattr(headline, "NINE", ("naming", "counting"))
    monkeypatch.setattr(headline, "BOOTSTRAPS", 5)
    monkeypatch.setattr(headline, "COST_PICTURES", 1)
    monkeypatch.setattr(evaluate, "MAX_NEW_TOKENS", 2)
    arguments = ["--methods", "uniform", "visionzip", "--prune", "0.9", "--limit", "2", "--cost", "--out", str(out)]
    assert headline.main(arguments) == 0
    record = json.loads(out.read_text())
    assert record == json.loads(capsys.readouterr().out.splitlines()[-1])
    assert record["n"] == 4 and set(record["kept"]) == {"idpruner", "uniform", "visionzip"}
    assert set(record["cost"]) == {"none", *record["kept"]} and set(record["pruned"]["uniform"]["0.9"]) == {"naming", "counting"}
    assert "visionselector" not in headline.columns("idpruner", ["all"])

    other = record | {"interval": {"uniform": {"0.9": [-9.0, -8.0]}, "idpruner": record["interval"]["idpruner"], "topk": {}}}
    assert headline.disagreements(record, {"interval": {}}) == ["Nothing was measured by both."]
    assert headline.disagreements(record, record) == [] and len(headline.disagreements(record, other)) == 1

    monkeypatch.setattr(stored, "SCORES", tmp_path / "scores.jsonl")
    assert stored.gather(limit=2) == 2 * 4, "two tasks, all tokens and three methods"
    shutil.rmtree(tmp_path / "suite")
    monkeypatch.setattr(stored, "run", None)  # nothing is left to ask
    assert headline.main([*arguments[:-3], "--committed"]) == 0
    again = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {**again, "cost": record["cost"]} == record and record["answered"] == [record["commit"]]
    monkeypatch.setattr(stored, "_hash", lambda names: "of other weights")
    assert stored.gather(limit=2) == 0


def test_a_task_without_a_right_answer_has_no_ratio():
    full, pruned = {"a": np.array([0.0, 0.0]), "b": np.array([1.0, 1.0])}, {"a": np.array([0.0, 1.0]), "b": np.array([1.0, 0.0])}
    assert headline.kept(full, pruned) == 0.5
    full["a"] = np.array([0.0, 1.0])
    low, high = headline.interval(full, pruned)
    assert 0 <= low <= high <= 200, "a draw of zeros must not make the interval endless"


def test_committed_scores_are_known_by_the_keys_of_now():
    """Or the next ``bench.suite.stored`` would drop them: a change of what makes a key must come with the rows' new keys."""
    rows = stored._rows(stored.SCORES)
    assert rows and all(row["key"] == stored._key_of(row) for row in rows)
