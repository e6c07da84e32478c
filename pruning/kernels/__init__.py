"""Selection kernels. Every ``*_order`` takes the compiled form where it runs and the plain loop of its definition elsewhere.

The order for k is a prefix of the full order. All are deterministic, and the lowest index wins a tie.
"""

from __future__ import annotations

import numpy as np
import torch

from pruning.kernels import greedy_numba, mmr_numba, mmr_triton
from pruning.kernels.greedy_reference import dpp_reference, id_selection_reference, scope_reference
from pruning.kernels.reference import mmr_reference
from pruning.kernels.units import unit_rows

__all__ = [
    "dpp_order",
    "dpp_reference",
    "id_selection_order",
    "id_selection_reference",
    "kernel_reason",
    "mmr_order",
    "mmr_order_of",
    "mmr_reference",
    "scope_order",
    "scope_reference",
    "unit_rows",
    "warm_up",
]


def kernel_reason() -> str:
    """One sentence for the page: which kernel runs here, and why."""
    return mmr_numba.available()[1]


def warm_up() -> str:
    """Compile (or load from the cache) ahead of the first image; returns :func:`kernel_reason`."""
    greedy_numba.available()
    return kernel_reason()


def mmr_order_of(features: torch.Tensor, importance: np.ndarray, lam: float, k: int | None = None) -> np.ndarray:
    """:func:`mmr_order` of features [N, D]; where they lie on a GPU and Triton runs, nothing but the order leaves it."""
    if features.is_cuda and len(features) <= mmr_triton.LARGEST and mmr_triton.available()[0]:
        return mmr_triton.mmr_orders([features], [importance], lam, None if k is None else [k])[0]
    return mmr_order(unit_rows(features), importance, lam, k)


def mmr_order(units: np.ndarray, importance: np.ndarray, lam: float, k: int | None = None) -> np.ndarray:
    """Greedy maximal marginal relevance: the first ``k`` picks, in the order picked.

    units: float32 [N, D], rows from ``unit_rows``; importance: float32 [N], finite; lam in [0, 1];
    k: 1..N, all N when None. Returns int64 [k]. Source: IDPruner, arXiv 2602.13315, section 4.
    Raises ValueError on a wrong shape, dtype or range.
    """
    _check(units, importance, "importance", k)
    if not 0.0 <= lam <= 1.0:
        raise ValueError(f"lambda must lie between 0 (diversity only) and 1 (importance only), got {lam}.")
    return (mmr_numba.mmr_order if mmr_numba.available()[0] else mmr_reference)(units, importance, lam, k)


def dpp_order(units: np.ndarray, quality: np.ndarray, k: int | None = None) -> np.ndarray:
    """Greedy MAP of a determinantal point process; see :func:`pruning.kernels.greedy_reference.dpp_reference`.

    units: float32 [N, D]; quality: float32 [N], at least 0; k: 1..N. Returns int64 [k]. Raises ValueError as ``mmr_order``.
    """
    _check(units, quality, "quality", k)
    if quality.min() < 0.0:
        raise ValueError("quality must not be negative: two negative ones would count as good.")
    return (greedy_numba.dpp_order if greedy_numba.available()[0] else dpp_reference)(units, quality.astype(np.float64), k)


def scope_order(units: np.ndarray, saliency: np.ndarray, alpha: float = 1.0, k: int | None = None) -> np.ndarray:
    """Gain in coverage times saliency**alpha; see :func:`pruning.kernels.greedy_reference.scope_reference`.

    units: float32 [N, D]; saliency: float32 [N], at least 0; k: 1..N. Returns int64 [k]. Raises ValueError as ``mmr_order``.
    """
    _check(units, saliency, "saliency", k)
    if saliency.min() < 0.0 or alpha < 0.0:
        raise ValueError("saliency and alpha must not be negative.")
    weight = saliency.astype(np.float64) ** alpha
    return (greedy_numba.scope_order if greedy_numba.available()[0] else scope_reference)(units, weight, k)


def id_selection_order(units: np.ndarray, importance: np.ndarray, gamma: float = 20.0, k: int | None = None) -> np.ndarray:
    """Highest score first, suppressing what is like it; see :func:`pruning.kernels.greedy_reference.id_selection_reference`.

    units: float32 [N, D]; importance: float32 [N]; k: 1..N. Returns int64 [k]. Raises ValueError as ``mmr_order``.
    """
    _check(units, importance, "importance", k)
    if not gamma >= 0.0:
        raise ValueError(f"gamma must not be negative (0 suppresses all alike), got {gamma}.")
    order = greedy_numba.id_selection_order if greedy_numba.available()[0] else id_selection_reference
    return order(units, importance, gamma, k)


def _check(units: np.ndarray, values: np.ndarray, name: str, k: int | None) -> None:
    if units.ndim != 2 or units.dtype != np.float32 or len(units) == 0:
        raise ValueError(f"units must be float32 [N, D] with N >= 1, got {units.dtype} {units.shape}.")
    if values.shape != (len(units),) or values.dtype != np.float32:
        raise ValueError(f"{name} must be float32 [{len(units)}], got {values.dtype} {values.shape}.")
    if not np.isfinite(values).all():
        raise ValueError(f"{name} holds nan or inf; normalise it with pruning.tokens.normalise.")
    if k is not None and not 1 <= k <= len(units):
        raise ValueError(f"k must lie between 1 and the {len(units)} tokens there are, got {k}.")
