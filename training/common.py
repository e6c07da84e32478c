"""What both stages share: word directions, time-based schedules, checkpoints that a killed run resumes from."""

import json
import math
import os
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from training import lettering, world
from vlm import device
from vlm.tokenizer import Prompter

RUNS = Path(os.environ.get("TRIMLENS_RUNS", Path(__file__).resolve().parent.parent / "runs"))

CHECKPOINTS = Path(__file__).with_name("checkpoints")
SHARD_BYTES = 9_500_000


@dataclass(frozen=True)
class Words:
    """As :class:`vlm.words.NearWords` takes them. norm: the typical length of an embedding less the mean."""

    directions: torch.Tensor
    mean: torch.Tensor
    norm: torch.Tensor
    marker: torch.Tensor
    places: torch.Tensor


def word_directions(embedding: torch.Tensor, encode) -> Words:
    """Where each class of the world lies among the language model's word embeddings [V, D].

    A class of two words (" red", " circle"; " text", " open") is the normalised sum of both; ``marker`` (" one") flags the cell
    that holds an item's centre, so that items can be counted. Digits are nearly one vector: how each differs from their mean counts
    as a word of its own; the second of two in one cell is turned aside, so that 46 is not 64.
    Raises ValueError where a word is more than one token: two with one beginning could not be told apart.
    """
    mean = embedding.mean(0)
    unit = partial(torch.nn.functional.normalize, dim=-1)

    def vector(text: str) -> torch.Tensor:
        if len(encode(text)) != 1:
            raise ValueError(f"{text!r} is {len(encode(text))} tokens of the language model, but a visual token can only be one")
        return embedding[encode(text)[0]]

    digits = torch.stack([vector(digit) for digit in "0123456789"]).mean(0)

    def direction(name: str) -> torch.Tensor:
        kind, _, written = name.partition(" ")
        if kind != "text":
            return unit(sum(unit(vector(f" {part}") - mean) for part in name.split()))
        # Half of what all that is written shares: enough to tell it from the thing, and words stay far from one another.
        shared = 0.5 * unit(vector(" text") - mean)
        if written.isdigit():
            first, *second = (unit(vector(digit) - digits) for digit in written)
            aside = [torch.roll(digit, len(digit) // 2) for digit in second]
            return unit(sum(aside, shared + 0.5 * unit(digits - mean) + first))
        return unit(shared + unit(vector(f" {lettering.spelled(written)}") - mean))

    marker = direction("one")

    def places(names: tuple[str, ...]) -> torch.Tensor:
        # Words of one axis are much alike: how each differs from their mean counts, and nothing of what marks items.
        words = torch.stack([vector(f" {name}") for name in names])
        words = unit(words - words.mean(0))
        return unit(words - (words @ marker)[:, None] * marker)

    directions = torch.stack([direction(name) for name in world.classes()])
    norm = (embedding - mean).norm(dim=1).median()
    return Words(directions, mean, norm, marker, torch.cat([places(world.ROWS), places(world.COLUMNS)]))


def words_of(language: torch.nn.Module, prompter: Prompter) -> Words:
    """:func:`word_directions` of a language model as it is opened, its embeddings not yet cast."""
    return word_directions(language.embed_tokens.weight.detach(), prompter.encode)


@dataclass
class Clock:
    """Training time in seconds over all runs of a stage, against its budget."""

    budget: float
    spent: float = 0.0

    def __post_init__(self) -> None:
        self.began = time.perf_counter() - self.spent

    def tick(self) -> float:
        """Progress in 0..1; sleeping (a stopped process) counts as time, so a budget is never overrun by much."""
        self.spent = time.perf_counter() - self.began
        return min(1.0, self.spent / self.budget)


def cosine(progress: float, peak: float, warmup: float = 0.02, floor: float = 0.02) -> float:
    """Learning rate at ``progress``: linear warm-up, then half a cosine down to ``floor`` of the peak."""
    if progress < warmup:
        return peak * max(progress / warmup, 0.01)
    t = (progress - warmup) / (1 - warmup)
    return peak * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * t)))


def autocast_dtype() -> torch.dtype:
    """What matrix products are computed in: bfloat16 where that is measured to be faster for many rows at once."""
    return device.many_rows_dtype()


def autocast() -> torch.autocast:
    """Matrix products in :func:`autocast_dtype`; parameters, losses and the optimiser stay float32."""
    return torch.autocast("cpu", torch.bfloat16, enabled=autocast_dtype() is torch.bfloat16)


def means(seen: list[dict[str, float]]) -> dict[str, float]:
    """Mean of every term over some batches; a term that a batch has nothing of (nan) is left out of its mean."""
    return {name: float(np.nanmean([terms[name] for terms in seen])) for name in seen[0]}


def save(name: str, state: dict) -> None:
    """Writes a checkpoint so that a cut at any moment leaves the old one or the new one."""
    RUNS.mkdir(parents=True, exist_ok=True)
    temporary = RUNS / f"{name}.tmp"
    torch.save(state, temporary)
    temporary.replace(RUNS / f"{name}.pt")


def load(name: str) -> dict | None:
    """The checkpoint, or None."""
    path = RUNS / f"{name}.pt"
    return torch.load(path, weights_only=True) if path.exists() else None


def write_shards(folder: Path, stem: str, state: dict[str, torch.Tensor], about: dict[str, str] | None = None) -> int:
    """Writes float16 tensors as ``<stem>-<n>.safetensors`` of less than 10 MB, ``about`` in each. Returns their bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob(f"{stem}-*.safetensors"):
        old.unlink()
    shards, size = [{}], 0
    for name in sorted(state):
        tensor = state[name].half().contiguous()
        if size + tensor.nbytes > SHARD_BYTES:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.nbytes
    for number, shard in enumerate(shards, 1):
        save_file(shard, folder / f"{stem}-{number}.safetensors", about)
    return sum(path.stat().st_size for path in folder.glob(f"{stem}-*.safetensors"))


def log(name: str, **values: float) -> None:
    """Appends one JSON line to runs/<name>.jsonl and prints it."""
    RUNS.mkdir(parents=True, exist_ok=True)
    line = json.dumps({key: round(value, 4) if isinstance(value, float) else value for key, value in values.items()})
    print(line, flush=True)
    with (RUNS / f"{name}.jsonl").open("a") as file:
        file.write(line + "\n")
