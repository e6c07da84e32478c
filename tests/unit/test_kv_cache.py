"""The cache in a model: exact mode changes nothing, the other modes count what they read, and what cannot be done is refused."""

import copy
import itertools
from dataclasses import dataclass

import pytest
import torch
from PIL import Image
from transformers import (
    DynamicCache,
    Gemma2Config,
    MistralConfig,
    PreTrainedModel,
    Qwen3NextConfig,
    StaticCache,
    T5Config,
)

from kvquant.attention import NAME, attend, reading
from kvquant.cache import KVCache, Setting, StoreLayer
from kvquant.modes import Certified, Exact, Paper, Trace
from kvquant.stored import StoredTensor
from pruning.registry import get_method
from tests.unit.tiny import QUESTION, noise, random_keep, tiny_llama, tiny_model, tiny_qwen3_vl
from training import world
from vlm import decode, prefill
from vlm.device import Placement
from vlm.embedded import open_model
from vlm.model import Vlm, last
from vlm.open import embedded_processor
from vlm.tokenizer import IMAGE_PAD, VISION_END, VISION_START

NEW = 70  # enough for a block of 64 to move into planes on the way


@dataclass
class Case:
    """A model and what to generate from."""

    model: PreTrainedModel
    inputs: dict
    new: int = NEW


def ids_of(count: int, seed: int) -> list[int]:
    return torch.randint(17, 273, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def text_case(model: PreTrainedModel, rows: list[list[int]], new: int = NEW) -> Case:
    """Left-padded rows."""
    longest = max(len(row) for row in rows)
    pads = [longest - len(row) for row in rows]
    ids = torch.tensor([[0] * pad + row for pad, row in zip(pads, rows, strict=True)])
    mask = torch.tensor([[0] * pad + [1] * len(row) for pad, row in zip(pads, rows, strict=True)])
    return Case(model, {"input_ids": ids, "attention_mask": mask}, new)


def image_case(model: PreTrainedModel, batch: int, patch: int) -> Case:
    """One image of 16 tokens in every row, before texts of unequal length."""
    image = [VISION_START, *[IMAGE_PAD] * 16, VISION_END]
    case = text_case(model, [[*ids_of(3, 9), *image, *ids_of(100 + 23 * row, row)] for row in range(batch)])
    pixels = torch.randn(64 * batch, 6 * patch**2, generator=torch.Generator().manual_seed(1))
    visual = (case.inputs["input_ids"] == IMAGE_PAD).int()
    grid = torch.tensor([[1, 8, 8]] * batch)
    case.inputs |= {"pixel_values": pixels, "image_grid_thw": grid, "mm_token_type_ids": visual}
    return case


MAKERS = {
    "llama": lambda batch: text_case(tiny_llama(0), [ids_of(120 - 31 * row, row) for row in range(batch)]),
    "qwen2.5-vl": lambda batch: image_case(tiny_model(0), batch, 14),
    "qwen3-vl": lambda batch: image_case(tiny_qwen3_vl(0), batch, 16),
}


@pytest.fixture(params=MAKERS)
def case(request) -> Case:
    return MAKERS[request.param](1)


@pytest.fixture(params=MAKERS)
def padded(request) -> Case:
    return MAKERS[request.param](3)


def generate(case: Case, cache, **how) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens [B, L] and logits [steps, B, V]; a fixed number of new tokens."""
    torch.manual_seed(5)
    how = {"do_sample": False, "num_beams": 1, "max_new_tokens": case.new, "min_new_tokens": case.new} | how
    with torch.no_grad(), reading(case.model):
        out = case.model.generate(**case.inputs, past_key_values=cache, return_dict_in_generate=True, output_logits=True, **how)
    return out.sequences, torch.stack(out.logits)


def assert_same(case: Case, setting: Setting, **how) -> KVCache:
    """Same tokens and the very same logits as the default cache under plain sdpa."""
    torch.manual_seed(5)
    how = {"do_sample": False, "max_new_tokens": case.new, "min_new_tokens": case.new} | how
    with torch.no_grad():
        expected = case.model.generate(**case.inputs, return_dict_in_generate=True, output_logits=True, **how)
    cache = KVCache(case.model.config, setting)
    sequences, logits = generate(case, cache, **how)
    assert torch.equal(sequences, expected.sequences)
    assert torch.equal(logits, torch.stack(expected.logits))
    return cache


STRATEGIES = {
    "greedy": {},
    "sampling": {"do_sample": True, "top_k": 50},
    "beams": {"num_beams": 3},
    "sampled beams": {"num_beams": 2, "do_sample": True},
    "two samples of each": {"do_sample": True, "num_return_sequences": 2},
    "n-grams looked up in the prompt": {"prompt_lookup_num_tokens": 3},
}


@pytest.mark.parametrize("how", STRATEGIES)
def test_exact_mode_writes_what_the_default_cache_writes(case, how):
    cache = assert_same(case, Setting(), **STRATEGIES[how])
    assert cache.get_seq_length() > case.inputs["input_ids"].shape[1]


@pytest.mark.parametrize("how", ["greedy", "sampling", "beams", "two samples of each"])
def test_exact_mode_in_a_left_padded_batch(padded, how):
    assert_same(padded, Setting(), **STRATEGIES[how])


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


@pytest.mark.parametrize(
    "setting", [Setting(), Setting(Paper(), window=0), Setting(Certified(), window=0)], ids=["whole", "half", "fixed"]
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
        peaks = layer.store.planes.k_peak.nbytes * 2 if halves else 0
        assert trace.bytes_read == layer.store.bytes_used - peaks
        assert trace.mean_bits == (16 if halves else 32)
        assert float(trace.bound.max()) == 0.0
        assert bool((trace.norm > 0).all())


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


# --- the embedded model's code ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("setting", [Setting(), Setting(Paper(), window=0), Setting(Certified(0.02), window=0)])
def test_vlm_answers_through_the_cache(vlm, setting):
    image = vlm.encode(noise(1, 448, 448))
    ranking = vlm.rank(image, QUESTION, get_method("idpruner"))
    asked = ([image], QUESTION, [ranking], 0.3, 12)
    default, ours = last(vlm.answer(*asked)), last(vlm.answer(*asked, kv=setting))
    assert default.traces == []
    assert len(ours.traces) == len(ours.token_ids) - 1
    assert ours.traces[0][0].key_bits.shape == (1, 2, ours.prompt_tokens + 1)
    assert vlm.model.config.text_config._attn_implementation == "sdpa"
    if isinstance(setting.mode, Exact):
        assert ours.token_ids == default.token_ids
        assert ours.logprobs == default.logprobs
    else:
        assert sum(t.mean_bits for t in ours.traces[0]) < 3 * 16


def test_answers_with_different_caches_may_take_turns(vlm):
    image = vlm.encode(noise(1))
    settings = [None, Setting(), Setting(Certified(0.02), window=0), None]
    alone = [last(vlm.answer([image], QUESTION, max_new_tokens=8, kv=kv)).token_ids for kv in settings]
    running = [vlm.answer([image], QUESTION, max_new_tokens=8, kv=kv) for kv in settings]
    rounds = list(itertools.zip_longest(*running))
    assert len(rounds) > 2
    assert [[a for a in answers if a][-1].token_ids for answers in zip(*rounds, strict=True)] == alone


def test_a_padded_batch_of_pruned_prompts(vlm):
    images = [vlm.encode(noise(1)), vlm.encode(noise(2, 336, 224))]
    rows = []
    for seed, image in enumerate(images):
        keep = random_keep(seed, image, 20 + 30 * seed)
        ids = vlm.prompter.prompt(QUESTION * (1 + seed), [len(image.features)])
        rows.append((ids, [prefill.VisualInput(image.features, image.grid_thw, keep)]))
    prompt = prefill.build(vlm.model, rows)
    assert not bool(prompt.attention_mask.all())
    expected = list(decode.steps(vlm.model, prompt, 20))
    for setting in (Setting(), Setting(Certified(0.001), window=0)):
        found = list(decode.steps(vlm.model, prompt, 20, KVCache(vlm.model.config, setting)))
        for one, other in zip(found, expected, strict=True):
            assert torch.equal(one.token, other.token)
            torch.testing.assert_close(one.logprob, other.logprob, rtol=0, atol=0 if setting == Setting() else 0.02)


@pytest.fixture(scope="module")
def real() -> Vlm:
    model, prompter = open_model()
    return Vlm("real", model, prompter, embedded_processor(), Placement("cpu", torch.float32, "sdpa", "a test"))


TEXT = "The GNU General Public License is a free, copyleft license for software and other kinds of works. " * 6


@pytest.mark.slower
@pytest.mark.parametrize("how", ["greedy", "sampling", "beams"])
def test_the_embedded_model_writes_the_same(real, how):
    rows = [real.prompter.encode(TEXT), real.prompter.encode(TEXT[:300])]
    assert_same(text_case(real.model, rows, 8), Setting(), **STRATEGIES[how])


@pytest.mark.slower
def test_the_embedded_model_answers_the_same_and_with_fewer_bits(real):
    picture = Image.fromarray(world.draw(world.rng_for(3, 0), (448, 448), 4).image)
    image = real.encode(picture)
    asked = {"images": [image], "question": "List the objects in the picture.", "max_new_tokens": 16}
    default = last(real.answer(**asked))
    assert len(default.token_ids) > 5
    assert last(real.answer(**asked, kv=Setting())).token_ids == default.token_ids
    for mode in (Paper(), Certified(0.02)):
        answer = last(real.answer(**asked, kv=Setting(mode, window=16)))
        bits = sum(t.mean_bits for step in answer.traces for t in step) / (30 * len(answer.traces))
        print(f"{mode}: {bits:.2f} bits: {answer.text}")
        assert bits < 15
        assert answer.token_ids == default.token_ids
