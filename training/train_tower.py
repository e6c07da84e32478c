"""Stage 1: teach the vision tower the words. ``python -m training.train_tower --minutes 35``

Every visual token is classified by its cosine with the language model's own word embeddings (" cat"; " red" + " circle";
" text" + " open"; " background"), so that what the tower sends to the language model already nearly is a word; a linear probe
reads off its characters. Aligning the tower before any language model runs was decisive (training/README.md).
Resumes from runs/tower.pt.
"""

import argparse
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, IterableDataset

from training import common, lettering, tower, walls, world
from training.muon import Muon
from vlm import embedded
from vlm.words import marker_logits

SEED = 11
TOKENS = 1024  # visual tokens a batch
CENTRE = 1
PRINT_SHARE = 0.2  # of pictures full of print
HALF_WIDTH = 192  # of the tower's layers
PEAK, MUON_PEAK = 2e-3, 5e-3
# Temperatures of the cosines. Learned ones rose to 117: cells were told apart by 0.07 of a cosine, and the language model could
# not read them (training/README.md).
SHARPNESS = 24.0


class Scenes(IterableDataset):
    """Endless batches (images uint8 [B, H, W, 3], labels [B, gh, gw], centres [B, gh, gw]); one size a batch."""

    def __init__(self, start: int, sizes: tuple[tuple[int, int], ...], weights: tuple[float, ...], print_share: float) -> None:
        self.start, self.sizes, self.weights, self.print_share = start, sizes, np.array(weights) / sum(weights), print_share

    def __iter__(self):
        index = self.start
        while True:
            rng = world.rng_for(SEED, index)
            size = self.sizes[rng.choice(len(self.sizes), p=self.weights)]
            scenes = [crowded(rng, size, self.print_share) for _ in range(TOKENS * world.CELL**2 // (size[0] * size[1]))]
            yield (torch.from_numpy(np.stack([s.image for s in scenes])), targets(scenes))
            index += 1


def crowded(rng: np.random.Generator, size: tuple[int, int], print_share: float) -> world.Scene:
    """A scene with as much to learn as fits: a picture full of print, many items, or something to read."""
    if rng.random() < print_share:
        return walls.draw(rng, size)
    kind, cells = rng.random(), size[0] * size[1] // world.CELL**2
    if kind < 0.5:
        return world.draw(rng, size, count=min(10, int(rng.integers(1, 8) * cells / 64) + 1), look=world.VARIED)
    if kind < 0.68:
        return world.draw_words(rng, size, world.VARIED, most=min(16, cells // 7))
    return world.draw_chart(rng, size) if kind < 0.83 else world.draw_document(rng, size)


class Targets(NamedTuple):
    """cells, centre [B, gh, gw] and chars [B, gh, gw, 4]: what visual tokens are to say; glyphs [B, 2 gh, 2 gw]: patches."""

    cells: torch.Tensor
    centre: torch.Tensor
    chars: torch.Tensor
    glyphs: torch.Tensor


def targets(scenes: list[world.Scene]) -> Targets:
    """The targets of equally sized scenes."""
    parts = zip(*((s.labels, centres(s), s.chars, s.glyphs) for s in scenes), strict=True)
    return Targets(*(torch.from_numpy(np.stack(part)) for part in parts))


def centres(scene: world.Scene) -> np.ndarray:
    """float32 [gh, gw]: CENTRE in the cell that holds an item's centre, else 0."""
    high, wide = scene.labels.shape
    out = np.zeros((high, wide), np.float32)
    for item in scene.items:
        out[int(item.y * high), int(item.x * wide)] = CENTRE
    return out


class Heads(torch.nn.Module):
    """The loss of stage 1: word classes by cosine, characters, item centres by the cosine with the marker, a word's length.

    The character of every patch half way up the tower makes letters learnable; alone, at first (training/README.md).
    """

    def __init__(self, words: common.Words) -> None:
        super().__init__()
        self.words = words
        self.letters = torch.nn.Linear(len(words.mean), lettering.SLOTS * len(lettering.ALPHABET))
        self.glyphs = torch.nn.Sequential(torch.nn.LayerNorm(HALF_WIDTH), torch.nn.Linear(HALF_WIDTH, len(lettering.ALPHABET)))

    def forward(self, tokens: torch.Tensor, half: torch.Tensor, target: Targets) -> dict[str, torch.Tensor]:
        """tokens [B, gh, gw, D] and half [B, 2 gh, 2 gw, C] -> loss, and what share of each kind is right."""
        centred = tokens.float() - self.words.mean
        length = centred.norm(dim=-1)
        unit = centred / (length[..., None] + 1e-6)
        cosines = unit @ self.words.directions.T
        logits = SHARPNESS * cosines
        weight = torch.ones(len(world.classes()))
        weight[world.BACKGROUND] = 0.25
        naming = F.cross_entropy(logits.flatten(0, 2), target.cells.flatten(), weight, ignore_index=world.IGNORE)
        flag = marker_logits(unit, self.words.marker)
        counting = F.binary_cross_entropy_with_logits(flag, target.centre)
        size = ((length / self.words.norm - 1) ** 2).mean()
        shown = (target.chars >= 0).all(-1) & ((target.chars > 0).any(-1) | (torch.rand(target.cells.shape) < 0.1))
        letters = self.letters(unit[shown] * 24).unflatten(-1, (lettering.SLOTS, -1))
        wanted = target.chars[shown]
        spelling = F.cross_entropy(letters.flatten(0, 1), wanted.flatten()) if len(wanted) else tokens.sum() * 0
        lettered = (target.glyphs >= 0) & ((target.glyphs > 0) | (torch.rand(target.glyphs.shape) < 0.1))
        glyphs, drawn = self.glyphs(half[lettered].float()), target.glyphs[lettered]
        tracing = F.cross_entropy(glyphs, drawn) if len(drawn) else tokens.sum() * 0
        guess, text = logits.argmax(-1), target.cells >= world.first_text()
        right, known = guess == target.cells, target.cells > 0
        return {
            "loss": naming + 2 * counting + 0.1 * size + spelling + tracing,
            "tracing": tracing,
            "cosine": share(cosines.detach()[known].gather(-1, target.cells[known][:, None])),
            "cells": share(right[known & ~text]),
            "words": share(right[text]),
            "centres": share((flag > 0)[target.centre == CENTRE]),
            "letters": share((letters.argmax(-1) == wanted)[wanted > 0]),
            "glyphs": share((glyphs.argmax(-1) == drawn)[drawn > 0]),
        }


def share(right: torch.Tensor) -> torch.Tensor:
    """The mean of a mask or of numbers; nan where there are none."""
    return right.float().mean()


def train(
    minutes: float,
    batches: int | None = None,
    compiled: bool = True,
    resume: bool = False,
    letters: bool = False,
    rate: float = 1.0,
) -> None:
    """Trains for ``minutes`` in total over all runs (or ``batches`` more batches) and leaves runs/tower.pt.

    letters: the first phase, pictures full of print and the loss of their characters only; rate: times the learning rates.
    """
    torch.manual_seed(SEED)
    text, prompter = embedded.open_text_model()
    words = common.words_of(text.model.language_model, prompter)
    vision, heads = text.model.visual.train(), Heads(words)
    del text
    with torch.no_grad():
        vision.merger.mlp[2].bias.copy_(words.mean)
    parameters = [*vision.parameters(), *heads.parameters()]
    optimizers = optimizers_of(vision, heads)
    clock, step, before = common.Clock(minutes * 60), 0, 0.0
    if saved := common.load("tower"):
        if letters and saved["lettered"]:
            return
        vision.load_state_dict(saved["visual"])
        heads.load_state_dict(saved["heads"])
        for optimizer, state in zip(optimizers, saved["optimizers"] or [], strict=False):
            optimizer.load_state_dict(state)
        clock, step, before = common.Clock(minutes * 60, saved["spent"]), saved["step"], saved["before"]
    elif resume:
        step, before = go_on(vision, heads)
    run_block = tower.compiled_block() if compiled else None
    # With 1024 tokens a batch these sizes share the shape of their window layers, so that little is compiled.
    sizes = ((224, 224), (224, 448), (448, 224), (448, 448))
    scenes = Scenes(step, sizes, (0.5, 0.1, 0.1, 0.3), 1.0 if letters else PRINT_SHARE)
    loader = DataLoader(scenes, batch_size=None, num_workers=1, prefetch_factor=3)
    last_saved, seen = clock.spent, []
    for images, target in loader:
        progress = clock.tick()
        if progress >= 1 or (batches is not None and batches <= 0):
            break
        batches = None if batches is None else batches - 1
        for group in (group for optimizer in optimizers for group in optimizer.param_groups):
            group["lr"] = common.cosine(progress, rate * group["peak"])
        with common.autocast():
            tokens, half = tower.forward(vision, tower.normalise(images), run_block)
        terms = heads(tokens, half, Targets(*target))
        terms["tracing" if letters else "loss"].backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        with common.autocast():
            for optimizer in optimizers:
                optimizer.step()
        vision.zero_grad(set_to_none=True)
        heads.zero_grad(set_to_none=True)
        step += 1
        seen.append({name: value.item() for name, value in terms.items()})
        if step % 25 == 0:
            common.log("tower", step=step, minutes=clock.spent / 60, **common.means(seen))
            seen = []
        if clock.spent - last_saved > 120:
            _save(vision, heads, optimizers, clock, step, before, not letters)
            last_saved = clock.spent
    if letters:
        optimizers, before, clock = [], before + clock.spent / 60, common.Clock(0)
    _save(vision, heads, optimizers, clock, step, before, True)


def go_on(vision: torch.nn.Module, heads: Heads | None = None) -> tuple[int, float]:
    """Starts from the committed checkpoint of this stage, or else from the shipped tower. Returns (steps, minutes) so far."""
    state, done = embedded.read_shards(common.CHECKPOINTS, "tower")
    if not state:
        warm_start(vision)
        return 0, 0.0
    vision.load_state_dict(embedded.part(state, "visual"))
    if heads:
        heads.load_state_dict(embedded.part(state, "heads"), strict=False)
    return int(done["step"]), float(done["minutes"])


def warm_start(vision: torch.nn.Module) -> None:
    """Starts from the shipped tower; layers that it has not are added so that they change nothing at first."""
    state = embedded.part(embedded.shipped_state(), "visual")
    vision.load_state_dict(state, strict=False)
    for index, block in enumerate(vision.blocks):
        if f"blocks.{index}.norm1.weight" not in state:
            for linear in (block.attn.proj, block.mlp.down_proj):
                torch.nn.init.zeros_(linear.weight)
                torch.nn.init.zeros_(linear.bias)


def optimizers_of(vision: torch.nn.Module, heads: Heads, rate: float = 1.0) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers (fewer images for the same loss), AdamW for the rest; ``rate`` times their rates."""
    matrices = [p for name, p in vision.named_parameters() if p.ndim == 2 and name.startswith("blocks.")]
    others = [p for name, p in vision.named_parameters() if not (p.ndim == 2 and name.startswith("blocks."))]
    rest = {"params": [*others, *heads.parameters()], "peak": rate * PEAK}
    return [
        Muon([{"params": matrices, "peak": rate * MUON_PEAK}], lr=MUON_PEAK, weight_decay=0.02),
        torch.optim.AdamW([rest], lr=PEAK, weight_decay=0.02, betas=(0.9, 0.98)),
    ]


def _save(vision, heads, optimizers, clock, step, before, lettered) -> None:
    common.save(
        "tower",
        {
            "visual": vision.state_dict(),
            "heads": heads.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in optimizers],
            "spent": clock.spent,
            "before": before,
            "step": step,
            "lettered": lettered,
        },
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=35)
    parser.add_argument("--batches", type=int, help="stop after this many batches (a smoke run)")
    parser.add_argument("--go-on", action="store_true", help="without runs/tower.pt, go on from what is committed")
    parser.add_argument("--letters", action="store_true", help="the first phase: only the characters of print")
    parser.add_argument("--rate", type=float, default=1.0, help="times the learning rates; 0.4 goes on gently")
    a = parser.parse_args()
    torch.set_num_threads(2)
    train(a.minutes, a.batches, a.batches is None, a.go_on, a.letters, a.rate)
