"""The probe of the vision tower answers what a plain softmax answers, and leaves nothing behind."""

from types import SimpleNamespace

import pytest
import torch

from tests.unit.tiny import QUESTION, assert_close, noise
from vlm import attention_probe


def plain_attention(vlm, image, index: int) -> tuple[torch.Tensor, ...]:
    """Rotated queries and keys and plain keys of a vision layer, each [patches, 2, 16], by a forward of its own."""
    visual, n = vlm.model.model.visual, len(image.features)
    layer = visual.blocks[index].attn
    got: dict = {}
    handle = layer.register_forward_pre_hook(
        lambda _, args, kwargs: got.update(kwargs, hidden_states=args[0] if args else kwargs["hidden_states"]),
        with_kwargs=True,
    )
    inputs = vlm.processor(images=[image.picture], return_tensors="pt")
    with torch.no_grad():
        vlm.model.get_image_features(inputs["pixel_values"], inputs["image_grid_thw"])
        handle.remove()
        x = layer.qkv(got["hidden_states"]).view(4 * n, 3, 2, 16)
    cos, sin = (t[:, None] for t in got["position_embeddings"])
    q, k = (v * cos + torch.cat([-v[..., 8:], v[..., :8]], -1) * sin for v in (x[:, 0], x[:, 1]))
    return q, k, x[:, 1]


def in_raster(image, patches: torch.Tensor) -> torch.Tensor:
    """Sums over 2x2 merges in raster order; the windows are laid out by hand, no code is shared with the probe."""
    rows, columns = image.grid
    # In window order, windows of 4 x 4 merged tokens come one after the other, each in raster order.
    order = [
        (r, c)
        for top in range(0, rows, 4)
        for left in range(0, columns, 4)
        for r in range(top, min(top + 4, rows))
        for c in range(left, min(left + 4, columns))
    ]
    merged = torch.zeros(rows, columns, *patches.shape[1:])
    for index, place in enumerate(order):
        merged[place] = patches[4 * index : 4 * index + 4].sum(0)
    return merged.flatten(0, 1)


@pytest.mark.parametrize("size", [(224, 224), (336, 252), (252, 308)], ids=str)
def test_attention_in_the_tower_is_the_plain_softmax_in_raster_order(vlm, size, monkeypatch):
    monkeypatch.setattr(attention_probe, "BLOCK", 100)
    image = vlm.encode(noise(4, *size))
    ours = vlm.visual_tokens(image, QUESTION, frozenset({"attention", "received", "middle", "keys"}))
    q, k, plain = plain_attention(vlm, image, 2)
    mean_query = torch.stack([(q[:, h].mean(0) @ k[:, h].T / 16**0.5).softmax(-1) for h in range(2)]).mean(0)
    assert_close(ours.attention, in_raster(image, mean_query), 1e-6, "mean-query attention")
    received = torch.stack([(q[:, h] @ k[:, h].T / 16**0.5).softmax(-1).mean(0) for h in range(2)]).mean(0)
    assert_close(ours.received, in_raster(image, received), 1e-6, "attention received, last layer")
    assert_close(ours.keys, in_raster(image, plain.flatten(1)) / 4, 1e-5, "keys")
    q, k, _ = plain_attention(vlm, image, 1)
    middle = torch.stack([(q[:, h] @ k[:, h].T / 16**0.5).softmax(-1).mean(0) for h in range(2)]).mean(0)
    assert_close(ours.middle, in_raster(image, middle), 1e-6, "attention received, middle layer")
    for part in (ours.attention, ours.received, ours.middle):
        assert_close(part.sum(), torch.tensor(1.0), 1e-5, "sum of the attention")
        assert part.std() > 1e-4, "attention is flat, so the comparison proves nothing"


def test_the_middle_layer_is_the_full_attention_layer_nearest_the_middle(model):
    def tower(depth, full):
        return SimpleNamespace(blocks=[None] * depth, fullatt_block_indexes=full)

    assert attention_probe.middle_layer(tower(32, [7, 15, 23, 31])) == 15
    assert attention_probe.middle_layer(tower(8, [2, 5, 7])) == 5
    assert attention_probe.middle_layer(model.model.visual) == 1


def test_the_probe_leaves_no_hook_behind_even_after_an_error(model):
    hooks = model.model.visual.blocks[2].attn._forward_pre_hooks

    def fail_inside():
        with attention_probe.capture(model.model.visual):
            assert len(hooks) == 1
            raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        fail_inside()
    assert len(hooks) == 0
