"""The vision tower's forward for a batch of equally sized images, over the library's own parameters.

transformers' forward takes a ragged list of images and loops over their windows. For training all images of a batch have one
size, a multiple of the window, so windows become a batch axis. The result equals the library's (``tests/unit/test_tower.py``).
"""

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import nn

MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(1, 3, 1, 1)
STD = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(1, 3, 1, 1)


def normalise(images: torch.Tensor) -> torch.Tensor:
    """uint8 [B, H, W, 3] -> float32 [B, 3, H, W] with the constants of Qwen2-VL's image processor."""
    return (images.permute(0, 3, 1, 2).float() / 255 - MEAN) / STD


@lru_cache
def _window_coordinates(windows_high: int, windows_wide: int) -> torch.Tensor:
    """(row, column) of every patch in window order: [windows * 64, 2]."""
    rows = torch.arange(windows_high * 8).view(windows_high, 1, 4, 1, 2, 1)
    columns = torch.arange(windows_wide * 8).view(1, windows_wide, 1, 4, 1, 2)
    shape = (windows_high, windows_wide, 4, 4, 2, 2)
    return torch.stack([rows.expand(shape).flatten(), columns.expand(shape).flatten()], -1)


def forward(tower: nn.Module, images: torch.Tensor, run_block=None) -> tuple[torch.Tensor, torch.Tensor]:
    """Visual tokens of a batch, and its patches half way up the tower.

    Args:
        tower: ``Qwen2_5_VisionTransformerPretrainedModel`` with patch 14, merge 2 and window 112.
        images: float32 [B, 3, H, W], H and W multiples of 112.
        run_block: what runs one layer; :func:`compiled_block` or, by default, :func:`block_forward`.

    Returns:
        [B, H/28, W/28, out_hidden_size] and [B, H/14, W/14, hidden_size], in raster order.
    """
    batch, _, height, width = images.shape
    if height % 112 or width % 112:
        raise ValueError(f"training images must be multiples of 112 pixels a side, got {height} x {width}")
    run_block = run_block or block_forward
    high, wide = height // 112, width // 112
    patches = images.view(batch, 3, high, 4, 2, 14, wide, 4, 2, 14).permute(0, 2, 6, 3, 7, 4, 8, 1, 5, 9)
    kernel = tower.patch_embed.proj.weight.sum(2).flatten(1)
    x = F.linear(patches.reshape(batch, high * wide * 64, 588), kernel)
    cos, sin = (t.expand(batch, -1, -1) for t in tower.rotary_pos_emb(x, _window_coordinates(high, wide)))
    for index, block in enumerate(tower.blocks):
        length = high * wide * 64 if index in tower.fullatt_block_indexes else 64
        x = run_block(block, *(t.reshape(-1, length, t.shape[-1]) for t in (x, cos, sin))).view(x.shape)
        if index == len(tower.blocks) // 2:
            half = x.view(batch, high, wide, 4, 4, 2, 2, -1).permute(0, 1, 3, 5, 2, 4, 6, 7)
    x = tower.merger(x).view(batch, high, wide, 4, 4, -1)
    tokens = x.permute(0, 1, 3, 2, 4, 5).reshape(batch, high * 4, wide * 4, -1)
    return tokens, half.reshape(batch, high * 8, wide * 8, -1)


def block_forward(block: nn.Module, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """One layer on x [windows, length, C] with cos, sin [windows, length, head_dim]; attention stays within a window."""
    x = x + _attention(block.attn, block.norm1(x), cos, sin)
    return x + block.mlp(block.norm2(x))


def _attention(module: nn.Module, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    batch, length, width = x.shape
    q, k, v = module.qkv(x).view(batch, length, 3, module.num_heads, -1).unbind(2)
    q, k, v = (t.transpose(1, 2) for t in (_rotate(q, cos, sin), _rotate(k, cos, sin), v))
    # The plain product is twice as fast as SDPA's backward on a CPU for these short sequences.
    out = ((q * module.scaling) @ k.transpose(-1, -2)).softmax(-1) @ v
    return module.proj(out.transpose(1, 2).reshape(batch, length, width))


@lru_cache
def compiled_block(dynamic: bool = False):
    """``block_forward`` compiled once per shape, or for all, and shared by all layers: 2.5 times faster than eager on a CPU."""
    torch._dynamo.config.recompile_limit = 64
    return torch.compile(block_forward, dynamic=dynamic)


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    half = x.shape[-1] // 2
    rotated = torch.cat((-x[..., half:], x[..., :half]), -1)
    return x * cos[:, :, None] + rotated * sin[:, :, None]
