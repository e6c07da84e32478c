"""Importance against diversity: how much importance a kept set retains, how evenly it is spread, and the curve MMR draws between.

The two axes are those of IDPruner (arXiv 2602.13315, section 3): the importance retention I(S) and the Hopkins statistic H(S).
Beside H stand measures that need no random points: coverage, and the distance of kept tokens to their nearest kept neighbour.
The paper drew importance at random; here it is the real one, which follows the features, so the curve is that of a real image.

H compares S with random points R "from the same feature space", which the paper leaves open. Two readings are computed:

- tokens: R is |S| of the image's own tokens, drawn without replacement. Then d(r, S) is how badly S serves the image, and H is,
  in expectation, (1 - coverage) / (1 - coverage + mean neighbour distance). A token of R that S keeps counts with distance 0.
- box: R is uniform in the bounding box of the tokens along their principal axes, as Hopkins and Skellam (1954) had it in the
  plane. In hundreds of dimensions such points lie far from every token, so this H mostly measures the spacing inside S.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from pruning.kernels import dpp_order, mmr_order, unit_rows
from pruning.selectors.cdpruner import CDPruner
from pruning.selectors.topk_farthest import pool_of

STEPS = 21
MIDDLE = 0.5  # the paper's lambda, which the accuracies of all others are compared with
SEEDS = 5
# R must be drawn apart from whatever else counts its seeds from 0: a random S would be its own R.
STREAM = 20261128
# Means stand for the sums of the definition (|R| = |S|, so their ratio is the same); so a large S can do with fewer draws.
MOST_DRAWS = 512
# Below this a distance is the rounding of float32 cosines: the two tokens are the same.
SAME = 1e-6
# Axis -> whether more of it means more diverse. Its value is a field of Measures.
AXES = {"hopkins": False, "hopkins_box": False, "coverage": True, "mean_distance": True, "min_distance": True}


@dataclass(frozen=True)
class Measures:
    """What a kept set S is worth; distances are cosine distances, 1 - cos, between 0 and 2.

    retention: I(S) in 0..1. hopkins, hopkins_box: H(S) in 0..1, mean over seeds, ``_std`` its standard deviation over them;
    near 0 is evenly spread, near 1 is clustered. coverage: mean over all tokens of the cosine to the nearest kept one.
    mean_distance, min_distance: of a kept token to its nearest kept neighbour.
    """

    retention: float
    hopkins: float
    hopkins_std: float
    hopkins_box: float
    hopkins_box_std: float
    coverage: float
    mean_distance: float
    min_distance: float


@dataclass(frozen=True, eq=False)
class Point:
    """One kept set: ``method`` as in the registry where it has it, ``lam`` where it takes one, kept int64 [K] in raster order."""

    method: str
    lam: float | None
    kept: np.ndarray
    measures: Measures


@dataclass(frozen=True, eq=False)
class Sweep:
    """All points of one image at one budget: ``k`` of ``n`` tokens kept."""

    n: int
    k: int
    points: tuple[Point, ...]

    def of(self, method: str) -> list[Point]:
        """The points of a method, by rising lambda."""
        return sorted((p for p in self.points if p.method == method), key=lambda p: p.lam or 0.0)


@dataclass(frozen=True, eq=False)
class Space:
    """What every measure of one image shares.

    cosine: float32 [N, N]; importance: float64 [N] in [0, 1]; draws: int64 [seeds, R], tokens drawn per seed;
    box: float32 [seeds, R, N], cosines of the points drawn in the box to every token.
    """

    cosine: np.ndarray
    importance: np.ndarray
    draws: np.ndarray
    box: np.ndarray


def lambdas(steps: int = STEPS) -> np.ndarray:
    """float64 [steps] from 0, diversity alone, to 1, importance alone."""
    return np.round(np.linspace(0.0, 1.0, steps), 6)


def space(features: torch.Tensor, importance: np.ndarray, k: int, seeds: int = SEEDS) -> Space:
    """The cosine matrix of features [N, D] and, per seed, min(k, 512) random tokens and points of the box."""
    units = unit_rows(features)
    cosine = units @ units.T
    # A token is at no distance from itself, not even one of length zero.
    np.fill_diagonal(cosine, 1.0)
    n, draws = len(units), min(k, MOST_DRAWS)
    generators = [np.random.default_rng((STREAM, seed)) for seed in range(seeds)]
    tokens = np.stack([rng.permutation(n)[:draws] for rng in generators])
    box = box_cosines(features.detach().cpu().numpy().astype(np.float32), units, generators, draws)
    return Space(cosine, importance.astype(np.float64), tokens, box)


def box_cosines(features: np.ndarray, units: np.ndarray, generators: list[np.random.Generator], draws: int) -> np.ndarray:
    """Cosines float32 [len(generators), draws, N] of points uniform in the box around features [N, D] to units [N, D].

    The box is taken along the principal axes, or its corners would be empty wherever coordinates are correlated.
    """
    mean = features.mean(0)
    _, _, axes = np.linalg.svd(features - mean, full_matrices=False)
    inside = (features - mean) @ axes.T
    low, high = inside.min(0), inside.max(0)
    steps = np.stack([rng.uniform(low, high, (draws, len(low))) for rng in generators]).astype(np.float32)
    # r = mean + steps @ axes, whose product with a token needs no coordinates of r.
    dot = steps @ (units @ axes.T).T + units @ mean
    squared = (steps**2).sum(-1) + 2 * steps @ (axes @ mean) + mean @ mean
    return dot / np.sqrt(np.maximum(squared, 1e-12))[..., None]


def retention(importance: np.ndarray, kept: np.ndarray) -> float:
    """I(S): the kept share of all importance [N]. Where no token has any, all are alike and the share is that of their number."""
    whole = float(importance.sum())
    return float(importance[kept].sum()) / whole if whole > 0 else len(kept) / len(importance)


def nearest_kept(cosine: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """Cosine distance float32 [rows of ``cosine``] to the nearest of the kept tokens, 0 at the least; cosine [..., N]."""
    return _distance(cosine[..., kept].max(-1))


def neighbour_distances(cosine: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """d(v, S without v), float32 [K], from cosine [N, N]. Raises ValueError where fewer than two tokens are kept."""
    if len(kept) < 2:
        raise ValueError("A spread needs at least two kept patches; prune less.")
    among = cosine[np.ix_(kept, kept)]
    np.fill_diagonal(among, -np.inf)
    return _distance(among.max(1))


def _distance(cosine: np.ndarray) -> np.ndarray:
    distance = 1.0 - cosine
    return np.where(distance < SAME, 0.0, distance)


def hopkins(reference: np.ndarray, neighbours: np.ndarray) -> np.ndarray:
    """H(S) from d(r, S) [..., R] and d(v, S without v) [K]: -> [...] in 0..1.

    Where every distance is 0 (all tokens alike) nothing speaks for either side: one half.
    """
    far, near = reference.mean(-1, dtype=np.float64), neighbours.mean(dtype=np.float64)
    whole = far + near
    return np.where(whole > 0, far / np.where(whole > 0, whole, 1.0), 0.5)


def measure(of: Space, kept: np.ndarray) -> Measures:
    """All measures of the kept tokens int64 [K]. Raises ValueError where fewer than two are kept."""
    neighbours = neighbour_distances(of.cosine, kept)
    distance = nearest_kept(of.cosine, kept)
    tokens = hopkins(distance[of.draws], neighbours)
    box = hopkins(nearest_kept(of.box, kept), neighbours)
    return Measures(
        retention=retention(of.importance, kept),
        hopkins=float(tokens.mean()),
        hopkins_std=float(tokens.std()),
        hopkins_box=float(box.mean()),
        hopkins_box_std=float(box.std()),
        coverage=float(1.0 - distance.mean(dtype=np.float64)),
        mean_distance=float(neighbours.mean(dtype=np.float64)),
        min_distance=float(neighbours.min()),
    )


def hybrid_order(units: np.ndarray, importance: np.ndarray, lam: float, k: int) -> np.ndarray:
    """The naive hybrid, int64 [k]: the most important tokens, and farthest-point sampling inside them.

    units: float32 [N, D]; importance: float32 [N]. lam sets how many enter the second stage, from all N (0: diversity alone)
    down to k (1: importance alone).
    """
    pool = pool_of(importance, lam, k)
    return pool[mmr_order(np.ascontiguousarray(units[pool]), importance[pool], 0.0, k)]


def sweep(features: torch.Tensor, importance: np.ndarray, k: int, steps: int = STEPS, seeds: int = SEEDS) -> Sweep:
    """The five strategies of the paper, and random, on one image: MMR and the hybrid over lambda, the others as points.

    features: [N, D]; importance: float32 [N] in [0, 1]; k: how many tokens are kept, at least two. Raises ValueError otherwise.
    """
    n = len(features)
    if not 2 <= k <= n:
        raise ValueError(f"A spread needs at least two of the {n} patches; {k} are kept. Prune less.")
    units, shared = unit_rows(features), space(features, importance, k, seeds)
    sets: list[tuple[str, float | None, np.ndarray]] = [
        ("topk", None, mmr_order(units, importance, 1.0, k)),
        ("farthest", None, mmr_order(units, importance, 0.0, k)),
        ("dpp", None, dpp_order(units, importance + np.float32(CDPruner.floor), k)),
        ("random", None, np.random.default_rng(0).permutation(n)[:k]),
    ]
    for lam in lambdas(steps).tolist():
        sets.append(("idpruner", lam, mmr_order(units, importance, lam, k)))
        sets.append(("topk-farthest", lam, hybrid_order(units, importance, lam, k)))
    points = tuple(Point(name, lam, np.sort(order), measure(shared, np.sort(order))) for name, lam, order in sets)
    return Sweep(n, k, points)


def matched(points: list[Point], by: list[Point], axis: str = "hopkins") -> np.ndarray:
    """Bool [len(points)]: whether some point of ``by`` is at least as good in both, retention and the axis (weak dominance)."""
    sign = 1.0 if AXES[axis] else -1.0
    ours = np.array([[p.measures.retention, sign * getattr(p.measures, axis)] for p in points])
    theirs = np.array([[p.measures.retention, sign * getattr(p.measures, axis)] for p in by])
    # Sets that hold the same tokens have the same measures, bit for bit; no tolerance is needed.
    return (theirs[None] >= ours[:, None]).all(-1).any(1)


def falls(values: list[float]) -> tuple[int, float]:
    """How often a sequence falls from one entry to the next, and by how much at the most."""
    steps = np.diff(np.asarray(values, dtype=np.float64))
    return int((steps < 0).sum()), float(max(0.0, -steps.min())) if len(steps) else 0.0


def mean_measures(all_of: list[Measures]) -> Measures:
    """The mean over images; a ``_std`` is the deviation over images, not over draws."""
    values = {name: np.array([getattr(m, name) for m in all_of]) for name in Measures.__dataclass_fields__}
    mean = Measures(**{name: float(value.mean()) for name, value in values.items()})
    return replace(mean, hopkins_std=float(values["hopkins"].std()), hopkins_box_std=float(values["hopkins_box"].std()))
