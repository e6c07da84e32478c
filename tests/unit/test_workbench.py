"""The reading tools: their figures and payloads, the explanation of a patch, teacher forcing, and what a closed lab computes."""

import base64
import json
import math
from dataclasses import replace

import gradio as gr
import numpy as np
import pytest
import torch

from pruning.kernels import unit_rows
from pruning.registry import METHODS, get_method
from pruning.tokens import VisualTokens
from pruning.tradeoff import AXES, sweep
from tests.unit.tiny import noise, tiny_model, tiny_vlm
from viz import compare, features, lab, reasons, studio, style, tradeoff, workbench
from vlm.errors import UserError
from vlm.model import last


@pytest.fixture
def tokens() -> VisualTokens:
    """48 clustered tokens on a 6 x 8 grid."""
    centres = torch.randn(5, 16)
    return VisualTokens(torch.randn(1, 16) + centres[torch.randint(5, (48,))] + 0.3 * torch.randn(48, 16), (6, 8))


@pytest.fixture
def ask(monkeypatch: pytest.MonkeyPatch, tmp_path) -> studio.Ask:
    """A picture as the page shows it, on the tiny model, with empty caches."""
    vlm = tiny_vlm(tiny_model(0))
    monkeypatch.setattr(workbench, "opened", lambda name: vlm)
    monkeypatch.setattr(workbench, "SWEEPS", studio.Results(8))
    monkeypatch.setattr(studio, "ANSWERS", studio.Results(32))
    path = tmp_path / "noise.png"
    noise(0).save(path)
    return studio.Ask("tiny", str(path), "What is this?", "idpruner", "neg-cos-mean", 0.5)


def unpacked(bits: str, n: int) -> list[int]:
    """The kept tokens as viz/tradeoff.js reads them."""
    data = base64.b64decode(bits)
    return [i for i in range(n) if i >> 3 < len(data) and data[i >> 3] & (128 >> (i & 7))]


@pytest.mark.parametrize("axis", AXES)
def test_every_point_of_the_figure_says_what_it_keeps(tokens, axis):
    found = sweep(tokens.features, METHODS["idpruner"](tokens).importance, 12)
    fig = tradeoff.figure(found, axis, tradeoff.nearest(found, "idpruner", 0.52))
    shown = [data for trace in fig.data if trace.name != "In use" for data in trace.customdata]
    assert len(shown) == len(found.points)
    kept = {(p.method, p.lam): p.kept.tolist() for p in found.points}
    for bits, caption, method, lam in shown:
        assert unpacked(bits, found.n) == kept[method, lam] and "12 patches hold" in caption
    (ring,) = [trace for trace in fig.data if trace.name == "In use"]
    assert ring.customdata[0][2:] == ["idpruner", 0.5]
    assert len(json.dumps(fig.to_plotly_json(), default=list)) < 60_000
    assert tradeoff.headline(found, axis).startswith("Keeping 12 of 48 patches, MMR matches or beats")


@pytest.mark.parametrize("method", ["idpruner", "scope", "random"])
def test_a_chosen_point_is_what_the_page_then_keeps(ask, method):
    of = workbench.scene(replace(ask, method=method, scorer="norm"), 75)
    for point in workbench.swept(of).points:
        key, lam = workbench.chosen({"method": point.method, "lam": point.lam})
        then = studio.method_of(replace(of.ask, method=key, lam=of.ask.lam if lam is None else lam))
        assert of.vlm.rank(of.image, of.question, then, of.k).keep(of.k).tolist() == point.kept.tolist(), (key, lam)


def test_a_conversation_is_looked_at_by_the_question_that_pruned_it(ask):
    later = replace(ask, before=("Is there a dog?", "Where is it?"))
    assert workbench.scene(later, 75).question == "Is there a dog?"
    asked = workbench.divergences(later, 75, ["topk"]), workbench.divergences(ask, 75, ["topk"])
    assert [workbench.ALONE in reading.note for reading in asked] == [True, False]


def test_a_smaller_picture_has_no_map_of_kept_patches(ask):
    small = replace(ask, method="down-sampling")
    for tool in (lambda: workbench.feature_space(small, 75), lambda: workbench.reason(small, 75, None)):
        with pytest.raises(UserError, match="keeps no patches"):
            tool()
    with pytest.raises(UserError, match="keeps no patches"):
        workbench.side_by_side(ask, 75, "idpruner", "down-sampling", [])
    reading = workbench.side_by_side(ask, 75, "idpruner", "topk", ["uniform", "idpruner", "down-sampling"])
    assert "keeps no patches" in reading.note and len(reading.figure.data[0].z) == 2


def test_a_method_outside_the_sweep_has_no_ring(tokens):
    found = sweep(tokens.features, METHODS["idpruner"](tokens).importance, 12, steps=3)
    assert tradeoff.nearest(found, "uniform", None) is None
    assert "In use" not in [trace.name for trace in tradeoff.figure(found, "hopkins", None).data]
    with pytest.raises(ValueError, match="Unknown axis"):
        tradeoff.figure(found, "beauty", None)


def test_projection_is_that_of_the_svd_and_survives_equal_tokens(tokens):
    places, shares = features.project(tokens.features)
    units = torch.nn.functional.normalize(tokens.features, dim=-1).double()
    u, s, _ = torch.linalg.svd(units - units.mean(0), full_matrices=False)
    expected = (u * s)[:, :2].numpy()
    difference = np.abs(np.abs(places) - np.abs(expected)).max()
    assert difference < 1e-5, f"largest difference {difference}"
    assert shares.tolist() == pytest.approx((s[:2] ** 2 / (s**2).sum()).tolist(), abs=1e-5)
    for alike in (tokens.features[:1].repeat(4, 1), tokens.features[:1]):
        assert features.project(alike)[0].tolist() == [[0, 0]] * len(alike)


def test_membership_and_overlap_by_hand():
    a, b = np.array([1, 1, 0, 0, 1], bool), np.array([1, 0, 1, 0, 1], bool)
    expected = [compare.BOTH, compare.ONLY_A, compare.ONLY_B, compare.NEITHER, compare.BOTH]
    assert compare.membership(a, b).tolist() == expected
    matrix = compare.jaccard(np.stack([a, b, ~a, np.zeros(5, bool)]))
    assert matrix[0, 1] == 0.5 and matrix[0, 2] == 0 and matrix[3, 3] == 1 and (matrix == matrix.T).all()


def test_chance_overlap_is_that_of_random_sets():
    rng = np.random.default_rng(0)
    masks = np.stack([np.isin(np.arange(200), rng.permutation(200)[:50]) for _ in range(60)])
    drawn = compare.jaccard(masks)[~np.eye(60, dtype=bool)].mean()
    assert drawn == pytest.approx(compare.chance(200, 50), abs=0.01)


def test_overlap_figure_has_a_cell_for_every_pair(tokens):
    rankings = {key: METHODS[key](tokens) for key in ("idpruner", "topk", "random")}
    fig = compare.overlap_figure(rankings, 12)
    assert np.array(fig.data[0].z)[::-1].diagonal().tolist() == [1, 1, 1]
    assert "12 of 48" in compare.overlap_headline(rankings, 12)
    assert "two methods or more" in compare.overlap_headline({"topk": rankings["topk"]}, 12)


@pytest.mark.parametrize(("key", "lam"), [("idpruner", 0.5), ("idpruner", 0.1), ("topk", 1.0), ("farthest", 0.0)])
def test_reasons_agree_with_the_greedy_choice_at_every_step(tokens, key, lam):
    method = METHODS[key].with_(lam=lam) if key == "idpruner" else METHODS[key]
    ranking, units = method(tokens), unit_rows(tokens.features)
    cosine = (units.astype(np.float64) @ units.T.astype(np.float64)).astype(np.float32)
    assert reasons.lambda_of(method) == lam
    for token in range(48):
        r = reasons.explain(cosine, ranking, lam, 12, token)
        before = ranking.order[: r.step - 1]
        assert r.kept == (ranking.rank[token] < 12) and r.rival == ranking.order[r.step - 1]
        assert r.rival_gain >= r.gain - 1e-6, "no patch may have lost to a smaller gain"
        if r.kept:
            assert r.rival == token and r.gain == r.rival_gain
        if len(before):
            assert r.nearest in before and r.cosine == pytest.approx(max(cosine[token, before]))
            assert r.gain == pytest.approx(lam * r.importance - (1 - lam) * r.cosine, abs=1e-6)
        said = reasons.words(r, lam, 12, 48, 8)
        assert ("is kept" in said) == r.kept and ("dropped: 12 of 48" in said) == (not r.kept)


def test_a_patch_that_lost_to_the_first_pick_is_told_both_importances(tokens):
    ranking, units = METHODS["idpruner"](tokens), unit_rows(tokens.features)
    lost = reasons.explain(units @ units.T, ranking, 0.5, 1, int(ranking.order[7]))
    said = reasons.words(lost, 0.5, 1, 48, 8)
    assert f"importance {ranking.importance.max():.2f}; this one has {lost.importance:.2f}" in said


def test_a_reason_names_what_top_k_would_have_done(tokens):
    ranking, units = METHODS["idpruner"](tokens), unit_rows(tokens.features)
    said = [reasons.words(reasons.explain(units @ units.T, ranking, 0.5, 12, i), 0.5, 12, 48, 8) for i in range(48)]
    lost, saved = (sum(text in s for s in said) for text in ("cost it its place", "what it adds saved it"))
    top = set(np.argsort(-ranking.importance, kind="stable")[:12].tolist())
    assert lost == saved == len(top - set(ranking.order[:12].tolist())) > 0


@pytest.mark.parametrize("token", [-1, 48])
def test_a_patch_that_is_not_there_has_no_reason(tokens, token):
    with pytest.raises(ValueError, match="There are 48"):
        reasons.explain(np.eye(48), METHODS["idpruner"](tokens), 0.5, 12, token)


def test_divergence_equals_torch_and_finds_the_first_other_choice():
    full, pruned = torch.randn(6, 11), torch.randn(6, 11)
    pruned[:3] = full[:3] + 0.01 * torch.randn(3, 11)
    found = compare.divergence(full, pruned)
    expected = torch.nn.functional.kl_div(pruned.log_softmax(-1), full.log_softmax(-1), reduction="none", log_target=True).sum(-1)
    assert found.kl == pytest.approx(expected.numpy(), abs=1e-5)
    differs = (full.argmax(-1) != pruned.argmax(-1)).tolist()
    assert found.leaves == differs.index(True)
    same = compare.divergence(full, full)
    assert same.leaves is None and same.kl.max() == 0
    fig = compare.divergence_figure({"topk": found, "random": same}, [f"t{i}" for i in range(6)])
    assert fig.data[0].y == ("Random", "Top-k") and list(fig.data[1].y) == ["Top-k"]
    with pytest.raises(ValueError, match="same tokens"):
        compare.divergence(full, pruned[:5])


@pytest.mark.parametrize("method", [None, "random", "visionzip", "fastv", "down-sampling"])
def test_teacher_forcing_gives_the_probabilities_of_decoding(vlm, method):
    image = vlm.encode(noise(3))
    half = len(image.features) // 2
    ranking = vlm.rank(image, "What?", get_method(method), half) if method else None
    answer = last(vlm.answer([image], "What?", [ranking] if ranking else None, 0.5 if ranking else 0.0, 8))
    logits = workbench.forced_logits(vlm, image, "What?", answer.token_ids, ranking, half)
    forced = logits.log_softmax(-1)[range(len(answer.token_ids)), answer.token_ids]
    worst = float((forced - torch.tensor(answer.logprobs)).abs().max())
    assert worst < 1e-4, f"largest difference {worst}"
    assert logits.argmax(-1).tolist() == answer.token_ids
    other = workbench.forced_logits(vlm, image, "What?", answer.token_ids, vlm.rank(image, "What?", get_method("uniform")), 9)
    assert compare.divergence(logits, other).kl.max() > 1e-4


def test_where_teacher_forcing_leaves_is_where_the_answers_part(ask):
    found = workbench.divergences(ask, 75, ["idpruner", "random"])
    vlm = workbench.opened("tiny")
    image = vlm.encode(workbench.open_image(ask.image))
    full = last(vlm.answer([image], ask.question, max_new_tokens=studio.MAX_NEW_TOKENS))
    crosses = dict(zip(found.figure.data[1].y, found.figure.data[1].x, strict=True))
    for key, name in (("idpruner", "MMR (IDPruner)"), ("random", "Random")):
        ranking = vlm.rank(image, ask.question, studio.method_of(studio.Ask(*{**ask.__dict__, "method": key}.values())))
        pruned = last(vlm.answer([image], ask.question, [ranking], 0.75, studio.MAX_NEW_TOKENS))
        split = studio.answers.parting(full, pruned)
        assert (name in crosses) == (split is not None) and (split is None or math.floor(crosses[name]) == split)


def test_every_method_has_its_own_short_name():
    names = [style.name_of(key) for key in METHODS]
    assert len(set(names)) == len(names), names


def test_several_methods_answer_beside_the_full_model(ask):
    pages = list(workbench.several(ask, 75, ["idpruner", "random", "topk", "uniform", "divprune"]))
    final = pages[-1]
    assert final.count('data-state="done"') == 1 + workbench.MOST_ANSWERS and "Uniform grid" in final and "DivPrune" not in final
    assert "waiting" in pages[0] and "16 of 64 visual tokens" in final and "tl-times" not in final
    assert len(list(workbench.several(ask, 75, ["idpruner", "random"]))) == 3, "known answers are not written again"
    with pytest.raises(UserError, match="choose or upload"):
        next(workbench.several(None, 75, ["idpruner"]))


def test_the_lab_reads_the_picture_in_use(ask):
    one = workbench.trade_off(ask, 75, "hopkins")
    assert "Keeping 16 of 64" in one.title and len(unpacked(one.payload["kept"], 64)) == 16
    other = studio.Ask(**{**ask.__dict__, "lam": 0.9})
    workbench.trade_off(other, 75, "coverage")
    assert len(workbench.SWEEPS.items) == 1, "lambda and axis need no new sweep"
    workbench.trade_off(ask, 50, "hopkins")
    assert len(workbench.SWEEPS.items) == 2
    space = workbench.feature_space(ask, 75).payload
    assert sorted(space["rank"]) == list(range(64)) and len(space["x"]) == 64 and max(map(abs, space["x"] + space["y"])) == 1
    both = workbench.side_by_side(ask, 75, "idpruner", "uniform", ["idpruner", "topk"])
    assert both.payload["names"] == ["MMR (IDPruner)", "Uniform grid"] and len(both.figure.data[0].x) == 2
    why = workbench.reason(ask, 75, None).payload
    assert why["reason"]["kept"] is False and "gain at step 16" in why["words"]
    nothing = workbench.reason(studio.Ask(**{**ask.__dict__, "method": "random"}), 75, 3).payload
    assert nothing["reason"] is None and "does not weigh" in nothing["words"]


def test_bad_wishes_give_a_sentence(ask):
    with pytest.raises(UserError, match="picture"):
        workbench.scene(None, 75)
    with pytest.raises(UserError, match="There are 64"):
        workbench.reason(ask, 75, 64)
    with pytest.raises(UserError, match="at least two"):
        workbench.trade_off(ask, 99.9, "hopkins")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"method": "dppp", "lam": 0.5}, "drawn for comparison"),
        ({"method": "none"}, "drawn for comparison"),
        ({}, "drawn for comparison"),
        (None, "drawn for comparison"),
        ({"method": ["idpruner"], "lam": 0.5}, "drawn for comparison"),
        ({"method": "idpruner", "lam": float("nan")}, "between 0 and 1"),
        ({"method": "idpruner", "lam": "0.5"}, "between 0 and 1"),
        ({"method": "idpruner", "lam": None}, "between 0 and 1"),
        ({"method": "idpruner", "lam": 2}, "between 0 and 1"),
    ],
)
def test_what_a_browser_sends_is_checked(data, words):
    with pytest.raises(UserError, match=words):
        workbench.chosen(data)


@pytest.mark.parametrize("data", [None, [], {}, {"token": "3"}, {"token": 1.5}, {"token": True}])
def test_a_picked_patch_is_checked(data):
    assert workbench.picked({"token": 3}) == 3
    with pytest.raises(UserError, match="Click a patch"):
        workbench.picked(data)


def test_a_click_names_a_method_and_its_lambda():
    assert workbench.chosen({"method": "idpruner", "lam": 0.35}) == ("idpruner", 0.35)
    assert workbench.chosen({"method": "topk", "lam": None}) == ("topk", None)


def test_a_picked_patch_stays_until_the_picture_changes(ask):
    with gr.Blocks():
        tools = lab.build()
    settings = ("hopkins", "idpruner", "topk", ["topk"])
    for picked, same in (((ask.model, ask.image, 5), True), ((ask.model, "another.png", 5), False), (None, False)):
        shown = lab.read(tools, ask, 75, True, "reason", picked, *settings)[tools.reason]
        assert (shown["reason"]["token"] == 5) == same


def test_a_complaint_becomes_a_sentence():
    with gr.Blocks():
        place = gr.HTML()
    for error, words in ((UserError("No <picture>."), "No &lt;picture&gt;."), (ValueError("shapes"), "This did not work: shapes")):
        with lab.told(place) as said:
            raise error
        assert words in said[place]
    with lab.told(place) as said:
        said["x"] = 1
    assert said == {place: "", "x": 1}


def test_a_closed_lab_computes_nothing(ask, monkeypatch):
    def fail(*arguments):
        raise AssertionError("a closed lab must not compute")

    with gr.Blocks():
        tools = lab.build()
    known = {"trade_off": "tradeoff", "feature_space": "features", "side_by_side": "compare", "reason": "reason"}
    settings = (None, "hopkins", "idpruner", "topk", ["topk"])
    for name, tab in known.items():
        filled = lab.read(tools, ask, 75, True, tab, *settings)
        assert set(filled) <= set(tools.outputs) and len(filled) > 1, tab
        monkeypatch.setattr(workbench, name, fail)
    for tab in lab.TABS:
        assert lab.read(tools, ask, 75, False, tab, *settings) == {tools.notice: ""}
        assert lab.read(tools, None, 75, True, tab, *settings) == {tools.notice: ""}
