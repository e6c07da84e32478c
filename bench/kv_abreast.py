"""Several caches in one decode step: the rows of a batch are shared out to them, so that the model's weights are read once.

    with reading(model, NAME):
        model(token.repeat(len(caches), 1), past_key_values=Abreast(caches))

Every cache sees the step that it would see alone; only the linear layers run on all rows together.
"""

from __future__ import annotations

import torch
from transformers import AttentionInterface, AttentionMaskInterface, Cache
from transformers.cache_utils import DynamicLayer
from transformers.masking_utils import sdpa_mask

from kvquant.attention import attend

NAME = "trimlens_abreast"


class Abreast(Cache):
    """Caches of equally many tokens and rows, each of which has its own share of the batch, in this order."""

    def __init__(self, caches: list[Cache]) -> None:
        super().__init__(layers=[_Layer(list(layers)) for layers in zip(*(cache.layers for cache in caches), strict=True)])


class _Layer(DynamicLayer):
    def __init__(self, layers: list) -> None:
        super().__init__()
        self.layers = layers

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs) -> tuple[list, list]:
        """K and V of every cache, as it returns them."""
        shares = (x.chunk(len(self.layers)) for x in (key_states, value_states))
        keys, values = zip(*(layer.update(k, v) for layer, k, v in zip(self.layers, *shares, strict=True)), strict=True)
        return list(keys), list(values)

    def get_seq_length(self) -> int:
        return self.layers[0].get_seq_length()


def _attend(module: torch.nn.Module, query: torch.Tensor, key, value, attention_mask: torch.Tensor | None, **kwargs):
    """As :func:`kvquant.attention.attend`; key, value: one for every share of the batch."""
    if not isinstance(key, list):
        return attend(module, query, key, value, attention_mask, **kwargs)
    shares = query.chunk(len(key))
    masks = [None] * len(key) if attention_mask is None else attention_mask.expand(len(query), -1, -1, -1).chunk(len(key))
    outs = [attend(module, *share, **kwargs)[0] for share in zip(shares, key, value, masks, strict=True)]
    return torch.cat(outs), None


AttentionInterface.register(NAME, _attend)
AttentionMaskInterface.register(NAME, sdpa_mask)
