"""The bench of attention kernels: it compares what it says, on data that look as they are said to."""

import json

import pytest
import torch

from bench import kv_attention, kv_data, kv_ort


def test_it_measures_every_kernel_and_ends_with_a_json_line(capsys, tmp_path):
    out = tmp_path / "line.json"
    arguments = ["--geometry", "embedded", "--context", "1024", "--repeats", "2", "--out", str(out)]
    assert kv_attention.main(arguments) == 0
    printed = capsys.readouterr().out
    print(printed)
    line = printed.splitlines()[-1]
    kept = json.loads(out.read_text())
    assert kept["measured"] == json.loads(line) and "threads" in kept["where"] and kept["error"] == 0.2 and kept["data"] == "like"
    found = json.loads(line)["embedded"]["1024"]
    assert set(found) == set(kv_attention.KERNELS) - (set() if kv_ort.available()[0] else {"ort_int8"})
    for name, kernel in found.items():
        assert kernel["ms"] > 0
        assert kernel["error"] < (0.3 if name == "ort_int8" else 0.02), name
    whole = 2 * 3 * 1024 * 64 * 2
    assert found["sdpa_bf16"]["bytes"] == whole
    assert found["certified"]["bytes"] < found["paper"]["bytes"] < whole < found["control"]["bytes"] < 1.1 * whole
    assert found["control"]["error"] < found["sdpa_bf16"]["error"]


def test_unknown_kernels_are_refused_and_large_sizes_left_out(capsys, monkeypatch):
    with pytest.raises(SystemExit):
        kv_attention.main(["--kernels", "magic"])
    assert "unknown kernels magic" in capsys.readouterr().err
    monkeypatch.setattr(kv_attention, "fits", lambda *_: False)
    assert kv_attention.main(["--geometry", "llama-2-7b", "--context", "131072"]) == 0
    printed = capsys.readouterr().out
    assert "left out" in printed
    assert printed.splitlines()[-1] == "{}"


@pytest.mark.parametrize("kind", kv_data.KINDS)
def test_the_data_are_what_a_bfloat16_model_would_hold(kind):
    q, k, v = kv_data.make(kind, 28, 4, 128, 1500)
    assert q.shape == (1, 28, 128)
    assert k.shape == v.shape == (1, 4, 1500, 128)
    for x in (q, k, v):
        assert torch.equal(x, x.bfloat16().float())
    again = kv_data.make(kind, 28, 4, 128, 1500)
    assert torch.equal(k, again[1])


def test_like_data_have_the_spread_of_attention_that_they_say():
    spread, first = [], []
    for seed in range(3):
        q, k, _ = kv_data.make("like", 28, 4, 128, 4096, seed)
        p = (q.unflatten(1, (4, 7)) @ k.transpose(-1, -2) * 128**-0.5).softmax(-1)
        spread.append((-(p * p.clamp(min=1e-30).log()).sum(-1)).exp().flatten())
        first.append(p[..., 0].flatten())
    median = float(torch.cat(spread).median())
    print(f"tokens attended: {median:.0f}; share of the first token at 90%: {float(torch.cat(first).quantile(0.9)):.2f}")
    assert 10 < median < 100
    assert float(torch.cat(first).quantile(0.9)) > 0.3
