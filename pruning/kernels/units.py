"""The one place where features become unit vectors, so that every kernel compares the same numbers."""

from __future__ import annotations

import numpy as np
import torch

NORM_FLOOR = np.float32(1e-12)
# Coordinates are rounded to multiples of 2**-26. A product of two is then a multiple of 2**-52, and since
# sum |x_d y_d| < 2 for unit vectors, every partial sum fits the 53 bits of a float64: a dot product is exact,
# so it cannot depend on the order of summation, the BLAS, the vector width or the number of threads.
GRID = np.float32(2.0**26)
# Values handled at a time: few enough to stay in the cache from the norm to the last rounding.
BLOCK = 2**15


def unit_rows(features: torch.Tensor) -> np.ndarray:
    """Normalise every row to length one, on the grid that makes float64 dot products exact.

    features: [N, D], any floating type, on any device. Returns float32 [N, D] on the CPU; a zero row stays
    zero. The rounding moves a coordinate by at most 2**-27, below the float32 error of a coordinate near 1.
    Raises ValueError when a row's length is not finite.
    """
    # numpy, not torch: one thread, so bits do not depend on thread settings and nothing waits at a barrier.
    rows = features.detach().to(device="cpu", dtype=torch.float32).contiguous().numpy()
    units = np.empty_like(rows)
    step = max(1, BLOCK // max(1, rows.shape[1]))
    for start in range(0, len(rows), step):
        block, out = rows[start : start + step], units[start : start + step]
        norms = np.sqrt(np.einsum("nd,nd->n", block, block))
        if not np.isfinite(norms).all():
            raise ValueError("features hold nan, inf or values too large; check the vision tower's output.")
        np.multiply(block, (GRID / np.maximum(norms, NORM_FLOOR))[:, None], out=out)
        np.rint(out, out=out)
        out *= 1 / GRID
    return units
