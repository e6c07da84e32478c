"""Greedy decoding, one timed step at a time."""

import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from transformers import Cache, DynamicCache

from kvquant.attention import reading
from kvquant.cache import KVCache
from vlm import inside
from vlm.device import synchronise
from vlm.prefill import PrunedPrompt


@dataclass(frozen=True)
class Step:
    """token [B], its log-probability [B], and the seconds of the step (the first one is the prefill)."""

    token: torch.Tensor
    logprob: torch.Tensor
    seconds: float


@torch.inference_mode()
def steps(model, prompt: PrunedPrompt, max_new_tokens: int, cache: Cache | None = None) -> Iterator[Step]:
    """Yields the prefill's token and then one decode step after the other; the caller stops at the end token.

    Positions go on from the unpruned prompt's last one, as if nothing had been pruned.
    """
    cache = DynamicCache() if cache is None else cache
    device = prompt.input_ids.device.type
    padded = not bool(prompt.attention_mask.all())
    arguments, mask = prompt.kwargs(), prompt.attention_mask
    place = prompt.position_ids[..., -1:]
    cut = nullcontext() if prompt.cut is None else inside.cutting(model, prompt.cut)
    for _ in range(max_new_tokens):
        synchronise(device)
        began = time.perf_counter()
        arguments["attention_mask"] = mask if padded else None
        # Step by step: between two steps the model may serve another answer, with another cache.
        with reading(model) if isinstance(cache, KVCache) else nullcontext(), cut:
            logits = model(**arguments, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[:, -1].float()
        token = logits.argmax(-1)
        logprob = logits.gather(-1, token[:, None])[:, 0] - logits.logsumexp(-1)
        synchronise(device)
        yield Step(token, logprob, time.perf_counter() - began)
        place = place + 1
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
        arguments, cut = {"input_ids": token[:, None], "position_ids": place}, nullcontext()
