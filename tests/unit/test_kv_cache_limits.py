"""The cache in a model: what cannot be done is refused, and what was touched is undone."""

import pytest
import torch
from transformers import (
    DynamicCache,
    Gemma2Config,
    MistralConfig,
    Qwen3NextConfig,
    StaticCache,
    T5Config,
)

from kvquant.attention import NAME, attend, reading
from kvquant.cache import KVCache, Setting, StoreLayer
from kvquant.modes import Paper
from tests.unit.kv_cases import MAKERS, generate, ids_of
from tests.unit.tiny import tiny_llama, tiny_model


def test_reading_is_undone_even_after_an_error():
    model = tiny_model(0)
    with pytest.raises(KeyError), reading(model):
        assert model.config.text_config._attn_implementation == NAME
        assert model.config.vision_config._attn_implementation == "sdpa"
        with reading(model):
            pass
        assert model.config.text_config._attn_implementation == NAME
        raise KeyError
    assert model.config.text_config._attn_implementation == "sdpa"


def unlike(config_class, **changes):
    small = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": 50}
    return config_class(**small | changes)


def test_models_that_it_cannot_serve_are_refused():
    for config, message in (
        (unlike(MistralConfig, sliding_window=64), "this one also has sliding_attention"),
        (unlike(Gemma2Config), "this one also has sliding_attention"),
        (unlike(Qwen3NextConfig), "this one also has linear_attention"),
        (T5Config(), "encoder-decoder model needs transformers' own cache"),
    ):
        with pytest.raises(ValueError, match=message):
            KVCache(config)


def test_requests_that_it_cannot_serve_are_refused():
    for wrong, message in (
        (lambda: KVCache(tiny_model(0).config, offloading=True), "cannot be offloaded"),
        (lambda: Setting("paper"), "The mode must be"),
        (lambda: Setting(Paper(), halves=True), "Only the exact mode"),
        (lambda: Setting(window=-1), "cannot be negative"),
        (lambda: Setting(traced=-1), "cannot be negative"),
        (lambda: Setting(Paper(), start=-1), "cannot be negative"),
    ):
        with pytest.raises(ValueError, match=message):
            wrong()
    model = tiny_llama(0)
    ids = torch.tensor([ids_of(80, 0)])
    cache = KVCache(model.config, Setting(Paper(), window=0))
    with pytest.raises(RuntimeError, match="no gradients"):
        model(ids, past_key_values=cache)
    layer: StoreLayer = cache.layers[0]
    for call in (layer.offload, layer.prefetch):
        with pytest.raises(NotImplementedError, match="cannot be offloaded"):
            call()
    with pytest.raises(ValueError, match="minus the number"):
        cache.crop(3)
    with torch.no_grad(), reading(model):
        model(ids, past_key_values=cache)
        with pytest.raises(ValueError, match="Only a bool mask"):
            model(ids[:, :1], attention_mask=torch.zeros(1, 1, 1, 81), past_key_values=cache)
    for extra in ({"softcap": 30.0}, {"dropout": 0.1}, {"sliding_window": 8}):
        with torch.no_grad(), reading(model), pytest.raises(ValueError, match=f"The {next(iter(extra))} of this model"):
            attention = model.model.layers[0].self_attn
            k, v = cache.layers[0].update(torch.ones(1, 4, 1, 16), torch.ones(1, 4, 1, 16))
            attend(attention, torch.ones(1, 4, 1, 16), k, v, None, **extra)
    with torch.no_grad():
        k, v = cache.layers[0].update(torch.ones(1, 4, 1, 16), torch.ones(1, 4, 1, 16))
        cache.layers[0].crop(-1)
        with pytest.raises(RuntimeError, match="cannot be read any more"):
            k + 0


def test_keys_of_a_layer_that_changed_are_not_read_even_at_the_same_length():
    layer = StoreLayer(Setting(Paper(), window=0))
    layer.update(torch.ones(1, 4, 80, 16), torch.ones(1, 4, 80, 16))
    for change in (lambda: layer.crop(-1), lambda: layer.reorder_cache(torch.tensor([0]))):
        k, _ = layer.update(torch.ones(1, 4, 1, 16), torch.ones(1, 4, 1, 16))
        assert float((k + 0)[..., -1, 0].mean()) == 1, "read once, it must not be remembered"
        change()
        if layer.get_seq_length() < k.shape[2]:
            layer.update(7 * torch.ones(1, 4, 1, 16), torch.ones(1, 4, 1, 16))
        with pytest.raises(RuntimeError, match="cannot be read any more"):
            _ = k + 0


def test_a_compiled_model_is_refused_or_runs_uncompiled():
    case = MAKERS["llama"](1)
    cache, step = KVCache(case.model.config), torch.compile(case.model.forward, backend="eager", fullgraph=True)
    with torch.no_grad(), pytest.raises(Exception, match="cannot be compiled"):
        step(case.inputs["input_ids"], past_key_values=cache)


def test_other_caches_work_inside_reading():
    case = MAKERS["qwen2.5-vl"](3)
    expected = generate(case, None)[0]
    static = StaticCache(config=case.model.config.get_text_config(), max_cache_len=400)
    for cache in (DynamicCache(), static):
        assert torch.equal(generate(case, cache)[0], expected)
