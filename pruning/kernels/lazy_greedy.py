"""Fast exact MMR on a CPU: lazy greedy, one compiled loop, no N x N matrix.

Minoux's lazy greedy (1978): a penalty is a running maximum, so a gain only ever falls and a stale gain is
an upper bound. Tokens wait in a heap by (gain, lowest index). The best one is refreshed against the tokens
picked since its last visit; as soon as its bound is no longer the best it goes back, half refreshed, and if
it stays the best it is the pick. Every pair is compared at most once, so the worst case is O(K N D), as for
the plain loop; a picked token must have met all earlier picks, so the best case is K**2 / 2 comparisons.

A comparison is first screened by an int16 dot product, whose error is bounded by ``screening_slack``. Only a
pair that might raise the running maximum is computed again, exactly, so the order is exact as well.
"""

from __future__ import annotations

import numpy as np

from pruning.kernels.dot_int16 import STEP, dot_int16
from pruning.kernels.dots import dot_exact, jit, quantise


@jit
def before(gain_a, index_a, gain_b, index_b):
    """Whether a is picked before b: the larger gain, and the lowest index wins a tie."""
    return gain_a > gain_b or (gain_a == gain_b and index_a < index_b)


@jit
def sift_down(gains, indices, size, hole, gain, index):
    """Put (gain, index) into the heap of ``size`` entries from ``hole`` downwards."""
    while True:
        child = 2 * hole + 1
        if child >= size:
            break
        if child + 1 < size and before(gains[child + 1], indices[child + 1], gains[child], indices[child]):
            child += 1
        if not before(gains[child], indices[child], gain, index):
            break
        gains[hole] = gains[child]
        indices[hole] = indices[child]
        hole = child
    gains[hole] = gain
    indices[hole] = index


@jit
def mmr_lazy(units, relevance, first, weight, k, scale, slack):
    """units float32 [N, D], relevance float32 [N] (lam * importance), weight 1 - lam -> int64 [k]."""
    n, dim = units.shape
    width = (dim + STEP - 1) // STEP * STEP
    small = np.zeros((n, width), np.int16)
    row_bytes = np.uintp(2 * width)
    quantise(units, np.float32(scale), small)
    picked = np.empty((k, width), np.int16)
    small_at = np.uintp(small.ctypes.data)
    picked_at = np.uintp(picked.ctypes.data)
    order = np.empty(k, np.int64)
    order[0] = first
    picked[0] = small[first]

    closest = np.empty(n, np.float32)
    seen = np.ones(n, np.int64)
    gains = np.empty(n, np.float32)
    indices = np.empty(n, np.int64)
    size = 0
    for i in range(n):
        if i != first:
            closest[i] = dot_exact(units[i], units[first])
            gains[size] = relevance[i] - np.float32(weight * closest[i])
            indices[size] = i
            size += 1
    for hole in range(size // 2 - 1, -1, -1):
        sift_down(gains, indices, size, hole, gains[hole], indices[hole])

    count = 1
    while count < k:
        i = indices[0]
        gain = gains[0]
        rival_gain = np.float32(-np.inf)
        rival = n
        for child in range(1, min(3, size)):
            if before(gains[child], indices[child], rival_gain, rival):
                rival_gain = gains[child]
                rival = indices[child]

        x_at = small_at + np.uintp(i) * row_bytes
        best = closest[i]
        limit = (np.float64(best) - slack) * scale * scale
        j = seen[i]
        leads = True
        while leads and j < count:
            if dot_int16(x_at, picked_at + np.uintp(j) * row_bytes, width) > limit:
                exact = dot_exact(units[i], units[order[j]])
                if exact > best:
                    best = exact
                    limit = (np.float64(best) - slack) * scale * scale
                    gain = relevance[i] - np.float32(weight * best)
                    leads = before(gain, i, rival_gain, rival)
            j += 1
        closest[i] = best
        seen[i] = j
        if leads:
            order[count] = i
            picked[count] = small[i]
            count += 1
            size -= 1
            if size > 0:
                sift_down(gains, indices, size, 0, gains[size], indices[size])
        else:
            sift_down(gains, indices, size, 0, gain, i)
    return order
