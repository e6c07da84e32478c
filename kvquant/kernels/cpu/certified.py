"""The three passes of kvquant.kernels.cpu.passes over all rows of a batch, round by round."""

from __future__ import annotations

import numpy as np
from numba import prange

from kvquant.kernels.cpu import values as s
from kvquant.kernels.cpu.bound import HOPELESS, bounds, noise_of, slopes
from kvquant.kernels.cpu.choice import floor_of
from kvquant.kernels.cpu.passes import choose, high_unit, read_unit, settle, survey_unit
from kvquant.kernels.cpu.numbers import address, floats, jit, signed_bytes
from kvquant.kernels.cpu.values import K_FINE, V_READ
from kvquant.kernels.cpu.vectors import take_number

AIM = 0.92
ROUNDS = 4


@jit(parallel=True)
def high_pass(planes, ask, wave, first_row, rows, units, size, threads):
    counter = np.zeros(1, np.int64)
    for _ in prange(threads):
        number = take_number(address(counter))
        while number < rows * (units + 1):
            high_unit(planes, ask, wave, first_row, number // (units + 1), number % (units + 1), size)
            number = take_number(address(counter))


@jit(parallel=True)
def survey_pass(planes, ask, wave, first_row, rows, units, size, floor, counts, threads):
    counter = np.zeros(1, np.int64)
    for _ in prange(threads):
        number = take_number(address(counter))
        while number < rows * (units + 1):
            w, u = number // (units + 1), number % (units + 1)
            counts[w, u, 0] = survey_unit(planes, ask, wave, first_row, w, u, size, floor)
            number = take_number(address(counter))


@jit(parallel=True)
def read_pass(planes, ask, wave, first_row, rows, units, size, state, steps, counts, threads):
    """state: int64 [W], 0 done, 1 to be read, 2 to be read whole."""
    counter = np.zeros(1, np.int64)
    for _ in prange(threads):
        number = take_number(address(counter))
        while number < rows * units:
            w, u = number // units, number % units
            if state[w]:
                read_unit(planes, ask, wave, first_row, w, u, size, state[w] == 2, steps[w], counts[w, u])
            number = take_number(address(counter))


@jit
def finish(planes, norms, ask, wave, first_row, w, units, size, step, out, bound, bound_max):
    """Writes out [g, D], bound and bound_max [g] of a row."""
    row, dim, group = first_row + w, planes.dim, out.shape[0]
    sums, near, total = np.empty(s.SUMS), np.empty(dim), np.empty(dim)
    k_steps = floats(planes.k_step + 4 * row * planes.k_room, planes.tokens)
    v_steps = floats(planes.v_step + 4 * row * planes.v_room, planes.tokens)
    for j in range(group):
        sums[:] = 0
        near[:] = 0
        total[:] = 0
        top, token = 0.0, 0
        for u in range(units):
            sums += wave.sums[w, u, j]
            near += wave.near[w, u, j]
            total += wave.rest[w, u, j]
            if wave.best[w, u, j] > top:
                top, token = wave.best[w, u, j], u * size
        near_flags = K_FINE | V_READ
        while top > 0 and (wave.weights[w, j, token] != top or wave.known[w, token] & near_flags != near_flags):
            token += 1
        weight = sums[s.TOTAL] + wave.totals[w, units, j]
        for c in range(dim):
            total[c] = (total[c] + near[c] + wave.near[w, units, j, c] + sums[s.UNREAD] * norms.v_centre[row, c]) / weight
            out[j, c] = total[c]
        near /= weight
        for k in range(s.SUMS):
            sums[k] /= weight
        sums[s.Y2] /= weight
        sums[s.UNREAD2] /= weight
        sums[s.COARSE2] /= weight
        reach = 0.0
        best = signed_bytes(planes.v_high + (row * planes.v_room + token) * dim, dim)
        for c in range(dim):
            reach += (np.float64(best[c]) * v_steps[token] - total[c]) ** 2
        top /= weight
        known = (top, np.float64(k_steps[token]), np.float64(v_steps[token]), np.sqrt(reach))
        slope = slopes(ask.size[row, j], dim)[1]
        noise = noise_of(ask.size[row, j], norms.k_noise[row], planes.tokens, dim)
        of_v = (np.float64(norms.v_noise[row]), np.float64(norms.v_spread[row]), np.float64(norms.v_radius[row]))
        limit = wave.limits[w, 0, j] / weight
        bound[j], bound_max[j] = bounds(
            sums, near, total, norms.v_centre[row], of_v, norms.columns[:, row], noise, slope, step, limit, known
        )


@jit
def certified(planes, norms, ask, wave, units, size, target, share, threads, out, bound, bound_max, key_bits, value_bits, touched):
    """Fills out [R, g, D], bound and bound_max [R, g], key_bits and value_bits float32 [R, L], and touched int64 [4]: rows of
    K's low plane with their high rows again, V's high and low rows. Returns the rounds."""
    rows, waves = len(out), len(wave.level)
    floor = floor_of(planes.tokens)
    counts = np.zeros((waves, units + 1, 4), np.int64)
    state, steps = np.empty(waves, np.int64), np.empty(waves, np.float32)
    most = 0
    for first_row in range(0, rows, waves):
        here = min(waves, rows - first_row)
        counts[:] = 0
        high_pass(planes, ask, wave, first_row, here, units, size, threads)
        settle(wave, here, units)
        survey_pass(planes, ask, wave, first_row, here, units, size, floor, counts, threads)
        for w in range(here):
            choose(planes, norms, ask, wave, first_row, w, units, floor, AIM * target, share)
            k_steps = floats(planes.k_step + 4 * (first_row + w) * planes.k_room, planes.tokens)
            largest = np.float32(0.0)
            for i in range(planes.tokens):
                largest = max(largest, k_steps[i])
            steps[w], state[w] = largest, 1
            for j in range(out.shape[1]):
                if slopes(ask.size[first_row + w, j], planes.dim)[0] * largest > HOPELESS:
                    state[w] = 2
        for rounds in range(1, ROUNDS + 1):
            most = max(most, rounds)
            read_pass(planes, ask, wave, first_row, here, units, size, state, steps, counts, threads)
            left = 0
            for w in range(here):
                row = first_row + w
                if state[w] == 0:
                    continue
                finish(planes, norms, ask, wave, first_row, w, units, size, steps[w], out[row], bound[row], bound_max[row])
                missed = False
                for j in range(out.shape[1]):
                    length = 0.0
                    for c in range(planes.dim):
                        length += np.float64(out[row, j, c]) ** 2
                    allowed = target * np.sqrt(length)
                    if not bound[row, j] <= allowed:
                        missed = True
                        less = 0.7 * min(1.0, allowed / bound[row, j]) ** 2
                        wave.limits[w, 0, j] = max(wave.limits[w, 0, j] * less, 1e-37)
                        wave.limits[w, 1, j] = max(wave.limits[w, 1, j] * less, 1e-37)
                if not missed or state[w] == 2:
                    state[w] = 0
                else:
                    left += 1
                    state[w] = 2 if rounds == ROUNDS - 1 else 1
            if left == 0:
                break
        for w in range(here):
            known = wave.known[w]
            keys, values = key_bits[first_row + w], value_bits[first_row + w]
            for i in range(planes.tokens):
                keys[i] = 8 + 8 * (known[i] & 1)
                values[i] = 8 * (((known[i] >> 1) & 1) + ((known[i] >> 2) & 1))
            for u in range(units):
                for k in range(4):
                    touched[k] += counts[w, u, k]
    return most
