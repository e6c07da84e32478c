"""An opened VLM: what it caches, times, streams and reports; and the real text weights in the unmodified class."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import LlamaConfig, LlamaForCausalLM

from pruning.registry import METHODS, get_method
from tests.unit.tiny import QUESTION, assert_close, noise, random_scorer, tiny_model
from vlm import decode, embedded
from vlm.embedded import merge_adapters
from vlm.errors import UserError
from vlm.model import CACHED_IMAGES, Answer, last
from vlm.open import MAX_SIDE, MIN_SIDE
from vlm.tokenizer import END_OF_TEXT, IM_END, IM_START


@pytest.fixture
def tower_runs(vlm):
    """Counts the runs of the vision tower."""
    runs: list[int] = []
    handle = vlm.model.model.visual.register_forward_hook(lambda *_: runs.append(1))
    yield runs
    handle.remove()


def test_the_same_pixels_run_the_tower_once(vlm, tower_runs):
    first = vlm.encode(noise(1))
    assert vlm.encode(noise(1).copy()) is first
    assert len(tower_runs) == 1
    assert vlm.encode(noise(2)) is not first
    assert len(tower_runs) == 2
    vlm.scorer = random_scorer()
    for method in METHODS.values():
        vlm.rank(first, QUESTION, method, 16)
    last(vlm.answer([first], QUESTION, max_new_tokens=2))
    assert len(tower_runs) == 2, "ranking or answering ran the tower again"


def test_the_same_bytes_in_another_shape_are_another_picture(vlm, tower_runs):
    wide = noise(1, 336, 224)
    tall = Image.frombytes("RGB", (224, 336), wide.tobytes())
    assert vlm.encode(wide).grid == (8, 12)
    assert vlm.encode(tall).grid == (12, 8)
    assert len(tower_runs) == 2


def test_the_cache_forgets_the_picture_that_was_used_longest_ago(vlm, tower_runs):
    for seed in range(CACHED_IMAGES):
        vlm.encode(noise(seed))
    vlm.encode(noise(0))
    vlm.encode(noise(CACHED_IMAGES))
    assert len(vlm._encoded) == CACHED_IMAGES
    assert len(tower_runs) == CACHED_IMAGES + 1
    vlm.encode(noise(0))
    assert len(tower_runs) == CACHED_IMAGES + 1, "the picture used last was forgotten"
    vlm.encode(noise(1))
    assert len(tower_runs) == CACHED_IMAGES + 2


def test_small_and_large_pictures_are_brought_to_the_model_s_size(vlm):
    for size in ((1, 1), (28, 28), (1200, 900), (448, 112)):
        encoded = vlm.encode(noise(0, *size))
        rows, columns = encoded.grid
        assert encoded.picture.size == (28 * columns, 28 * rows)
        assert 0.9 * MIN_SIDE**2 <= 28 * 28 * rows * columns <= MAX_SIDE**2
        assert encoded.grid_thw.tolist() == [1, 2 * rows, 2 * columns]
        assert encoded.features.shape == (rows * columns, 64)


def test_times_are_measured_for_every_part(vlm):
    image = vlm.encode(noise(1))
    ranking = vlm.rank(image, QUESTION, get_method("idpruner"))
    answer = last(vlm.answer([image], QUESTION, [ranking], 0.5, 8))
    t = answer.timings
    assert len(t.decode) == len(answer.token_ids) - 1
    parts = [t.vision, t.scoring, t.selection, t.prefill, *t.decode]
    assert all(seconds > 0 for seconds in parts), parts
    assert math.isclose(t.first_token, t.vision + t.scoring + t.selection + t.prefill)
    assert math.isclose(t.total, sum(parts))
    assert last(vlm.answer([image], QUESTION, max_new_tokens=1)).timings.scoring == 0


def test_an_answer_counts_its_tokens(vlm):
    images = [vlm.encode(noise(1)), vlm.encode(noise(2, 336, 224))]
    rankings = [vlm.rank(image, QUESTION, get_method("random")) for image in images]
    answer = last(vlm.answer(images, QUESTION, rankings, 0.75, 1))
    assert (answer.visual_tokens, answer.kept_tokens, answer.method) == (160, 40, "random")
    whole = last(vlm.answer(images, QUESTION, max_new_tokens=1))
    assert (whole.visual_tokens, whole.kept_tokens, whole.method) == (160, 160, "none")
    assert whole.prompt_tokens - answer.prompt_tokens == 120
    assert whole.prompt_tokens == len(vlm.prompter.prompt(QUESTION, [64, 96]))


@pytest.mark.parametrize("limit", [1, 2, 7])
def test_no_more_than_max_new_tokens_are_written(vlm, limit):
    image = vlm.encode(noise(1))
    answers = [replace(a, token_ids=list(a.token_ids)) for a in vlm.answer([image], QUESTION, max_new_tokens=limit)]
    assert [len(a.token_ids) for a in answers] == list(range(1, len(answers) + 1))
    assert len(answers) == limit or answers[-1].token_ids[-1] in vlm.model.generation_config.eos_token_id
    assert [a.done for a in answers] == [False] * (len(answers) - 1) + [True]


def scripted(vlm, monkeypatch, token_ids: list[int]) -> list[tuple[str, tuple[str, ...], bool]]:
    """(text, pieces, done) after every token of an answer whose tokens are given."""
    steps = [decode.Step(torch.tensor([token]), torch.tensor([-0.5]), 0.01) for token in token_ids]
    monkeypatch.setattr(decode, "steps", lambda *_, **__: iter(steps))
    answers = vlm.answer([vlm.encode(noise(1))], QUESTION, max_new_tokens=len(token_ids))
    return [(a.text, tuple(a.pieces), a.done) for a in answers]


def test_pieces_join_to_the_text_even_where_a_character_takes_four_tokens(vlm, monkeypatch):
    ids = vlm.prompter.encode("a 🐈 图")
    assert len(ids) == len("a 🐈 图".encode())
    written = scripted(vlm, monkeypatch, ids)
    assert written[-1][0] == "a 🐈 图"
    for text, pieces, _ in written:
        assert "".join(pieces) == text
        assert "\N{REPLACEMENT CHARACTER}" not in text, "half a character was shown"
    assert len(written[-1][1]) == len(ids)
    assert written[-1][1] == ("a", " ", "", "", "", "🐈", " ", "", "", "图")


def test_a_character_cut_off_by_the_end_is_marked_at_the_end_only(vlm, monkeypatch):
    written = scripted(vlm, monkeypatch, vlm.prompter.encode("a 图")[:-1])
    assert [text for text, _, _ in written] == ["a", "a ", "a ", "a \N{REPLACEMENT CHARACTER}"]
    assert "".join(written[-1][1]) == written[-1][0]


@pytest.mark.parametrize("end", [IM_END, END_OF_TEXT])
def test_an_end_token_ends_the_answer_and_prints_nothing(vlm, monkeypatch, end):
    written = scripted(vlm, monkeypatch, [*vlm.prompter.encode("Yes."), end, *vlm.prompter.encode("more")])
    assert len(written) == 5
    assert written[-1] == ("Yes.", ("Y", "e", "s", ".", ""), True)


def test_pieces_of_a_real_answer_join_to_its_text(vlm):
    answer = last(vlm.answer([vlm.encode(noise(1))], QUESTION, max_new_tokens=40))
    assert "".join(answer.pieces) == answer.text
    assert len(answer.pieces) == len(answer.token_ids) == len(answer.logprobs)


def test_an_answer_left_half_way_blocks_nobody(vlm):
    left = vlm.answer([vlm.encode(noise(1))], QUESTION, max_new_tokens=20)
    assert isinstance(next(left), Answer)
    assert not vlm.lock.locked()
    assert last(vlm.answer([vlm.encode(noise(2))], QUESTION, max_new_tokens=1)).done
    assert len(next(left).token_ids) == 2, "the one that was left can go on"


def test_logprobs_are_those_of_one_forward_over_the_whole_answer(vlm):
    image = vlm.encode(noise(1))
    ranking = vlm.rank(image, QUESTION, get_method("idpruner"))
    answer = last(vlm.answer([image], QUESTION, [ranking], 0.75, 8))
    prompt = vlm.prompt([image], QUESTION, [ranking.keep(16)])
    written = torch.tensor([answer.token_ids])
    ids = torch.cat([prompt.input_ids, written], 1)
    after = prompt.position_ids[..., -1:] + torch.arange(1, written.shape[1] + 1)
    arguments = prompt.kwargs() | {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "position_ids": torch.cat([prompt.position_ids, after], -1),
    }
    with torch.inference_mode():
        logits = vlm.model(**arguments).logits[0, -written.shape[1] - 1 : -1]
    assert logits.argmax(-1).tolist() == answer.token_ids, "decoding is not greedy"
    expected = logits.log_softmax(-1)[range(len(answer.token_ids)), answer.token_ids]
    assert_close(torch.tensor(answer.logprobs), expected, 1e-4, "log-probabilities")


@pytest.mark.parametrize("question", ["", "  \n", "x" * 2001])
def test_a_bad_question_is_refused_by_rank_and_answer(vlm, question):
    image = vlm.encode(noise(1))
    with pytest.raises(UserError):
        vlm.rank(image, question, get_method("none"))
    with pytest.raises(UserError):
        last(vlm.answer([image], question))
    assert not vlm.lock.locked()


@pytest.mark.parametrize("prune", [-0.1, 1.0, 2.0])
def test_a_pruned_fraction_outside_0_to_1_is_refused(vlm, prune):
    image = vlm.encode(noise(1))
    with pytest.raises(ValueError, match="at least 0 and below 1"):
        last(vlm.answer([image], QUESTION, [vlm.rank(image, QUESTION, get_method("none"))], prune))


def test_an_error_in_the_tower_leaves_the_model_usable(vlm, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("no memory")

    with monkeypatch.context() as patched:
        patched.setattr(vlm.model, "get_image_features", fail)
        with pytest.raises(RuntimeError, match="no memory"):
            vlm.encode(noise(1))
    assert not vlm.lock.locked()
    assert len(vlm.encode(noise(1)).features) == 64


def test_visual_tokens_carry_only_what_is_needed(vlm):
    image = vlm.encode(noise(1))
    bare = vlm.visual_tokens(image, QUESTION)
    assert bare.question is None and bare.attention is None
    full = vlm.visual_tokens(image, QUESTION, frozenset({"question", "attention"}))
    assert full.question.shape == (len(QUESTION), 64)
    assert full.attention.shape == (64,)
    assert full.features.dtype == torch.float32


@pytest.mark.slower
def test_the_text_model_knows_the_capital_of_france(text_model):
    model, prompter = text_model
    ids = [
        *(IM_START, *prompter.encode("system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face")),
        *(IM_END, *prompter.newline, IM_START, *prompter.user, *prompter.encode("What is the capital of France?")),
        *(IM_END, *prompter.newline, IM_START, *prompter.assistant),
    ]
    with torch.no_grad():
        out = model.generate(torch.tensor([ids]), max_new_tokens=8, do_sample=False)
    assert "Paris" in prompter.decode(out[0, len(ids) :].tolist())


@pytest.mark.slower
def test_the_class_change_is_exact(text_model):
    model, prompter = text_model
    state = model.model.language_model.state_dict()
    biases = [tensor for name, tensor in state.items() if name.endswith("_proj.bias")]
    assert len(biases) == 90 and not any(bool(tensor.any()) for tensor in biases)
    text = embedded.config().text_config
    same = (
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "rms_norm_eps",
    )
    config = LlamaConfig(
        **{name: getattr(text, name) for name in same},
        num_key_value_heads=text.num_key_value_heads,
        max_position_embeddings=8192,
        rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
        tie_word_embeddings=True,
        attn_implementation="sdpa",
    )
    with torch.device("meta"):
        llama = LlamaForCausalLM(config)
    kept = {name: tensor for name, tensor in state.items() if not name.endswith("_proj.bias")}
    llama.model.load_state_dict(kept, strict=True, assign=True)
    llama.model.rotary_emb = type(llama.model.rotary_emb)(config=config)
    llama.lm_head.weight = llama.model.embed_tokens.weight
    ids = torch.tensor([prompter.encode("The quick brown fox jumps over the lazy dog, 3.14 times a day, in Paris and 图片.")])
    with torch.no_grad():
        assert_close(model(ids).logits, llama.eval()(ids).logits, 1e-3, "logits of the two classes")


@pytest.mark.slower
def test_every_weight_of_the_real_model_has_a_value(text_model):
    model, _ = text_model
    tensors = [*model.named_parameters(), *model.named_buffers()]
    assert [name for name, t in tensors if t.is_meta] == []
    assert [name for name, t in tensors if not bool(t.isfinite().all())] == []
    assert model.lm_head.weight is model.model.language_model.embed_tokens.weight
    assert not model.training


def test_merging_adapters_adds_b_times_a():
    model, generator = tiny_model(5), torch.Generator().manual_seed(0)
    weight = model.model.language_model.layers[1].self_attn.q_proj.weight
    before = weight.detach().clone()
    a, b = torch.randn(2, 64, generator=generator), torch.randn(64, 2, generator=generator)
    merge_adapters(model, {"layers.1.self_attn.q_proj.lora_a": a, "layers.1.self_attn.q_proj.lora_b": b})
    assert_close(weight - before, b @ a, 1e-4, "change of the weight")


def test_missing_trained_weights_are_named_with_the_remedy(tmp_path):
    with pytest.raises(UserError, match=r"No trained weights in .*make train"):
        embedded.open_model(folder=tmp_path)


def test_pruning_everything_but_one_token_still_answers(vlm):
    image = vlm.encode(noise(1))
    ranking = vlm.rank(image, QUESTION, get_method("idpruner"))
    answer = last(vlm.answer([image], QUESTION, [ranking], 0.999, 3))
    assert answer.kept_tokens == 1 and answer.done
    assert np.array_equal(ranking.keep(1), ranking.order[:1])
