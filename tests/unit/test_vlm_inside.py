"""Pruning inside the language model is exact: as if the pruned tokens could not be seen from a layer on.

The reference runs the model's own layers one by one over the whole prompt with masks; it shares no code with ``vlm/inside.py``.
"""

import numpy as np
import pytest
import torch
from transformers import DynamicCache

from kvquant.cache import Setting
from kvquant.modes import Exact
from pruning.registry import METHODS
from pruning.selectors import Dart, FastV
from tests.unit.tiny import QUESTION, assert_close, largest, noise, random_keep, tiny_model, tiny_vlm
from vlm import decode, inside, prefill
from vlm.model import last

LIMIT = 1e-4
STEPS = 6


@pytest.fixture(scope="module")
def tiny(model):
    return tiny_vlm(model)


@pytest.fixture(scope="module")
def pair(tiny):
    return [tiny.encode(noise(1)), tiny.encode(noise(2, 336, 224))]


def cut_prompt(vlm, images, keeps, after: int) -> prefill.PrunedPrompt:
    ids = vlm.prompter.prompt(QUESTION, [len(image.features) for image in images])
    visual = [prefill.VisualInput(i.features, i.grid_thw, k, None, after) for i, k in zip(images, keeps, strict=True)]
    return prefill.build(vlm.model, [(ids, visual)])


@torch.no_grad()
def masked_from(vlm, prompt, keeps: list[np.ndarray], after: int, forced: list[int]) -> torch.Tensor:
    """[1 + len(forced), V]: every layer sees the whole sequence, from layer ``after`` on without the pruned columns."""
    model, language = vlm.model, vlm.model.model.language_model
    ids = torch.cat([prompt.input_ids, torch.tensor([forced], dtype=torch.long)], 1)
    visual = ids[0] == model.config.image_token_id
    hidden = model.get_input_embeddings()(ids)
    hidden[0, visual] = torch.cat(prompt.features)
    behind = prompt.position_ids[..., -1:] + torch.arange(1, len(forced) + 1)
    rotary = language.rotary_emb(hidden, torch.cat([prompt.position_ids, behind], -1))
    seen, start = ~visual, 0
    for keep, features in zip(keeps, prompt.features, strict=True):
        seen[visual.nonzero()[start : start + len(features), 0][torch.from_numpy(keep)]] = True
        start += len(features)
    causal = torch.ones(len(seen), len(seen)).tril().bool()
    for index, layer in enumerate(language.layers):
        # A row that sees nothing at all would be nan: the pruned rows, which nobody reads, may see themselves.
        mask = causal if index < after else causal & (seen | torch.eye(len(seen)).bool())
        hidden = layer(hidden, attention_mask=mask[None, None], position_embeddings=rotary, position_ids=None)
    return model.lm_head(language.norm(hidden))[0, prompt.input_ids.shape[1] - 1 :]


@torch.no_grad()
def cut_logits(vlm, prompt, forced: list[int]) -> torch.Tensor:
    cache, place = DynamicCache(), prompt.position_ids[..., -1:]
    with inside.cutting(vlm.model, prompt.cut):
        steps = [vlm.model(**prompt.kwargs(), past_key_values=cache).logits[0, -1]]
    for token in forced:
        place = place + 1
        steps.append(vlm.model(torch.tensor([[token]]), position_ids=place, past_key_values=cache).logits[0, -1])
    lengths = [layer.get_seq_length() for layer in cache.layers]
    assert lengths[0] == prompt.cut.length + len(forced)
    assert lengths[-1] == len(prompt.cut.stays) + len(forced)
    return torch.stack(steps)


@pytest.mark.parametrize("count", [1, 2], ids=["one image", "two images"])
@pytest.mark.parametrize("after", [1, 2])
def test_cut_equals_masked_from_that_layer_on_in_prefill_and_decode(tiny, pair, after, count):
    images = pair[:count]
    keeps = [random_keep(after + i, image, (13, 40)[i]) for i, image in enumerate(images)]
    forced = torch.randint(17, 273, (STEPS,), generator=torch.Generator().manual_seed(after)).tolist()
    prompt = cut_prompt(tiny, images, keeps, after)
    expected = masked_from(tiny, prompt, keeps, after, forced)
    assert_close(cut_logits(tiny, prompt, forced), expected, LIMIT, f"cut after {after}, {count} image(s), logits")
    elsewhere = masked_from(tiny, prompt, keeps, 3 - after, forced)
    assert largest(expected, elsewhere) > 0.01, "the layer makes no difference, so the comparison proves nothing"


def test_fastv_is_its_transcription(tiny, pair):
    """K = 2: rank by the eager attention of layer 2's last row, mask what is not kept from layer 3 on."""
    image = pair[0]
    prompt = cut_prompt(tiny, [image], [None], 0)
    eager = tiny_model(0)
    eager.set_attn_implementation("eager")
    with torch.no_grad():
        maps = eager(**prompt.kwargs(), output_attentions=True).attentions
    paid = maps[1][0].mean(0)[-1][prompt.input_ids[0] == eager.config.image_token_id]
    ranking = tiny.rank(image, QUESTION, METHODS["fastv"])
    view = tiny.visual_tokens(image, QUESTION, frozenset({"layer"})).layer
    assert_close(view.attention, paid, 1e-6, "attention of the last token")
    assert ranking.order.tolist() == paid.argsort(descending=True).tolist()
    keep = ranking.keep(16)
    answer = last(tiny.answer([image], QUESTION, [ranking], 0.75, STEPS))
    expected = masked_from(tiny, prompt, [keep], 2, answer.token_ids[:-1])
    assert answer.token_ids == expected.argmax(-1).tolist()
    logprobs = expected.log_softmax(-1).max(-1).values
    assert_close(torch.tensor(answer.logprobs), logprobs, LIMIT, "log-probabilities of FastV's answer")
    assert (answer.kept_tokens, answer.visual_tokens, answer.prompt_tokens) == (16, 64, prompt.input_ids.shape[1])
    assert answer.timings.prefill > 0


def test_nothing_pruned_inside_is_the_untouched_model(tiny, pair):
    image = pair[0]
    ranking = tiny.rank(image, QUESTION, METHODS["fastv"])
    whole = last(tiny.answer([image], QUESTION, max_new_tokens=STEPS))
    same = last(tiny.answer([image], QUESTION, [ranking], 0.0, STEPS))
    assert same.token_ids == whole.token_ids
    assert_close(torch.tensor(same.logprobs), torch.tensor(whole.logprobs), 1e-6, "log-probabilities at 0% pruning")


def test_the_view_of_a_layer_is_what_the_layer_sees(tiny, pair):
    image, model = pair[0], tiny.model
    prompt, language = cut_prompt(tiny, [image], [None], 0), tiny.model.model.language_model
    with torch.no_grad():
        states = model(**prompt.kwargs(), output_hidden_states=True).hidden_states
        cache = DynamicCache()
        model(**prompt.kwargs(), past_key_values=cache)
        expected = language.norm(states[2])[0]
    visual = prompt.input_ids[0] == model.config.image_token_id
    view = tiny.visual_tokens(image, QUESTION, frozenset({"layer"})).layer
    assert_close(view.visual, expected[visual], 1e-5, "visual states")
    behind = int(visual.nonzero()[-1]) + 1
    assert_close(view.text, expected[behind:], 1e-5, "text states")
    keys = cache.layers[1].keys[0].transpose(0, 1).flatten(1)
    assert_close(view.visual_keys, keys[visual], 1e-5, "visual keys")
    assert_close(view.text_keys, keys[behind:], 1e-5, "text keys")
    assert view.forward_s > 0


def test_the_cost_of_the_first_layers_is_in_the_prefill_not_in_the_scoring(tiny, pair, monkeypatch):
    ranking = tiny.rank(pair[0], QUESTION, METHODS["fastv"])
    look = inside.look

    def slow(*arguments):
        view = look(*arguments)
        object.__setattr__(view, "forward_s", view.forward_s - 100.0)
        return view

    monkeypatch.setattr(inside, "look", slow)
    assert tiny.rank(pair[0], QUESTION, METHODS["fastv"]).scoring_s > 99 > ranking.scoring_s
    assert tiny.rank(pair[0], QUESTION, METHODS["id-selection"]).scoring_s < 99, "it prunes before: the look is its own cost"


def test_it_works_with_a_cache_that_reads_fewer_bits(tiny, pair):
    ranking = tiny.rank(pair[0], QUESTION, METHODS["fastv"])
    plain = last(tiny.answer([pair[0]], QUESTION, [ranking], 0.75, STEPS))
    kept = last(tiny.answer([pair[0]], QUESTION, [ranking], 0.75, STEPS, Setting(Exact())))
    assert kept.token_ids == plain.token_ids


def test_no_hook_stays_behind_even_after_an_error(tiny, pair):
    layers = tiny.model.model.language_model.layers
    prompt = cut_prompt(tiny, pair[:1], [random_keep(0, pair[0], 9)], 2)
    with pytest.raises(RuntimeError, match="half way"), inside.cutting(tiny.model, prompt.cut):
        assert len(layers[2]._forward_pre_hooks) == 1 and not layers[1]._forward_pre_hooks
        raise RuntimeError("half way")
    inside.look(tiny.model, cut_prompt(tiny, pair[:1], [None], 0), 2)
    steps = decode.steps(tiny.model, prompt, 3)
    next(steps)
    hooked = [hooks for layer in layers for hooks in (layer._forward_pre_hooks, layer.self_attn._forward_pre_hooks) if hooks]
    assert not hooked, "an answer left half way must not prune the next one"


def test_depths_and_batches_that_cannot_be_are_refused(tiny, pair):
    for after in (0, 3):
        with pytest.raises(ValueError, match=f"after layer 1 to 2 of this language model, not after layer {after}"):
            inside.check_depth(tiny.model, after)
    method = METHODS["fastv"]
    deep = type(method)(**{**vars(method), "selector": FastV(after=7)})
    with pytest.raises(ValueError, match="not after layer 7"):
        tiny.rank(pair[0], QUESTION, deep)
    ids = tiny.prompter.prompt(QUESTION, [64])
    visual = [prefill.VisualInput(pair[0].features, pair[0].grid_thw, random_keep(0, pair[0], 9), None, 2)]
    with pytest.raises(ValueError, match="built one by one"):
        prefill.build(tiny.model, [(ids, visual), (ids, visual)])
    rankings = [tiny.rank(pair[0], QUESTION, METHODS[key]) for key in ("fastv", "topk")]
    with pytest.raises(ValueError, match="pruned in the same place"):
        last(tiny.answer([pair[0], pair[0]], QUESTION, rankings, 0.5, 1))


def test_dart_prunes_inside_too(tiny, pair):
    ranking = tiny.rank(pair[0], QUESTION, METHODS["dart"], 16)
    assert ranking.after == Dart().after == 2
    answer = last(tiny.answer([pair[0]], QUESTION, [ranking], 0.75, STEPS))
    prompt = cut_prompt(tiny, pair[:1], [ranking.keep(16)], 2)
    expected = masked_from(tiny, prompt, [ranking.keep(16)], 2, answer.token_ids[:-1])
    assert answer.token_ids == expected.argmax(-1).tolist()
