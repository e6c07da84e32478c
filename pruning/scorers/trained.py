"""Importance as a small network learned it, and how its weights are read."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from pruning.scorers.base import Scorer
from pruning.tokens import VisualTokens

FILE = "scorer.safetensors"  # beside a model's weights
# Field of ScorerWeights -> its name in a file; the names are VisionSelector's own.
NAMES = {"q_weight": "q_proj.weight", "q_bias": "q_proj.bias", "k_weight": "k_proj.weight", "k_bias": "k_proj.bias"}


@dataclass(frozen=True, eq=False)
class ScorerWeights:
    """q_weight, k_weight: [h, D]; q_bias, k_bias: [h]; one floating type, one device, all finite.

    Raises ValueError when a shape, type or value is wrong.
    """

    q_weight: torch.Tensor
    q_bias: torch.Tensor
    k_weight: torch.Tensor
    k_bias: torch.Tensor

    def __post_init__(self) -> None:
        parts = {NAMES[field.name]: getattr(self, field.name) for field in fields(self)}
        shapes = [tuple(part.shape) for part in parts.values()]
        weight = shapes[0]
        if len(weight) != 2 or 0 in weight or shapes != [weight, weight[:1]] * 2:
            found = ", ".join(f"{name} {shape}" for name, shape in zip(parts, shapes, strict=True))
            raise ValueError(f"A scorer has two weights [h, D] and two biases [h]; these are {found}.")
        if not self.q_weight.is_floating_point() or len({part.dtype for part in parts.values()}) > 1:
            raise ValueError(f"A scorer's weights must share one floating type, got {[str(p.dtype) for p in parts.values()]}.")
        if bad := [name for name, part in parts.items() if not bool(torch.isfinite(part).all())]:
            raise ValueError(f"The scorer's {', '.join(bad)} hold nan or inf; train it again or fetch the file again.")

    @property
    def width(self) -> int:
        """D, the width of the tokens that it was made for."""
        return self.q_weight.shape[1]

    def to(self, where: torch.device | torch.dtype) -> ScorerWeights:
        """The same weights on another device or in another floating type."""
        return replace(self, **{field.name: getattr(self, field.name).to(where) for field in fields(self)})

    def score(self, x: torch.Tensor) -> torch.Tensor:
        """Raw scores [..., N] of tokens [..., N, D], differentiable: mean over j of (q_i . k_j) / sqrt(h).

        The mean moves inside: q_i . v with v = mean_j k_j = Wk mean(x) + bk, and q_i . v = x_i . (Wq^T v) + bq . v. So two
        matrix-vector products and one over the tokens do it, O(h D + N D), where the N x N form takes O(N h D + N^2 h).
        """
        v = x.mean(-2) @ self.k_weight.T + self.k_bias
        scores = (x @ (v @ self.q_weight)[..., None])[..., 0] + (v @ self.q_bias)[..., None]
        return scores / len(self.q_bias) ** 0.5


def load(path: str | Path) -> ScorerWeights:
    """The scorer in a safetensors file, in float32: this project's, or VisionSelector's as published for Qwen2.5-VL.

    Names may share a prefix ("visual.importance_scorer."). Nothing in a file is executed: pickles are not read.
    Raises ValueError when the file is missing, of another kind, or holds anything but the four tensors of a scorer.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"There is no file {path.name}; `python -m training.train_scorer` makes one for TrimLens-150M.")
    try:
        state = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path.name} is not a whole safetensors file; a scorer in another format is not read.") from error
    prefix = next((name.removesuffix(NAMES["q_weight"]) for name in state if name.endswith(NAMES["q_weight"])), "")
    wanted = [prefix + name for name in NAMES.values()]
    if missing := [name for name in wanted if name not in state]:
        raise ValueError(f"{path.name} lacks {', '.join(missing)}; a scorer in VisionSelector's form has q_proj and k_proj.")
    if extra := sorted(set(state) - set(wanted)):
        names = ", ".join(extra[:4]) + (f" and {len(extra) - 4} more" if len(extra) > 4 else "")
        raise ValueError(f"{path.name} also holds {names}; a scorer is q_proj and k_proj alone, so this is another network.")
    try:
        return ScorerWeights(*(state[name] for name in wanted)).to(torch.float32)
    except ValueError as error:
        raise ValueError(f"{path.name} cannot be used. {error}") from error


@dataclass(frozen=True)
class Trained(Scorer):
    """VisionSelector's learned score, the importance that IDPruner was published with.

    It knows nothing of the question, and it serves only the model whose tokens it was trained on: the weights come with the
    tokens. The mean runs over one image's tokens; the published code pools all images of a prompt. The raw score is what
    counts, as in IDPruner's code (its paper says the sigmoid of it). ``q_bias`` adds the same to every token of an image and
    so changes no order; it is there because the published files have it.
    """

    key = "trained"
    label = "Trained scorer"
    paper = "VisionSelector, arXiv 2510.16598"
    needs = frozenset({"weights"})

    def score(self, tokens: VisualTokens) -> torch.Tensor:
        return tokens.weights.score(tokens.features)
