"""The cache in a model: the other modes read what they count, and count what they read."""

import pytest
import torch
from transformers import (
    DynamicCache,
)

from kvquant.attention import reading
from kvquant.cache import KVCache, Setting, StoreLayer
from kvquant.modes import Certified, Paper, Trace
from tests.unit.kv_cases import MAKERS, Case, ids_of, text_case


@pytest.fixture(params=MAKERS)
def padded(request) -> Case:
    return MAKERS[request.param](3)


FEWER = [Setting(Paper(), window=0), Setting(Certified(0.02), window=0), Setting(Certified(0.1))]


def forced(case: Case, cache, count: int = 20) -> torch.Tensor:
    """Logits [B, count, V] under forced tokens."""
    steps = []
    with torch.no_grad(), reading(case.model):
        mask, place = case.inputs["attention_mask"], case.inputs["attention_mask"].cumsum(-1)[:, -1:]
        case.model(**case.inputs, past_key_values=cache)
        for token in ids_of(count, 3):
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
            ids = torch.full_like(place, token)
            steps.append(case.model(ids, attention_mask=mask, position_ids=place, past_key_values=cache).logits[:, -1])
            place = place + 1
    return torch.stack(steps, dim=1)


@pytest.mark.parametrize("setting", FEWER, ids=["paper", "certified 0.02", "certified 0.1, window"])
def test_fewer_bits_hardly_change_the_logits_and_leave_traces(padded, setting):
    if "pixel_values" in padded.inputs:
        padded = text_case(padded.model, [ids_of(150 - 31 * row, row) for row in range(3)])
    cache = KVCache(padded.model.config, setting)
    exact, found = forced(padded, DynamicCache()), forced(padded, cache)
    error = float((found - exact).norm() / exact.norm())
    heads, queries = padded.model.config.get_text_config().num_key_value_heads, 4
    length = padded.inputs["input_ids"].shape[1]
    assert len(cache.traces) == 20
    bits = []
    for step, layers in enumerate(cache.traces):
        assert len(layers) == 3
        for trace in layers:
            assert trace.key_bits.shape == trace.value_bits.shape == (3, heads, length + step + 1)
            assert trace.channel_bits.shape == (3, heads, 16)
            assert trace.norm.shape == trace.bound.shape == (3, queries)
            assert trace.bytes_whole == 2 * 2 * 3 * heads * (length + step + 1) * 16
            bits.append(trace.mean_bits)
            if isinstance(setting.mode, Certified):
                met = trace.bound <= setting.mode.error * trace.norm * (1 + setting.mode.error)
                read = torch.cat([trace.key_bits, trace.value_bits], dim=-1).amin(-1) >= 16
                assert bool((met | read.repeat_interleave(queries // heads, dim=1)).all())
    print(f"{setting.mode}: logits differ by {error:.2g}, {sum(bits) / len(bits):.2f} bits")
    assert 0 < error < (0.2 if setting.mode == Certified(0.1) else 0.05)
    assert sum(bits) < 16 * len(bits)


def spoil(layer: StoreLayer, trace: Trace) -> int:
    """Overwrites every plane's bits that the trace says were not read; how many numbers that were."""
    planes, n, length = layer.store.planes, layer.store.planed, layer.store.length
    key_bits, value_bits = trace.key_bits[:, :, :n, None], trace.value_bits[:, :, :n, None]
    plan = [(planes.keys, key_bits, "low", 16), (planes.values, value_bits, "low", 16), (planes.values, value_bits, "high", 8)]
    if layer.store.format == "half":
        whole = 16 * (length - n)
        channel_bits = ((trace.channel_bits * length - whole) / n).round()[:, :, None, :, None]
        plan = [(planes.keys, channel_bits, "middle", 12), (planes.keys, channel_bits, "low", 16)]
        plan += [(planes.values, value_bits, "middle", 12), (planes.values, value_bits, "low", 16)]
    count = 0
    for growing, bits, name, least in plan:
        unread = (bits < least).expand(growing[name].shape)
        growing[name][unread] = 77
        count += int(unread.sum())
    return count


@pytest.mark.parametrize("setting", FEWER[:2], ids=["paper", "certified"])
def test_what_a_step_does_not_count_it_does_not_read(setting):
    case = MAKERS["qwen2.5-vl"](1)
    model, ids = case.model, case.inputs["input_ids"]
    cache, token = KVCache(model.config, setting), {"input_ids": ids[:, :1], "position_ids": torch.full((3, 1, 1), 200)}
    with torch.no_grad(), reading(model):
        model(**case.inputs, past_key_values=cache)
        logits = model(**token, past_key_values=cache).logits
        spoilt = [spoil(layer, trace) for layer, trace in zip(cache.layers, cache.traces[-1], strict=True)]
        cache.crop(-1)
        again = model(**token, past_key_values=cache).logits
    assert min(spoilt) > 50, f"nearly everything was read, so this shows nothing: {spoilt}"
    assert torch.equal(logits, again)
    assert [t.bytes_read for t in cache.traces[-1]] == [t.bytes_read for t in cache.traces[-2]]


@pytest.mark.parametrize("halves", [False, True])
def test_the_exact_trace_counts_everything(halves):
    case = MAKERS["qwen3-vl"](3)
    cache = KVCache(case.model.config, Setting(halves=halves, window=0, traced=3))
    with torch.no_grad(), reading(case.model):
        case.model(**case.inputs, past_key_values=cache)
        for _ in range(5):
            case.model(case.inputs["input_ids"][:, -1:], past_key_values=cache)
    assert len(cache.traces) == 3, "the list is bounded"
    for layer, trace in zip(cache.layers, cache.traces[-1], strict=True):
        constants = layer.store.planes.k_peak.nbytes * 3 if halves else 0  # two peaks and a mean
        assert trace.bytes_read == layer.store.bytes_used - constants
        assert trace.mean_bits == (16 if halves else 32)
        assert float(trace.bound.max()) == 0.0
        assert bool((trace.norm > 0).all())
