"""The cache under the app's own answers."""

import itertools

import pytest
import torch
from PIL import Image

from kvquant.cache import KVCache, Setting
from kvquant.modes import Certified, Exact, Paper
from pruning.registry import get_method
from tests.unit.kv_cases import STRATEGIES, assert_same, text_case
from tests.unit.tiny import QUESTION, noise, random_keep
from training import world
from vlm import decode, prefill
from vlm.device import Placement
from vlm.embedded import open_model
from vlm.model import Vlm, last
from vlm.open import embedded_processor


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
