"""The benches of the KV cache: roundings round as they say, windows are apart, and the sums are of what was compared."""

import math

import pytest
import torch
from transformers import DynamicCache

from bench import kv_generate, kv_quality
from bench.kv_rounding import Fp8, Int8, RoundedLayer, Truncated
from bench.texts import documents, windows
from kvquant.planes import join_half, split_half
from tests.unit.tiny import tiny_model, tiny_vlm


def numbers(seed: int = 0, tokens: int = 200) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return (torch.randn(2, 2, tokens, 16, generator=g) * torch.randn(16, generator=g).exp()).half()


@pytest.mark.parametrize("bits", [8, 12])
def test_truncation_is_that_of_the_paper_s_planes(bits):
    x = numbers()
    assert torch.equal(Truncated(bits)(x), join_half(*split_half(x), bits).float())
    assert torch.equal(Truncated(16)(x), x.float())


@pytest.mark.parametrize(("rounding", "limit"), [(Truncated(13), 2.0**-8), (Int8(), 0.02), (Fp8(), 2.0**-4)])
def test_roundings_stay_within_their_step(rounding, limit):
    x = numbers()
    scale = x.float().abs() if not isinstance(rounding, Int8) else x.float().abs().amax(-1, keepdim=True)
    error = (rounding(x) - x.float()).abs() / scale.clamp(min=0.05)
    assert 0 < float(error.max()) <= limit


def test_a_rounded_layer_rounds_old_tokens_once_and_counts_its_bytes():
    layer, k, v = RoundedLayer(lambda: Truncated(8), 64), numbers(1).float(), numbers(2).float()
    assert layer.update(k[:, :, :190], v[:, :, :190])[0].shape[2] == 190
    for token in range(190, 200):
        found = layer.update(k[:, :, token : token + 1], v[:, :, token : token + 1])
    assert layer.rounded == 128
    for one, other in zip(found, (k, v), strict=True):
        assert torch.equal(one[:, :, :128], Truncated(8)(other[:, :, :128].half()))
        assert torch.equal(one[:, :, 128:], other[:, :, 128:])
    assert layer.read() == (2 * 2 * 2 * 16 * (128 + 72 * 2), 2 * 2 * 2 * 16 * (128 * 8 + 72 * 16))


def test_windows_are_named_apart_and_the_same_every_time():
    texts = documents()
    assert set(texts) == {"licences", "reference", "docstrings", "readmes"}
    found = windows(lambda text: list(text.encode()), 500, 12)
    assert found == windows(lambda text: list(text.encode()), 500, 12)
    assert len({name for name, _ in found}) == 12
    assert {name.split("/")[0] for name, _ in found[:4]} == set(texts)
    assert {len(ids) for _, ids in found} == {500}
    with pytest.raises(ValueError, match="only"):
        windows(lambda text: [0] * 10, 9, 10**6)


@pytest.fixture(scope="module")
def tiny():
    return tiny_vlm(tiny_model(0))


def test_forcing_compares_every_cache_with_the_default_one(tiny):
    (batch,) = kv_quality.text_batches(tiny, 1, 3, 150, 5)
    tallies = kv_quality.force(tiny.model, batch, kv_quality.MODES)
    cache = DynamicCache()
    with torch.no_grad():
        ids = torch.cat([batch.prompt.input_ids, batch.forced], dim=1)
        logits = tiny.model(ids, past_key_values=cache).logits[:, 150:155].log_softmax(-1)
    nll = -float(logits.gather(-1, batch.forced[:, 1:, None]).sum())
    assert tallies["default"].nll == pytest.approx(nll, rel=1e-4)
    assert tallies["default"].tokens == tallies["paper"].tokens == 15
    assert tallies["default"].kld == 0.0
    k = 3 * 3 * 2 * 16 * 2 * sum(range(151, 156))  # layers, rows, heads, dim, K and V, tokens
    assert {t.numbers for t in tallies.values()} == {k}
    assert tallies["exact"].bytes == 2 * k
    assert tallies["exact"].bits == tallies["default"].bits / 2
    summary = {mode: tally.summary() for mode, tally in tallies.items()}
    assert summary["exact"]["kld"] < 1e-4 < summary["uniform_8"]["kld"]
    assert summary["certified"]["bits_saved"] > 0.1
    assert all(math.isfinite(s["perplexity"]) for s in summary.values())


def test_caches_abreast_see_what_each_would_see_alone(tiny):
    (batch,) = kv_quality.text_batches(tiny, 1, 2, 150, 3)
    together = kv_quality.force(tiny.model, batch, kv_quality.MODES)
    worst = 0.0
    for mode in kv_quality.MODES:
        alone = kv_quality.force(tiny.model, batch, (mode,))
        assert (alone[mode].bytes, alone[mode].agree) == (together[mode].bytes, together[mode].agree)
        worst = max(worst, abs(alone[mode].nll - together[mode].nll), abs(alone[mode].kld - together[mode].kld))
    print(f"largest difference of a sum of losses or divergences {worst:.1e}")
    assert worst < 1e-4


def test_answers_count_up_to_their_end(tiny):
    (batch,) = kv_quality.image_batches(tiny, 1, 2)
    assert bool(batch.prompt.attention_mask.all()), "rows of a batch are equally long"
    tallies = kv_quality.force(tiny.model, batch, ("certified", "int8"))
    assert tallies["certified"].tokens == int((batch.lengths - 1).sum())
    assert tallies["certified"].kld / tallies["certified"].tokens < 0.01
    rushed = kv_quality.force(tiny.model, batch, ("int8",), deadline=0.0)
    assert rushed["int8"].tokens == 2


def test_a_full_run_goes_on_where_it_was_stopped(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(kv_quality, "ROOT", tmp_path)
    monkeypatch.setattr(kv_quality, "open_model", lambda: tiny)
    arguments = ["--texts", "1", "--images", "1", "--batch", "2", "--context", "130", "--steps", "2"]
    assert kv_quality.main(arguments) == 0
    first = capsys.readouterr().out
    monkeypatch.setattr(kv_quality, "force", lambda *_: pytest.fail("done again"))
    assert kv_quality.main(arguments) == 0
    assert capsys.readouterr().out == first
    assert '"paper": {"bits_saved": ' in first.splitlines()[-1]


def test_generate_bench_times_every_cache(tiny):
    times = kv_generate.decode_times(tiny, 130, repeats=2, warmup=0)
    assert {"default", "fp8", "exact", "paper", "certified"} <= set(times)
    assert all(t.median > 0 for t in times.values())
