"""Fast exact DPP, SCOPE and ID-Selection on a CPU: lazy greedy, one compiled loop each.

As in ``lazy_greedy``: a gain only ever falls (the log det and the coverage are submodular, a score is only suppressed), so a
stale gain is an upper bound, and a token whose bound leads the heap is refreshed until it no longer leads or is the pick. For
DPP and ID-Selection refreshing means to catch up with the picks it has not met, in their order: the same operations on the
same numbers as the definition, for fewer tokens. Cosines are computed when they are asked for. SCOPE needs them all.
"""

from __future__ import annotations

import numpy as np

from pruning.kernels.dots import jit
from pruning.kernels.greedy_reference import decay as decay_array
from pruning.kernels.lazy_greedy import before, sift_down

decay = jit(decay_array)


@jit(fastmath={"reassoc", "contract"})
def dot64(x, y):
    """The exact dot product of two rows on the grid of ``units``, in any order of summation."""
    total = 0.0
    for d in range(x.shape[0]):
        total += np.float64(x[d]) * np.float64(y[d])
    return total


@jit
def heap_of(gains):
    """A heap of all tokens by gain: gains, indices."""
    n = gains.shape[0]
    heap, indices = gains.copy(), np.arange(n)
    for hole in range(n // 2 - 1, -1, -1):
        sift_down(heap, indices, n, hole, heap[hole], indices[hole])
    return heap, indices


@jit
def runner_up(gains, indices, size):
    """(gain, index) of the second best."""
    gain, index = -np.inf, indices.shape[0]
    for child in range(1, min(3, size)):
        if before(gains[child], indices[child], gain, index):
            gain, index = gains[child], indices[child]
    return gain, index


@jit
def dpp_lazy(units, quality, whole, k, nothing_new):
    """units float32 [N, D], quality and whole (its square, 0 for a zero row) float64 [N] -> int64 [k], how many are set."""
    n = units.shape[0]
    factors = np.empty((n, k))
    roots, seen, order = np.empty(k), np.zeros(n, np.int64), np.empty(k, np.int64)
    gains, indices = heap_of(whole)
    size, count = n, 0
    while count < k and gains[0] > 0.0:
        i, volume = indices[0], gains[0]
        rival_gain, rival = runner_up(gains, indices, size)
        step, leads = seen[i], True
        while leads and volume > 0.0 and step < count:
            j = order[step]
            entry = (quality[j] * quality[i]) * dot64(units[i], units[j])
            for earlier in range(step):
                entry -= factors[j, earlier] * factors[i, earlier]
            entry /= roots[step]
            factors[i, step] = entry
            volume -= entry * entry
            if volume <= nothing_new * whole[i]:
                volume = 0.0
            step += 1
            leads = before(volume, i, rival_gain, rival)
        seen[i] = step
        if leads and volume > 0.0:
            order[count] = i
            roots[count] = np.sqrt(volume)
            count += 1
            size -= 1
            if size > 0:
                sift_down(gains, indices, size, 0, gains[size], indices[size])
            else:
                gains[0] = 0.0
        else:
            sift_down(gains, indices, size, 0, volume, i)
    return order, count


@jit
def coverage_gain(row, cover):
    """sum_j max(0, row_j - cover_j) of int32 [N], exact."""
    total = np.int64(0)
    for j in range(row.shape[0]):
        total += np.int64(max(row[j] - cover[j], np.int32(0)))
    return total


@jit
def scope_lazy(similarity, weight, k):
    """similarity int32 [N, N], weight float64 [N] -> int64 [k]."""
    n = similarity.shape[0]
    cover, order = np.zeros(n, np.int32), np.empty(k, np.int64)
    first = np.empty(n)
    for i in range(n):
        first[i] = weight[i] * coverage_gain(similarity[i], cover)
    gains, indices = heap_of(first)
    seen = np.zeros(n, np.int64)
    size, count = n, 0
    while count < k:
        i = indices[0]
        if seen[i] < count:
            seen[i] = count
            sift_down(gains, indices, size, 0, weight[i] * coverage_gain(similarity[i], cover), i)
            continue
        order[count] = i
        count += 1
        for j in range(n):
            cover[j] = max(cover[j], similarity[i, j])
        size -= 1
        if size > 0:
            sift_down(gains, indices, size, 0, gains[size], indices[size])
    return order


@jit
def id_lazy(units, importance, gamma, k):
    """units float32 [N, D], importance float64 [N] -> int64 [k]."""
    n = units.shape[0]
    order, seen, strength = np.empty(k, np.int64), np.zeros(n, np.int64), np.empty(k)
    gains, indices = heap_of(importance)
    size, count = n, 0
    while count < k:
        i, score = indices[0], gains[0]
        rival_gain, rival = runner_up(gains, indices, size)
        step, leads = seen[i], True
        while leads and step < count:
            if strength[step] > 0.0:
                distance = 1.0 - dot64(units[i], units[order[step]])
                score -= decay(gamma * (distance * distance)) * strength[step]
                leads = before(score, i, rival_gain, rival)
            step += 1
        seen[i] = step
        if leads:
            order[count] = i
            strength[count] = max(score, 0.0)
            count += 1
            size -= 1
            if size > 0:
                sift_down(gains, indices, size, 0, gains[size], indices[size])
        else:
            sift_down(gains, indices, size, 0, score, i)
    return order
