"""Certified reading of fixed-point planes: units of work, shared by threads, in three passes over a wave of rows.

A *row* is one KV head of one batch row, with its group of query heads; its units are runs of tokens, and the tail.
  1. K's high plane, whole: weights.
  2. The spread of the probabilities (kvquant.kernels.cpu.choice). Tokens that are likely get both planes of K, and their
     rows of V's high plane a first output, so an error allowed and the thresholds.
  3. The rows of K and V over the thresholds, the output and its bound. Rows that miss go round again with lower thresholds.
Sums are kept per unit and added in order, so the result does not depend on which thread did what.
"""

from __future__ import annotations

from collections import namedtuple

import numpy as np
from numba import prange

from kvquant.kernels.cpu import values as s
from kvquant.kernels.cpu.bound import HOPELESS, bounds, cubic_of, noise_of, slopes
from kvquant.kernels.cpu.choice import floor_of, roots, survey, survey_likely, threshold
from kvquant.kernels.cpu.numbers import address, exp2, floats, jit, line
from kvquant.kernels.cpu.scores import LOG2E, LOW, MASKED, high_weights, refine
from kvquant.kernels.cpu.values import K_FINE, V_FINE, V_READ, gather
from kvquant.kernels.cpu.vectors import take_number

# Addresses of the planes' first rows; ``room``: the tokens that a KV head has room for; tokens: how many there are.
Planes = namedtuple("Planes", "k_high k_low k_step v_high v_low v_step k_room v_room tokens dim")
# Of every row: K's and V's centre float32 [R, D], K's and V's noise, V's spread and radius [R], V's noise and spread [2, R, D].
Norms = namedtuple("Norms", "k_centre v_centre k_noise v_noise v_spread v_radius columns")
# query float32 [R, g, D], and split (kvquant.kernels.cpu.queries); tail_k, tail_v float32 [R, T, D]; visible uint8 [B, L] or
# [B, 0]; heads: KV heads of a batch row; units, shifts float32 [R, g]: see kvquant.kernels.cpu.scores.
Ask = namedtuple("Ask", "query digits start size tail_k tail_v visible heads units shifts")
Query = namedtuple("Query", "dim digits start unit shift level")
# A wave's scratch: weights float32 [W, g, tokens], tail [W, g, T], peaks, totals [W, U + 1, g], level [W, g], known uint8
# [W, tokens], near, rest float32 [W, U + 1, g, D], sums float64 [W, U, g, SUMS], squares [W, U, g, OCTAVES + 1], best [W, U, g]
# (the largest weight of a near token), limits float32 [W, 2, g] (of y, and of p for V), ratio [W].
Wave = namedtuple("Wave", "weights tail peaks totals level known near rest sums squares best limits ratio")

# Tokens read in one go, so that a group's weights stay in the first-level cache.
PART = 512
Room = namedtuple("Room", "y gathered top tokens")


@jit
def _query(planes, ask, wave, w, row):
    digits, start = address(ask.digits[row]), address(ask.start[row])
    return Query(planes.dim, digits, start, ask.units[row], ask.shifts[row], wave.level[w])


@jit
def _plane(place, row, room, dim):
    return place + row * room * dim


@jit
def _seen(planes, ask, row):
    """Which tokens of a row may be attended, planes and tail; empty where all may."""
    return ask.visible[row // ask.heads]


@jit
def high_unit(planes, ask, wave, first_row, w, u, size):
    """Pass 1 for one unit, or for the tail."""
    row = first_row + w
    seen = _seen(planes, ask, row)
    if u * size < planes.tokens:
        steps = floats(planes.k_step + 4 * row * planes.k_room, planes.tokens)
        query = _query(planes, ask, wave, w, row)
        plane = _plane(planes.k_high, row, planes.k_room, planes.dim)
        stop = min((u + 1) * size, planes.tokens)
        high_weights(plane, steps, u * size, stop, query, seen, wave.weights[w], wave.peaks[w, u], wave.totals[w, u])
        return
    tail = ask.tail_k[row]
    for j in range(ask.query.shape[1]):
        query, out, peak, total = ask.query[row, j], wave.tail[w, j], MASKED, np.float32(0.0)
        for t in range(len(tail)):
            score = np.float32(0.0)
            for c in range(planes.dim):
                score += query[c] * tail[t, c]
            out[t] = score * LOG2E if len(seen) == 0 or seen[planes.tokens + t] else MASKED
            peak = max(peak, out[t])
        for t in range(len(tail)):
            out[t] = exp2(out[t] - peak)
            total += out[t]
        wave.peaks[w, u, j], wave.totals[w, u, j] = peak, total


@jit
def settle(wave, rows, units):
    """After pass 1: level = the largest t plus log2 of the sum of weights, so that 2**(t - level) are probabilities."""
    for w in range(rows):
        for j in range(wave.peaks.shape[2]):
            peak, total = MASKED, 0.0
            for u in range(units + 1):
                peak = max(peak, wave.peaks[w, u, j])
            for u in range(units + 1):
                total += wave.totals[w, u, j] * exp2(wave.peaks[w, u, j] - peak)
            wave.level[w, j] = peak + np.float32(np.log2(total))


@jit
def survey_unit(planes, ask, wave, first_row, w, u, size, floor):
    """Pass 2 for one unit; of the tail, the output."""
    row, dim, group = first_row + w, planes.dim, ask.query.shape[1]
    inside = u * size < planes.tokens
    first, stop = (u * size, min((u + 1) * size, planes.tokens)) if inside else (0, wave.tail.shape[2])
    p = wave.weights[w, :, first:stop] if inside else wave.tail[w]
    for j in range(group):
        factor, values = exp2(wave.peaks[w, u, j] - wave.level[w, j]), line(p, j)
        for i in range(len(values)):
            values[i] *= factor
    near = wave.near[w, u]
    near[:] = 0
    if not inside:
        for j in range(group):
            total = np.float32(0.0)
            for t in range(len(p[j])):
                total += p[j, t]
                for c in range(dim):
                    near[j, c] += p[j, t] * ask.tail_v[row, t, c]
            wave.totals[w, u, j] = total
        return 0
    top, tokens, count = np.empty(stop - first, np.float32), np.empty(stop - first + 1, np.int64), 0
    wave.squares[w, u] = 0
    survey(p, floor, wave.squares[w, u], top)
    known = wave.known[w, first:stop]
    for i in range(stop - first):
        known[i] = np.uint8(K_FINE * (top[i] >= floor))
        tokens[count] = i
        count += top[i] >= floor
    likely = tokens[:count]
    survey_likely(p, likely, floor, wave.squares[w, u])
    _refine(planes, ask, wave, row, w, first, likely)
    room = np.empty((group, count), np.float32)
    gather(p, likely, room)
    steps = floats(planes.v_step + 4 * (row * planes.v_room + first), stop - first)
    for j in range(group):
        total, values = np.float32(0.0), line(room, j)
        for r in range(count):
            total += values[r]
            values[r] *= steps[likely[r]]
        wave.totals[w, u, j] = total
    s.add_rows(_plane(planes.v_high, row, planes.v_room, dim) + first * dim, likely, room, dim, near)
    return count


@jit
def _refine(planes, ask, wave, row, w, first, tokens):
    """Both planes of K of ``tokens``, counted from ``first``."""
    offset = row * planes.k_room + first
    high, low = planes.k_high + offset * planes.dim, planes.k_low + offset * planes.dim
    steps = floats(planes.k_step + 4 * offset, planes.tokens - first)
    refine(tokens, high, low, steps, _query(planes, ask, wave, w, row), wave.weights[w, :, first:])


@jit
def choose(planes, norms, ask, wave, first_row, w, units, floor, target, share):
    """After pass 2: the limits of every head of a row."""
    row, dim = first_row + w, planes.dim
    out = np.empty(dim)
    steps_k = floats(planes.k_step + 4 * row * planes.k_room, planes.tokens)
    steps_v = floats(planes.v_step + 4 * row * planes.v_room, planes.tokens)
    # A typical step serves for the choice; one in 64 shows it.
    k_step, v_step, count = 0.0, 0.0, 0
    for i in range(0, planes.tokens, 64):
        k_step, v_step, count = k_step + steps_k[i], v_step + steps_v[i], count + 1
    k_step, v_step = k_step / count, v_step / count
    spread, v_noise = norms.v_spread[row], max(norms.v_noise[row] * v_step, 1e-30)
    wave.ratio[w] = norms.v_noise[row] / spread
    for j in range(ask.query.shape[1]):
        squares = np.zeros(wave.squares.shape[3])
        out[:] = 0
        mass = 0.0
        for u in range(units + 1):
            mass += wave.totals[w, u, j]
            out += wave.near[w, u, j]
            if u < units:
                squares += wave.squares[w, u, j]
        length, off = 0.0, 0.0
        for c in range(dim):
            x = out[c] + (1 - mass) * norms.v_centre[row, c]
            length += x * x
            off += (x - norms.v_centre[row, c]) ** 2
        roots(squares)
        allowed = target * np.sqrt(length)
        coarse, fine = slopes(ask.size[row, j], dim)
        noise = noise_of(ask.size[row, j], norms.k_noise[row], planes.tokens, dim)
        rest = max(allowed - 2 * fine * k_step * np.sqrt(length), 0.25 * allowed)
        y = k_step * (1 + coarse * k_step / 2)
        top = threshold(squares, floor, noise * y * spread, noise * y * (np.sqrt(off) + allowed), 0.0, 0.0, share * rest)
        wave.limits[w, 0, j] = max(top * y, 1e-37)
        top = threshold(squares, floor, 0.0, spread, v_noise, np.log2(spread / v_noise), (1 - share) * rest)
        wave.limits[w, 1, j] = max(top, 1e-37)


@jit
def read_unit(planes, ask, wave, first_row, w, u, size, everything, largest_step, counts):
    """Pass 3 for one unit. Adds to counts how many rows of K's low plane, and of V's high and low plane it read."""
    group = ask.query.shape[1]
    slope, cubic = np.empty(group, np.float32), np.empty(group, np.float32)
    for j in range(group):
        slope[j] = slopes(ask.size[first_row + w, j], planes.dim)[0]
        cubic[j] = cubic_of(slope[j] * largest_step)
    wave.sums[w, u] = 0
    wave.near[w, u] = 0
    wave.rest[w, u] = 0
    wave.best[w, u] = 0
    room = Room(
        np.empty((group, PART), np.float32), np.empty((group, PART), np.float32), np.empty(PART, np.float32), np.empty((3, PART + 1), np.int64)
    )
    stop = min((u + 1) * size, planes.tokens)
    for first in range(u * size, stop, PART):
        _read_part(planes, ask, wave, first_row, w, u, first, min(first + PART, stop), everything, slope, cubic, room, counts)


@jit
def _read_part(planes, ask, wave, first_row, w, u, first, stop, everything, slope, cubic, room, counts):
    row, dim, group, n = first_row + w, planes.dim, ask.query.shape[1], stop - first
    p, known, sums = wave.weights[w, :, first:stop], wave.known[w, first:stop], wave.sums[w, u]
    k_steps = floats(planes.k_step + 4 * (row * planes.k_room + first), n)
    v_steps = floats(planes.v_step + 4 * (row * planes.v_room + first), n)
    y, gathered, top, tokens = room.y[:, :n], room.gathered, room.top[:n], room.tokens
    one = np.float32(0.0 if everything else 1.0)
    s.score_weights(p, k_steps, slope, cubic, wave.limits[w, 0], y, top)
    refined = 0
    for i in range(n):  # without branches, which nobody could predict
        new = (top[i] >= one) & (known[i] & K_FINE == 0)
        tokens[0, refined] = i
        refined += new
        known[i] |= np.uint8(new)
    _refine(planes, ask, wave, row, w, first, tokens[0, :refined])

    s.largest_over(p, wave.limits[w, 1], top)
    ratio = wave.ratio[w]
    for i in range(n):
        known[i] |= np.uint8(V_READ * (top[i] >= one) + V_FINE * ((top[i] >= one) & (top[i] * v_steps[i] * ratio >= one)))
    near, other, low = 0, 0, 0
    for i in range(n):
        tokens[0, near], tokens[1, other], tokens[2, low] = i, i, i
        near += known[i] & (K_FINE | V_READ) == K_FINE | V_READ
        other += known[i] & (K_FINE | V_READ) == V_READ
        low += known[i] >> 2
    s.light_sums(p, y, k_steps, known, sums)
    high_plane, low_plane = planes.v_high + (row * planes.v_room + first) * dim, planes.v_low + (row * planes.v_room + first) * dim
    out, rest, best = wave.near[w, u], wave.rest[w, u], wave.best[w, u]
    s.value_sums(p, high_plane, v_steps, known, tokens[0, :near], dim, True, gathered, sums, best, out)
    s.value_sums(p, high_plane, v_steps, known, tokens[1, :other], dim, False, gathered, sums, best, rest)
    gather(p, tokens[2, :low], gathered)
    for j in range(group):
        values = line(gathered, j)
        for r in range(low):
            values[r] *= v_steps[tokens[2, r]] * LOW
    s.add_rows(low_plane, tokens[2, :low], gathered, dim, rest)
    counts[1] += refined
    counts[2] += near + other
    counts[3] += low
