"""A grid that gets denser: even spatial coverage at every budget."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pruning.selectors.base import Selector
from pruning.tokens import VisualTokens


@dataclass(frozen=True)
class UniformGrid(Selector):
    """Farthest-point order of the token positions, from the middle of the image outwards.

    It looks at neither features nor importance: the honest opponent of every content-aware method. Plain farthest points
    (Gonzalez 1985) lean to the border where few are kept, of 26 on 16 x 16 tokens 46%, so the frame around the image counts
    as kept, twice as far away as it is.
    """

    def select(self, tokens: VisualTokens, importance: np.ndarray) -> np.ndarray:
        return spread_order(*tokens.grid)


def spread_order(rows: int, cols: int) -> np.ndarray:
    """int64 [rows * cols]: every prefix is spread evenly over the rows x cols grid. O((rows * cols)**2)."""
    n = rows * cols
    y, x = np.divmod(np.arange(n, dtype=np.int64), cols)
    # On a grid most distances tie. Taking the lowest index would fill the image from the top down, so ties
    # go by reversed Morton code, whose own prefixes are spread evenly.
    tie = np.empty(n, dtype=np.int64)
    tie[np.argsort(_reversed_morton(y, x), kind="stable")] = np.arange(n - 1, -1, -1)

    frame = 1 + np.minimum(np.minimum(y, rows - 1 - y), np.minimum(x, cols - 1 - x))
    distance = (2 * frame) ** 2
    pick = int(np.argmin((2 * y - (rows - 1)) ** 2 + (2 * x - (cols - 1)) ** 2))
    order = np.empty(n, dtype=np.int64)
    for step in range(n):
        order[step] = pick
        np.minimum(distance, (y - y[pick]) ** 2 + (x - x[pick]) ** 2, out=distance)
        distance[pick] = -1
        pick = int(np.argmax(distance * n + tie))
    return order


def _reversed_morton(y: np.ndarray, x: np.ndarray) -> np.ndarray:
    bits = max(1, int(max(y.max(), x.max())).bit_length())
    code = np.zeros_like(y)
    for bit in range(bits):
        code = (code << 2) | (((y ^ x) >> bit & 1) << 1) | (y >> bit & 1)
    return code
