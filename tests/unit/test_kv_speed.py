"""What the tab says of speed: paths that compute the same, timed in turn, and the committed map of regimes."""

import json
from itertools import pairwise

import pytest

from bench import kv_attention
from kvquant.modes import Certified, Paper
from viz import kv_live, kv_regimes, kv_speed


def test_speed_paths_compute_the_same_attention_and_take_turns(monkeypatch):
    monkeypatch.setattr(kv_attention, "STREAM_BYTES", 1 << 20)
    monkeypatch.setattr(kv_speed, "REPEATS", 3)
    monkeypatch.setattr(kv_speed.warming, "making", lambda format: False)
    geometry, modes = (4, 2, 16), [Paper(), Certified(0.05)]
    q, k, v = kv_speed.synthetic(256, geometry, 1.0, "cpu")
    true = kv_live.exact_output(q, k, v, 0.25)
    names = []
    for path in kv_speed.paths(256, geometry, modes, 1.0, "cpu"):
        found = path.run()
        out = (found[0] if isinstance(found, tuple) else found[:, :, 0]).double()
        error = float((out - true).norm() / true.norm())
        assert error < 0.06, f"{path.name}: {error}"
        names.append(path.name)
    states = list(kv_speed.speeds(256, geometry, modes, 1.0, "cpu"))
    final = states[-1]
    assert sorted(row.name for row in final.rows) == sorted(names) and final.share == 1 and final.rate > 0
    assert all(row.timing.n == 3 and row.timing.q1 <= row.timing.median <= row.timing.q3 for row in final.rows)
    assert all(a.share <= b.share + 1e-9 for a, b in pairwise(states))
    chart = kv_speed.speed_figure(final, "256 tokens")
    assert "times" in chart.layout.title.text and "theory" in chart.data[-1].name
    monkeypatch.setattr(kv_speed, "on_gpu", lambda: True)
    monkeypatch.setattr(kv_speed.kernels.triton_decode, "available", lambda: (False, "no Triton kernel."))
    assert kv_speed.kernel_reason(modes) == "Planes are read by the plain torch reference: no Triton kernel."
    monkeypatch.setattr(kv_speed.kernels.triton_decode, "available", lambda: (True, "Triton kernel."))
    assert kv_speed.kernel_reason(modes) == "Planes are read by the Triton kernel."
    monkeypatch.setattr(kv_speed, "on_gpu", lambda: False)
    reasons = {"fixed": "compiled kernel.", "half": "plain torch reference: no F16C."}
    monkeypatch.setattr(kv_speed.kernels, "kernel_reason", reasons.get)
    assert kv_speed.kernel_reason([Certified(0.05)]) == "Planes are read by the compiled kernel."
    both = "Fixed-point planes are read by the compiled kernel. Half planes are read by the plain torch reference: no F16C."
    assert kv_speed.kernel_reason(modes) == both


def test_speeds_are_taken_once_the_kernels_are_compiled(monkeypatch):
    left = [True, True, False]
    monkeypatch.setattr(kv_speed.warming, "making", lambda format: left.pop(0) if left else False)
    monkeypatch.setattr(kv_speed, "sleep", lambda seconds: None)
    states = kv_speed.speeds(128, (2, 1, 16), [Certified(0.05)], 1.0, "cpu")
    steps = [next(states).step for _ in range(3)]
    assert all("compiling" in step for step in steps[:2]) and "streams" in steps[2]


def test_scores_of_synthetic_numbers_spread_as_asked():
    q, k, _ = kv_speed.synthetic(4096, (8, 8, 64), 4.0, "cpu")
    scores = (q[:, :, None] @ k.float().transpose(-1, -2)) / 8
    assert float(scores.std()) == pytest.approx(4.0, rel=0.25)


def test_regimes_are_read_and_their_absence_is_said(tmp_path):
    path = tmp_path / "kv_attention.json"
    assert kv_regimes.regimes(path) == ([], "")
    kernels = {"sdpa_bf16_folded": 2.0, "sdpa_fp16": 3.0, "ort_int8": 2.5, "certified": 1.0, "paper": 4.0, "control": 0.5}
    measured = {"qwen2.5-vl-7b": {"4096": {name: {"ms": ms} for name, ms in kernels.items()}}}
    path.write_text(json.dumps({"where": "a test", "error": 0.1, "measured": measured}))
    (found,), where = kv_regimes.regimes(path)
    assert found.ratio == 2.0 and found.geometry == "qwen2.5-vl-7b" and where == "a test, an error of 0.1 certified"
    chart = kv_regimes.regime_figure([found], where)
    title = chart.layout.title.text.replace("<br>", " ")
    assert "1 of 1 cases" in title and "in 1 of them (marked *) our kernel was faster still with every bit read" in title
    assert chart.data[0].text[0][0] == "2.00x*" and "every bit read: 0.5 ms" in found.detail
