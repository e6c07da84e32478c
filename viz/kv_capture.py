"""The queries, keys and values of an answer's decode steps, as the model's attention sees them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from kvquant.planes import to_half
from vlm.model import Vlm
from vlm.prefill import PrunedPrompt

NAME = "trimlens_seen"


@dataclass(frozen=True, eq=False)
class Captured:
    """q: per layer float32 [Hq, S, D], the queries of S decode steps; k, v: per layer [Hkv, P + S, D], on the CPU.

    prompt: P; scale: of the scores. k and v are float16 or bfloat16, as planes take them.
    """

    q: list[torch.Tensor]
    k: list[torch.Tensor]
    v: list[torch.Tensor]
    prompt: int
    scale: float

    @property
    def steps(self) -> int:
        return self.q[0].shape[1]

    def at(self, layer: int, step: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(q [1, Hq, D], k [1, Hkv, L, D], v) of one decode step: L = P + step + 1 tokens are in the cache."""
        length = self.prompt + step + 1
        return self.q[layer][None, :, step], self.k[layer][None, :, :length], self.v[layer][None, :, :length]


@contextmanager
def capturing(model: PreTrainedModel) -> Iterator[list[tuple]]:
    """While active, every language layer's attention adds (query, key, value, scaling) to the list; its result is sdpa's.

    Not for two threads at once on one model. Raises ValueError for a model whose attention cannot be chosen.
    """
    config = model.config.get_text_config(decoder=True)
    if not model._can_set_attn_implementation():
        raise ValueError(f"{type(model).__name__} does not let its attention be chosen, so its queries cannot be seen.")
    before, layers = config._attn_implementation, model.get_decoder().layers
    seen: list[tuple] = []
    config._attn_implementation = NAME
    for layer in layers:
        layer.self_attn.trimlens_seen = seen
    try:
        yield seen
    finally:
        config._attn_implementation = before
        for layer in layers:
            del layer.self_attn.trimlens_seen


def _see(module: torch.nn.Module, query, key, value, attention_mask, dropout=0.0, scaling=None, **kwargs):
    module.trimlens_seen.append((query, key, value, query.shape[-1] ** -0.5 if scaling is None else scaling))
    return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)


AttentionInterface.register(NAME, _see)
AttentionMaskInterface.register(NAME, sdpa_mask)


@torch.inference_mode()
def capture(vlm: Vlm, prompt: PrunedPrompt, token_ids: list[int]) -> Captured:
    """Forces an answer's tokens after its prompt and returns what all its decode steps saw, with every bit read.

    Two passes, whatever the number of steps: the prompt, then all forced tokens side by side under a causal mask, so a step
    sees no later token. token_ids: the answer's, at least two; its last one is only written, never read.
    """
    cache, ids = DynamicCache(), torch.tensor([token_ids[:-1]], device=prompt.input_ids.device)
    places = prompt.position_ids[..., -1:] + 1 + torch.arange(ids.shape[1], device=ids.device)
    with vlm.lock:
        vlm.model(**prompt.kwargs(), past_key_values=cache, logits_to_keep=1)
        with capturing(vlm.model) as seen:
            vlm.model(input_ids=ids, position_ids=places, past_key_values=cache, logits_to_keep=1)
    q, k, v, scales = zip(*seen, strict=True)
    planed = ([x[0].cpu() if x.dtype == torch.bfloat16 else to_half(x[0]).cpu() for x in rows] for rows in (k, v))
    return Captured([x[0].float().cpu() for x in q], *planed, prompt.input_ids.shape[1], float(scales[0]))
