"""The third pass of certified reading, unit by unit: rows over the thresholds, the output, and the sums for its bound."""

from __future__ import annotations

from collections import namedtuple

import numpy as np

from kvquant.kernels.cpu import values as s
from kvquant.kernels.cpu.bound import bounds, cubic_of, noise_of, slopes
from kvquant.kernels.cpu.numbers import floats, jit, line, signed_bytes
from kvquant.kernels.cpu.passes import EVERYTHING, k_steps, refine_part, v_steps
from kvquant.kernels.cpu.rows import AHEAD
from kvquant.kernels.cpu.scores import LOW
from kvquant.kernels.cpu.values import K_FINE, V_FINE, V_READ

# Tokens read in one go, so that a group's weights stay in the first-level cache.
PART = 512
# Scratch for one part: y, weights float32 [g, n], marks [MARKS, n], top [n], lists of tokens int64 [3, n + AHEAD].
Room = namedtuple("Room", "y weights marks top tokens")


@jit
def read_unit(planes, ask, wave, w, row, u, size):
    """Pass 3 for one unit."""
    group = ask.query.shape[1]
    slope, cubic = np.empty(group, np.float32), np.empty(group, np.float32)
    for j in range(group):
        slope[j] = slopes(ask.size[row, j])[0]
        cubic[j] = cubic_of(slope[j] * wave.step[w])
    wave.sums[w, u] = 0
    wave.near[w, u] = 0
    wave.rest[w, u] = 0
    wave.best[w, u] = 0
    stop = min((u + 1) * size, planes.tokens)
    for first in range(u * size, stop, PART):
        n = min(PART, stop - first)
        floats_of = np.empty((2, group, n), np.float32)
        marks, tokens = np.empty((s.MARKS, n), np.float32), np.empty((3, n + AHEAD), np.int64)
        room = Room(floats_of[0], floats_of[1], marks, np.empty(n, np.float32), tokens)
        _read_part(planes, ask, wave, w, row, u, first, first + n, slope, cubic, room)


@jit
def _read_part(planes, ask, wave, w, row, u, first, stop, slope, cubic, room):
    dim, group, n, place = planes.dim, ask.query.shape[1], stop - first, row * planes.v_room + first
    p, known = wave.weights[w, :, first:stop], wave.known[w, first:stop]
    k_step, v_step = floats(planes.k_step + 4 * (row * planes.k_room + first), n), floats(planes.v_step + 4 * place, n)
    top, tokens = room.top, room.tokens
    one = np.float32(0.0 if wave.state[w] == EVERYTHING else 1.0)
    s.score_weights(p, k_step, slope, cubic, wave.limits[w, 0], room.y, top)
    refined = 0
    for i in range(n):  # without branches, which nobody could predict
        new = (top[i] >= one) & (known[i] & K_FINE == 0)
        tokens[0, refined] = i
        refined += new
        known[i] |= np.uint8(new)
    refine_part(planes, ask, wave, w, row, first, tokens[0], refined)

    s.largest_over(p, wave.limits[w, 1], top)
    ratio = wave.ratio[w]
    for i in range(n):
        known[i] |= np.uint8(V_READ * (top[i] >= one) + V_FINE * ((top[i] >= one) & (top[i] * v_step[i] * ratio >= one)))
    near, other, low = 0, 0, 0
    for i in range(n):
        tokens[0, near], tokens[1, other], tokens[2, low] = i, i, i
        near += known[i] & (K_FINE | V_READ) == K_FINE | V_READ
        other += known[i] & (K_FINE | V_READ) == V_READ
        low += known[i] >> 2
    high_plane, low_plane = planes.v_high + place * dim, planes.v_low + place * dim
    high, fine = (high_plane, high_plane, high_plane), (low_plane, low_plane, low_plane)
    s.marks_of(known, room.marks)
    s.add_score_sums(p, room.y, k_step, room.marks, wave.sums[w, u])
    s.weigh(p, v_step, room.weights)
    s.add_rows(planes.add_high, high, tokens[0], near, room.weights, dim, wave.near[w, u])
    # After their sum has brought these rows to the cache, line by line ahead of its use.
    s.squares_of(high_plane, tokens[0, :near], dim, room.marks[s.SQUARE])
    s.add_rows(planes.add_high, high, tokens[1], other, room.weights, dim, wave.rest[w, u])
    s.add_value_sums(p, v_step, room.marks, room.weights, tokens[0, :near], wave.sums[w, u], wave.best[w, u])
    for j in range(group):  # y is done with
        weights, scaled = line(room.weights, j), line(room.y, j)
        for t in tokens[2, :low]:
            scaled[t] = LOW * weights[t]
    s.add_rows(planes.add_high, fine, tokens[2], low, room.y, dim, wave.rest[w, u])


@jit
def finish(planes, norms, ask, wave, result, w, row, size):
    """After pass 3: the output of a row and its bounds."""
    dim, units, out = planes.dim, wave.sums.shape[1], result.out[row]
    sums, near, total = np.empty(s.SUMS), np.empty(dim), np.empty(dim)
    k_step, v_step = k_steps(planes, row), v_steps(planes, row)
    for j in range(len(out)):
        sums[:] = 0
        near[:] = 0
        total[:] = 0
        top, token = 0.0, 0
        for u in range(units):
            for k in range(s.SUMS):
                sums[k] += wave.sums[w, u, j, k]
            near_part, rest_part = line(wave.near[w, u], j), line(wave.rest[w, u], j)
            for c in range(dim):
                near[c] += near_part[c]
                total[c] += rest_part[c]
            if wave.best[w, u, j] > top:
                top, token = wave.best[w, u, j], u * size
        near_flags = K_FINE | V_READ
        while top > 0 and (wave.weights[w, j, token] != top or wave.known[w, token] & near_flags != near_flags):
            token += 1
        weight = sums[s.TOTAL] + wave.totals[w, units, j]
        for c in range(dim):
            total[c] = (total[c] + near[c] + wave.near[w, units, j, c] + sums[s.UNREAD] * norms.v_centre[row, c]) / weight
            out[j, c] = total[c]
            near[c] /= weight
        for k in range(s.SUMS):
            sums[k] /= weight
        sums[s.Y2] /= weight
        sums[s.UNREAD2] /= weight
        sums[s.COARSE2] /= weight
        reach = 0.0
        best = signed_bytes(planes.v_high + (row * planes.v_room + token) * dim, dim)
        for c in range(dim):
            reach += (np.float64(best[c]) * v_step[token] - total[c]) ** 2
        top /= weight
        known = (top, np.float64(k_step[token]), np.float64(v_step[token]), np.sqrt(reach))
        slope = slopes(ask.size[row, j])[1]
        noise = noise_of(ask.size[row, j], norms.k_noise[row], planes.tokens, dim)
        of_v = (np.float64(norms.v_noise[row]), np.float64(norms.v_spread[row]), np.float64(norms.v_radius[row]))
        limit = wave.limits[w, 0, j] / weight
        centre, columns = norms.v_centre[row], norms.columns[:, row]
        result.bound[row, j], result.bound_max[row, j] = bounds(
            sums, near, total, centre, of_v, columns, noise, slope, wave.step[w], limit, known
        )
