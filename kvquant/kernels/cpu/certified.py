"""Certified reading of fixed-point planes: three passes over a wave of rows, shared by threads unit by unit.

  1. K's high plane, whole: weights.
  2. The spread of the probabilities (kvquant.kernels.cpu.choice). Tokens that are likely get both planes of K, and their rows
     of V's high plane a first output, so an error allowed and the thresholds.
  3. The rows of K and V over the thresholds, the output and its bound. Rows that miss it go round again with lower thresholds.
Sums are kept per unit and added in order, so the result does not depend on which thread did what.
"""

from __future__ import annotations

import numpy as np
from numba import prange

from kvquant.kernels.cpu.choice import floor_of
from kvquant.kernels.cpu.numbers import address, jit
from kvquant.kernels.cpu.passes import DONE, EVERYTHING, choose, high_unit, settle, survey_unit
from kvquant.kernels.cpu.queries import prepare
from kvquant.kernels.cpu.reading import finish, read_unit
from kvquant.kernels.cpu.vectors import take_number

# What the first choice may use of the error allowed; and how much lower than in proportion a limit gets in the next round.
AIM, LOWER = 0.92, 0.7
ROUNDS = 4


@jit
def next_number(wave):
    return take_number(address(wave.counter))


# The bodies of parallel loops only call: an array of a tuple that they write to themselves would not change.
@jit(parallel=True)
def high_pass(planes, norms, ask, wave, first, rows, size, threads):
    units = wave.peaks.shape[1]
    for _ in prange(threads):
        number = next_number(wave)
        while number < rows * units:
            high_unit(planes, ask, wave, number // units, first + number // units, number % units, size)
            number = next_number(wave)


@jit(parallel=True)
def survey_pass(planes, ask, wave, first, rows, size, floor, threads):
    units = wave.peaks.shape[1]
    for _ in prange(threads):
        number = next_number(wave)
        while number < rows * units:
            survey_unit(planes, ask, wave, number // units, first + number // units, number % units, size, floor)
            number = next_number(wave)


@jit(parallel=True)
def choose_pass(planes, norms, ask, wave, first, rows, floor, target, share, threads):
    for _ in prange(threads):
        w = next_number(wave)
        while w < rows:
            choose(planes, norms, ask, wave, w, first + w, floor, target, share)
            w = next_number(wave)


@jit(parallel=True)
def read_pass(planes, ask, wave, first, rows, size, threads):
    units = wave.sums.shape[1]
    for _ in prange(threads):
        number = next_number(wave)
        while number < rows * units:
            if wave.state[number // units] != DONE:
                read_unit(planes, ask, wave, number // units, first + number // units, number % units, size)
            number = next_number(wave)


@jit(parallel=True)
def finish_pass(planes, norms, ask, wave, result, first, rows, size, target, last, threads):
    for _ in prange(threads):
        w = next_number(wave)
        while w < rows:
            if wave.state[w] != DONE:
                finish(planes, norms, ask, wave, result, w, first + w, size)
                judge(wave, result, w, first + w, target, last)
            w = next_number(wave)


@jit
def judge(wave, result, w, row, target, last):
    """Whether a row is done; if not, lower limits for the heads that missed."""
    missed = False
    for j in range(len(result.bound[row])):
        length = 0.0
        for x in result.out[row, j]:
            length += np.float64(x) * x
        bound, allowed = result.bound[row, j], target * np.sqrt(length)
        if not bound <= allowed:
            missed = True
            for kind in range(2):
                wave.limits[w, kind, j] = max(wave.limits[w, kind, j] * LOWER * min(1.0, allowed / bound) ** 2, 1e-37)
    if wave.state[w] == EVERYTHING or not missed:
        wave.state[w] = DONE
        write_bits(wave.known[w], result.key_bits[row], result.value_bits[row])
    elif last:
        wave.state[w] = EVERYTHING


@jit
def write_bits(known, key_bits, value_bits):
    """Bits read per number: float32 [L] each, the tail's already there."""
    for i in range(len(known)):
        key_bits[i] = 8 + 8 * (known[i] & 1)
        value_bits[i] = 8 * (((known[i] >> 1) & 1) + (known[i] >> 2))


@jit
def certified(planes, norms, ask, wave, result, size, target, share, threads):
    """Fills result; its counts: rows read of V's high plane in pass 2 (of both planes of K as well), and in pass 3 of both
    planes of K, of V's high and of V's low plane. Returns the rounds, or 0 where a query is not finite."""
    rows, floor, most = len(result.out), floor_of(planes.tokens), 1
    for row in range(rows):
        if not prepare(norms, ask, row):
            return 0
    for first in range(0, rows, len(wave.level)):
        here = min(len(wave.level), rows - first)
        wave.counter[0] = 0
        high_pass(planes, norms, ask, wave, first, here, size, threads)
        for w in range(here):
            settle(wave, w)
        wave.counter[0] = 0
        survey_pass(planes, ask, wave, first, here, size, floor, threads)
        wave.counter[0] = 0
        choose_pass(planes, norms, ask, wave, first, here, floor, AIM * target, share, threads)
        for rounds in range(1, ROUNDS + 1):
            most = max(most, rounds)
            wave.counter[0] = 0
            read_pass(planes, ask, wave, first, here, size, threads)
            wave.counter[0] = 0
            finish_pass(planes, norms, ask, wave, result, first, here, size, target, rounds == ROUNDS - 1, threads)
            if not wave.state[:here].any():
                break
        for w in range(here):
            result.counts[:] += wave.counts[w].sum(0)
    return most
