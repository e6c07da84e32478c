"""Pruning inside the language model: the first layers see every token, the others only those that stay.

Forward pre-hooks, removed again whatever happens: nothing of the model is copied or replaced. The cache then holds the whole
prompt in the first layers and the kept tokens in the others. A decode step without padding takes no mask, so that each layer
attends to all that its own cache holds; with padding one mask would have to fit both, so only single prompts are pruned so.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import torch
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import apply_rotary_pos_emb

from pruning.tokens import LayerView

# Layers that run before a scorer looks, where no selector says otherwise; K of FastV.
LOOK_AFTER = 2


@dataclass(frozen=True, eq=False)
class Cut:
    """What stays after ``after`` language layers: ``stays`` int64 [L'], ascending places of a prompt of ``length`` tokens."""

    after: int
    stays: torch.Tensor
    length: int


class _EnoughError(Exception):
    """The layers that were asked for have run."""


def check_depth(model, after: int) -> None:
    """Raise ValueError unless a layer comes before and one behind the cut."""
    layers = len(model.model.language_model.layers)
    if not 1 <= after < layers:
        raise ValueError(f"Tokens can be looked at after layer 1 to {layers - 1} of this language model, not after layer {after}.")


@contextmanager
def cutting(model, cut: Cut) -> Iterator[None]:
    """While active, a prefill of ``cut.length`` tokens goes on with those that stay; a decode step passes unchanged.

    Raises ValueError for a cut that the model is not deep enough for.
    """
    check_depth(model, cut.after)
    layers = model.model.language_model.layers[cut.after :]

    def shorten(module, arguments, keywords):
        rotary = keywords["position_embeddings"]
        if rotary[0].shape[1] != cut.length:
            return None
        hidden = arguments[0] if arguments else keywords.pop("hidden_states")
        if hidden.shape[1] == cut.length:
            hidden = hidden[:, cut.stays]
        changed = {
            "position_embeddings": tuple(part[:, cut.stays] for part in rotary),
            "attention_mask": _shorter_mask(keywords.get("attention_mask"), cut.stays),
        }
        if keywords.get("position_ids") is not None:
            changed["position_ids"] = keywords["position_ids"][..., cut.stays]
        return (hidden,), keywords | changed

    handles = [layer.register_forward_pre_hook(shorten, with_kwargs=True) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _shorter_mask(mask: torch.Tensor | None, stays: torch.Tensor) -> torch.Tensor | None:
    """[B, 1, L, L] or [B, L] without the rows and columns that go; None stays None: causal."""
    if mask is None or mask.ndim == 2:
        return mask if mask is None else mask[:, stays]
    return mask[:, :, stays][..., stays]


@torch.inference_mode()
def look(model, prompt, after: int) -> LayerView:
    """What the first ``after`` layers make of a single-row prompt with one image (:class:`vlm.prefill.PrunedPrompt`).

    Later layers do not run. Not for two threads at once on one model. Raises ValueError where the model has no such layer.
    """
    check_depth(model, after)
    language, seen = model.model.language_model, {}

    def see(module, arguments, keywords):
        seen["hidden"] = arguments[0] if arguments else keywords["hidden_states"]
        seen["rotary"] = keywords["position_embeddings"]

    def stop(module, arguments, keywords):
        seen["next"] = arguments[0] if arguments else keywords["hidden_states"]
        raise _EnoughError

    attention = language.layers[after - 1].self_attn
    handles = [
        attention.register_forward_pre_hook(see, with_kwargs=True),
        language.layers[after].register_forward_pre_hook(stop, with_kwargs=True),
    ]
    began = time.perf_counter()
    try:
        with suppress(_EnoughError):
            model(**prompt.kwargs(), use_cache=False, logits_to_keep=1)
    finally:
        for handle in handles:
            handle.remove()
    if prompt.input_ids.is_cuda:
        torch.cuda.synchronize(prompt.input_ids.device)
    took = time.perf_counter() - began
    visual = (prompt.input_ids[0] == model.config.image_token_id).nonzero()[:, 0]
    text = torch.arange(int(visual[-1]) + 1, prompt.input_ids.shape[1], device=visual.device)
    keys, paid = _keys_and_attention(attention, seen["hidden"], seen["rotary"])
    states = language.norm(seen["next"])[0].float()
    return LayerView(states[visual], states[text], keys[visual], keys[text], paid[visual], took)


def _keys_and_attention(layer, hidden: torch.Tensor, rotary: tuple) -> tuple[torch.Tensor, torch.Tensor]:
    """Of one layer: rotated keys [L, C], all heads side by side, and what the last token pays, [L], the mean over heads."""
    query, key = (project(hidden).unflatten(-1, (-1, layer.head_dim)).transpose(1, 2) for project in (layer.q_proj, layer.k_proj))
    query, key = apply_rotary_pos_emb(query, key, *rotary)
    grouped = query[0, :, -1].float().unflatten(0, (key.shape[1], -1))
    scores = torch.einsum("kgd,kld->kgl", grouped, key[0].float()) * layer.scaling
    return key[0].transpose(0, 1).flatten(1).float(), scores.softmax(-1).mean((0, 1))
