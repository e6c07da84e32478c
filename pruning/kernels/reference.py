"""MMR as its definition reads: the O(K N D) loop against which the fast kernel is tested.

Source: IDPruner, arXiv 2602.13315, section 4. Not meant to be fast, and not slowed down on purpose either.
"""

from __future__ import annotations

import numpy as np


def mmr_reference(units: np.ndarray, importance: np.ndarray, lam: float, k: int | None = None) -> np.ndarray:
    """Return the first ``k`` picks of maximal marginal relevance, in the order picked.

    units: float32 [N, D], rows from :func:`pruning.kernels.units.unit_rows`; importance: float32 [N];
    lam in [0, 1]; k: number of picks, all N when None. Returns int64 [k].

    The first pick is the most important token; every later one maximises
    ``lam * importance_i - (1 - lam) * max_{j picked} cos(i, j)``. The lowest index wins a tie.
    Raises nothing by itself: the caller (``pruning.kernels.mmr_order``) checks shapes and ranges.
    """
    n = len(units)
    k = n if k is None else k
    weight = np.float32(1) - np.float32(lam)
    relevance = np.float32(lam) * importance
    units64 = units.astype(np.float64)
    penalty = np.full(n, -np.inf, dtype=np.float32)
    taken = np.zeros(n, dtype=bool)
    order = np.empty(k, dtype=np.int64)

    best = int(np.argmax(importance))
    for step in range(k):
        if step > 0:
            gain = relevance - penalty
            gain[taken] = -np.inf
            best = int(np.argmax(gain))
        order[step] = best
        taken[best] = True
        similarity = (units64 @ units64[best]).astype(np.float32)
        np.maximum(penalty, weight * similarity, out=penalty)
    return order
