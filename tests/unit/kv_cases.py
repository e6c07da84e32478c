"""Tiny models of three classes, what they generate from, and how with a cache."""

from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from kvquant.attention import reading
from kvquant.cache import KVCache, Setting
from tests.unit.tiny import tiny_llama, tiny_model, tiny_qwen3_vl
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
