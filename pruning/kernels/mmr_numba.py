"""The compiled MMR kernel behind a door that opens without numba: ``available`` says whether and why."""

from __future__ import annotations

from functools import lru_cache

import numpy as np


@lru_cache(maxsize=1)
def available() -> tuple[bool, str]:
    """Whether the compiled kernel runs here, and why, in one sentence. Compiles it on the first call."""
    try:
        import numba

        corner = np.eye(3, 4, dtype=np.float32)
        picked = mmr_order(corner, np.array([0.0, 1.0, 0.5], dtype=np.float32), 0.5)
    except Exception as error:  # numba fails in many ways: no wheel, no CPU support, no compiler, no memory
        return False, f"plain numpy loop: the numba kernel is not usable ({type(error).__name__}: {error})."
    if picked.tolist() != [1, 2, 0]:
        return False, f"plain numpy loop: the numba kernel failed its self-test (got {picked.tolist()})."
    return True, f"compiled CPU kernel (numba {numba.__version__}, one thread, lazy greedy, exact)."


def mmr_order(units: np.ndarray, importance: np.ndarray, lam: float, k: int | None = None) -> np.ndarray:
    """As :func:`pruning.kernels.reference.mmr_reference`, bit for bit, only faster.

    units: float32 [N, D] from ``unit_rows``; importance: float32 [N]; lam in [0, 1]. Returns int64 [k].
    Raises ImportError where numba is missing.
    """
    from pruning.kernels.dots import INT16_SCALE, screening_slack
    from pruning.kernels.lazy_greedy import mmr_lazy

    n, dim = units.shape
    k = n if k is None else k
    weight = np.float32(1) - np.float32(lam)
    relevance = np.float32(lam) * importance
    if weight == 0:
        # Nothing is subtracted: the definition is a stable sort, and no similarity need be computed.
        return np.argsort(-relevance, kind="stable")[:k].astype(np.int64)
    first = int(np.argmax(importance))
    units = np.ascontiguousarray(units, dtype=np.float32)
    return mmr_lazy(units, relevance, first, weight, k, INT16_SCALE, screening_slack(dim))
