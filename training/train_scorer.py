"""Stage 3: teach a scorer which visual tokens the answers need. ``python -m training.train_scorer --minutes 20``

The model of stage 2 is frozen; the only thing that learns is VisionSelector's scorer (arXiv 2510.16598), through a differentiable
top-K: w = sigmoid(score + t), with t such that the w of an image sum to K. VisionSelector multiplies the tokens by w. Here log w
is added to the attention that a token receives: at w = 0 that is exactly the pruned prompt, where a zero vector would still take
its share of attention, and in between no token becomes a vector that the model never saw. Resumes from runs/scorer.pt; ends by
writing assets/model/scorer.safetensors.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import DataLoader

from pruning.scorers.trained import FILE, ScorerWeights
from training import common, tower
from training.packing import Batch, Examples, attention_mask, first_visual
from training.train_lm import Student, compile_layers, load_shipped
from vlm.embedded import MODEL_DIR

SEED = 13
HIDDEN = 144
PEAK = 1e-3
# The share of tokens that stays falls geometrically from the first to the second over the first MIXED_FROM of the training; from
# then on every batch draws one in between, so that one scorer serves all budgets.
KEEP, MIXED_FROM = (0.8, 0.1), 0.6
# The width of the sigmoid in standard deviations of an image's scores: from soft, where every token has a say, to nearly a cut.
# Overfitting four batches at a tenth of the tokens took the loss of the real cut from 0.55 to 0.37; from 0.2 to 0.02, only to 0.50.
SOFTNESS = (0.5, 0.05)


class Threshold(torch.autograd.Function):
    """t [B, 1] with sum_i sigmoid(scores_i + t) = k, for scores [B, N] and 0 < k < N, with its exact gradient.

    Deriving the sum by s_i gives v_i + sum_j v_j dt/ds_i = 0 with v = sigmoid', so dt/ds = -v / sum(v).
    """

    @staticmethod
    def forward(ctx, scores: torch.Tensor, k: float) -> torch.Tensor:
        if not 0 < k < scores.shape[1]:
            raise ValueError(f"k must lie between 0 and {scores.shape[1]}, both excluded, got {k}.")
        wide = scores.double()
        # If every token had the share k / N, its logit would be this; t lies between what the extremes lack of it.
        level = torch.logit(torch.tensor(k / scores.shape[1], dtype=torch.float64))
        low, high = level - wide.amax(1, keepdim=True), level - wide.amin(1, keepdim=True)
        for _ in range(60):
            middle = (low + high) / 2
            short = torch.sigmoid(wide + middle).sum(1, keepdim=True) < k
            low, high = torch.where(short, middle, low), torch.where(short, high, middle)
        t = ((low + high) / 2).to(scores)
        ctx.save_for_backward(scores, t)
        return t

    @staticmethod
    def backward(ctx, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        scores, t = ctx.saved_tensors
        x = scores + t
        # v / sum(v) as a softmax of log v: where all are saturated, every v may be zero.
        return -grad * (F.logsigmoid(x) + F.logsigmoid(-x)).softmax(1), None


def log_soft_top_k(scores: torch.Tensor, k: float, softness: float) -> torch.Tensor:
    """log w [B, N] <= 0, where w sums to k in every row; scores: [B, N], of which only the differences within a row count.

    Scores are standardised first: else the scorer could stay soft, and every token half visible, by scoring small.
    """
    x = (scores - scores.mean(1, keepdim=True)) / scores.std(1, keepdim=True).clamp_min(1e-6) / softness
    return F.logsigmoid(x + Threshold.apply(x, k))


class Scorer(nn.Module):
    """The weights that learn, under the names of the file."""

    def __init__(self, width: int, hidden: int = HIDDEN) -> None:
        super().__init__()
        self.q_proj, self.k_proj = nn.Linear(width, hidden), nn.Linear(width, hidden)
        nn.init.normal_(self.k_proj.weight, std=width**-0.5)
        # q = -k scores nearly -x . mean(x): on real tokens it correlates 0.95 with the training-free score that it has to beat.
        self.q_proj.weight.data.copy_(-self.k_proj.weight.data)
        nn.init.zeros_(self.k_proj.bias)
        # Adds the same to all tokens of an image, so its gradient is rounding noise, of which AdamW would make steps.
        nn.init.zeros_(self.q_proj.bias).requires_grad_(False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Scores [B, N] of tokens [B, N, D], by the code that prunes."""
        return ScorerWeights(self.q_proj.weight, self.q_proj.bias, self.k_proj.weight, self.k_proj.bias).score(tokens)


def budget(progress: float, step: int) -> float:
    """The share of tokens that stays in batch ``step``, whose scenes come from another generator."""
    mild, hard = KEEP
    share = progress / MIXED_FROM if progress < MIXED_FROM else np.random.default_rng((SEED, step, 1)).random()
    return mild * (hard / mild) ** share


def pruned_loss(student: Student, scorer: Scorer, batch: Batch, keep: float, softness: float) -> dict[str, torch.Tensor]:
    """Cross-entropy of the answers at the budget ``keep``, the share of their tokens that are right, the mean of min(w, 1 - w)."""
    with torch.no_grad(), common.autocast():
        tokens = student.see(batch.images)[2].float()
    count = tokens.shape[1] * tokens.shape[2]
    log_w = log_soft_top_k(scorer(tokens.flatten(1, 2)), min(max(1, round(keep * count)), count - 1), softness)
    start = first_visual(batch)
    received = F.pad(log_w, (start, batch.ids.shape[1] - start - count))
    with common.autocast():
        answers, right = student.answers(batch, tokens, attention_mask(batch.segment) + received[:, None, None])
    w = log_w.detach().exp()
    return {"answers": answers, "right": right, "between": torch.minimum(w, 1 - w).mean()}


def frozen_student(compiled: bool = False) -> Student:
    """The model of runs/lm.pt, or else the shipped one; nothing in it learns, so its adapters are merged."""
    student = Student()
    if saved := common.load("lm"):
        student.vision.load_state_dict(saved["visual"])
        trained = student.trained()
        for name, tensor in saved["language"].items():
            trained[name].data.copy_(tensor)
    else:
        load_shipped(student)
    student.merge_adapters()
    if compiled:
        compile_layers(student.language)
        student.run_block = tower.compiled_block(dynamic=True)
    return student.requires_grad_(False).eval()


def train(minutes: float, batches: int | None = None, target: Path | None = None) -> None:
    """Trains for ``minutes`` in total over all runs (or ``batches`` more batches), leaves runs/scorer.pt and the exported file.

    target: the exported file; by default the shipped one, and with ``batches`` one in runs/, as such a run is only a try.
    """
    torch.manual_seed(SEED)
    student = frozen_student(compiled=batches is None)
    scorer = Scorer(student.vision.config.out_hidden_size)
    optimizer = torch.optim.AdamW([p for p in scorer.parameters() if p.requires_grad], weight_decay=0.0, betas=(0.9, 0.98))
    clock, step = common.Clock(minutes * 60), 0
    if saved := common.load("scorer"):
        scorer.load_state_dict(saved["scorer"])
        optimizer.load_state_dict(saved["optimizer"])
        clock, step = common.Clock(minutes * 60, saved["spent"]), saved["step"]
    target = target or (MODEL_DIR if batches is None else common.RUNS) / FILE
    loader = DataLoader(Examples(student.prompter, step, SEED), batch_size=None, num_workers=1, prefetch_factor=4)
    last_saved, sums = clock.spent, {}
    for raw in loader:
        progress = clock.tick()
        if progress >= 1 or (batches is not None and batches <= 0):
            break
        batches = None if batches is None else batches - 1
        for group in optimizer.param_groups:
            group["lr"] = common.cosine(progress, PEAK)
        keep = budget(progress, step)
        terms = pruned_loss(student, scorer, Batch(**raw), keep, SOFTNESS[0] * (SOFTNESS[1] / SOFTNESS[0]) ** progress)
        optimizer.zero_grad(set_to_none=True)
        terms["answers"].backward()
        torch.nn.utils.clip_grad_norm_(scorer.parameters(), 1.0)
        optimizer.step()
        step += 1
        terms["keep"] = torch.tensor(keep)
        sums = {name: sums.get(name, 0.0) + value.item() for name, value in terms.items()}
        if step % 20 == 0:
            common.log("scorer", step=step, minutes=clock.spent / 60, **{name: value / 20 for name, value in sums.items()})
            sums = {}
        if clock.spent - last_saved > 180:
            _save(scorer, optimizer, clock, step)
            last_saved = clock.spent
    _save(scorer, optimizer, clock, step)
    export(scorer, target)


def _save(scorer: Scorer, optimizer: torch.optim.Optimizer, clock: common.Clock, step: int) -> None:
    state = {"scorer": scorer.state_dict(), "optimizer": optimizer.state_dict(), "spent": clock.spent, "step": step}
    common.save("scorer", state)


def export(scorer: Scorer, target: Path) -> None:
    """Writes the scorer in float16, in VisionSelector's form."""
    target.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.half().contiguous() for name, tensor in scorer.state_dict().items()}, target)
    print(f"{target}: {target.stat().st_size} bytes")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--batches", type=int, help="stop after this many batches and export to runs/ (a smoke run)")
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    train(arguments.minutes, arguments.batches)
