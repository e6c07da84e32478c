"""What goes into a pruning method and what comes out: ``VisualTokens`` in, ``Ranking`` out."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from pruning.scorers.trained import ScorerWeights

# In place of a number of language layers: nothing is dropped, the model is shown a smaller picture.
IMAGE = -1
# How a caller of this package fills the optional parts of VisualTokens.
REMEDY = {
    "question": "pass VisualTokens(question=...), the input embeddings of the question's tokens",
    "attention": "pass VisualTokens(attention=...), the mean-query attention of the vision tower",
    "weights": "pass VisualTokens(weights=...), what pruning.scorers.trained.load read",
    "received": "pass VisualTokens(received=...), the attention received in the vision tower's last full-attention layer",
    "middle": "pass VisualTokens(middle=...), the attention received in the middle of the vision tower",
    "keys": "pass VisualTokens(keys=...), the keys of the vision tower's last full-attention layer",
    "layer": "pass VisualTokens(layer=...), what an early layer of the language model sees",
}


@dataclass(frozen=True, eq=False)
class LayerView:
    """What the language model makes of the tokens in its first ``after`` layers, for methods that rank inside it.

    visual [N, D], text [T, D]: hidden states behind those layers, final norm applied; text is what follows the image.
    visual_keys [N, C], text_keys [T, C]: keys of the last of these layers after rotary embedding, heads side by side.
    attention: [N], what the prompt's last token pays each visual token in that layer, the mean over heads.
    forward_s: seconds of the layers themselves, which a method that prunes behind them pays in its prefill.
    All floating, on one device.
    """

    visual: torch.Tensor
    text: torch.Tensor
    visual_keys: torch.Tensor
    text_keys: torch.Tensor
    attention: torch.Tensor
    forward_s: float = 0.0


@dataclass(frozen=True, eq=False)
class VisualTokens:
    """The visual tokens of one image, as the language model will see them.

    features: float32 [N, D], post-merger embeddings in raster order, CPU or GPU.
    grid: (rows, cols) of the merged tokens, rows * cols == N.
    question: floating [T, D], input embeddings of the question's tokens, or None.
    attention: floating [N], mean-query attention each merged token receives in the vision tower's last
    full-attention layer, or None.
    weights: of the scorer that was trained on this model's tokens, or None.
    received, middle: floating [N], attention that each merged token receives, the mean over queries and heads, in the
    tower's last and its middle full-attention layer, or None; keys: floating [N, C], of the last one, or None.
    layer: what an early language layer makes of the tokens, or None.
    Raises ValueError when a shape, type or value is wrong.
    """

    features: torch.Tensor
    grid: tuple[int, int]
    question: torch.Tensor | None = None
    attention: torch.Tensor | None = None
    weights: ScorerWeights | None = None
    received: torch.Tensor | None = None
    middle: torch.Tensor | None = None
    keys: torch.Tensor | None = None
    layer: LayerView | None = None

    def __post_init__(self) -> None:
        x = self.features
        if x.ndim != 2 or 0 in x.shape or x.dtype != torch.float32:
            raise ValueError(f"features must be a non-empty float32 [N, D], got {x.dtype} {tuple(x.shape)}.")
        n, dim = x.shape
        rows, cols = self.grid
        if rows < 1 or cols < 1 or rows * cols != n:
            raise ValueError(f"grid {rows} x {cols} does not hold {n} tokens; pass the grid after merging.")
        if not bool(torch.isfinite(x).all()):
            raise ValueError("features hold nan or inf; check the vision tower's output and its dtype.")
        q = self.question
        if q is not None and (q.ndim != 2 or len(q) == 0 or q.shape[1] != dim):
            raise ValueError(f"question must be [T, {dim}] with T >= 1, got {tuple(q.shape)}.")
        for name in ("attention", "received", "middle"):
            part = getattr(self, name)
            if part is not None and tuple(part.shape) != (n,):
                raise ValueError(f"{name} must be [{n}], got {tuple(part.shape)}.")
        for name in ("question", "attention", "received", "middle", "keys"):
            _finite(name, getattr(self, name))
        for part in fields(LayerView) if self.layer is not None else ():
            _finite(f"layer.{part.name}", getattr(self.layer, part.name))
        if self.keys is not None and (self.keys.ndim != 2 or len(self.keys) != n):
            raise ValueError(f"keys must be [{n}, C], got {tuple(self.keys.shape)}.")
        if self.layer is not None and {len(self.layer.visual), len(self.layer.visual_keys), len(self.layer.attention)} != {n}:
            raise ValueError(f"layer must view {n} visual tokens, got {len(self.layer.visual)}.")
        if self.weights is not None and self.weights.width != dim:
            raise ValueError(f"The scorer was trained for tokens of width {self.weights.width}; these have {dim}.")

    def require(self, names: frozenset[str], who: str, instead: str) -> None:
        """Raise ValueError where one of the optional parts is missing; who needs it, and what to choose ``instead``."""
        for name in sorted(names):
            if getattr(self, name) is None:
                raise ValueError(f"{who} needs the {name}: {REMEDY[name]}, or choose another {instead}.")


def _finite(name: str, part: object) -> None:
    """Raise ValueError where a tensor holds nan or inf: sorted, it would pass for a rank."""
    if isinstance(part, torch.Tensor) and not bool(torch.isfinite(part).all()):
        raise ValueError(f"{name} holds nan or inf; check the model's output and its dtype.")


@dataclass(frozen=True, eq=False)
class Ranking:
    """A full greedy order: the tokens kept at any budget K are its first K, so a budget is only a cut.

    order: int64 [N], a permutation; importance: float32 [N] in [0, 1]; scoring_s, selection_s: seconds.
    budget: where the method depends on it, the one K that the order is right for; None where it serves every K.
    merged: float32 [budget, D], what stands for the kept tokens in raster order where a method merges; None: they stay.
    after: language layers that see every token; 0 drops before the first, IMAGE shows a smaller picture instead.
    """

    order: np.ndarray
    importance: np.ndarray
    scoring_s: float
    selection_s: float
    method: str
    budget: int | None = None
    merged: torch.Tensor | None = None
    after: int = 0

    def __post_init__(self) -> None:
        check_permutation(self.order, len(self.importance))
        if self.merged is not None and (self.merged.ndim != 2 or len(self.merged) != self.budget):
            raise ValueError(f"merged must be [{self.budget}, D], got {tuple(self.merged.shape)}; a selector is broken.")

    def keep(self, k: int) -> np.ndarray:
        """The first ``k`` tokens in raster order, int64 [k].

        Raises ValueError unless 1 <= k <= N, and where the order was made for another budget.
        """
        if not 1 <= k <= len(self.order):
            raise ValueError(f"Cannot keep {k} of {len(self.order)} tokens; choose between 1 and all.")
        if self.budget not in (None, k):
            raise ValueError(f"The method '{self.method}' chose for {self.budget} tokens; rank again to keep {k}.")
        return np.sort(self.order[:k])

    def kept_mask(self, k: int) -> np.ndarray:
        """Bool [N], true for the first ``k`` tokens."""
        mask = np.zeros(len(self.order), dtype=bool)
        mask[self.keep(k)] = True
        return mask

    @property
    def rank(self) -> np.ndarray:
        """Inverse permutation, int64 [N]: ``rank[i]`` is when token i was picked, 0 first."""
        rank = np.empty_like(self.order)
        rank[self.order] = np.arange(len(self.order))
        return rank


def check_permutation(order: np.ndarray, n: int) -> None:
    """Raise ValueError unless ``order`` is an int64 permutation of 0..n-1."""
    if order.shape != (n,) or order.dtype != np.int64 or not np.array_equal(np.sort(order), np.arange(n)):
        raise ValueError(f"order must be an int64 permutation of {n} tokens; a selector is broken.")


def keep_count(n: int, prune: float) -> int:
    """How many of ``n`` tokens stay when the fraction ``prune`` goes; never less than one."""
    if n < 1:
        raise ValueError(f"There must be at least one token, got {n}.")
    if not 0.0 <= prune < 1.0:
        raise ValueError(f"The pruned fraction must be at least 0 and below 1 (0.75 drops 75%), got {prune}.")
    return max(1, round(n * (1.0 - prune)))


def normalise(importance: np.ndarray | torch.Tensor) -> np.ndarray:
    """Min-max to [0, 1]: [N] of any real type -> float32 [N]. A constant input gives zeros.

    A spread within float32 rounding counts as constant, or noise would be stretched over the whole range.
    Raises ValueError on nan or inf.
    """
    if isinstance(importance, torch.Tensor):
        importance = importance.detach().double().cpu().numpy()
    values = np.asarray(importance, dtype=np.float64)
    if not np.isfinite(values).all():
        raise ValueError("importance holds nan or inf, so tokens cannot be ranked; check the scorer's input.")
    low, high = values.min(), values.max()
    spread = high - low
    if spread <= 4 * np.finfo(np.float32).eps * max(abs(low), abs(high)):
        return np.zeros(values.shape, dtype=np.float32)
    return ((values - low) / spread).astype(np.float32)
