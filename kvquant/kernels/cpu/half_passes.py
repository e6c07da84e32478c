"""The stages of a decode step over half planes: AlignedKV's rule (arXiv 2409.16546), or all bits.

1. K, each channel with its width: weights.
2. Probabilities, and the likeliest token of each residue class.
3. From those tokens the size of the output, so how many bits of a row of V are wasted.
4. V, each row with its width.
"""

from __future__ import annotations

import numpy as np
from numba import prange

from kvquant.alignment import NOTHING
from kvquant.half_planes import BLOCK
from kvquant.kernels.cpu.numbers import address, as_bits, floats, jit, line
from kvquant.kernels.cpu.passes import become_probabilities, settle, tail_output, tail_weights
from kvquant.kernels.cpu.rows import AHEAD, HEADS
from kvquant.kernels.cpu.scores import exponentials
from kvquant.kernels.cpu.values import add_rows
from kvquant.kernels.cpu.vectors import call_at, take_number
from kvquant.kernels.reference_half import CLASSES

SCORES, LIKELY, ROOM, VALUES, MERGE = range(5)


@jit
def score_unit(planes, ask, wave, w, row, u, size):
    """K of one unit, or of the tail."""
    peaks, totals, dim, group = wave.peaks[w, u], wave.totals[w, u], planes.dim, ask.query.shape[1]
    if u * size >= planes.tokens:
        tail_weights(planes, ask, row, wave.tail[w, :, : ask.tail_k.shape[1]], peaks, totals)
        return
    stop, weights = min((u + 1) * size, planes.tokens), wave.weights[w]
    for first in range(u * size, stop, BLOCK):
        place = (row * planes.k_room + first // BLOCK) * dim * BLOCK
        at = (planes.k_high + place, planes.k_middle + place // 2, planes.k_low + place // 2, address(ask.k_bits[row]))
        for head in range(0, group, HEADS):
            out = address(weights) + weights.strides[0] * head + 4 * first
            query = address(ask.scaled[row]) + 4 * dim * head
            call_at(planes.scores, (*at, query, out, weights.strides[0], dim, min(HEADS, group - head)))
    seen = ask.visible[row // ask.heads]
    for j in range(group):
        scores = floats(address(weights[j]) + 4 * (u * size), stop - u * size)
        peaks[j], totals[j] = exponentials(scores, seen, u * size)


@jit
def likely_unit(planes, ask, wave, w, row, u, size):
    """Weights become probabilities; rest of the tail."""
    group, tail = ask.query.shape[1], u * size >= planes.tokens
    first, stop = (0, ask.tail_k.shape[1]) if tail else (u * size, min((u + 1) * size, planes.tokens))
    p = wave.tail[w, :, :stop] if tail else wave.weights[w, :, first:stop]
    become_probabilities(p, wave, w, u)
    if tail:
        tail_output(ask.tail_v[row], p, wave.rest[w, u])
        return
    wave.bits[w, first:stop] = 0
    for j in range(group):
        values, best, token = line(p, j), wave.best[w, u, j], wave.token[w, u, j]
        best[:] = -1
        for i in range(0, stop - first, CLASSES):
            for c in range(CLASSES):
                if values[i + c] > best[c]:
                    best[c], token[c] = values[i + c], first + i + c


@jit
def exponent_of(x):
    """floor(log2 x) of x >= 0; NOTHING for zero. Subnormal numbers count as the least normal one."""
    return np.int64((as_bits(np.float32(x)) >> 23) - 127) if x > 0 else np.int64(NOTHING)


@jit
def room_of(planes, ask, wave, w, row):
    """room: bits of a row of V are wasted from the difference of this and p's exponent on. bits: 8 for rows that were looked at."""
    dim, units = planes.dim, wave.best.shape[1]
    one, none = np.ones((1, 1), np.float32), np.zeros(AHEAD + 1, np.int64)
    value = np.empty((1, dim), np.float32)
    for j in range(ask.query.shape[1]):
        size = np.zeros(dim, np.float32)
        for c in range(CLASSES):
            best = 0
            for u in range(1, units):
                if wave.best[w, u, j, c] > wave.best[w, best, j, c]:
                    best = u
            token = wave.token[w, best, j, c]
            wave.bits[w, token] = 8
            value[:] = 0
            at = planes.v_high + (row * planes.v_room + token) * dim
            add_rows(planes.add_8, (at, at, at), none, 1, one, dim, value)
            for channel in range(dim):
                size[channel] += wave.best[w, best, j, c] * abs(value[0, channel])
        room = np.int64(1 << 20)
        for channel in range(dim):
            room = min(room, exponent_of(size[channel]) - ask.v_peak[row, channel])
        wave.room[w, j] = room


@jit
def value_unit(planes, ask, wave, w, row, u, size):
    """V of one unit."""
    dim, group, first = planes.dim, ask.query.shape[1], u * size
    n = min(size, planes.tokens - first)
    p, bits = wave.weights[w, :, first : first + n], wave.bits[w, first : first + n]
    wasted, tokens, counts = np.full(n, 1 << 20, np.int32), np.empty((4, n + AHEAD), np.int64), np.zeros(4, np.int64)
    to_12, to_8, to_none = np.int32(ask.steps[0]), np.int32(ask.steps[1]), np.int32(ask.steps[2])
    for j in range(group):
        values, room = line(p, j), np.int32(wave.room[w, j])
        for i in range(n):
            wasted[i] = min(wasted[i], room - ((as_bits(values[i]) >> 23) - 127))
    for i in range(n):
        waste = max(wasted[i], 0)
        kind = np.int64(waste < to_12) + np.int64(waste < to_8) + np.int64(waste < to_none or bits[i] > 0)
        bits[i] = 4 * kind + 4 * (kind > 0)  # kinds 0 to 3: none, 8, 12, 16
        tokens[kind, counts[kind]] = i
        counts[kind] += 1
    wave.rest[w, u] = 0
    place = row * planes.v_room + first
    at = (planes.v_high + place * dim, planes.v_middle + place * dim // 2, planes.v_low + place * dim // 2)
    add_rows(planes.add_8, at, tokens[1], counts[1], p, dim, wave.rest[w, u])
    add_rows(planes.add_12, at, tokens[2], counts[2], p, dim, wave.rest[w, u])
    add_rows(planes.add_16, at, tokens[3], counts[3], p, dim, wave.rest[w, u])
    for j in range(group):
        for kind in range(3):
            mass = 0.0
            for r in range(counts[kind]):
                mass += p[j, tokens[kind, r]]
            wave.mass[w, u, j, 2 - kind] = mass


@jit
def merge(planes, ask, wave, result, w, row):
    """The output of a row, the masses of its bound, and the bits read."""
    for j in range(ask.query.shape[1]):
        total, out, mass = 0.0, np.zeros(planes.dim), np.zeros(3)
        for u in range(wave.totals.shape[1]):
            total += wave.totals[w, u, j]
            out += wave.rest[w, u, j]
            if u < wave.mass.shape[1]:
                mass += wave.mass[w, u, j]
        for c in range(planes.dim):
            result.out[row, j, c] = (out[c] + mass[2] * ask.v_mean[row, c]) / total
        for kind in range(3):
            result.mass[row, j, kind] = mass[kind] / total
    result.counts[row] = 0
    for i in range(planes.tokens if result.value_bits.shape[1] else 0):
        bits = wave.bits[w, i]
        result.value_bits[row, i] = bits
        result.counts[row, 0] += bits >= 8
        result.counts[row, 1] += bits >= 12
        result.counts[row, 2] += bits >= 16


@jit
def work(stage, planes, ask, wave, result, first, rows, size):
    """Takes pieces of one stage until none is left; any number of threads may call it at once."""
    units = wave.best.shape[1] + (stage < ROOM)
    pieces = rows if stage in (ROOM, MERGE) else rows * units
    number = take_number(address(wave.counter))
    while number < pieces:
        w, u = number, 0
        if pieces > rows:
            w, u = number // units, number % units
        if stage == SCORES:
            score_unit(planes, ask, wave, w, first + w, u, size)
        elif stage == LIKELY:
            likely_unit(planes, ask, wave, w, first + w, u, size)
        elif stage == ROOM:
            room_of(planes, ask, wave, w, first + w)
        elif stage == VALUES:
            value_unit(planes, ask, wave, w, first + w, u, size)
        else:
            merge(planes, ask, wave, result, w, first + w)
        number = take_number(address(wave.counter))


# The body of a parallel loop only calls: an array of a tuple that it writes to itself would not change.
@jit(parallel=True)
def share_out(stage, planes, ask, wave, result, first, rows, size, threads):
    """One stage for the rows first..first+rows-1, on all threads; they meet again at its end."""
    wave.counter[0] = 0
    for _ in prange(threads):
        work(stage, planes, ask, wave, result, first, rows, size)


@jit
def decode(planes, ask, wave, result, size, threads):
    """Fills result."""
    rows, waves = len(result.out), len(wave.level)
    for first in range(0, rows, waves):
        here = min(waves, rows - first)
        for stage in range(MERGE + 1):
            share_out(stage, planes, ask, wave, result, first, here, size, threads)
            if stage == SCORES:
                for w in range(here):
                    settle(wave, w)
