"""Three greedy selections as their definitions read: what the fast kernels are tested against.

Every implementation must round alike to pick alike, so each file of arithmetic has one meaning: cosines are exact (see
``units``), a sum of rounded numbers runs in the order picked, and ties go to the lowest index. The callers in
``pruning.kernels`` check shapes and ranges.
"""

from __future__ import annotations

import numpy as np

# What is left of a token's volume below this share is the rounding of its features: nothing new.
NOTHING_NEW = 1e-6
# Cosines are summed as integers of this scale, so that a coverage does not depend on the order of summation.
COVERAGE_SCALE = 2.0**29


def dpp_reference(units: np.ndarray, quality: np.ndarray, k: int | None = None) -> np.ndarray:
    """Greedy MAP of the determinantal point process L_ij = quality_i cos(i, j) quality_j: the first ``k`` picks.

    units: float32 [N, D] from ``unit_rows``; quality: float64 [N], at least 0. Returns int64 [k]. Each pick adds the most to
    log det L of the kept; where nothing adds any more (copies of what is kept), the rest follows by quality.
    Source: Chen et al. 2018, arXiv 1709.05135, algorithm 1 (an incremental Cholesky factor, row by row).
    """
    n = len(units)
    k = n if k is None else k
    units64 = units.astype(np.float64)
    whole = np.where(units.any(1), quality * quality, 0.0)
    volume, factors, order = whole.copy(), np.zeros((k, n)), []
    for step in range(k):
        best = int(np.argmax(volume))
        if not volume[best] > 0.0:
            break
        order.append(best)
        row = (quality[best] * quality) * (units64 @ units64[best])
        for earlier in factors[:step]:
            row -= earlier[best] * earlier
        factors[step] = row / np.sqrt(volume[best])
        volume -= factors[step] * factors[step]
        volume[volume <= NOTHING_NEW * whole] = 0.0
        volume[order] = 0.0
    return rest_by(quality, np.array(order, dtype=np.int64))[:k]


def rest_by(quality: np.ndarray, order: np.ndarray) -> np.ndarray:
    """``order`` and behind it all other tokens, best quality first: int64 [N]."""
    others = np.argsort(-quality, kind="stable")
    return np.concatenate([order, others[~np.isin(others, order)]]).astype(np.int64)


def scope_reference(units: np.ndarray, weight: np.ndarray, k: int | None = None) -> np.ndarray:
    """argmax weight_i * sum_j max(0, cos(i, j) - cover_j), cover_j = max(0, max_{i kept} cos(i, j)): the first ``k`` picks.

    units: float32 [N, D] from ``unit_rows``; weight: float64 [N], at least 0. Returns int64 [k].
    Source: SCOPE, arXiv 2510.24214: the gain in coverage (facility location) times the saliency.
    """
    k = len(units) if k is None else k
    similarity = coverage_matrix(units).astype(np.int64)
    cover, taken, order = np.zeros(len(units), np.int64), np.zeros(len(units), bool), []
    for _ in range(k):
        gain = weight * np.maximum(similarity - cover, 0).sum(1)
        gain[taken] = -np.inf
        best = int(np.argmax(gain))
        order.append(best)
        taken[best] = True
        cover = np.maximum(cover, similarity[best])
    return np.array(order, dtype=np.int64)


def coverage_matrix(units: np.ndarray) -> np.ndarray:
    """Cosines of all pairs as int32 [N, N] in units of 1 / COVERAGE_SCALE."""
    units64 = units.astype(np.float64)
    return np.rint((units64 @ units64.T) * COVERAGE_SCALE).astype(np.int32)


def id_selection_reference(units: np.ndarray, importance: np.ndarray, gamma: float, k: int | None = None) -> np.ndarray:
    """Pick the highest score S_i, then S_j -= exp(-gamma (1 - cos(i, j))**2) * S_i for all others: the first ``k`` picks.

    units: float32 [N, D] from ``unit_rows``; importance: float32 [N]; gamma: at least 0. Returns int64 [k]. A score that is
    not positive suppresses nothing, or it would raise the tokens most like it. Source: ID-Selection, arXiv 2604.05601.
    """
    k = len(units) if k is None else k
    units64, score = units.astype(np.float64), importance.astype(np.float64)
    taken, order = np.zeros(len(units), bool), []
    for _ in range(k):
        best = int(np.argmax(np.where(taken, -np.inf, score)))
        order.append(best)
        taken[best] = True
        distance = 1.0 - units64 @ units64[best]
        score -= decay(gamma * (distance * distance)) * max(score[best], 0.0)
    return np.array(order, dtype=np.int64)


def decay(x):
    """exp(-min(x, 64)) for x >= 0 from products and sums alone, so that numpy and compiled code agree to the last bit.

    exp(-x) = exp(-x / 1024)**1024, the inner one by its series; the relative error is below 1e-12.
    """
    y = np.minimum(x, 64.0) / 1024.0
    power = 1.0 - y * (1.0 - y / 2.0 * (1.0 - y / 3.0 * (1.0 - y / 4.0 * (1.0 - y / 5.0 * (1.0 - y / 6.0 * (1.0 - y / 7.0))))))
    for _ in range(10):
        power = power * power
    return power
