"""The attention of a model as it reads from a :class:`kvquant.cache.KVCache`.

One query per row (a decode step) is read in the cache's mode; several (a prompt, a later turn, a candidate to be verified)
see all bits through transformers' sdpa, as does the exact mode: it runs the very operations of the default cache on the
very same numbers. Without a mask function of the same name, transformers would drop the padding mask (masking_utils).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from kvquant.kernels import decode_attention
from kvquant.modes import Meter, Trace
from kvquant.store import Store
from kvquant.stored import StoredTensor

NAME = "trimlens_kv"
# What some models ask of their attention on top of softmax(scale q.K) V.
UNSUPPORTED = ("softcap", "s_aux", "position_bias", "sliding_window")


@contextmanager
def reading(model: PreTrainedModel, name: str = NAME) -> Iterator[None]:
    """While active, the model's language layers attend through :func:`attend`; other caches work as under sdpa.

    name: of another attention function to be used so, as registered with transformers. Not for two threads at once on one model.
    Raises ValueError for a model whose attention cannot be chosen.
    """
    config = model.config.get_text_config(decoder=True)
    if not model._can_set_attn_implementation():
        raise ValueError(f"{type(model).__name__} does not let its attention be chosen, so nothing can be read with fewer bits.")
    before = config._attn_implementation
    config._attn_implementation = name
    try:
        yield
    finally:
        config._attn_implementation = before


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs,
) -> tuple[torch.Tensor, None]:
    """query: [B, Hq, T, D]; key, value: [B, Hkv, L, D]; attention_mask: of ``sdpa_mask``. Returns [B, T, Hq, D] and no weights.

    Raises ValueError where a decode step asks for what no mode can do.
    """
    if not isinstance(key, StoredTensor):
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
    layer, decoding = key.contents.layer, query.shape[2] == 1
    mode, store = layer.setting.mode, key.contents.current()
    if decoding and not layer.exact:
        _check(dropout, kwargs)
        visible = _visible(attention_mask, query.shape[0])
        out, trace = decode_attention(query[:, :, 0], store, mode, visible, scaling, traced=layer.setting.traced > 0)
        out = out.to(query.dtype)[:, None]
    else:
        out, _ = sdpa_attention_forward(module, query, *key.contents.dense, attention_mask, dropout, scaling, **kwargs)
        trace = _everything(store, out) if decoding and layer.setting.traced else None
    if trace is not None:
        layer.traces.append(trace)
    return out, None


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, sdpa_mask)


def _check(dropout: float, kwargs: dict) -> None:
    asked = [name for name in UNSUPPORTED if kwargs.get(name) is not None] + ["dropout"] * bool(dropout)
    if asked:
        raise ValueError(f"The {asked[0]} of this model's attention cannot be read with fewer bits; use the exact mode.")


def _visible(mask: torch.Tensor | None, batch: int) -> torch.Tensor | None:
    """[1 or B, 1, 1, L] -> bool [B, L]."""
    if mask is None:
        return None
    if mask.dtype != torch.bool or mask.shape[1:3] != (1, 1):
        raise ValueError(f"Only a bool mask [B, 1, 1, L] can be read with fewer bits, got {mask.dtype} {list(mask.shape)}.")
    return mask[:, 0, 0].expand(batch, -1)


def _everything(store: Store, out: torch.Tensor) -> Trace:
    """The trace of a step that has read all bits of all tokens; out: [B, 1, Hq, D]."""
    (batch, heads, _, dim), meter = store.shape, Meter()
    meter.bytes = store.tail.bytes_used
    out = out[:, 0].unflatten(1, (heads, -1))
    if not store.planed:
        return Trace.of(store, meter, out)
    meter.bytes += store.planes.keys.bytes_used + store.planes.values.bytes_used
    bits, channels = (out.new_full((batch, heads, n), 16.0) for n in (store.planed, dim))
    return Trace.of(store, meter, out, bits, bits, channels)
