"""The cache in a model: exact mode changes nothing, whatever is done with it."""

import copy

import pytest
import torch
from transformers import (
    DynamicCache,
)

from kvquant.attention import reading
from kvquant.cache import KVCache, Setting
from kvquant.modes import Certified, Paper
from kvquant.stored import StoredTensor
from tests.unit.kv_cases import MAKERS, STRATEGIES, Case, assert_same, generate, ids_of
from tests.unit.tiny import tiny_model


@pytest.fixture(params=MAKERS)
def case(request) -> Case:
    return MAKERS[request.param](1)


@pytest.fixture(params=MAKERS)
def padded(request) -> Case:
    return MAKERS[request.param](3)


@pytest.mark.parametrize("traced", [64, 0])
@pytest.mark.parametrize("how", STRATEGIES)
def test_exact_mode_writes_what_the_default_cache_writes(case, how, traced):
    cache = assert_same(case, Setting(traced=traced), **STRATEGIES[how])
    assert cache.get_seq_length() > case.inputs["input_ids"].shape[1]


@pytest.mark.parametrize("traced", [64, 0])
@pytest.mark.parametrize("how", ["greedy", "sampling", "beams", "two samples of each"])
def test_exact_mode_in_a_left_padded_batch(padded, how, traced):
    assert_same(padded, Setting(traced=traced), **STRATEGIES[how])


@pytest.mark.parametrize("how", ["greedy", "beams"])
@pytest.mark.parametrize("window", [0, 64])
def test_half_planes_are_exact_for_a_float16_model(padded, how, window):
    padded.model.half()
    if "pixel_values" in padded.inputs:
        padded.inputs["pixel_values"] = padded.inputs["pixel_values"].half()
    cache = assert_same(padded, Setting(halves=True, window=window), **STRATEGIES[how])
    assert cache.layers[0].store.planed >= 128 - window


def test_plain_sdpa_and_eager_read_all_bits_of_the_cache(padded):
    for attention in ("sdpa", "eager"):
        padded.model.set_attn_implementation(attention)
        caches = DynamicCache(), KVCache(padded.model.config, Setting())
        with torch.no_grad():
            one, other = (
                padded.model.generate(**padded.inputs, past_key_values=cache, max_new_tokens=20, do_sample=False)
                for cache in caches
            )
        assert torch.equal(one, other)
        assert caches[1].traces == []


def turns(model, cache, first: torch.Tensor, second: torch.Tensor) -> list[torch.Tensor]:
    """A turn, a second one, which is then taken back by a crop; and the same once more from there."""
    out, ids, how = [], first, {"max_new_tokens": 12, "min_new_tokens": 12, "do_sample": False}
    with torch.no_grad(), reading(model):
        for turn in (second, second.flip(-1)):
            ids = model.generate(ids, past_key_values=cache, **how)
            kept = cache.get_seq_length()
            out += [ids, model.generate(torch.cat([ids, turn], dim=1), past_key_values=cache, **how)]
            cache.crop(kept - cache.get_seq_length())
            ids = torch.cat([ids, turn[:, :1]], dim=1)
    return out


@pytest.mark.parametrize("name", MAKERS)
def test_turns_crop_and_reset(name):
    model, first, second = MAKERS[name](1).model, torch.tensor([ids_of(90, 1)]), torch.tensor([ids_of(70, 2)])
    expected = turns(model, DynamicCache(), first, second)
    cache = KVCache(model.config)
    for _ in range(2):
        found = turns(model, cache, first, second)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
        cache.reset()
        assert cache.get_seq_length() == 0
        assert cache.traces == []


def test_a_prompt_s_cache_may_be_copied_and_shared():
    case = MAKERS["llama"](1)
    prompt = KVCache(case.model.config)
    with torch.no_grad():
        case.model(**case.inputs, past_key_values=prompt)
    for seed in range(2):
        more = torch.cat([case.inputs["input_ids"], torch.tensor([ids_of(5, seed)])], dim=1)
        shared = Case(case.model, {"input_ids": more, "attention_mask": torch.ones_like(more)}, 8)
        expected = generate(shared, None)[0]
        assert torch.equal(generate(shared, copy.deepcopy(prompt))[0], expected)
    assert prompt.get_seq_length() == case.inputs["input_ids"].shape[1]


@pytest.mark.parametrize("mode", [Paper(), Certified()])
@pytest.mark.parametrize("name", MAKERS)
def test_up_to_its_start_the_cache_is_exact_and_trims_beyond(name, mode):
    case = MAKERS[name](3)
    prompt, new = case.inputs["input_ids"].shape[1], 9
    setting = Setting(mode, window=0, start=prompt + new - 1)
    cache = assert_same(Case(case.model, case.inputs, new), setting)
    assert "every bit is read" in cache.reader
    assert all(trace.mean_bits == 32 for step in cache.traces for trace in step)
    at_once = KVCache(case.model.config, Setting(mode, window=0))
    late = torch.randn(2, *cache.layers[0].store.dense()[0][:, :, :1].shape, generator=torch.Generator().manual_seed(0))
    for index, layer in enumerate(cache.layers):
        at_once.update(*(torch.cat(pair, 2) for pair in zip(layer.store.dense(), late, strict=True)), index)
        cache.update(*late, index)
        for one, other in zip(layer.store.dense(), at_once.layers[index].store.dense(), strict=True):
            assert torch.equal(one, other)
    assert "every bit is read" not in cache.reader
    cache.crop(-prompt)
    assert cache.layers[0].store.format == setting.format
    cache.reset()
    again = Case(case.model, case.inputs, new)
    assert torch.equal(generate(again, cache)[0], generate(again, None)[0])


@pytest.mark.parametrize(
    "setting",
    [
        Setting(),
        Setting(Paper(), window=0),
        Setting(Certified(), window=0),
        Setting(Certified(), window=0, start=202),
        Setting(Certified(), window=0, start=1000),
    ],
    ids=["whole", "half", "fixed", "fixed beyond 202", "fixed beyond 1000"],
)
def test_the_layer_keeps_transformers_contract(setting):
    cache, reference = KVCache(tiny_model(0).config, setting), DynamicCache()
    assert (len(cache), cache.is_compileable, cache.is_croppable, cache.get_max_length()) == (3, False, True, -1)
    assert cache.is_sliding == [False] * 3
    g = torch.Generator().manual_seed(0)
    k, v = torch.randn(2, 2, 2, 200, 16, generator=g).half().float()
    close = {"rtol": 0, "atol": 0.0 if setting.format != "fixed" else 1e-3}
    for layer in range(3):
        raw = cache.update(k, v, layer)
        assert raw[0] is k and raw[1] is v, "a prompt must not be copied"
        reference.update(k, v, layer)
    assert cache.get_mask_sizes(3, 0) == reference.get_mask_sizes(3, 0) == (203, 0)
    changes = [
        lambda c: c.batch_repeat_interleave(3),
        lambda c: c.reorder_cache(torch.tensor([5, 0, 0, 1, 2, 4])),
        lambda c: c.batch_select_indices(torch.tensor([3, 1])),
        lambda c: c.crop(-7),
        lambda c: c.crop(0),
        lambda c: c.crop(-100),
    ]
    for change in changes:
        change(cache)
        change(reference)
        new = torch.randn(2, *reference.layers[0].keys[:, :, :1].shape, generator=g).half().float()
        for layer in range(3):
            found, expected = cache.update(*new, layer), reference.update(*new, layer)
            for one, other in zip(found, expected, strict=True):
                assert isinstance(one, StoredTensor)
                assert (one.shape, one.dtype, one.device) == (other.shape, other.dtype, other.device)
                torch.testing.assert_close(one + 0, other, **close)
        assert cache.get_seq_length() == reference.get_seq_length()
    cache.crop(-9999)
    assert cache.get_seq_length() == 0
    assert cache.update(k, v, 0)[0] is k


def test_a_turn_under_inference_mode_can_be_followed_by_one_without():
    case = MAKERS["llama"](1)
    cache, ids = KVCache(case.model.config, Setting(Certified(), window=0)), case.inputs["input_ids"]
    with torch.inference_mode(), reading(case.model):
        case.model(ids, past_key_values=cache)
    with torch.no_grad(), reading(case.model):
        case.model(ids[:, :1], past_key_values=cache)
    with torch.inference_mode(), reading(case.model):
        case.model(ids[:, :1], past_key_values=cache)
        cache.crop(-20)
    cache.reorder_cache(torch.tensor([0]))
    with torch.no_grad():
        case.model(ids, past_key_values=cache)
    assert cache.get_seq_length() == 2 * ids.shape[1] + 2 - 20
