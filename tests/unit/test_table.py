"""The comparison table shows what was measured, and says so where nothing was."""

import json

import gradio as gr
import pytest

from pruning.registry import METHODS
from viz import style, table

RECORD = {
    "n": 20,
    "seed": 1,
    "commit": "abc",
    "dtype": "float32",
    "mean": 80.0,
    "unpruned": {"naming": 90.0, "counting": 70.0},
    "kept": {"idpruner": {"0.5": 99.0, "0.9": 88.0}, "mmr training-free": {"0.9": 89.0}},
    "interval": {"idpruner": {"0.5": [98.0, 100.0], "0.9": [86.0, 90.0]}, "mmr training-free": {"0.9": [87.0, 91.0]}},
    "pruned": {
        "idpruner": {"0.5": {"naming": 89.0, "counting": 69.0}, "0.9": {"naming": 80.0, "counting": 60.0}},
        "mmr training-free": {"0.9": {"naming": 81.0, "counting": 61.0}},
    },
}
COST = {"scoring": 1.0, "selection": 2.0, "first_token": 100.0, "peak": 5_000_000}


def test_rows_are_sorted_by_what_is_kept_and_fit_their_heads():
    assert table.shares(RECORD) == ["0.5", "0.9"]
    found = table.rows(RECORD, "0.9")
    assert [row[1] for row in found] == [100.0, 89.0, 88.0] and found[1][0] == "MMR, training-free score"
    assert found[0][4:] == [90.0, 70.0], "all tokens come first"
    assert all(len(row) == len(table.head(RECORD)) for row in found)
    costly = RECORD | {"cost": {"none": {"0": COST}, "idpruner": {"0.9": COST}}}
    found = table.rows(costly, "0.9")
    assert found[2][-4:] == found[0][-4:] == [1.0, 2.0, 100.0, 5.0] and found[1][-4:] == [None] * 4
    assert all(len(row) == len(table.head(costly)) for row in found)
    mine, full = table.figure(costly, "first_token").data
    assert len(mine.x) == 1 and list(full.x) == [100.0] and list(full.y) == [100], "all tokens keep everything, at their own time"


def test_the_figure_holds_every_method_with_its_interval():
    fig = table.figure(RECORD, "tokens")
    mine, full = fig.data[0], fig.data[-1]
    assert list(full.x) == list(full.y) == [100]
    assert list(mine.x) == [50.0, pytest.approx(10.0)] and list(mine.y) == [99.0, 88.0]
    assert list(mine.error_y.array) == [1.0, 2.0] and list(mine.error_y.arrayminus) == [1.0, 2.0]
    with pytest.raises(ValueError, match="Unknown axis"):
        table.figure(RECORD, "colour")


def test_without_a_measurement_the_tab_says_how_to_make_one(tmp_path, monkeypatch):
    monkeypatch.setattr(table, "RESULTS", tmp_path)
    assert "bench.headline" in table.build().said.value and not table.build().rows.visible
    monkeypatch.undo()
    assert table.load(tmp_path / "none.json") is None
    (tmp_path / "some.json").write_text(json.dumps(RECORD))
    assert "20 questions, seed 1, commit abc" in table.said(table.load(tmp_path / "some.json"))


def test_every_measurement_can_be_chosen(tmp_path, monkeypatch):
    monkeypatch.setattr(table, "RESULTS", tmp_path)
    deep = RECORD | {"n": 4500, "kept": {"idpruner": {"0.9": 92.9}}}
    costly = RECORD | {"cost": {"none": {"0": COST}, "idpruner": {"0.9": COST}}}
    for name, record in zip(table.FILES, (deep, costly), strict=True):
        (tmp_path / name).write_text(json.dumps(record))
    built = table.build()
    assert [text for text, _ in built.source.choices] == [
        "4,500 questions, 1 methods",
        "20 questions, 2 methods, with times and memory",
    ]
    assert built.source.value == table.FILES[0] and built.share.value == "0.9" and not built.axis.visible
    said, share, axis = table.choose(table.FILES[1])
    assert "20 questions" in said and [s for _, s in share.choices] == ["0.5", "0.9"] and axis.visible
    rows, plot = table.fill(table.FILES[1], "0.5", "first_token")
    assert rows.headers[-1] == "peak MB" and plot.layout.xaxis.title.text == table.AXES["first_token"]
    assert table.fill(table.FILES[0], "0.9", "first_token")[1].layout.xaxis.title.text == table.AXES["tokens"]
    assert table.fill(table.FILES[0], "0.5", "tokens") == (gr.skip(), gr.skip()), "it has no such share"


def test_no_two_methods_share_a_colour():
    assert len({style.color_of(key) for key in METHODS}) == len(METHODS)
