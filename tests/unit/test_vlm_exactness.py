"""Pruning is exact: a pruned prompt gives the logits of the full-length model with the pruned tokens masked out.

The reference is the unmodified model. It sees the pictures by the public route (pixels, grid), keeps every image token
in its sequence and hides the pruned columns by an attention mask; it shares no code with ``vlm/prefill.py``.
"""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import DynamicCache

from pruning.registry import get_method
from pruning.tokens import keep_count
from tests.unit.tiny import QUESTION, assert_close, largest, noise, random_keep, tiny_vlm
from vlm import decode, prefill
from vlm.device import Placement
from vlm.model import Encoded, Vlm
from vlm.open import embedded_processor
from vlm.tokenizer import IMAGE_PAD

LIMIT = 1e-4
STEPS = 10
SEEDS = (0, 1)


def pixels(vlm: Vlm, images: list[Encoded]) -> dict[str, torch.Tensor]:
    """What the processor makes of the pictures: pixel_values and image_grid_thw."""
    inputs = vlm.processor(images=[image.picture for image in images], return_tensors="pt")
    return {"pixel_values": inputs["pixel_values"], "image_grid_thw": inputs["image_grid_thw"]}


def full_ids(vlm: Vlm, question: str, images: list[Encoded]) -> torch.Tensor:
    return torch.tensor([vlm.prompter.prompt(question, [len(image.features) for image in images])])


@torch.no_grad()
def masked_logits(vlm: Vlm, question: str, images: list[Encoded], keeps: list, forced: list[int]) -> torch.Tensor:
    """[1 + len(forced), V] of the full-length prompt whose pruned columns no query sees, at its original positions."""
    model, ids = vlm.model, full_ids(vlm, question, images)
    visual = ids == model.config.image_token_id
    inputs = pixels(vlm, images)
    positions, _ = model.model.get_rope_index(ids, mm_token_type_ids=visual.int(), image_grid_thw=inputs["image_grid_thw"])
    seen = torch.ones(ids.shape[1], dtype=torch.bool)
    start = 0
    for image, keep in zip(images, keeps, strict=True):
        places = visual[0].nonzero()[start : start + len(image.features), 0]
        start += len(image.features)
        seen[places] = torch.from_numpy(np.isin(np.arange(len(places)), np.arange(len(places)) if keep is None else keep))
    causal = torch.ones(len(seen), len(seen)).tril().bool() & seen
    cache, steps = DynamicCache(), []
    out = model(ids, **inputs, attention_mask=causal[None, None], position_ids=positions, past_key_values=cache)
    steps.append(out.logits[0, -1])
    for index, token in enumerate(forced):
        seen = torch.cat([seen, torch.ones(1, dtype=torch.bool)])
        out = model(
            torch.tensor([[token]]),
            attention_mask=seen[None, None, None],
            position_ids=positions[..., -1:] + 1 + index,
            past_key_values=cache,
        )
        steps.append(out.logits[0, -1])
    return torch.stack(steps)


@torch.no_grad()
def pruned_logits(model, prompt: prefill.PrunedPrompt, forced: list[list[int]]) -> torch.Tensor:
    """[B, 1 + steps, V] of a pruned prompt's rows under forced tokens (one list per row)."""
    cache, mask, place = DynamicCache(), prompt.attention_mask, prompt.position_ids[..., -1:]
    steps = [model(**prompt.kwargs(), past_key_values=cache).logits[:, -1]]
    for token in zip(*forced, strict=True):
        mask, place = torch.cat([mask, mask.new_ones(len(mask), 1)], 1), place + 1
        out = model(torch.tensor(token)[:, None], attention_mask=mask, position_ids=place, past_key_values=cache)
        steps.append(out.logits[:, -1])
    return torch.stack(steps, 1)


def forced_tokens(seed: int) -> list[int]:
    return torch.randint(17, 273, (STEPS,), generator=torch.Generator().manual_seed(seed)).tolist()


def row(vlm: Vlm, question: str, images: list[Encoded], keeps: list) -> tuple[list[int], list[prefill.VisualInput]]:
    visual = [prefill.VisualInput(i.features, i.grid_thw, k) for i, k in zip(images, keeps, strict=True)]
    return full_ids(vlm, question, images)[0].tolist(), visual


def until_end(tokens: list[int], model) -> list[int]:
    """Tokens up to the first end token."""
    return list(itertools.takewhile(lambda t: t not in model.generation_config.eos_token_id, tokens))


@pytest.fixture(scope="module")
def tiny(model) -> Vlm:
    return tiny_vlm(model)


@pytest.fixture(scope="module")
def pair(tiny) -> list[Encoded]:
    """Two images of different sizes: 8 x 8 and 8 x 12 tokens."""
    return [tiny.encode(noise(1)), tiny.encode(noise(2, 336, 224))]


def test_the_tiny_logits_can_tell_a_difference(tiny, pair):
    everything = masked_logits(tiny, QUESTION, pair[:1], [None], [])
    pruned = masked_logits(tiny, QUESTION, pair[:1], [random_keep(0, pair[0], 16)], [])
    assert everything.std() > 1, "logits are all alike"
    assert (everything - pruned).abs().max() > 0.1, "pruning changes nothing, so the comparisons below would prove nothing"


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("count", [1, 2], ids=["one image", "two images"])
@pytest.mark.parametrize("how", ["idpruner", "random keep", "one token each"])
def test_pruned_equals_masked_in_prefill_and_ten_decode_steps(tiny, pair, how, count, seed):
    images = pair[:count]
    if how == "idpruner":
        prune = (0.75, 0.5)[seed]
        rankings = [tiny.rank(image, QUESTION, get_method("idpruner")) for image in images]
        keeps = [r.keep(keep_count(len(r.order), prune)) for r in rankings]
    elif how == "random keep":
        keeps = [random_keep(10 * seed + i, image, (13, 40)[i]) for i, image in enumerate(images)]
    else:
        keeps = [random_keep(10 * seed + i, image, 1) for i, image in enumerate(images)]
    forced = forced_tokens(seed)
    prompt = tiny.prompt(images, QUESTION, keeps)
    pruned_away = sum(len(i.features) - len(k) for i, k in zip(images, keeps, strict=True))
    assert prompt.input_ids.shape[1] == full_ids(tiny, QUESTION, images).shape[1] - pruned_away
    ours = pruned_logits(tiny.model, prompt, [forced])[0]
    assert_close(ours, masked_logits(tiny, QUESTION, images, keeps, forced), LIMIT, f"{how}, {count} image(s), logits")


def test_closing_the_gaps_in_the_positions_would_be_noticed(tiny, pair):
    keeps = [random_keep(2, pair[0], 16)]
    prompt = tiny.prompt(pair[:1], QUESTION, keeps)
    closed = replace(prompt, position_ids=torch.arange(prompt.input_ids.shape[1]).expand(3, 1, -1))
    ours = pruned_logits(tiny.model, closed, [[]])[0]
    difference = largest(ours, masked_logits(tiny, QUESTION, pair[:1], keeps, []))
    assert difference > 0.1, f"largest difference only {difference:.3g}"


def test_a_padded_batch_equals_its_single_rows(tiny, pair):
    rows = [
        row(tiny, QUESTION, pair[:1], [random_keep(3, pair[0], 9)]),
        row(tiny, "Where is the cat, and how many dogs do you see?", pair, [random_keep(4, pair[0], 20), None]),
        row(tiny, "Color?", pair[1:], [random_keep(5, pair[1], 33)]),
    ]
    forced = [forced_tokens(seed) for seed in range(3)]
    batch = prefill.build(tiny.model, rows)
    assert not bool(batch.attention_mask.all()), "the batch has no padding"
    assert bool(batch.attention_mask[:, -1].all()), "the padding is not on the left"
    together = pruned_logits(tiny.model, batch, forced)
    for index, single in enumerate(rows):
        alone = pruned_logits(tiny.model, prefill.build(tiny.model, [single]), [forced[index]])[0]
        assert_close(together[index], alone, LIMIT, f"row {index} of the batch, logits")


def test_batched_steps_write_what_single_steps_write(tiny, pair):
    rows = [
        row(tiny, QUESTION, pair[:1], [random_keep(3, pair[0], 9)]),
        row(tiny, "Where is the cat?", pair, [random_keep(4, pair[0], 20), random_keep(5, pair[1], 30)]),
    ]
    together = torch.stack([s.token for s in decode.steps(tiny.model, prefill.build(tiny.model, rows), STEPS)], 1)
    for index, single in enumerate(rows):
        alone = [int(s.token) for s in decode.steps(tiny.model, prefill.build(tiny.model, [single]), STEPS)]
        assert together[index].tolist() == alone


@pytest.mark.parametrize("count", [1, 2], ids=["one image", "two images"])
def test_without_pruning_it_is_the_untouched_model(tiny, pair, count):
    model, images = tiny.model, pair[:count]
    ids = full_ids(tiny, QUESTION, images)
    kinds = (ids == model.config.image_token_id).int()
    with torch.no_grad():
        public = model(ids, **pixels(tiny, images), mm_token_type_ids=kinds).logits
        generated = model.generate(
            ids,
            **pixels(tiny, images),
            mm_token_type_ids=kinds,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=STEPS,
            do_sample=False,
        )
    everything = [np.arange(len(image.features)) for image in images]
    for keeps in ([None] * count, everything):
        prompt = tiny.prompt(images, QUESTION, keeps)
        assert torch.equal(prompt.input_ids, ids)
        with torch.no_grad():
            assert_close(model(**prompt.kwargs()).logits, public, LIMIT, "whole-prompt logits at 0% pruning")
        tokens = [int(step.token) for step in decode.steps(model, prompt, STEPS)]
        assert until_end(tokens, model) == until_end(generated[0, ids.shape[1] :].tolist(), model)


def test_generate_takes_the_pruned_prompt_and_writes_the_same_tokens(tiny, pair):
    prompt = tiny.prompt(pair, QUESTION, [random_keep(6, pair[0], 16), random_keep(7, pair[1], 24)])
    stepped = [int(step.token) for step in decode.steps(tiny.model, prompt, STEPS)]
    with torch.no_grad():
        out = tiny.model.generate(**prompt.kwargs(), max_new_tokens=STEPS, do_sample=False)
    assert torch.equal(out[:, : prompt.input_ids.shape[1]], prompt.input_ids)
    generated = out[0, prompt.input_ids.shape[1] :].tolist()
    assert until_end(generated, tiny.model) == until_end(stepped, tiny.model)
    assert len(until_end(stepped, tiny.model)) > 3, "the answer ended too early to compare anything"


def test_beam_search_runs_on_a_pruned_prompt_and_scores_its_beam_rightly(tiny, pair):
    keeps = [random_keep(8, pair[0], 16)]
    prompt = tiny.prompt(pair[:1], QUESTION, keeps)
    with torch.no_grad():
        out = tiny.model.generate(
            **prompt.kwargs(),
            max_new_tokens=STEPS,
            num_beams=3,
            do_sample=False,
            length_penalty=0.0,
            return_dict_in_generate=True,
            output_scores=True,
        )
    tokens = out.sequences[0, prompt.input_ids.shape[1] :].tolist()
    assert len(tokens) > 3, "the best beam is too short to compare anything"
    reference = masked_logits(tiny, QUESTION, pair[:1], keeps, tokens[:-1]).log_softmax(-1)
    score = reference[range(len(tokens)), tokens].sum()
    assert_close(out.sequences_scores[0], score, 1e-3, "score of the best beam")


def test_steps_report_the_reference_s_choice_and_its_log_probability(tiny, pair):
    keeps = [random_keep(9, pair[0], 16)]
    steps = list(decode.steps(tiny.model, tiny.prompt(pair[:1], QUESTION, keeps), STEPS))
    tokens = [int(step.token) for step in steps]
    reference = masked_logits(tiny, QUESTION, pair[:1], keeps, tokens[:-1])
    assert tokens == reference.argmax(-1).tolist()
    logprobs = torch.tensor([float(step.logprob) for step in steps])
    assert_close(logprobs, reference.log_softmax(-1).max(-1).values, LIMIT, "log-probabilities")


def test_a_batch_may_hold_a_row_without_images(tiny, pair):
    rows = [row(tiny, QUESTION, pair[:1], [random_keep(3, pair[0], 9)]), row(tiny, "Hello there.", [], [])]
    together = pruned_logits(tiny.model, prefill.build(tiny.model, rows), [[20], [30]])
    ids = full_ids(tiny, "Hello there.", [])
    with torch.no_grad():
        alone = tiny.model(torch.cat([ids, torch.tensor([[30]])], 1)).logits[0, -2:]
    assert_close(together[1], alone, LIMIT, "text-only row, logits")


@pytest.mark.parametrize(
    "keep", [[], [3, 3], [4, 2], [-1, 3], [3, 9999]], ids=["nothing", "a repeat", "not in order", "negative", "beyond"]
)
def test_a_keep_that_is_no_ordered_set_is_refused(pair, keep):
    with pytest.raises(ValueError, match="in raster order, at least one, no repeats"):
        prefill.VisualInput(pair[0].features, pair[0].grid_thw, np.array(keep, np.int64))


def test_a_prompt_with_the_wrong_number_of_image_tokens_is_refused(tiny, pair):
    ids, visual = row(tiny, QUESTION, pair[:1], [None])
    ids.remove(IMAGE_PAD)
    with pytest.raises(ValueError, match="the prompt has 63 image tokens, its images have 64"):
        prefill.build(tiny.model, [(ids, visual)])


@pytest.mark.slower
def test_the_real_architecture_is_exact_at_75_percent(text_model):
    model, prompter = text_model
    real = Vlm("real", model, prompter, embedded_processor(), Placement("cpu", torch.float32, "sdpa", "a test"))
    image = real.encode(noise(0))
    ranking = real.rank(image, QUESTION, get_method("idpruner"))
    keeps = [ranking.keep(keep_count(64, 0.75))]
    assert len(keeps[0]) == 16
    forced = prompter.encode(" The picture shows a red circle at the top left corner.")[:STEPS]
    ours = pruned_logits(model, real.prompt([image], QUESTION, keeps), [forced])[0]
    assert_close(ours, masked_logits(real, QUESTION, [image], keeps, forced), LIMIT, "embedded architecture, logits")
