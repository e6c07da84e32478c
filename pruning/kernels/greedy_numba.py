"""The compiled DPP, SCOPE and ID-Selection behind a door that opens without numba: ``available`` says whether and why."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from pruning.kernels.greedy_reference import NOTHING_NEW, coverage_matrix, rest_by


@lru_cache(maxsize=1)
def available() -> tuple[bool, str]:
    """Whether the compiled kernels run here, and why, in one sentence. Compiles them on the first call."""
    try:
        import numba

        corner, rising = np.eye(3, 4, dtype=np.float32), np.array([0.25, 1.0, 0.5])
        picked = [dpp_order(corner, rising), scope_order(corner, rising), id_selection_order(corner, np.float32(rising), 20.0)]
    except Exception as error:  # numba fails in many ways: no wheel, no CPU support, no compiler, no memory
        return False, f"plain numpy loops: the numba kernels are not usable ({type(error).__name__}: {error})."
    if any(order.tolist() != [1, 2, 0] for order in picked):
        return False, "plain numpy loops: the numba kernels failed their self-test."
    return True, f"compiled CPU kernels (numba {numba.__version__}, one thread, lazy greedy, exact)."


def dpp_order(units: np.ndarray, quality: np.ndarray, k: int | None = None) -> np.ndarray:
    """As :func:`pruning.kernels.greedy_reference.dpp_reference`, bit for bit, only faster. ImportError without numba."""
    from pruning.kernels.greedy_lazy import dpp_lazy

    k = len(units) if k is None else k
    whole = np.where(units.any(1), quality * quality, 0.0)
    order, count = dpp_lazy(np.ascontiguousarray(units), quality, whole, k, NOTHING_NEW)
    return rest_by(quality, order[:count])[:k]


def scope_order(units: np.ndarray, weight: np.ndarray, k: int | None = None) -> np.ndarray:
    """As :func:`pruning.kernels.greedy_reference.scope_reference`, only faster. ImportError without numba."""
    from pruning.kernels.greedy_lazy import scope_lazy

    return scope_lazy(coverage_matrix(units), weight, len(units) if k is None else k)


def id_selection_order(units: np.ndarray, importance: np.ndarray, gamma: float, k: int | None = None) -> np.ndarray:
    """As :func:`pruning.kernels.greedy_reference.id_selection_reference`, only faster. ImportError without numba."""
    from pruning.kernels.greedy_lazy import id_lazy

    k = len(units) if k is None else k
    return id_lazy(np.ascontiguousarray(units), importance.astype(np.float64), float(gamma), k)
