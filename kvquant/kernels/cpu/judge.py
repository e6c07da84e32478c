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
        write_bits(wave.known[w], result.key_bits[row], result.value_bits[row], result.counts[row])
    elif last:
        wave.state[w] = EVERYTHING


@jit
def write_bits(known, key_bits, value_bits, counts):
    """Bits read per number, float32 [L] each, the tail's already there.

    counts: int64 [3], rows read of K's low, V's high and V's low plane.
    """
    fine, read, low = 0, 0, 0
    for i in range(len(known)):
        fine += known[i] & 1
        read += (known[i] >> 1) & 1
        low += known[i] >> 2
    counts[0], counts[1], counts[2] = fine, read, low
    for i in range(len(known)):
        key_bits[i] = np.float32(8 + 8 * (known[i] & 1))
        value_bits[i] = np.float32(8 * (((known[i] >> 1) & 1) + (known[i] >> 2)))
