"""Selection kernels. ``mmr_order`` takes the compiled one where it runs and the plain loop elsewhere."""

from __future__ import annotations

import numpy as np

from pruning.kernels import mmr_numba
from pruning.kernels.reference import mmr_reference
from pruning.kernels.units import unit_rows

__all__ = ["kernel_reason", "mmr_order", "mmr_reference", "unit_rows", "warm_up"]


def kernel_reason() -> str:
    """One sentence for the page: which kernel runs here, and why."""
    return mmr_numba.available()[1]


def warm_up() -> str:
    """Compile (or load from the cache) ahead of the first image; returns :func:`kernel_reason`."""
    return kernel_reason()


def mmr_order(units: np.ndarray, importance: np.ndarray, lam: float, k: int | None = None) -> np.ndarray:
    """Greedy maximal marginal relevance: the first ``k`` picks, in the order picked.

    units: float32 [N, D], rows from ``unit_rows``; importance: float32 [N], finite; lam in [0, 1];
    k: 1..N, all N when None. Returns int64 [k]. Source: IDPruner, arXiv 2602.13315, section 4.
    Raises ValueError on a wrong shape, dtype or range.
    """
    if units.ndim != 2 or units.dtype != np.float32 or len(units) == 0:
        raise ValueError(f"units must be float32 [N, D] with N >= 1, got {units.dtype} {units.shape}.")
    if importance.shape != (len(units),) or importance.dtype != np.float32:
        raise ValueError(f"importance must be float32 [{len(units)}], got {importance.dtype} {importance.shape}.")
    if not np.isfinite(importance).all():
        raise ValueError("importance holds nan or inf; normalise it with pruning.tokens.normalise.")
    if not 0.0 <= lam <= 1.0:
        raise ValueError(f"lambda must lie between 0 (diversity only) and 1 (importance only), got {lam}.")
    if k is not None and not 1 <= k <= len(units):
        raise ValueError(f"k must lie between 1 and the {len(units)} tokens there are, got {k}.")
    usable, _ = mmr_numba.available()
    return (mmr_numba.mmr_order if usable else mmr_reference)(units, importance, lam, k)
