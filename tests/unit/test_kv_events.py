"""What the buttons of the tab "Trim bits" do, on a tiny model: stream, finish, stop, and say what is wrong."""

import gradio as gr
import plotly.graph_objects as go
import pytest

from bench import kv_attention
from tests.unit.tiny import noise, tiny_model, tiny_vlm
from viz import kv_events, kv_speed, kv_tab, studio


@pytest.fixture(autouse=True)
def one_model(monkeypatch: pytest.MonkeyPatch):
    """A tiny model behind every name, and empty stores."""
    vlm = tiny_vlm(tiny_model(0))
    vlm.model.generation_config.eos_token_id = [10**6]
    monkeypatch.setattr(kv_events, "opened", lambda name: vlm)
    monkeypatch.setattr(kv_events, "is_open", lambda name: True)
    monkeypatch.setattr(studio, "MAX_NEW_TOKENS", 5)
    monkeypatch.setattr(studio, "PACE", 0.0)
    for name in ("RUNS", "CAPTURES", "EXPLAINED"):
        monkeypatch.setattr(kv_events, name, studio.Results(4))
    return vlm


@pytest.fixture
def ask(tmp_path) -> studio.Ask:
    path = tmp_path / "noise.png"
    noise(3).save(path)
    return studio.Ask("tiny", str(path), "What is this?", "idpruner", "norm", 0.5)


def generate(ask: studio.Ask, session: str = "visitor", **changes):
    """Updates of one answer."""
    settings = {"percent": 75, "mode": "certified", "error": 0.02, "window": 0, "prune_first": False} | changes
    return kv_events.generate(session, ask, *settings.values())


def test_every_update_is_of_a_component_that_the_page_has(ask):
    with gr.Blocks():
        tab = kv_tab.build()
    assert set(vars(tab)) >= kv_events.CHANGES and len(tab.stops) == 3
    *writing, final = generate(ask)
    assert len(writing) == 5 and all('data-run="writing"' in update["status"] for update in writing)
    assert set(final) <= kv_events.CHANGES and isinstance(final["heat"], go.Figure)
    assert final["overlay"]["steps"] == 4 and final["layer"]["maximum"] == 3 and final["head"]["maximum"] == 4


def test_a_second_look_comes_at_once_and_other_settings_do_not(ask):
    *_, first = generate(ask)
    (again,) = generate(ask)
    assert again["run"] == first["run"] and again["overlay"]["id"] == first["overlay"]["id"]
    assert len(list(generate(ask, mode="paper"))) == 6
    *_, pruned = generate(ask, prune_first=True)
    assert len(pruned["overlay"]["patch"]) == 16 and pruned["run"] != first["run"]


def test_starting_again_or_cancelling_stops_and_says_so(ask):
    older, other = generate(ask), generate(ask, session="somebody else")
    started = next(older)["status"]
    next(other)
    newer = generate(ask)
    next(newer)
    assert list(older) == []
    stopped, same = kv_events.cancel("visitor", started, "done")
    assert "Stopped" in stopped and same == gr.skip()
    # The stopped run says so last: an update of its own may still be on its way to the page.
    assert list(newer) == [{"status": stopped}] and not kv_events.RUNS.items
    assert "heat" in list(other)[-1], "another visitor goes on"
    for session in ("visitor", "somebody else"):
        kv_events.leave(session)
    assert not [key for key in kv_events.TURNS.newest if key.startswith(("visitor status", "somebody"))]


def test_a_new_answer_stops_the_measurement_of_the_old_one_and_a_look_does_not(ask):
    *_, final = generate(ask)
    measuring = kv_events.measure("visitor", final["run"])
    next(measuring)
    list(kv_events.explain("visitor", final["run"], kv_events.SCORES, 1, 1, 1))
    assert next(measuring)
    next(generate(ask))
    assert list(measuring) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"mode": "magic"}, "Unknown way"),
        ({"error": -1}, "positive"),
        ({"window": -1}, "negative"),
        ({"question": " "}, "question"),
    ],
)
def test_bad_settings_give_a_sentence(ask, changes, words):
    if "question" in changes:
        ask, changes = studio.Ask("tiny", ask.image, changes["question"], "idpruner", "norm", 0.5), {}
    (update,) = generate(ask, **changes)
    assert set(update) == {"status"} and words in update["status"] and 'role="alert"' in update["status"]


def test_the_criterion_of_every_sum_is_drawn_and_out_of_range_is_clipped(ask):
    *_, final = generate(ask, mode="paper")
    assert list(kv_events.explain_again("visitor", final["run"], kv_events.SCORES, 1, 1, 1)) == []
    for which in (kv_events.SCORES, kv_events.OUTPUT):
        *_, update = kv_events.explain("visitor", final["run"], which, 99, 99, 99)
        assert "layer 3, query head 4" in update["exponents"].layout.title.text.replace("<br>", " ")
    assert len(list(kv_events.explain_again("visitor", final["run"], kv_events.SCORES, 1, 1, 1))) == 1


def test_a_window_that_covers_everything_is_explained(ask):
    *_, final = generate(ask, window=256)
    assert "16.0 of 16" in final["heat"].layout.title.text.replace("<br>", " ")
    *_, update = kv_events.explain("visitor", final["run"], kv_events.SCORES, 1, 1, 1)
    assert "still whole" in update["explained"]
    *_, update = kv_events.measure("visitor", final["run"])
    assert "no bound to look at" in update["measured"]


def test_a_run_that_is_not_kept_any_more_is_asked_for():
    for event in (kv_events.measure("visitor", None), kv_events.explain("visitor", ("gone",), kv_events.SCORES, 1, 1, 1)):
        (update,) = event
        assert "answer with trimmed bits first" in next(iter(update.values()))


def test_measuring_ends_with_both_figures(ask):
    *_, final = generate(ask)
    updates = list(kv_events.measure("visitor", final["run"]))
    assert sum("bounds" in update for update in updates) == 1 and sum("quality" in update for update in updates) == 4
    assert 'data-measured="done"' in updates[-1]["measured"] and "one answer" in updates[-1]["measured"]


def test_timing_shows_a_figure_and_refuses_what_is_not_on_the_list(monkeypatch):
    monkeypatch.setattr(kv_attention, "STREAM_BYTES", 1 << 20)
    monkeypatch.setattr(kv_speed, "REPEATS", 2)
    monkeypatch.setattr(kv_speed, "GEOMETRIES", {"tiny: 4 on 2": (4, 2, 16)})
    *_, final = kv_events.time_it("visitor", "tiny: 4 on 2", 1024, "evenly", ["certified"], 0.05)
    assert isinstance(final["speed"], go.Figure) and "Planes are read by the" in final["timed"] and "GB/s" in final["timed"]
    (update,) = kv_events.time_it("visitor", "tiny: 4 on 2", 7, "evenly", [], 0.05)
    assert "from the lists" in update["timed"]


def test_a_measurement_of_the_answer_before_ends_when_the_new_one_is_shown(ask):
    *_, before = generate(ask)
    newer = generate(ask, mode="paper")
    next(newer)
    late = kv_events.measure("visitor", before["run"])
    assert next(late)
    list(newer)
    assert list(late) == []


def test_an_overtaken_run_that_fails_keeps_it_to_itself(ask, monkeypatch):
    older = generate(ask)
    next(older)
    next(generate(ask))

    def broken(*arguments):
        raise RuntimeError("too late")

    monkeypatch.setattr(kv_events, "writing", broken)
    assert list(older) == []


def test_a_cache_that_has_no_room_is_refused_with_a_sentence(monkeypatch):
    monkeypatch.setattr(kv_events, "has_room", lambda size: False)
    geometry, queries = next(iter(kv_speed.GEOMETRIES)), next(iter(kv_speed.QUERIES))
    (told,) = kv_events.time_it("visitor", geometry, kv_speed.CONTEXTS[0], queries, ["paper"], 0.02)
    assert "more memory than is free" in told["timed"]
