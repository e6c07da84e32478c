"""Stage 2: teach the language model to answer from the tower's tokens. ``python -m training.train_lm --minutes 70``

SmolLM2 stays frozen; low-rank adapters on all matrices of the language model's layers learn, and the tower goes on slowly, by the
answers and by stage 1's loss together. Resumes from runs/lm.pt.
"""

import argparse
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader

from training import common, tower
from training.packing import SEED, Batch, Examples, attention_mask, first_visual
from training.train_tower import Heads, go_on, optimizers_of, warm_start
from vlm import embedded
from vlm.words import NearWords, thirds

RANK, SCALE = 32, 2.0
PEAK = 1.5e-3
TOWER_RATE, TOWER_WEIGHT = 0.1, 0.5  # of stage 1's learning rates, and of its loss
PROBE_LAYER = 7


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


class Student(nn.Module):
    """The model in training form: the tower with the heads of stage 1, adapters, and a probe for positions."""

    def __init__(self) -> None:
        super().__init__()
        model, self.prompter = embedded.open_text_model()
        # The plain product: SDPA's backward is twice as slow on a CPU at these lengths.
        model.set_attn_implementation("eager")
        language = model.model.language_model.requires_grad_(False)
        self.vision, self.language = model.model.visual, language
        self.heads = Heads(common.words_of(language, self.prompter))
        self.words = NearWords(**vars(self.heads.words))
        self.run_block = None
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

    def merge_adapters(self) -> None:
        """Adds the adapters to the layers that they adapt, for good: for a model that learns no more."""
        with torch.no_grad():
            for name, adapter in self.adapters.items():
                adapter.base.weight += (SCALE * adapter.lora_b @ adapter.lora_a).to(adapter.base.weight.dtype)
                self.language.set_submodule(name, adapter.base)
        self.adapters = {}

    def see(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """uint8 [B, H, W, 3] -> the tower's tokens, its patches half way (tower.forward), the language model's visual tokens."""
        tokens, half = tower.forward(self.vision, tower.normalise(images), self.run_block)
        return tokens, half, self.words.placed(self.words(tokens))

    def forward(self, batch: Batch) -> dict[str, torch.Tensor]:
        tokens, half, visual = self.see(batch.images)
        answers, right = self.answers(batch, visual, attention_mask(batch.segment))
        start, count = first_visual(batch), tokens.shape[1] * tokens.shape[2]
        positions = self._positions(self.seen[:, start : start + count], tokens.shape[1:3])
        seen = self.heads(tokens, half, batch.targets)
        loss = answers + 0.2 * positions + TOWER_WEIGHT * seen.pop("loss")
        return {"loss": loss, "answers": answers, "positions": positions, "right": right, **seen}

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
        target = torch.cartesian_prod(*(thirds(count).argmax(-1) for count in grid)).expand(len(hidden), -1, -1)
        logits = self.probe(hidden).unflatten(-1, (2, 3))
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
        student.run_block = tower.compiled_block(dynamic=True)
    trained = student.trained()
    optimizers = [torch.optim.AdamW([{"params": list(trained.values()), "peak": PEAK}], weight_decay=0.0, betas=(0.9, 0.98))]
    optimizers += optimizers_of(student.vision, student.heads, TOWER_RATE)
    clock, step, before = common.Clock(minutes * 60), 0, 0.0
    if saved := common.load("lm"):
        for name, tensor in saved["language"].items():
            trained[name].data.copy_(tensor)
        for optimizer, state in zip(optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        clock, step, before = common.Clock(minutes * 60, saved["spent"]), saved["step"], saved["before"]
    elif from_shipped:
        load_shipped(student)
        step, before = load_checkpoint(trained)
    stage_1 = common.load("tower")
    if found := saved or stage_1:
        student.vision.load_state_dict(found["visual"])
        student.heads.load_state_dict(found["heads"])
    elif from_shipped:
        steps, spent = go_on(student.vision, student.heads)
        stage_1 = {"step": steps, "before": spent, "spent": 0.0, "lettered": True}
    else:
        raise SystemExit("runs/tower.pt is missing: run `python -m training.train_tower` first.")
    loader = DataLoader(Examples(student.prompter, step), batch_size=None, num_workers=1, prefetch_factor=4)
    last_saved, seen = clock.spent, []
    for raw in loader:
        progress = clock.tick()
        if progress >= 1 or (batches is not None and batches <= 0):
            break
        batches = None if batches is None else batches - 1
        with common.autocast():
            terms = student(Batch(**raw))
        terms["loss"].backward()
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = common.cosine(progress, rate * group["peak"])
                torch.nn.utils.clip_grad_norm_(group["params"], 1.0)
            with common.autocast():
                optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        step += 1
        seen.append({name: value.item() for name, value in terms.items()})
        if step % 20 == 0:
            common.log("lm", step=step, minutes=clock.spent / 60, **common.means(seen))
            seen = []
        if clock.spent - last_saved > 180:
            _save(student, optimizers, clock, step, before)
            last_saved = clock.spent
    _save(student, optimizers, clock, step, before)
    if stage_1:
        # Stage 1 would go on from the tower as it is now, not as it left it.
        common.save("tower", stage_1 | {"optimizers": [], **_tower(student)})


def _tower(student: Student) -> dict:
    return {"visual": student.vision.state_dict(), "heads": student.heads.state_dict()}


def _save(student: Student, optimizers: list, clock: common.Clock, step: int, before: float) -> None:
    common.save(
        "lm",
        {
            **_tower(student),
            "language": {name: parameter.data for name, parameter in student.trained().items()},
            "optimizers": [optimizer.state_dict() for optimizer in optimizers],
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
