"""All bits of fixed-point planes in one pass: the control. Every unit keeps its own maximum; the units are merged at the end."""

from __future__ import annotations

import numpy as np

from kvquant.kernels.cpu.bound import DIGIT, MARGIN
from kvquant.kernels.cpu.dots import WIDTH
from kvquant.kernels.cpu.numbers import address, exp2, jit, largest, line
from kvquant.kernels.cpu.passes import k_steps, query_of, tail_output, tail_weights, v_steps
from kvquant.kernels.cpu.rows import AHEAD
from kvquant.kernels.cpu.scores import LOW, MASKED, row_dots
from kvquant.kernels.cpu.values import FINE, K_STEP, add_rows
from kvquant.planes import LOW_ERROR

# Tokens whose weights stay in the first-level cache; a multiple of 16.
PART = 256


@jit
def exact_part(planes, ask, wave, w, row, u, first, n, t, turned, tokens):
    """Adds n tokens to a unit; t: scratch float32 [2, g, PART], sums of the low and of the high plane of K."""
    dim, group, seen = planes.dim, ask.query.shape[1], ask.visible[row // ask.heads]
    query = query_of(planes, ask, wave.level[w], row)
    for i in range(0, n, 16):
        place = (row * planes.k_room + first + i) * dim
        for plane, digits in ((planes.k_high, 3), (planes.k_low, 2)):
            at = address(t) + 4 * PART * group * (digits - 2) + 4 * i
            query_of_digits = (dim, query.digits, query.start, group, digits, at, np.int64(4 * PART))
            row_dots(planes.turn, planes.dots, plane + place, address(tokens), address(turned), *query_of_digits)
    steps, v_step = k_steps(planes, row)[first : first + n], v_steps(planes, row)[first : first + n]
    for j in range(group):
        low, high, unit, shift = line(t[0], j)[:n], line(t[1], j)[:n], query.unit[j], query.shift[j]
        for i in range(n):
            high[i] = (high[i] + low[i] * (np.float32(256.0) * LOW)) * steps[i] * unit + shift
        if len(seen):
            for i in range(n):
                high[i] = high[i] if seen[first + i] else MASKED
        peak = max(wave.peaks[w, u, j], largest(high))
        fade = exp2(wave.peaks[w, u, j] - peak)
        wave.peaks[w, u, j] = peak
        total, by_k, by_v = np.float32(0), np.float32(0), np.float32(0)
        for i in range(n):
            p = exp2(high[i] - peak)
            total += p
            by_k += p * steps[i]
            p *= v_step[i]
            by_v += p
            low[i] = p
        wave.totals[w, u, j] = wave.totals[w, u, j] * fade + total
        wave.sums[w, u, j, K_STEP] = wave.sums[w, u, j, K_STEP] * fade + by_k
        wave.sums[w, u, j, FINE] = wave.sums[w, u, j, FINE] * fade + by_v
        if fade != 1:
            acc = line(wave.rest[w, u], j)
            for c in range(dim):
                acc[c] *= fade
    place = (row * planes.v_room + first) * dim
    both = (planes.v_high + place, planes.v_low + place, planes.v_low + place)
    add_rows(planes.add_both, both, tokens, n, t[0], dim, wave.rest[w, u])


@jit
def exact_unit(planes, ask, wave, w, row, u, size):
    """One unit, or the tail: peaks, totals and rest of the wave, and the sums of p times either step."""
    if u * size >= planes.tokens:
        p = wave.tail[w, :, : ask.tail_k.shape[1]]
        tail_weights(planes, ask, row, p, wave.peaks[w, u], wave.totals[w, u])
        tail_output(ask.tail_v[row], p, wave.rest[w, u])
        return
    wave.peaks[w, u] = MASKED
    wave.totals[w, u] = 0
    wave.rest[w, u] = 0
    wave.sums[w, u] = 0
    group = ask.query.shape[1]
    t, turned, tokens = np.empty((2, group, PART), np.float32), np.empty(16 * WIDTH * planes.dim, np.uint8), np.arange(PART + AHEAD)
    stop = min((u + 1) * size, planes.tokens)
    for first in range(u * size, stop, PART):
        exact_part(planes, ask, wave, w, row, u, first, min(PART, stop - first), t, turned, tokens)


@jit
def merge(planes, norms, ask, wave, result, w, row):
    """The output of a row and a bound, for which every value may lie as far off as v_radius says."""
    units, dim = wave.peaks.shape[1], planes.dim
    largest_step = np.float64(largest(k_steps(planes, row)))
    for j in range(len(result.out[row])):
        peak = wave.peaks[w, :, j].max()
        out, total, by_k, by_v = np.zeros(dim), 0.0, 0.0, 0.0
        for u in range(units):
            fade = np.float64(exp2(wave.peaks[w, u, j] - peak))
            total += fade * wave.totals[w, u, j]
            out += fade * wave.rest[w, u, j]
            if u < units - 1:
                by_k += fade * wave.sums[w, u, j, K_STEP]
                by_v += fade * wave.sums[w, u, j, FINE]
        out /= total
        size, length, off = ask.size[row, j], 0.0, 0.0
        for c in range(dim):
            result.out[row, j, c] = out[c]
            length += out[c] * out[c]
            off += (out[c] - norms.v_centre[row, c]) ** 2
        # The low plane is read with 16 bits of the query, the high plane with 24.
        slope = LOW_ERROR * size[1] + 0.5 * size[3] + DIGIT * size[5] * dim
        value = np.sqrt(dim) * LOW_ERROR * by_v / total
        reach = norms.v_radius[row] + np.sqrt(off) + value
        delta = slope * largest_step
        moved = (np.expm1(delta) / max(delta, 1e-30) if delta > 1e-6 else 1.0 + delta) * slope * by_k / total
        bound = MARGIN * (value + moved * reach / max(1 - slope * by_k / total, 1e-30))
        result.norm[row, j], result.bound[row, j], result.bound_max[row, j] = np.sqrt(length), bound, bound
