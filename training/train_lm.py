"""Stage 2: teach the language model to answer from the tower's tokens. ``python -m training.train_lm --minutes 70``

SmolLM2 and the tower stay frozen; low-rank adapters on all matrices of the language model's layers learn.
One image carries several question-answer pairs: each attends to the image and to itself only, at the positions that a single
turn would have, so that the image is paid for once and nothing leaks between them. Resumes from runs/lm.pt.
"""

import argparse
from collections import Counter
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from training import common, plain, questions, tower, world
from training.train_tower import go_on, warm_start
from vlm import embedded
from vlm.tokenizer import IM_END, VISION_START, Prompter

SEED = 12
RANK, SCALE = 32, 2.0
PEAK = 1.5e-3
PAIRS, ALIKE = 16, 2  # questions a picture, and of these of one kind with one answer
VISUAL_TOKENS, MOST_IMAGES = 512, 3  # a batch
VARIED_SHARE = 0.5  # of pictures whose pictograms may be turned and tinted
PROBE_LAYER = 7
FOLLOW_UPS, PLAIN = 0.4, 0.4  # shares of pictures with a second turn, and with a question that is not about the picture
KIND_WEIGHTS = {
    "name": 1.0,
    "list": 1.2,
    "place": 2.0,
    "exist": 1.6,
    "count": 2.0,
    "where": 2.0,
    "relation": 2.0,
    "color": 0.8,
    "shape": 0.6,
    "read": 3.0,
    "chart": 6.0,
    "document": 6.0,
    "describe": 0.3,
}


class Adapter(nn.Module):
    """A frozen linear layer plus ``SCALE * B A x``."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.lora_a = nn.Parameter(torch.randn(RANK, base.in_features) / base.in_features**0.5)
        self.lora_b = nn.Parameter(torch.zeros(base.out_features, RANK))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base(x) + F.linear(F.linear(x, self.lora_a), self.lora_b * SCALE)


def attach_adapters(language: nn.Module) -> dict[str, Adapter]:
    """Replaces q, k, v, o, gate, up and down of every layer; returns the adapters by module name."""
    names = [name for name, module in language.layers.named_modules() if isinstance(module, nn.Linear)]
    adapters = {f"layers.{name}": Adapter(language.layers.get_submodule(name)) for name in names}
    for name, adapter in adapters.items():
        language.set_submodule(name, adapter)
    return adapters


def compile_layers(language: nn.Module) -> None:
    """All layers share one compiled forward for all lengths: a step takes 0.7 of its time."""

    def forward(layer: nn.Module, *arguments, **named):
        return type(layer).forward(layer, *arguments, **named)

    compiled = torch.compile(forward, dynamic=True)
    for layer in language.layers:
        layer.forward = partial(compiled, layer)


@dataclass
class Batch:
    """ids, segment, labels, weights [B, L]; positions [3, B, L]; images uint8 [B, H, W, 3]."""

    images: torch.Tensor
    ids: torch.Tensor
    segment: torch.Tensor
    labels: torch.Tensor
    weights: torch.Tensor
    positions: torch.Tensor


def pack(prompter: Prompter, scenes: list[world.Scene], pairs: list[list[questions.Question]]) -> Batch:
    """Tokens of every image's question-answer pairs behind one shared prefix, padded to a multiple of 16."""
    high, wide = scenes[0].labels.shape
    prefix = prompter.prefix([high * wide])
    start = prefix.index(VISION_START) + 1
    after = start + max(high, wide)
    grid = torch.stack(torch.meshgrid(torch.arange(high), torch.arange(wide), indexing="ij")).flatten(1) + start
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
            yield vars(pack(self.prompter, scenes, [pairs_of(rng, scene) for scene in scenes]))
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


class Student(nn.Module):
    """The model in training form: frozen tower, adapters, and a probe for positions."""

    def __init__(self) -> None:
        super().__init__()
        model, self.prompter = embedded.open_text_model()
        # The plain product: SDPA's backward is twice as slow on a CPU at these lengths.
        model.set_attn_implementation("eager")
        language = model.model.language_model.requires_grad_(False)
        self.vision, self.language = model.model.visual.requires_grad_(False), language
        self.adapters = attach_adapters(language)
        if common.autocast_dtype() is not torch.float32:
            # What never changes is cast once, not at every step.
            for frozen in (language.embed_tokens, *(adapter.base for adapter in self.adapters.values())):
                frozen.to(common.autocast_dtype())
        self.probe = nn.Linear(576, 6)
        self.seen: torch.Tensor | None = None
        language.layers[PROBE_LAYER].register_forward_hook(self._see)

    def _see(self, module: nn.Module, inputs: tuple, output) -> None:
        self.seen = output[0] if isinstance(output, tuple) else output

    def trained(self) -> dict[str, nn.Parameter]:
        """Parameters of the language side by the names under which they are shipped."""
        named = {"probe.weight": self.probe.weight, "probe.bias": self.probe.bias}
        for name, adapter in self.adapters.items():
            named |= {f"{name}.lora_a": adapter.lora_a, f"{name}.lora_b": adapter.lora_b}
        return named

    def forward(self, batch: Batch) -> dict[str, torch.Tensor]:
        tokens = tower.forward(self.vision, tower.normalise(batch.images))[0]
        answers, right = self.answers(batch, tokens, attention_mask(batch.segment))
        start, count = first_visual(batch), tokens.shape[1] * tokens.shape[2]
        positions = self._positions(self.seen[:, start : start + count], tokens.shape[1:3])
        return {"answers": answers, "positions": positions, "right": right}

    def answers(self, batch: Batch, tokens: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Cross-entropy of the answers, and the share of their tokens that are right.

        tokens: [B, rows, columns, D], in place of the prompt's image tokens; mask: additive [B, 1, L, L].
        """
        start, count = first_visual(batch), tokens.shape[1] * tokens.shape[2]
        embeds = F.embedding(batch.ids, self.language.embed_tokens.weight).float()
        embeds = torch.cat([embeds[:, :start], tokens.flatten(1, 2), embeds[:, start + count :]], 1)
        hidden = self.language(
            inputs_embeds=embeds,
            position_ids=batch.positions,
            attention_mask=mask,
            use_cache=False,
        ).last_hidden_state
        wanted = batch.labels[:, 1:] >= 0
        logits = F.linear(hidden[:, :-1][wanted], self.language.embed_tokens.weight)
        target = batch.labels[:, 1:][wanted]
        weights = batch.weights[:, 1:][wanted]
        loss = (F.cross_entropy(logits, target, reduction="none") * weights).sum() / weights.sum()
        return loss, (logits.argmax(-1) == target).float().mean()

    def _positions(self, hidden: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        """Cross-entropy of reading off a token's third of the height and of the width after PROBE_LAYER."""
        high, wide = grid
        thirds = torch.stack(
            torch.meshgrid(
                (torch.arange(high) * 2 + 1) * 3 // (2 * high),
                (torch.arange(wide) * 2 + 1) * 3 // (2 * wide),
                indexing="ij",
            )
        ).flatten(1)
        logits = self.probe(hidden).unflatten(-1, (2, 3))
        target = thirds.T.expand(len(hidden), -1, -1)
        return F.cross_entropy(logits.flatten(0, 2), target.flatten())


def load_shipped(student: Student) -> None:
    """Starts from ``assets/model``: what a machine without ``runs/`` goes on from. The probe starts anew."""
    state = embedded.shipped_state()
    warm_start(student.vision)
    for name, parameter in student.trained().items():
        # Shipped adapters of a lower rank fill the first rows of A and columns of B; the other columns of B are zero: no change.
        if name.endswith(".lora_a") and name in state:
            parameter.data[: len(state[name])] = state[name]
        elif name in state:
            parameter.data[:, : state[name].shape[1]] = state[name] / SCALE


def load_checkpoint(trained: dict[str, nn.Parameter]) -> tuple[int, float]:
    """Fills the language side from the committed checkpoint of this stage, or else leaves it. Returns (steps, minutes) so far."""
    state, done = embedded.read_shards(common.CHECKPOINTS, "lm")
    for name, tensor in state.items():
        trained[name].data.copy_(tensor)
    return (int(done["step"]), float(done["minutes"])) if state else (embedded.card()["steps"], embedded.card()["minutes"])


def train(
    minutes: float, batches: int | None = None, from_shipped: bool = False, compiled: bool = False, rate: float = 1.0
) -> None:
    """Trains for ``minutes`` in total over all runs (or ``batches`` more batches) and leaves runs/lm.pt.

    rate: times the learning rates.
    """
    torch.manual_seed(SEED)
    student = Student()
    if compiled:
        compile_layers(student.language)
    trained = student.trained()
    optimizer = torch.optim.AdamW(trained.values(), weight_decay=0.0, betas=(0.9, 0.98))
    clock, step, before = common.Clock(minutes * 60), 0, 0.0
    if saved := common.load("lm"):
        for name, tensor in saved["language"].items():
            trained[name].data.copy_(tensor)
        optimizer.load_state_dict(saved["optimizer"])
        clock, step = common.Clock(minutes * 60, saved["spent"]), saved["step"]
        before = saved["before"]
    elif from_shipped:
        load_shipped(student)
        step, before = load_checkpoint(trained)
        if (saved := common.load("tower")) is None:
            go_on(student.vision)
    elif (saved := common.load("tower")) is None:
        raise SystemExit("runs/tower.pt is missing: run `python -m training.train_tower` first.")
    if saved:
        student.vision.load_state_dict(saved["visual"])
    loader = DataLoader(Examples(student.prompter, step), batch_size=None, num_workers=1, prefetch_factor=4)
    last_saved, seen = clock.spent, []
    for raw in loader:
        progress = clock.tick()
        if progress >= 1 or (batches is not None and batches <= 0):
            break
        batches = None if batches is None else batches - 1
        for group in optimizer.param_groups:
            group["lr"] = common.cosine(progress, rate * PEAK)
        with common.autocast():
            terms = student(Batch(**raw))
        optimizer.zero_grad(set_to_none=True)
        (terms["answers"] + 0.2 * terms["positions"]).backward()
        torch.nn.utils.clip_grad_norm_(trained.values(), 1.0)
        optimizer.step()
        step += 1
        seen.append({name: value.item() for name, value in terms.items()})
        if step % 20 == 0:
            common.log("lm", step=step, minutes=clock.spent / 60, **common.means(seen))
            seen = []
        if clock.spent - last_saved > 180:
            _save(student, optimizer, clock, step, before)
            last_saved = clock.spent
    _save(student, optimizer, clock, step, before)


def _save(student: Student, optimizer: torch.optim.Optimizer, clock: common.Clock, step: int, before: float) -> None:
    common.save(
        "lm",
        {
            "visual": student.vision.state_dict(),
            "language": {name: parameter.data for name, parameter in student.trained().items()},
            "optimizer": optimizer.state_dict(),
            "spent": clock.spent,
            "before": before,
            "step": step,
        },
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=70)
    parser.add_argument("--batches", type=int, help="stop after this many batches (a smoke run)")
    parser.add_argument("--from-shipped", action="store_true", help="without runs/lm.pt, go on from assets/model")
    parser.add_argument("--rate", type=float, default=1.0, help="times the learning rates; 0.4 goes on gently")
    a = parser.parse_args()
    torch.set_num_threads(2)
    train(a.minutes, a.batches, a.from_shipped, a.batches is None, a.rate)
