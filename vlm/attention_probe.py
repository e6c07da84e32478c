"""What each merged token receives in the vision tower, asked of two full-attention layers: the last and the middle one.

The model keeps its fast attention: hooks hand over a layer's input, and what is asked of it is computed when it is asked. Only
layers of full attention are looked at; in a window layer a token is seen by its window alone, so that what it receives would
tell windows apart, not tokens. Qwen2.5-VL's tower has no class token: the mean over all queries stands in for it.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import apply_rotary_pos_emb_vision
from transformers.vision_utils import get_vision_window_index

# Queries handled at a time: with 4096 patches a block of one head's map has 16 MB.
BLOCK = 1024


def last_layer(tower: torch.nn.Module) -> int:
    """Index of the last full-attention layer."""
    return max(tower.fullatt_block_indexes)


def middle_layer(tower: torch.nn.Module) -> int:
    """Index of the full-attention layer nearest the middle of the tower (15 of Qwen2.5-VL's 32); of two the earlier one."""
    return min(sorted(tower.fullatt_block_indexes), key=lambda index: abs(index - len(tower.blocks) / 2))


@contextmanager
def capture(tower: torch.nn.Module) -> Iterator[dict]:
    """While active, the dict receives ``rotary`` and, under the index of each of the two layers, its input [patches, C]."""
    seen: dict = {}

    def see(index):
        def hook(module, arguments, keywords):
            seen[index] = arguments[0] if arguments else keywords["hidden_states"]
            seen["rotary"] = keywords["position_embeddings"]

        return hook

    layers = {last_layer(tower), middle_layer(tower)}
    handles = [tower.blocks[index].attn.register_forward_pre_hook(see(index), with_kwargs=True) for index in layers]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


@torch.inference_mode()
def mean_query_attention(tower: torch.nn.Module, seen: dict, grid_thw: torch.Tensor) -> torch.Tensor:
    """float32 [N], sums to 1: softmax(mean query . keys) averaged over heads, added up over each 2x2 merge, raster order.

    One softmax over the keys of the last layer, not an N x N map. grid_thw: int64 [3] of the one image that was captured.
    """
    layer = tower.blocks[last_layer(tower)].attn
    query, key = _queries_and_keys(tower, seen, last_layer(tower))
    scores = torch.einsum("hd,nhd->hn", query.float().mean(0), key.float()) * layer.scaling
    return _merged(tower, scores.softmax(-1).mean(0)[:, None], grid_thw)[:, 0]


@torch.inference_mode()
def received_attention(tower: torch.nn.Module, seen: dict, grid_thw: torch.Tensor, index: int) -> torch.Tensor:
    """float32 [N], sums to 1: what softmax(Q K) of layer ``index`` pays each token, the mean over queries and heads.

    O(patches**2 C) time, the cost of the layer's attention; of the map only a block of one head exists at a time. Patches are
    added up over each 2x2 merge; raster order. Raises KeyError for a layer that was not captured.
    """
    query, key = _queries_and_keys(tower, seen, index)
    scaling, patches, heads = tower.blocks[index].attn.scaling, len(query), query.shape[1]
    total = torch.zeros(patches, device=query.device)
    for head in range(heads):
        keys = key[:, head].float().T * scaling
        for start in range(0, patches, BLOCK):
            total += (query[start : start + BLOCK, head].float() @ keys).softmax(-1).sum(0)
    return _merged(tower, total[:, None] / (patches * heads), grid_thw)[:, 0]


@torch.inference_mode()
def merged_keys(tower: torch.nn.Module, seen: dict, grid_thw: torch.Tensor) -> torch.Tensor:
    """float32 [N, C]: keys of the last layer before rotary embedding, heads side by side, the mean over each 2x2 merge."""
    _, key, _ = _projected(tower, seen, last_layer(tower))
    return _merged(tower, key.flatten(1).float(), grid_thw) / tower.spatial_merge_unit


def _projected(tower: torch.nn.Module, seen: dict, index: int) -> tuple[torch.Tensor, ...]:
    """Query, key and value, each [patches, heads, d], in the tower's window order."""
    layer, hidden = tower.blocks[index].attn, seen[index]
    return layer.qkv(hidden).reshape(len(hidden), 3, layer.num_heads, -1).unbind(1)


def _queries_and_keys(tower: torch.nn.Module, seen: dict, index: int) -> tuple[torch.Tensor, torch.Tensor]:
    query, key, _ = _projected(tower, seen, index)
    return apply_rotary_pos_emb_vision(query, key, *seen["rotary"])


def _merged(tower: torch.nn.Module, patches: torch.Tensor, grid_thw: torch.Tensor) -> torch.Tensor:
    """[patches, C] in window order -> sums over each 2x2 merge [N, C] in raster order."""
    merged = patches.unflatten(0, (-1, tower.spatial_merge_unit)).sum(1)
    order, _ = get_vision_window_index(
        grid_thw[None].to(patches.device),
        spatial_merge_size=tower.spatial_merge_size,
        window_size=tower.window_size,
        patch_size=tower.patch_size,
    )
    return torch.empty_like(merged).index_copy_(0, order, merged)
