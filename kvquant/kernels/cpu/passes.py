"""The first two passes of certified reading, unit by unit: weights from K's high plane, and thresholds from their spread."""

from __future__ import annotations

from collections import namedtuple

import numpy as np

from kvquant.kernels.cpu.bound import HOPELESS, noise_of, slopes
from kvquant.kernels.cpu.choice import roots, survey, survey_likely, threshold
from kvquant.kernels.cpu.numbers import address, exp2, floats, jit, largest, line
from kvquant.kernels.cpu.queries import LOG2E
from kvquant.kernels.cpu.rows import AHEAD
from kvquant.kernels.cpu.scores import MASKED, high_weights, refine
from kvquant.kernels.cpu.values import K_FINE, V_READ, add_rows

# States of a row: done, to be read by its limits, to be read whole, left to the reference.
DONE, CHOSEN, EVERYTHING, LEFT = 0, 1, 2, 3
Query = namedtuple("Query", "turn dots dim digits start unit shift level")


@jit
def query_of(planes, ask, level, row):
    """The queries of a row for kvquant.kernels.cpu.scores; level: float32 [g]."""
    return Query(
        planes.turn,
        planes.dots,
        planes.dim,
        address(ask.digits[row]),
        address(ask.start[row]),
        ask.units[row],
        ask.shifts[row],
        level,
    )


@jit
def k_steps(planes, row):
    """float32 [tokens]."""
    return floats(planes.k_step + 4 * row * planes.k_room, planes.tokens)


@jit
def v_steps(planes, row):
    """float32 [tokens]."""
    return floats(planes.v_step + 4 * row * planes.v_room, planes.tokens)


@jit
def tail_weights(planes, ask, row, out, peaks, totals):
    """Fills out float32 [g, T] with the tail's weights, peaks and totals [g]."""
    tail, seen = ask.tail_k[row], ask.visible[row // ask.heads]
    for j in range(len(out)):
        query, peak, total = ask.query[row, j], MASKED, np.float32(0.0)
        for t in range(len(tail)):
            score = np.float32(0.0)
            for c in range(planes.dim):
                score += query[c] * tail[t, c]
            out[j, t] = score * ask.scale * LOG2E if len(seen) == 0 or seen[planes.tokens + t] else MASKED
            peak = max(peak, out[j, t])
        for t in range(len(tail)):
            out[j, t] = exp2(out[j, t] - peak)
            total += out[j, t]
        peaks[j], totals[j] = peak, total


@jit
def tail_output(tail_v, weights, out):
    """out float32 [g, D] = weights [g, T] times the tail's values [T, D]."""
    out[:] = 0
    for j in range(len(out)):
        for t in range(len(tail_v)):
            for c in range(len(out[j])):
                out[j, c] += weights[j, t] * tail_v[t, c]


@jit
def high_unit(planes, ask, wave, w, row, u, size):
    """Pass 1 for one unit, or for the tail."""
    peaks, totals = wave.peaks[w, u], wave.totals[w, u]
    if u * size < planes.tokens:
        stop = min((u + 1) * size, planes.tokens)
        query, plane = query_of(planes, ask, wave.level[w], row), planes.k_high + row * planes.k_room * planes.dim
        seen = ask.visible[row // ask.heads]
        high_weights(plane, k_steps(planes, row), u * size, stop, query, seen, wave.weights[w], peaks, totals)
    else:
        tail_weights(planes, ask, row, wave.tail[w, :, : ask.tail_k.shape[1]], peaks, totals)


@jit
def settle(wave, w):
    """After pass 1: level is such that 2**(t - level) are probabilities."""
    units, group = wave.peaks.shape[1:]
    for j in range(group):
        peak, total = MASKED, 0.0
        for u in range(units):
            peak = max(peak, wave.peaks[w, u, j])
        for u in range(units):
            total += wave.totals[w, u, j] * exp2(wave.peaks[w, u, j] - peak)
        wave.level[w, j] = peak + np.float32(np.log2(total))


@jit
def become_probabilities(p, wave, w, u):
    """Weights of a unit, float32 [g, n], become probabilities in place; totals: their sum."""
    for j in range(len(p)):
        factor, values, total = exp2(wave.peaks[w, u, j] - wave.level[w, j]), line(p, j), np.float32(0.0)
        for i in range(len(values)):
            values[i] *= factor
            total += values[i]
        wave.totals[w, u, j] = total


@jit
def survey_unit(planes, ask, wave, w, row, u, size, floor):
    """Pass 2 for one unit, or the tail: weights become probabilities; near: the output of the likely ones, totals: their sum."""
    dim, group, tail = planes.dim, ask.query.shape[1], u * size >= planes.tokens
    first, stop = (0, ask.tail_k.shape[1]) if tail else (u * size, min((u + 1) * size, planes.tokens))
    p = wave.tail[w, :, :stop] if tail else wave.weights[w, :, first:stop]
    become_probabilities(p, wave, w, u)
    near = wave.near[w, u]
    near[:] = 0
    if tail:
        tail_output(ask.tail_v[row], p, near)
        return
    n = stop - first
    top, likely, count = np.empty(n, np.float32), np.empty(n + AHEAD, np.int64), 0
    wave.squares[w, u] = 0
    survey(p, floor, wave.squares[w, u], top)
    known = wave.known[w, first:stop]
    for i in range(n):
        known[i] = np.uint8((K_FINE | V_READ) * (top[i] >= floor))
    for i in range(n):
        likely[count] = i
        count += known[i] & K_FINE
    survey_likely(p, likely[:count], floor, wave.squares[w, u])
    refine_part(planes, ask, wave, w, row, first, likely, count)
    steps, weights = v_steps(planes, row), np.empty((group, n), np.float32)
    for j in range(group):
        total = np.float32(0.0)
        for r in range(count):
            i = likely[r]
            total += p[j, i]
            weights[j, i] = p[j, i] * steps[first + i]
        wave.totals[w, u, j] = total
    place = planes.v_high + (row * planes.v_room + first) * dim
    add_rows(planes.add_high, (place, place, place), likely, count, weights, dim, near)


@jit
def refine_part(planes, ask, wave, w, row, first, tokens, count):
    """K's low plane of tokens[:count], counted from ``first``."""
    steps = floats(planes.k_step + 4 * (row * planes.k_room + first), planes.tokens - first)
    query = query_of(planes, ask, wave.level[w], row)
    refine(tokens, count, planes.k_low + (row * planes.k_room + first) * planes.dim, steps, query, wave.weights[w, :, first:])


@jit
def choose(planes, norms, ask, wave, w, row, floor, target, share):
    """After pass 2: the limits of a row, so that a bound of ``target`` times the output can be expected."""
    dim, units = planes.dim, wave.squares.shape[1]
    k_all, v_all = k_steps(planes, row), v_steps(planes, row)
    wave.step[w] = largest(k_all)
    for j in range(ask.query.shape[1]):
        if not slopes(ask.size[row, j])[0] * wave.step[w] <= HOPELESS:
            wave.state[w] = LEFT
            return
    k_step, v_step, count = 0.0, 0.0, 0
    for i in range(0, planes.tokens, 64):  # a typical step serves for the choice
        k_step, v_step, count = k_step + k_all[i], v_step + v_all[i], count + 1
    k_step, v_step = k_step / count, v_step / count
    wave.state[w] = CHOSEN
    spread, v_noise = norms.v_spread[row], max(norms.v_noise[row] * v_step, 1e-30)
    wave.ratio[w] = norms.v_noise[row] / spread
    out = np.empty(dim)
    for j in range(ask.query.shape[1]):
        squares, mass = np.zeros(wave.squares.shape[3]), 0.0
        out[:] = 0
        for u in range(units + 1):
            mass += wave.totals[w, u, j]
            out += wave.near[w, u, j]
            if u < units:
                squares += wave.squares[w, u, j]
        length, off = 0.0, 0.0
        for c in range(dim):  # what is not likely is taken as the centre
            x = out[c] + (1 - mass) * norms.v_centre[row, c]
            length += x * x
            off += (x - norms.v_centre[row, c]) ** 2
        roots(squares)
        allowed = target * np.sqrt(length)
        coarse, fine = slopes(ask.size[row, j])
        noise = noise_of(ask.size[row, j], norms.k_noise[row], planes.tokens, dim)
        left = max(allowed - 1.5 * fine * k_step * np.sqrt(length), 0.25 * allowed)
        y = k_step * (1 + coarse * k_step / 2)
        top = threshold(squares, floor, noise * y * spread, noise * y * (np.sqrt(off) + allowed), 0.0, 0.0, share * left)
        wave.limits[w, 0, j] = max(top * y, 1e-37)
        top = threshold(squares, floor, 0.0, spread, v_noise, np.log2(spread / v_noise), (1 - share) * left)
        wave.limits[w, 1, j] = max(top, 1e-37)
