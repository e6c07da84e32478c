"""Whether the bound of a row that was read is good enough, and lower thresholds where it is not."""

from __future__ import annotations

import numpy as np

from kvquant.kernels.cpu.numbers import jit
from kvquant.kernels.cpu.passes import DONE, EVERYTHING

# How much lower than in proportion a limit gets in the next round.
LOWER = 0.7


@jit
def judge(wave, result, w, row, target, last):
    """Whether a row is done; if not, lower limits for the heads that missed."""
    missed = False
    for j in range(len(result.bound[row])):
        length = 0.0
        for x in result.out[row, j]:
            length += np.float64(x) * x
        result.norm[row, j] = np.sqrt(length)
        bound, allowed = result.bound[row, j], target * np.sqrt(length)
        if not bound <= allowed:
            missed = True
            for kind in range(2):
                wave.limits[w, kind, j] = max(wave.limits[w, kind, j] * LOWER * min(1.0, allowed / bound) ** 2, 1e-37)
    if wave.state[w] == EVERYTHING or not missed:
        wave.state[w] = DONE
        if result.key_bits.shape[1]:
            write_bits(wave.known[w], result.key_bits[row], result.value_bits[row], result.counts[row])
    elif last:
        wave.state[w] = EVERYTHING


@jit
def write_bits(known, key_bits, value_bits, counts):
    """Bits read per number, float32 [L] each, the tail's already there.

    counts: int64 [3], rows read of K's low, V's high and V's low plane.
    """
    fine, read, low = np.int32(0), np.int32(0), np.int32(0)
    for i in range(len(known)):
        bits = np.int32(known[i])
        k, v, f = np.int32(bits & 1), np.int32((bits >> 1) & 1), np.int32(bits >> 2)
        fine, read, low = np.int32(fine + k), np.int32(read + v), np.int32(low + f)
        key_bits[i], value_bits[i] = np.float32(np.int32(8 + 8 * k)), np.float32(np.int32(8 * (v + f)))
    counts[0], counts[1], counts[2] = fine, read, low
