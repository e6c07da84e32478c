"""What each merged token receives from the mean query of the vision tower's last full-attention layer.

One softmax over N keys, not an N x N map, and the model keeps its fast attention: a hook hands over the layer's input.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import apply_rotary_pos_emb_vision
from transformers.vision_utils import get_vision_window_index


@contextmanager
def capture(tower: torch.nn.Module) -> Iterator[dict]:
    """While active, the dict receives ``hidden`` [patches, C] and ``rotary`` of the last full-attention layer."""
    seen: dict = {}
    layer = tower.blocks[max(tower.fullatt_block_indexes)].attn

    def see(module, arguments, keywords):
        seen["hidden"] = arguments[0] if arguments else keywords["hidden_states"]
        seen["rotary"] = keywords["position_embeddings"]

    handle = layer.register_forward_pre_hook(see, with_kwargs=True)
    try:
        yield seen
    finally:
        handle.remove()


@torch.inference_mode()
def mean_query_attention(tower: torch.nn.Module, seen: dict, grid_thw: torch.Tensor) -> torch.Tensor:
    """float32 [N], sums to 1: softmax(mean query . keys) averaged over heads, added up over each 2x2 merge, raster order.

    grid_thw: int64 [3] of the one image that was captured.
    """
    layer = tower.blocks[max(tower.fullatt_block_indexes)].attn
    hidden = seen["hidden"]
    query, key, _ = layer.qkv(hidden).reshape(len(hidden), 3, layer.num_heads, -1).unbind(1)
    query, key = apply_rotary_pos_emb_vision(query, key, *seen["rotary"])
    scores = torch.einsum("hd,nhd->hn", query.float().mean(0), key.float()) * layer.scaling
    patches = scores.softmax(-1).mean(0)
    merged = patches.view(-1, tower.spatial_merge_unit).sum(-1)
    order, _ = get_vision_window_index(
        grid_thw[None].to(hidden.device),
        spatial_merge_size=tower.spatial_merge_size,
        window_size=tower.window_size,
        patch_size=tower.patch_size,
    )
    return torch.empty_like(merged).index_copy_(0, order, merged)
