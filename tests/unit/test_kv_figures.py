"""The figures of the tab "Trim bits" show what the traces say, and the criterion's picture what kvquant.alignment says."""

import base64
import json
import zlib
from functools import cache

import numpy as np
import pytest
import torch

from kvquant.alignment import widths
from kvquant.cache import KVCache, Setting
from kvquant.kernels import reference
from kvquant.modes import Certified, Exact, Paper
from kvquant.store import Store
from tests.unit.tiny import QUESTION, noise, random_keep, tiny_model, tiny_vlm
from viz import answers, kv_errors, kv_exponents, kv_figures, kv_live, kv_overlay, kv_run, kv_style
from viz.kv_capture import NAME, Captured, capture, capturing
from vlm import decode
from vlm.errors import UserError
from vlm.model import Answer, last

NEW = 7


@cache
def vlm():
    """One tiny model for all tests; its answers do not end early."""
    found = tiny_vlm(tiny_model(0))
    found.model.generation_config.eos_token_id = [10**6]
    return found


@cache
def run_of(mode: str, error: float = 0.02, window: int = 0, kept: int | None = None) -> kv_run.Run:
    """A finished run about a picture of 64 patches."""
    image = vlm().encode(noise(1))
    keep = None if kept is None else random_keep(2, image, kept)
    setting, rankings, prune = kv_run.setting_of(mode, error, window), None, 0.0
    if keep is not None:
        rankings, prune = [Kept(keep)], 1 - kept / len(image.features)
    prompt = vlm().prompt([image], QUESTION, [keep])
    answer = last(vlm().answer([image], QUESTION, rankings, prune, NEW, setting))
    return kv_run.finished(vlm(), image, QUESTION, keep, setting, prompt, answer)


class Kept:
    """A ranking that keeps what it is told to keep."""

    scoring_s = selection_s = 0.0
    method = "chosen"
    after, merged = 0, None

    def __init__(self, keep: np.ndarray) -> None:
        self.chosen, self.order = keep, np.arange(64)

    def keep(self, count: int) -> np.ndarray:
        assert count == len(self.chosen)
        return self.chosen


@cache
def captured_of(mode: str):
    run = run_of(mode)
    return capture(vlm(), run.prompt, run.answer.token_ids)


def test_settings_of_the_controls():
    assert kv_run.setting_of("exact", 0.02, 32) == Setting(Exact(), halves=True, window=32)
    assert kv_run.setting_of("paper", 0.02, 0) == Setting(Paper(), window=0)
    assert kv_run.setting_of("certified", 0.05, 0) == Setting(Certified(0.05), window=0)
    for bad in (("magic", 0.1, 0), ("certified", -1, 0), ("certified", None, 0), ("paper", 0.1, -5), ("paper", 0.1, "x")):
        with pytest.raises(UserError):
            kv_run.setting_of(*bad)


@pytest.mark.parametrize(("window", "prompt"), [(0, 50), (0, 100), (64, 100), (64, 190), (16, 79)])
def test_planed_tokens_are_those_of_the_store(window, prompt):
    cache_ = KVCache(vlm().model.config, Setting(Certified(), window=window))
    layer, rows = cache_.layers[0], torch.randn(1, 2, prompt + 40, 16)
    layer.update(rows[:, :, :prompt], rows[:, :, :prompt])
    found = []
    for token in range(prompt, prompt + 40):
        layer.update(rows[:, :, token : token + 1], rows[:, :, token : token + 1])
        found.append(layer.store.planed)
    assert kv_run.planed_tokens(cache_.setting, prompt, 40).tolist() == found


@pytest.mark.parametrize("mode", kv_run.MODES)
def test_a_run_holds_the_bits_of_its_traces_and_the_words_of_its_tokens(mode, monkeypatch):
    monkeypatch.setattr(Answer, "light", lambda answer: answer)
    run = run_of.__wrapped__(mode)
    prompt, steps = len(run.patch), NEW - 1
    assert run.steps == steps and run.bits.shape == (steps, 2, 3, 2, prompt + steps)
    for step, layers in enumerate(run.answer.traces):
        for layer, trace in enumerate(layers):
            length = prompt + step + 1
            for which, bits in enumerate((trace.key_bits, trace.value_bits)):
                assert np.allclose(run.bits[step, which, layer, :, :length], bits[0].numpy(), atol=0.01)
                assert np.isnan(run.bits[step, which, layer, :, length:]).all()
    assert (run.patch >= 0).sum() == 64 and run.patch.max() == 63
    assert len(run.words) == prompt + NEW and "".join(run.words[prompt:]).replace(" (end)", "") == run.answer.text
    assert run.bytes_share > 0
    if mode == "exact":
        assert run.mean_bits == (16.0, 16.0) and (run.bits[~np.isnan(run.bits)] == 16).all()
    else:
        assert min(run.mean_bits) < 16


def test_a_run_of_one_token_is_refused_with_a_sentence():
    image = vlm().encode(noise(1))
    answer = last(vlm().answer([image], QUESTION, None, 0.0, 1, Setting(Paper())))
    with pytest.raises(UserError, match="single token"):
        kv_run.finished(vlm(), image, QUESTION, None, Setting(Paper()), vlm().prompt([image], QUESTION, [None]), answer)


def test_heat_map_shows_the_mean_per_layer_and_head():
    run = run_of("certified")
    assert run.answer.traces[0][0].key_bits.shape[-1] == 1, "what is kept of every token is in bits alone"
    chart = kv_figures.heat_map(run)
    for which, shown in enumerate(chart.data):
        cell = np.asarray(shown.z, float)[1, 2]
        assert cell == pytest.approx(np.nanmean(run.bits[:, which, 2, 1].astype(float)), abs=1e-6)
        assert np.shape(shown.z) == (2, 3)
    assert (chart.layout.coloraxis.cmin, chart.layout.coloraxis.cmax) == (0, 16)
    assert f"{run.mean_bits[0]:.1f} of 16 bits of K" in chart.layout.title.text.replace("<br>", " ")


def test_token_figure_has_a_point_for_every_token_and_escapes_text():
    run = run_of("paper")
    chart = kv_figures.token_figure(run)
    labels = chart.data[0].customdata
    assert len(chart.data[0].y) == run.bits.shape[-1] == len(labels)
    assert sum("patch in row" in label for label in labels) == 64 and labels[len(run.patch)].startswith("answer")
    assert not any("<" in label for label in labels)
    values = np.nanmean(run.bits[:, 1].astype(float), axis=(0, 1, 2))
    assert np.allclose(np.asarray(chart.data[1].y, float), values, atol=1e-6)


def test_summary_says_what_was_read_and_that_memory_is_not_saved():
    text = kv_figures.summary(run_of("certified"))
    assert f"{sum(run_of('certified').mean_bits) / 2:.1f} bits" in text and "not memory" in text
    assert "0.02 allowed<" in text and "no target" in kv_figures.summary(run_of("paper"))


def test_summary_says_why_a_proven_error_is_larger_than_allowed():
    run = run_of("certified", 1e-9)
    assert "1e-09 allowed; no less could be proven there, so every bit was read" in kv_figures.summary(run)
    assert all(float(trace.key_bits.min()) == 16 == float(trace.value_bits.min()) for step in run.answer.traces for trace in step)


@pytest.mark.parametrize("kept", [None, 20])
def test_overlay_payload_unpacks_to_the_bits_of_the_kept_patches(kept):
    run = run_of("certified", kept=kept)
    value = json.loads(json.dumps(kv_overlay.payload(run)))
    count = kept or 64
    shape = (value["steps"], 2, value["layers"], value["heads"], len(value["patch"]))
    assert shape == (NEW - 1, 2, 3, 2, count) and value["rows"] * value["cols"] == 64
    raw = np.frombuffer(zlib.decompress(base64.b64decode(value["bits"])), np.uint8).reshape(shape) / kv_overlay.SCALE
    expected = run.bits[..., value["place"]].astype(float)
    assert np.abs(raw - expected).max() <= 0.5 / kv_overlay.SCALE
    assert value["patch"] == run.patch[value["place"]].tolist() and value["first"] == 1
    assert kv_overlay.payload(run)["id"] == value["id"] != kv_overlay.payload(run_of("paper"))["id"]
    # The same bits of the same picture, but other tokens are whole.
    assert kv_overlay.payload(run_of("exact"))["id"] != kv_overlay.payload(run_of("exact", window=256))["id"]


def test_captured_steps_are_those_of_decoding():
    run = run_of("exact")
    captured = captured_of("exact")
    steps = decode.steps(vlm().model, run.prompt, NEW)
    next(steps)
    for step in range(2):
        with capturing(vlm().model) as seen:
            next(steps)
        for layer, (q, k, v, scale) in enumerate(seen):
            found = captured.at(layer, step)
            for name, a, b in zip("qkv", found, (q[:, :, 0], k, v), strict=True):
                difference = float((a.double() - b.double()).abs().max())
                assert difference < 2e-3 * float(b.abs().max()), f"{name} of layer {layer}, step {step}: {difference}"
            assert captured.scale == scale


def test_capturing_is_undone_even_after_a_failure():
    config = vlm().model.config.get_text_config(decoder=True)
    before = config._attn_implementation
    with pytest.raises(ZeroDivisionError), capturing(vlm().model):
        assert config._attn_implementation == NAME
        raise ZeroDivisionError
    assert config._attn_implementation == before
    assert not any(hasattr(layer.self_attn, "trimlens_seen") for layer in vlm().model.get_decoder().layers)


@pytest.mark.parametrize("head", range(4))
@pytest.mark.parametrize("sum_", ["scores", "output"])
def test_no_bit_above_the_aligned_level_is_left_unread(head, sum_):
    captured, planed = captured_of("paper"), int(run_of("paper").planed[1])
    q, k, v = captured.at(1, 1)
    if sum_ == "scores":
        addends = kv_exponents.score_addends(q, k[:, :, :planed], head)
        assert addends.level == addends.top.max() - 10 and addends.total == 16
    else:
        addends, channel = kv_exponents.output_addends(q, k, v, planed, head, captured.scale)
        assert 0 <= channel < 16 and addends.total == planed
    parts = addends.parts
    base, height = parts["unread"]
    assert all((heights >= 0).all() for _, heights in parts.values())
    assert (base[height > 0] + height[height > 0] <= addends.level).all()
    assert (sum(height for _, height in parts.values()) == kv_exponents.MANTISSA + 1).all()
    assert (parts["spare"][0] + parts["spare"][1] <= np.maximum(addends.level, parts["spare"][0])).all()
    assert (np.diff(addends.top) <= 0).all() and set(addends.bits) <= {8, 12, 16}


def test_a_single_loud_channel_wastes_the_others_bits():
    q, k = torch.ones(1, 2, 4), torch.ones(1, 1, 64, 4)
    k[..., 0] = 2.0**9
    addends = kv_exponents.score_addends(q, k, 0)
    assert addends.index[0] == 0 and addends.top.tolist() == [9, 0, 0, 0] and addends.bits.tolist() == [16, 8, 8, 8]
    assert addends.waste == pytest.approx(27 / 44) and addends.level == -1
    assert addends.bits.tolist() == widths(torch.tensor([0, 9, 9, 9])).tolist()
    chart = kv_exponents.score_figure(addends, 0, 1, "a")
    assert "61% of the channels' bits" in chart.layout.title.text.replace("<br>", " ")
    assert [trace.name for trace in chart.data][:3] == [label for label, _ in kv_exponents.PARTS.values()]


def test_addends_of_zero_have_no_bars():
    q = torch.tensor([[[1.0, 0.0, 1.0, 1.0]]])
    addends = kv_exponents.score_addends(q, torch.ones(1, 1, 64, 4), 0)
    assert addends.index.tolist() == [0, 2, 3] and addends.total == 4


def test_forced_losses_are_those_of_the_caches():
    run = run_of("certified")
    *_, (share, losses) = kv_live.force(vlm(), run)
    assert share == 1 and len(losses) == len(kv_live.readers(0))
    by_name = {(loss.family, loss.name): loss for loss in losses}
    assert all(loss.tokens == NEW - 1 and 0 <= loss.top1 <= 1 and loss.kld > -1e-9 for loss in losses)
    exact, rough = by_name["exact", "all 16 bits"], by_name["uniform", "uniform 8 bit"]
    assert exact.kld < 1e-4 < rough.kld and exact.bits == 16 and rough.bits < 12
    chart = kv_errors.quality_figure(losses, [])
    assert "measured live" in chart.layout.title.text.replace("<br>", " ")


@pytest.mark.parametrize("mode", ["certified", "paper"])
def test_measured_errors_lie_beneath_their_bounds(mode):
    run = run_of(mode)
    *_, (share, points) = kv_live.beneath(captured_of(mode), run.setting)
    held, bounded = kv_live.proven(points)
    assert share == 1 and held == bounded == len(points) == 3 * 4 * 3
    if mode == "certified":
        assert max(point.error for point in points) <= 0.02
    text = kv_errors.bound_figure(points, run.setting.mode).layout.title.text.replace("<br>", " ")
    assert f"All {bounded} measured errors" in text


def test_float32_rounding_is_not_taken_for_an_error_of_reading():
    """Nearly all attention on one token that is still whole: the proven bound is then far below what float32 rounds away."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, length, 64, generator=generator) for length in (1, 130, 130))
    k[0, -1] = 3 * q[0, 0]
    captured = Captured([q], [k.half()], [v.half()], prompt=129, scale=0.125)
    *_, (_, points) = kv_live.beneath(captured, Setting(Certified(), window=0))
    store = Store("fixed", 0)
    store.append(*(rows[None] for rows in (captured.k[0], captured.v[0])))
    out, trace = reference.decode_attention(q[:, 0][None], store, Certified(), scale=0.125)
    rounded = (out - kv_live.exact_output(*captured.at(0, 0), 0.125)).norm() > trace.bound
    assert bool(rounded) and kv_live.proven(points) == (1, 1)


def test_an_error_above_its_bound_is_told():
    points = [kv_live.Point(0, 0, 0, 0.01, 0.001), kv_live.Point(0, 1, 0, 0.01, 0.02), kv_live.Point(0, 2, 0, float("inf"), 0.02)]
    text = kv_errors.bound_figure(points, Certified()).layout.title.text.replace("<br>", " ")
    assert "Only 1 of 2" in text and "1 more have no bound" in text
    assert kv_live.bound_steps(1) == [0] and kv_live.bound_steps(9) == [0, 4, 8]


def test_committed_losses_are_read_and_a_broken_file_is_none(tmp_path):
    path = tmp_path / "kv_quality.json"
    assert kv_errors.committed(path) == []
    path.write_text("[1]")
    assert kv_errors.committed(path) == []
    row = {"bits_saved": 0.25, "bits": 11.0, "top1": 0.5, "kld": 0.002, "tokens": 40}
    path.write_text(json.dumps({"certified_0.05": row, "uniform_12": row}))
    found = kv_errors.committed(path)
    assert [(loss.family, loss.bits, loss.kld, loss.top1) for loss in found] == [
        ("certified", 12, 0.002, 0.5),
        ("uniform", 12, 0.002, 0.5),
    ]
    chart = kv_errors.quality_figure([], found)
    assert "40 tokens of the benchmark" in chart.layout.title.text.replace("<br>", " ")


def test_titles_are_wrapped_to_fit_a_narrow_page():
    chart = kv_style.figure("word " * 30, 100)
    assert max(len(line) for line in chart.layout.title.text.split("<br>")) <= kv_style.TITLE_WIDTH


def test_the_third_answer_stands_beside_the_others():
    run = run_of("certified")
    plain = last(vlm().answer([vlm().encode(noise(1))], QUESTION, None, 0.0, NEW))
    page = answers.comparison(answers.Written(plain, plain, run.answer, "here"))
    assert (
        'data-answer="trimmed"' in page
        and "bits per number" in page
        and "saves no memory" in page
        and "plain torch reference" in page
    )
    assert 'data-answer="trimmed"' not in answers.comparison(answers.Written(plain, plain, where="here"))
