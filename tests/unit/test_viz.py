"""The overlay's payload, the answers panel and what the controls do."""

import base64
import io
import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from pruning.registry import METHODS
from pruning.tokens import VisualTokens
from tests.unit.tiny import random_scorer, tiny_model, tiny_vlm
from viz import answers, overlay, studio
from vlm import one_thread
from vlm.embedded import NAME
from vlm.errors import UserError
from vlm.model import Answer, Timings


def answer(ids: list[int], pieces: list[str], done: bool = True, prefill: float = 0.2) -> Answer:
    """A finished answer as the model would leave it."""
    timings = Timings(vision=0.1, scoring=0.001, selection=0.002, prefill=prefill, decode=[0.03] * (len(ids) - 1))
    return Answer("idpruner", 256, 64, 90, "".join(pieces), pieces, ids, [-0.1] * len(ids), timings, done)


def test_payload_has_a_rank_and_an_importance_for_every_patch():
    features = torch.randn(12, 8)
    ranking = METHODS["idpruner"](VisualTokens(features, (3, 4)))
    value = overlay.payload(Image.new("RGB", (112, 84)), features, (3, 4), ranking, "IDPruner", "score")
    assert sorted(value["rank"]) == list(range(12)) and len(value["importance"]) == 12
    assert value["rank"][ranking.order[0]] == 0
    cosine = np.frombuffer(base64.b64decode(value["similarity"]), np.uint8).reshape(12, 12) / 127.5 - 1
    expected = torch.nn.functional.cosine_similarity(features[:, None], features[None], dim=-1).numpy()
    worst = np.abs(cosine - expected).max()
    assert worst < 1 / 127.5, f"largest difference {worst}"
    assert value["image"].startswith("data:image/jpeg;base64,")


def test_payload_id_changes_with_the_order_only():
    features, picture = torch.randn(12, 8), Image.new("RGB", (112, 84))
    tokens = VisualTokens(features, (3, 4))
    one, same, other = (METHODS[key](tokens) for key in ("idpruner", "idpruner", "random"))
    ids = [overlay.payload(picture, features, (3, 4), r, "t", "s")["id"] for r in (one, same, other)]
    assert ids[0] == ids[1] != ids[2]


def test_answers_part_at_the_first_different_token():
    full, pruned = answer([5, 6, 7], ["A", " cat", "."]), answer([5, 8, 7], ["A", " dog", "."])
    assert answers.parting(full, full) is None
    assert answers.parting(full, pruned) == 1
    page = answers.comparison(answers.Written(full, pruned, where="here"))
    assert len(re.findall('class="tl-part"', page)) == 2 and "part at token 2" in page


def test_a_shorter_answer_parts_where_it_ends():
    assert answers.parting(answer([5, 6], ["a", "b"]), answer([5, 6, 7], ["a", "b", "c"])) == 2
    assert answers.parting(answer([5, 6], ["a", "b"], done=False), answer([5, 6, 7], ["a", "b", "c"])) is None


def test_text_of_the_model_is_escaped():
    page = answers.comparison(answers.Written(answer([5], ["<img src=x onerror=alert(1)>"]), None, where="<script>"))
    assert "<img" not in page and "&lt;img" in page and "<script>" not in page


def test_speedups_are_ratios_of_the_measured_times():
    full, pruned = answer([5, 6], ["a", "b"], prefill=0.8), answer([5, 6], ["a", "b"], prefill=0.2)
    ratios = answers.speedup(full, pruned)
    assert math.isclose(ratios.prefill, 4.0)
    assert math.isclose(ratios.first_token, full.timings.first_token / pruned.timings.first_token)
    assert math.isclose(ratios.total, full.timings.total / pruned.timings.total)
    assert answers.speedup(full, answer([5], ["a"], done=False)).total is None
    slower = answers.comparison(answers.Written(pruned, full, where="here"))
    assert "0.25x" in slower, "where pruning loses, the page must say so"


@pytest.fixture
def one_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """The page's functions on the tiny model, with empty caches."""
    vlm = tiny_vlm(tiny_model(0))
    vlm.scorer = random_scorer()
    monkeypatch.setattr(studio, "open_vlm", lambda name: vlm)
    monkeypatch.setattr(studio, "is_open", lambda name: True)
    monkeypatch.setattr(studio, "RANKINGS", studio.Results(8))
    monkeypatch.setattr(studio, "ANSWERS", studio.Results(8))


@pytest.fixture
def picture(tmp_path):
    """A noisy picture on disk."""
    path = tmp_path / "noise.png"
    Image.effect_noise((224, 224), 90).convert("RGB").save(path)
    return str(path)


def run(ask: studio.Ask, session: str = "visitor", percent: float = 75) -> list[studio.Shown]:
    """Everything that one run shows."""
    return list(studio.show(ask, percent, session))


def test_every_method_runs_from_the_page_and_keeps_the_right_number(one_model, picture):
    for key in studio.PRUNERS:
        ask = studio.Ask("tiny", picture, "What is this?", key, "neg-cos-mean", 0.5)
        first, *_, final = run(ask)
        assert first.overlay["n"] == 64 and first.asked == ask and first.notice == ""
        assert "16 of 64 visual tokens" in final.panel and final.notice == "", key


def test_a_second_look_comes_from_the_cache(one_model, picture):
    ask = studio.Ask("tiny", picture, "What is this?", "idpruner", "norm", 0.3)
    first, again = run(ask), run(ask)
    assert len(again) == 3 and again[-1].panel == first[-1].panel
    assert len(studio.ANSWERS.items) == 2


def test_the_third_answer_has_trimmed_bits_and_is_kept(one_model, picture):
    ask = studio.Ask("tiny", picture, "What is this?", "idpruner", "norm", 0.3)
    shown = list(studio.show(ask, 50, "visitor", trimmed=True))
    assert 'data-answer="trimmed"' in shown[-1].panel and "bits per number" in shown[-1].panel
    assert list(studio.show(ask, 50, "visitor", trimmed=True))[-1].panel == shown[-1].panel, "kept without the bits of every token"
    assert 'data-answer="trimmed"' not in run(ask, percent=50)[-1].panel
    assert len(studio.ANSWERS.items) == 3
    for key in ("fastv", "visionzip", "down-sampling"):
        final = list(studio.show(studio.Ask("tiny", picture, "What?", key, "norm", 0.3), 50, "visitor", trimmed=True))[-1]
        assert final.notice == "" and 'data-answer="trimmed" data-state="done"' in final.panel, key


def test_an_empty_follow_up_becomes_no_turn_of_the_conversation(one_model, picture):
    (shown,) = run(studio.Ask("tiny", picture, "  ", "idpruner", "norm", 0.3, ("What is this?",)))
    assert "question" in shown.notice and shown.asked is None


def test_a_follow_up_continues_what_every_side_said_itself(one_model, picture):
    first = studio.Ask("tiny", picture, "What is this?", "idpruner", "norm", 0.3)
    assert studio.turns_before(None, True, "tiny", picture, "And where?") == ()
    assert studio.turns_before(first, False, "tiny", picture, "And where?") == ()
    assert studio.turns_before(first, True, "tiny", "other.png", "And where?") == ()
    assert studio.turns_before(first, True, "tiny", picture, "What is this?") == ()
    before = studio.turns_before(first, True, "tiny", picture, "And where?")
    assert before == ("What is this?",)
    many = replace(first, question="7?", before=("1?", "2?", "3?", "6?"))
    assert studio.turns_before(many, True, "tiny", picture, "8?") == ("1?", "3?", "6?", "7?"), "the first prunes the picture"
    run(first)
    said = {key[3]: answer.text for key, answer in studio.ANSWERS.items.items()}
    panel = run(studio.Ask("tiny", picture, "And where?", "idpruner", "norm", 0.3, before))[-1].panel
    assert panel.count("tl-turn") == 2 and len(studio.ANSWERS.items) == 4
    later = {key[3]: answer for key, answer in studio.ANSWERS.items.items() if key[4]}
    for side, text in said.items():
        assert later[side].history == (("What is this?", text),)
        assert later[side].prompt_tokens > next(iter(studio.ANSWERS.items.values())).kept_tokens


def test_letting_go_of_the_slider_shows_answers_only(one_model, picture):
    ask = studio.Ask("tiny", picture, "What is this?", "idpruner", "norm", 0.3)
    shown = list(studio.show(ask, 50, "visitor", with_overlay=False))
    assert all(part.overlay is None for part in shown) and "32 of 64 visual tokens" in shown[-1].panel


def test_letting_go_of_the_slider_ranks_again_where_the_order_depends_on_the_budget(one_model, picture):
    ask = studio.Ask("tiny", picture, "What is this?", "visionzip", "norm", 0.3)
    first = run(ask, percent=75)[0].overlay
    redrawn, *_, final = studio.show(ask, 50, "visitor", with_overlay=False)
    assert "made for 16 patches: let go of the slider to redraw" in first["title"]
    assert "made for 32 patches" in redrawn.overlay["title"] and redrawn.overlay["id"] != first["id"]
    assert "32 of 64 visual tokens" in final.panel and final.notice == ""


def test_a_smaller_picture_is_shown_whole(one_model, picture):
    value = studio.look(studio.Ask("tiny", picture, "What is this?", "down-sampling", "norm", 0.3), 75)
    assert value["whole"] and value["n"] == 64
    assert not studio.look(studio.Ask("tiny", picture, "What is this?", "fastv", "norm", 0.3), 75)["whole"]
    small = Image.open(io.BytesIO(base64.b64decode(value["image"].split(",")[1])))
    assert small.size == (112, 112)


def test_a_method_whose_scorer_is_missing_says_so(one_model, picture):
    studio.open_vlm("tiny").scorer = None
    (shown,) = run(studio.Ask("tiny", picture, "What is this?", "visionselector", "norm", 0.3))
    assert "tiny has no trained scorer: choose another importance or method" in shown.notice


def test_a_newer_run_of_the_same_visitor_stops_the_older_one_and_caches_nothing_of_it(one_model, picture):
    ask = studio.Ask("tiny", picture, "What is this?", "idpruner", "norm", 0.3)
    older = studio.show(ask, 75, "visitor")
    assert next(older).overlay and next(older).panel
    other = studio.show(ask, 75, "somebody else")
    assert next(other).overlay
    studio.TURNS.begin("visitor")
    assert list(older) == [] and not studio.ANSWERS.items, "a newer run writes the panel"
    assert next(other).panel, "another visitor goes on"
    studio.TURNS.end("visitor")
    assert "visitor" not in studio.TURNS.newest


@pytest.mark.parametrize(
    ("image", "question", "words"),
    [(None, "What?", "picture"), ("/nowhere.png", "What?", "cannot be opened"), ("picture", "  ", "question")],
)
def test_bad_input_gives_a_sentence_and_leaves_the_page_as_it_is(one_model, picture, image, question, words):
    ask = studio.Ask("tiny", picture if image == "picture" else image, question, "idpruner", "norm", 0.5)
    (shown,) = run(ask)
    assert shown.overlay is None and shown.panel is None and shown.asked is None
    assert words in shown.notice and 'role="alert"' in shown.notice


def test_a_failure_below_gives_a_sentence_too(one_model, picture, monkeypatch):
    def fail(*arguments):
        raise ValueError("features hold nan or inf; check the tower.")

    monkeypatch.setattr(studio, "look", fail)
    (shown,) = run(studio.Ask("tiny", picture, "What?", "idpruner", "norm", 0.5))
    assert "features hold nan" in shown.notice


def test_what_is_cancelled_says_so(one_model, picture):
    ask = studio.Ask("tiny", picture, "What is this?", "idpruner", "norm", 0.3)
    running = studio.show(ask, 75, "visitor", trimmed=True)
    assert next(running).overlay and "tl-caret" in next(running).panel
    studio.TURNS.stop("visitor")
    (left,) = running
    assert ">stopped<" in left.panel and "tl-caret" not in left.panel and "waiting<" not in left.panel
    unseen = studio.show(ask, 75, "visitor")
    next(unseen)
    studio.TURNS.stop("visitor")
    assert [part.panel for part in unseen] == [None], "the answers before stay"


def test_what_an_overtaken_run_has_left_is_not_said_to_go_on(one_model, picture):
    ask = studio.Ask("tiny", picture, "What is this?", "idpruner", "norm", 0.3)
    older = studio.show(ask, 75, "visitor")
    assert next(older).overlay and "tl-caret" in next(older).panel
    (refused,) = run(replace(ask, question=" "))
    assert "tl-caret" not in refused.panel and "question" in refused.notice and list(older) == []
    older = studio.show(replace(ask, question="And now?"), 75, "visitor")
    assert next(older).overlay and next(older).panel
    newer = studio.show(replace(ask, question="And then?"), 75, "visitor")
    assert next(newer).overlay
    studio.TURNS.stop("visitor")
    (left,) = newer
    assert "tl-caret" not in left.panel and list(older) == [], "only the run that was stopped says so"
    done = run(ask)[-1]
    studio.TURNS.stop("visitor")
    assert "tl-caret" not in done.panel and "visitor" not in studio.TURNS.undone


def test_a_model_that_cannot_be_opened_leaves_no_panel_that_says_it_is_opened(one_model, picture, monkeypatch):
    def fail(name):
        raise UserError("There is no such model.")

    monkeypatch.setattr(studio, "is_open", lambda name: False)
    monkeypatch.setattr(studio, "open_vlm", fail)
    opening, failed = run(studio.Ask("large", picture, "What is this?", "idpruner", "norm", 0.3))
    assert "Opening large" in opening.panel and "no such model" in failed.notice and "Opening" not in failed.panel


def test_a_question_of_too_many_tokens_is_refused_before_it_is_asked(one_model, picture):
    (shown,) = run(studio.Ask("tiny", picture, "\N{CUNEIFORM SIGN A}" * 900, "idpruner", "norm", 0.3))
    assert "tokens for this model; at most 1,024" in shown.notice and shown.asked is None


def test_models_without_a_trained_scorer_are_offered_none():
    methods, scorers, first = studio.offered("Qwen/Qwen2.5-VL-3B-Instruct")
    assert "visionselector" not in dict(methods).values() and "trained" not in dict(scorers).values()
    assert first == "neg-cos-mean" and "idpruner" in dict(methods).values()
    assert studio.offered(NAME)[2] == "trained"


def test_an_answer_is_known_by_the_patches_that_it_saw(one_model, picture):
    """CDPruner asks for other patches in another question's name: one question's answer, by two sets of patches, is two answers."""
    sides = []
    for question in ("What is this?", "Is there a red triangle at the left?"):
        _, _, ranking, method = studio._prepare(studio.Ask("tiny", picture, question, "cdpruner", "norm", 0.5), 0.75)
        sides.append(studio.Side(ranking, method, 0.75))
    assert sides[0].key != sides[1].key and sides[0].key == replace(sides[0]).key


def test_results_forget_the_oldest():
    results = studio.Results(2)
    for key in "abc":
        results.put(key, key)
    assert results.get("a") is None and results.get("b") == "b"


def test_a_model_that_another_one_replaced_is_not_opened_while_everybody_waits(monkeypatch):
    monkeypatch.setattr(studio, "is_open", lambda name: False)
    monkeypatch.setattr(studio, "open_vlm", lambda name: name)
    assert studio.opened("large") == "large"
    with pytest.raises(UserError, match="Press Answer"):
        one_thread.run(studio.opened, "large")


def test_updates_that_matter_are_all_shown_and_others_at_a_pace(monkeypatch):
    now = iter(range(100))
    monkeypatch.setattr(studio.time, "monotonic", lambda: next(now) / 10)
    monkeypatch.setattr(studio, "PACE", 0.4)
    shown = list(studio.paced(iter(range(20)), lambda item: item in (1, 19)))
    assert shown[-1] == 19 and 1 in shown and 3 < len(shown) < 12, shown
