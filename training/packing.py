"""Batches of stage 2: scenes, their questions, and both packed into one sequence a picture.

One image carries several question-answer pairs: each attends to the image and to itself only, at the positions that a single
turn would have, so that the image is paid for once and nothing leaks between them.
"""

from collections import Counter
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import IterableDataset

from training import plain, questions, world
from training.train_tower import Targets, targets
from vlm.tokenizer import IM_END, VISION_START, Prompter

SEED = 12
PAIRS, ALIKE = 10, 2  # questions a picture, and of these of one kind with one answer
VISUAL_TOKENS, MOST_IMAGES = 512, 3  # a batch
VARIED_SHARE = 0.5  # of pictures whose pictograms may be turned and tinted
GAPPED_SHARE, GAP_SHARE, WIDEST_GAP = 0.5, 0.3, 4  # of pictures; of their rows and columns; in places
FOLLOW_UPS, PLAIN = 0.4, 0.4  # shares of pictures with a second turn, and with a question that is not about the picture
KIND_WEIGHTS = {
    "name": 1.5,
    "list": 2.5,
    "place": 2.5,
    "exist": 1.6,
    "count": 3.0,
    "where": 6.0,
    "relation": 2.0,
    "color": 0.4,
    "shape": 0.3,
    "read": 4.0,
    "chart": 6.0,
    "document": 6.0,
    "describe": 0.3,
}


@dataclass
class Batch:
    """ids, segment, labels, weights [B, L]; positions [3, B, L]; images uint8 [B, H, W, 3]; targets: of their tokens."""

    images: torch.Tensor
    ids: torch.Tensor
    segment: torch.Tensor
    labels: torch.Tensor
    weights: torch.Tensor
    positions: torch.Tensor
    targets: Targets


def pack(
    prompter: Prompter,
    scenes: list[world.Scene],
    pairs: list[list[questions.Question]],
    at: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> Batch:
    """Tokens of every image's question-answer pairs behind one shared prefix, padded to a multiple of 16.

    at: rotary positions of the visual tokens' rows and columns (:func:`gapped`), otherwise 0, 1, 2, ...
    """
    high, wide = scenes[0].labels.shape
    prefix = prompter.prefix([high * wide])
    start = prefix.index(VISION_START) + 1
    grid = torch.stack(torch.meshgrid(*(at or (torch.arange(high), torch.arange(wide))), indexing="ij")).flatten(1) + start
    after = int(grid.max()) + 1
    image = torch.cat([torch.full((1, high * wide), start), grid])
    head = torch.cat([torch.arange(start).expand(3, -1), image, torch.full((3, 1), after)], 1)
    rows = []
    for asked in pairs:
        ids, segment, labels, weights, place = list(prefix), [0] * len(prefix), [-100] * len(prefix), [0.0] * len(prefix), []
        for number, question in enumerate(asked, 1):
            context, answer = prompter.suffix(question.text, question.history), [*prompter.encode(question.answer), IM_END]
            ids += context + answer
            labels += [-100] * len(context) + answer
            # Half way between one vote per token and one per answer: lists are ten times as long as "Yes."
            weights += [0.0] * len(context) + [len(answer) ** -0.5] * len(answer)
            segment += [number] * (len(context) + len(answer))
            place += range(after + 1, after + 1 + len(context) + len(answer))
        rows.append((ids, segment, labels, weights, place))
    length = -(-max(len(row[0]) for row in rows) // 16) * 16
    ids, segment = torch.zeros(len(rows), length, dtype=torch.long), torch.full((len(rows), length), -1)
    labels, weights = torch.full((len(rows), length), -100), torch.zeros(len(rows), length)
    positions = torch.zeros(3, len(rows), length, dtype=torch.long)
    for index, row in enumerate(rows):
        size = len(row[0])
        for tensor, part in zip((ids, segment, labels, weights), row, strict=False):
            tensor[index, :size] = torch.tensor(part)
        positions[:, index, : len(prefix)] = head
        positions[:, index, len(prefix) : size] = torch.tensor(row[4])
    return Batch(
        images=torch.from_numpy(np.stack([s.image for s in scenes])),
        ids=ids,
        segment=segment,
        labels=labels,
        weights=weights,
        positions=positions,
        targets=targets(scenes),
    )


def first_visual(batch: Batch) -> int:
    """Where the image's tokens begin, in every row."""
    return int((batch.ids[0] == VISION_START).nonzero()[0]) + 1


def attention_mask(segment: torch.Tensor) -> torch.Tensor:
    """Additive [B, 1, L, L]: causal; the prefix (0) for all, a pair only for itself, padding (-1) only for padding."""
    rows, columns = segment[:, :, None], segment[:, None, :]
    length = segment.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    allowed = causal & ((columns == rows) | ((columns == 0) & (rows > 0)))
    return torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(torch.float32).min)[:, None]


def gapped(rng: np.random.Generator, count: int) -> torch.Tensor:
    """Rotary positions of ``count`` rows or columns, some of them further apart than 1.

    Seen so, what stands left or above is what it was, but no distance tells how far across the picture a token is: that is
    to be read from the token itself (vlm.words.NearWords.placed), which is all that a pruned picture leaves.
    """
    gaps = 1 + (rng.random(count - 1) < GAP_SHARE) * rng.integers(1, WIDEST_GAP, count - 1)
    return torch.from_numpy(np.concatenate([[0], gaps.cumsum()]))


class Examples(IterableDataset):
    """Endless batches of scenes with their questions."""

    def __init__(self, prompter: Prompter, start: int, seed: int = SEED) -> None:
        self.prompter, self.start, self.seed = prompter, start, seed

    def __iter__(self):
        index = self.start
        while True:
            rng = world.rng_for(self.seed, index)
            size = world.draw_size(rng)
            count = max(1, min(MOST_IMAGES, VISUAL_TOKENS // (size[0] * size[1] // world.CELL**2)))
            looks = [world.VARIED if rng.random() < VARIED_SHARE else world.TRAINING for _ in range(count)]
            scenes = [world.draw_any(rng, size, look) for look in looks]
            pairs = [pairs_of(rng, scene) for scene in scenes]
            grid = scenes[0].labels.shape
            at = tuple(gapped(rng, count) for count in grid) if rng.random() < GAPPED_SHARE else None
            yield vars(pack(self.prompter, scenes, pairs, at))
            index += 1


def pairs_of(rng: np.random.Generator, scene: world.Scene) -> list[questions.Question]:
    """PAIRS questions about one scene, kinds drawn by KIND_WEIGHTS among those that it allows."""
    kinds, weights = list(KIND_WEIGHTS), np.array(list(KIND_WEIGHTS.values()))
    asked: dict[str, questions.Question] = {}
    answers: Counter[tuple[str, str]] = Counter()
    for kind in rng.choice(kinds, size=6 * PAIRS, p=weights / weights.sum()):
        question = questions.ask(rng, scene, str(kind))
        if not question or question.text in asked or len(asked) == PAIRS:
            continue
        # The same answer to other words teaches little.
        answers[kind, question.answer] += 1
        if answers[kind, question.answer] <= ALIKE:
            asked[question.text] = question
    chosen = list(asked.values()) or [questions.Question("count", questions.COUNT[0], "Zero.")]
    if len(chosen) > 1 and rng.random() < FOLLOW_UPS:
        chosen[-1] = questions.follow_up(rng, scene, chosen[0], chosen[-1])
    if rng.random() < PLAIN:
        chosen.append(plain.pairs()[rng.integers(len(plain.pairs()))])
    return chosen
