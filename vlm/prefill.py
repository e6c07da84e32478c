"""Builds the pruned prompt: pruned visual tokens leave, everything else keeps the position that it had.

Only public arguments of transformers are used (``get_rope_index`` on the unpruned ids, then ``input_ids``, ``position_ids``
and ``mm_encoder_outputs`` of the forward or of ``generate``): nothing is copied or patched.
"""

from dataclasses import dataclass

import numpy as np
import torch
from transformers.modeling_outputs import BaseModelOutputWithPooling

from vlm.inside import Cut


@dataclass(frozen=True)
class VisualInput:
    """One image in a prompt: features [N, D] after the merger, grid_thw int64 [3], keep int64 [K] (None keeps all N).

    merged: [K, D], what stands in the places of the kept tokens, or None for themselves. after: language layers that see all N.
    """

    features: torch.Tensor
    grid_thw: torch.Tensor
    keep: np.ndarray | None = None
    merged: torch.Tensor | None = None
    after: int = 0

    def __post_init__(self) -> None:
        if self.merged is not None and (self.keep is None or len(self.merged) != len(self.keep) or self.after):
            raise ValueError("merged must hold one row for every kept token, and merging happens before the language model")
        if self.keep is None:
            return
        if len(self.keep) == 0 or np.any(np.diff(self.keep) <= 0) or self.keep[0] < 0 or self.keep[-1] >= len(self.features):
            raise ValueError(f"keep must hold indices of 0..{len(self.features) - 1} in raster order, at least one, no repeats")


@dataclass(frozen=True)
class PrunedPrompt:
    """input_ids, attention_mask [B, L] (left-padded), position_ids [3, B, L], features: kept [K_i, D] of every image.

    cut: what goes inside the language model, or None; it works through :func:`vlm.inside.cutting`, not through ``kwargs``.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    position_ids: torch.Tensor
    features: list[torch.Tensor]
    cut: Cut | None = None

    def kwargs(self) -> dict:
        """Arguments of the model's forward and, unchanged, of ``generate``."""
        encoded = {"image": BaseModelOutputWithPooling(pooler_output=self.features)} if self.features else None
        return {
            "input_ids": self.input_ids,
            "attention_mask": self.attention_mask,
            # Three rows, never four: a text row with gaps would make FlashAttention see a packed batch.
            "position_ids": self.position_ids,
            "mm_encoder_outputs": encoded,
        }


def build(model, rows: list[tuple[list[int], list[VisualInput]]]) -> PrunedPrompt:
    """One prompt per row: (ids of the full-length prompt, its images in order).

    Raises:
        ValueError: the number of image tokens in a row's ids is not that of its images, or several rows are to be pruned
            inside the language model.
    """
    device = model.get_input_embeddings().weight.device
    kept = [_prune_row(model, torch.tensor([ids], device=device), images) for ids, images in rows]
    length = max(ids.shape[1] for ids, _ in kept)
    pad = model.generation_config.pad_token_id or 0
    input_ids = torch.full((len(kept), length), pad, device=device)
    mask = torch.zeros(len(kept), length, dtype=torch.long, device=device)
    positions = torch.zeros(3, len(kept), length, dtype=torch.long, device=device)
    for index, (ids, place) in enumerate(kept):
        size = ids.shape[1]
        input_ids[index, length - size :] = ids[0]
        mask[index, length - size :] = 1
        positions[:, index, length - size :] = place[:, 0]
    features = [_shown(image) for _, images in rows for image in images]
    cuts = [_cut(model, torch.tensor(ids, device=device), images) for ids, images in rows]
    if len(rows) > 1 and any(cuts):
        raise ValueError("prompts that are pruned inside the language model are built one by one")
    return PrunedPrompt(input_ids, mask, positions, features, cuts[0])


def _shown(image: VisualInput) -> torch.Tensor:
    """What the first language layer sees of an image."""
    if image.merged is not None:
        return image.merged.to(image.features)
    if image.keep is None or image.after:
        return image.features
    return image.features[torch.from_numpy(image.keep).to(image.features.device)]


def _cut(model, ids: torch.Tensor, images: list[VisualInput]) -> Cut | None:
    """What goes inside the language model; all images of a prompt go after the same layer."""
    after = max((image.after for image in images), default=0)
    if not after:
        return None
    stays = ids != model.config.image_token_id
    places = (~stays).nonzero()[:, 0].split([len(image.features) for image in images])
    for image, place in zip(images, places, strict=True):
        stays[place if image.keep is None else place[torch.from_numpy(image.keep).to(ids.device)]] = True
    return Cut(after, stays.nonzero()[:, 0], len(ids))


def _prune_row(model, ids: torch.Tensor, images: list[VisualInput]) -> tuple[torch.Tensor, torch.Tensor]:
    visual = ids[0] == model.config.image_token_id
    counts = [len(image.features) for image in images]
    if int(visual.sum()) != sum(counts):
        raise ValueError(f"the prompt has {int(visual.sum())} image tokens, its images have {sum(counts)}")
    positions, _ = model.model.get_rope_index(
        ids,
        mm_token_type_ids=visual[None].int(),
        image_grid_thw=torch.stack([image.grid_thw for image in images]).to(ids.device) if images else None,
        attention_mask=torch.ones_like(ids),
    )
    stays = ~visual
    for image, places in zip(images, visual.nonzero()[:, 0].split(counts), strict=True):
        whole = image.keep is None or image.after
        stays[places if whole else places[torch.from_numpy(image.keep).to(ids.device)]] = True
    return ids[:, stays], positions[:, :, stays]
