"""Stage 1: teach the vision tower the words. ``python -m training.train_tower --minutes 35``

Every visual token is classified by its cosine with the language model's own word embeddings (" cat"; " red" + " circle";
" background"), so that what the tower sends to the language model already nearly is a word. Aligning the tower before any
language model runs was decisive in the pilot (training/README.md). Resumes from runs/tower.pt.
"""

import argparse

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, IterableDataset

from training import common, tower, world
from training.muon import Muon
from vlm import embedded

SEED = 11
TOKENS = 1024  # visual tokens a batch
CENTRE = 1
PEAK, MUON_PEAK = 2e-3, 5e-3


class Scenes(IterableDataset):
    """Endless batches (images uint8 [B, H, W, 3], labels [B, gh, gw], centres [B, gh, gw]); one size a batch."""

    def __init__(self, start: int, sizes: tuple[tuple[int, int], ...], weights: tuple[float, ...]) -> None:
        self.start, self.sizes, self.weights = start, sizes, np.array(weights) / sum(weights)

    def __iter__(self):
        index = self.start
        while True:
            rng = world.rng_for(SEED, index)
            size = self.sizes[rng.choice(len(self.sizes), p=self.weights)]
            cells = size[0] * size[1] // world.CELL**2
            scenes = [
                world.draw(rng, size, count=min(10, int(rng.integers(1, 8) * cells / 64) + 1), smallest=48)
                for _ in range(TOKENS // cells)
            ]
            yield (
                torch.from_numpy(np.stack([s.image for s in scenes])),
                torch.from_numpy(np.stack([s.labels for s in scenes])),
                torch.from_numpy(np.stack([centres(s) for s in scenes])),
                index,
            )
            index += 1


def centres(scene: world.Scene) -> np.ndarray:
    """float32 [gh, gw]: CENTRE in the cell that holds an item's centre, else 0."""
    high, wide = scene.labels.shape
    out = np.zeros((high, wide), np.float32)
    for item in scene.items:
        out[int(item.y * high), int(item.x * wide)] = CENTRE
    return out


class Heads(torch.nn.Module):
    """The loss of stage 1: word classes by cosine, item centres by the cosine with the marker, and the length of a word."""

    def __init__(self, words: common.Words) -> None:
        super().__init__()
        self.words = words
        self.scale = torch.nn.Parameter(torch.tensor(2.5))
        self.marker_scale = torch.nn.Parameter(torch.tensor(2.0))
        self.marker_bias = torch.nn.Parameter(torch.tensor(-3.0))

    def forward(self, tokens: torch.Tensor, labels: torch.Tensor, centre: torch.Tensor):
        """tokens [B, gh, gw, D], labels [B, gh, gw] -> loss, predicted class [B, gh, gw]."""
        centred = tokens - self.words.mean
        length = centred.norm(dim=-1)
        unit = centred / (length[..., None] + 1e-6)
        logits = self.scale.exp() * unit @ self.words.directions.T
        weight = torch.ones(len(world.classes()))
        weight[world.BACKGROUND] = 0.25
        naming = F.cross_entropy(logits.flatten(0, 2), labels.flatten(), weight, ignore_index=world.IGNORE)
        flag = self.marker_scale.exp() * (unit @ self.words.marker) + self.marker_bias
        counting = F.binary_cross_entropy_with_logits(flag, centre)
        size = ((length / self.words.norm - 1) ** 2).mean()
        return naming + 2 * counting + 0.1 * size, logits.argmax(-1)


def train(minutes: float, batches: int | None = None, compiled: bool = True) -> None:
    """Trains for ``minutes`` in total over all runs (or ``batches`` more batches) and leaves runs/tower.pt."""
    torch.manual_seed(SEED)
    text, prompter = embedded.open_text_model()
    words = common.word_directions(text.model.language_model.embed_tokens.weight.detach(), prompter.encode)
    vision, heads = text.model.visual.train(), Heads(words)
    del text
    with torch.no_grad():
        vision.merger.mlp[2].bias.copy_(words.mean)
    parameters = [*vision.parameters(), *heads.parameters()]
    optimizers = _optimizers(vision, heads)
    clock, step = common.Clock(minutes * 60), 0
    if saved := common.load("tower"):
        vision.load_state_dict(saved["visual"])
        heads.load_state_dict(saved["heads"])
        for optimizer, state in zip(optimizers, saved["optimizers"] or [], strict=False):
            optimizer.load_state_dict(state)
        clock, step = common.Clock(minutes * 60, saved["spent"]), saved["step"]
    run_block = tower.compiled_block() if compiled else None
    # With 1024 tokens a batch these sizes share the shape of their window layers, so that little is compiled.
    sizes = ((224, 224), (224, 448), (448, 224), (448, 448))
    loader = DataLoader(Scenes(step, sizes, (0.76, 0.08, 0.08, 0.08)), batch_size=None, num_workers=1, prefetch_factor=3)
    last_saved, right, cells, seen = clock.spent, 0, 0, 0.0
    for images, labels, centre, _ in loader:
        progress = clock.tick()
        if progress >= 1 or (batches is not None and batches <= 0):
            break
        batches = None if batches is None else batches - 1
        for group in (group for optimizer in optimizers for group in optimizer.param_groups):
            group["lr"] = common.cosine(progress, group["peak"])
        loss, predicted = heads(tower.forward(vision, tower.normalise(images), run_block), labels, centre)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        step += 1
        things = labels > 0
        right += (predicted[things] == labels[things]).sum().item()
        cells += things.sum().item()
        seen += loss.item()
        if step % 25 == 0:
            common.log("tower", step=step, minutes=clock.spent / 60, loss=seen / 25, cells=right / max(cells, 1))
            right, cells, seen = 0, 0, 0.0
        if clock.spent - last_saved > 120:
            _save(vision, heads, optimizers, clock, step)
            last_saved = clock.spent
    _save(vision, heads, optimizers, clock, step)


def _optimizers(vision: torch.nn.Module, heads: Heads) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers (fewer images for the same loss), AdamW for the rest."""
    matrices = [p for name, p in vision.named_parameters() if p.ndim == 2 and name.startswith("blocks.")]
    others = [p for name, p in vision.named_parameters() if not (p.ndim == 2 and name.startswith("blocks."))]
    rest = {"params": [*others, *heads.parameters()], "peak": PEAK}
    return [
        Muon([{"params": matrices, "peak": MUON_PEAK}], lr=MUON_PEAK, weight_decay=0.02),
        torch.optim.AdamW([rest], lr=PEAK, weight_decay=0.02, betas=(0.9, 0.98)),
    ]


def _save(vision, heads, optimizers, clock, step) -> None:
    common.save(
        "tower",
        {
            "visual": vision.state_dict(),
            "heads": heads.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in optimizers],
            "spent": clock.spent,
            "step": step,
        },
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=35)
    parser.add_argument("--batches", type=int, help="stop after this many batches (a smoke run)")
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    train(arguments.minutes, arguments.batches, compiled=arguments.batches is None)
