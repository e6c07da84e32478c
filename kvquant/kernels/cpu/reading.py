"""The third pass of certified reading, unit by unit: rows over the thresholds, the output, and the sums for its bound."""

from __future__ import annotations

from collections import namedtuple

import numpy as np

from kvquant.kernels.cpu import values as s
from kvquant.kernels.cpu.bound import bounds, cubic_of, noise_of, slopes
from kvquant.kernels.cpu.numbers import floats, jit, line, signed_bytes
from kvquant.kernels.cpu.passes import EVERYTHING, k_steps, refine_part, v_steps
from kvquant.kernels.cpu.scores import LOW
from kvquant.kernels.cpu.values import K_FINE, V_FINE, V_READ, gather

# Tokens read in one go, so that a group's weights stay in the first-level cache.
PART = 512
Room = namedtuple("Room", "y gathered top tokens")


@jit
def read_unit(planes, ask, wave, w, row, u, size):
    """Pass 3 for one unit."""
    group = ask.query.shape[1]
    slope, cubic = np.empty(group, np.float32), np.empty(group, np.float32)
    for j in range(group):
        slope[j] = slopes(ask.size[row, j], planes.dim)[0]
        cubic[j] = cubic_of(slope[j] * wave.step[w])
    wave.sums[w, u] = 0
    wave.near[w, u] = 0
    wave.rest[w, u] = 0
    wave.best[w, u] = 0
    room = Room(
        np.empty((group, PART), np.float32), np.empty((group, PART), np.float32), np.empty(PART, np.float32), np.empty((3, PART + 1), np.int64)
    )
    stop = min((u + 1) * size, planes.tokens)
    for first in range(u * size, stop, PART):
        _read_part(planes, ask, wave, w, row, u, first, min(first + PART, stop), slope, cubic, room)


@jit
def _read_part(planes, ask, wave, w, row, u, first, stop, slope, cubic, room):
    dim, group, n = planes.dim, ask.query.shape[1], stop - first
    p, known, sums = wave.weights[w, :, first:stop], wave.known[w, first:stop], wave.sums[w, u]
    k_step = floats(planes.k_step + 4 * (row * planes.k_room + first), n)
    v_step = floats(planes.v_step + 4 * (row * planes.v_room + first), n)
    y, gathered, top, tokens = room.y[:, :n], room.gathered, room.top[:n], room.tokens
    one = np.float32(0.0 if wave.state[w] == EVERYTHING else 1.0)
    s.score_weights(p, k_step, slope, cubic, wave.limits[w, 0], y, top)
    refined = 0
    for i in range(n):  # without branches, which nobody could predict
        new = (top[i] >= one) & (known[i] & K_FINE == 0)
        tokens[0, refined] = i
        refined += new
        known[i] |= np.uint8(new)
    refine_part(planes, ask, wave, w, row, first, tokens[0, :refined])

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
    s.light_sums(p, y, k_step, known, sums)
    high_plane, low_plane = planes.v_high + (row * planes.v_room + first) * dim, planes.v_low + (row * planes.v_room + first) * dim
    out, rest, best = wave.near[w, u], wave.rest[w, u], wave.best[w, u]
    s.value_sums(p, high_plane, v_step, known, tokens[0, :near], dim, True, gathered, sums, best, out)
    s.value_sums(p, high_plane, v_step, known, tokens[1, :other], dim, False, gathered, sums, best, rest)
    gather(p, tokens[2, :low], gathered)
    for j in range(group):
        values = line(gathered, j)
        for r in range(low):
            values[r] *= v_step[tokens[2, r]] * LOW
    s.add_rows(low_plane, 0, tokens[2, :low], gathered, dim, rest)
    wave.counts[w, u, 1] += refined
    wave.counts[w, u, 2] += near + other
    wave.counts[w, u, 3] += low


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
            reach += (np.float64(best[c]) * v_step[token] - total[c]) ** 2
        top /= weight
        known = (top, np.float64(k_step[token]), np.float64(v_step[token]), np.sqrt(reach))
        slope = slopes(ask.size[row, j], dim)[1]
        noise = noise_of(ask.size[row, j], norms.k_noise[row], planes.tokens, dim)
        of_v = (np.float64(norms.v_noise[row]), np.float64(norms.v_spread[row]), np.float64(norms.v_radius[row]))
        limit = wave.limits[w, 0, j] / weight
        centre, columns = norms.v_centre[row], norms.columns[:, row]
        result.bound[row, j], result.bound_max[row, j] = bounds(
            sums, near, total, centre, of_v, columns, noise, slope, wave.step[w], limit, known
        )
