"""The rows of V that one unit reads, and the sums over its tokens that the bound needs."""

from __future__ import annotations

import numpy as np

from kvquant.kernels.cpu.numbers import address, jit, line, signed_bytes
from kvquant.kernels.cpu.scores import LOW
from kvquant.kernels.cpu.rows import AHEAD, HEADS, add_both_rows, add_high_rows

# What is known of a token: both planes of K were read, V's high plane, V's low plane.
K_FINE, V_READ, V_FINE = np.uint8(1), np.uint8(2), np.uint8(4)
# Sums per query head, p its weights: y**2 over coarse rows of K (y of kvquant.bounds.score_error); p and p**2 over unread rows
# of V; p step and its square over coarse rows of V, p step over fine ones; p, p step and p step**2 over fine rows of K; over
# *near* tokens, with K fine and V read, p, p step**2 (V's step) and p |row|**2; p over all.
Y2, UNREAD, UNREAD2, COARSE, COARSE2, FINE, K_MASS, K_STEP, K_STEP2, NEAR, NEAR_STEP2, NEAR_SQUARE, TOTAL = range(13)
SUMS = 13


@jit
def score_weights(p, steps, slope, cubic, limit, y, top):
    """y float32 [g, n] of the score part, p step (e**delta - 1) / delta with delta = slope step; top: max over heads of y / limit.

    cubic: float32 [g], what makes 1 + delta / 2 + delta**2 / 6 + cubic delta**3 an upper bound up to the largest delta.
    """
    top[:] = 0
    half, sixth, one = np.float32(0.5), np.float32(1 / 6), np.float32(1.0)
    for j in range(len(p)):
        row, out, a, c, inverse = line(p, j), line(y, j), slope[j], cubic[j], np.float32(1.0) / limit[j]
        for i in range(len(row)):
            delta = a * steps[i]
            out[i] = row[i] * steps[i] * (one + delta * (half + delta * (sixth + delta * c)))
            top[i] = max(top[i], out[i] * inverse)


@jit
def largest_over(p, limit, top):
    """top float32 [n]: the largest p[j] / limit[j]."""
    top[:] = 0
    for j in range(len(p)):
        row, inverse = line(p, j), np.float32(1.0) / limit[j]
        for i in range(len(row)):
            top[i] = max(top[i], row[i] * inverse)


@jit
def light_sums(p, y, k_steps, known, sums):
    """Adds the sums over all tokens: Y2, UNREAD and UNREAD2, TOTAL, and those over fine rows of K."""
    n = len(known)
    coarse, unread = np.empty(n, np.float32), np.empty(n, np.float32)
    for i in range(n):
        coarse[i] = np.float32(1 - (known[i] & 1))
        unread[i] = np.float32(1 - ((known[i] >> 1) & 1))
    for j in range(len(p)):
        row, weight = line(p, j), line(y, j)
        total, y2, u1, u2 = np.float32(0), np.float32(0), np.float32(0), np.float32(0)
        fine, step, step2 = np.float32(0), np.float32(0), np.float32(0)
        for i in range(n):
            total += row[i]
            w = weight[i] * coarse[i]
            y2 += w * w
            u = row[i] * unread[i]
            u1 += u
            u2 += u * u
            f = row[i] - row[i] * coarse[i]
            fine += f
            f *= k_steps[i]
            step += f
            step2 += f * k_steps[i]
        sums[j, TOTAL] += total
        sums[j, Y2] += y2
        sums[j, UNREAD] += u1
        sums[j, UNREAD2] += u2
        sums[j, K_MASS] += fine
        sums[j, K_STEP] += step
        sums[j, K_STEP2] += step2


@jit
def gather(p, tokens, out):
    """out[j, r] = p[j, tokens[r]]."""
    for j in range(len(p)):
        row, to = line(p, j), line(out, j)
        for r in range(len(tokens)):
            to[r] = row[tokens[r]]


@jit
def add_rows(plane, low, tokens, weights, dim, out):
    """out float32 [g, dim] += weights [g, :len(tokens)] times the rows ``tokens`` of an int8 plane at an address.

    low: where not 0, rows of the plane so many bytes further on are added as the low part.
    """
    if len(tokens) == 0:
        return
    rows, pitch = np.empty(len(tokens) + AHEAD, np.int64), weights.strides[0]
    for r in range(len(rows)):
        rows[r] = plane + dim * tokens[min(r, len(tokens) - 1)]
    for first in range(0, len(tokens), AHEAD):
        count, at = min(AHEAD, len(tokens) - first), address(rows) + 8 * first
        for head in range(0, len(weights), HEADS):
            heads, place = min(HEADS, len(weights) - head), address(out) + 4 * dim * head
            weight = address(weights) + 4 * first + pitch * head
            if low:
                add_both_rows(at, low, weight, pitch, count, dim, place, heads)
            else:
                add_high_rows(at, low, weight, pitch, count, dim, place, heads)


@jit
def value_sums(p, plane, steps, known, tokens, dim, near, room, sums, best, out):
    """Adds the rows ``tokens`` of V's high plane to out float32 [g, dim], and their sums; of near ones also best [g], the largest p."""
    count = len(tokens)
    gather(p, tokens, room)
    step, coarse = np.empty(count, np.float32), np.empty(count, np.float32)
    for r in range(count):
        step[r], coarse[r] = steps[tokens[r]], np.float32(1 - (known[tokens[r]] >> 2))
    for j in range(len(p)):
        row, a, a2, f = line(room, j), np.float32(0), np.float32(0), np.float32(0)
        n, most = np.float32(0), np.float32(0)
        for r in range(count):
            w = row[r] * step[r]
            rough = w * coarse[r]
            a += rough
            a2 += rough * rough
            f += w - rough
            n += row[r]
            most = max(most, row[r])
            row[r] = w
        sums[j, COARSE] += a
        sums[j, COARSE2] += a2
        sums[j, FINE] += f
        if near:
            sums[j, NEAR] += n
            best[j] = max(best[j], most)
    add_rows(plane, 0, tokens, room, dim, out)
    if near:
        near_squares(plane, step, tokens, dim, room, sums)


@jit
def near_squares(plane, step, tokens, dim, room, sums):
    """Adds NEAR_STEP2 and NEAR_SQUARE; room: p step. Comes last, when the rows are in the cache."""
    square = np.empty(len(tokens), np.float32)
    for r in range(len(tokens)):
        row, total = signed_bytes(plane + dim * tokens[r], dim), np.float32(0.0)
        for c in range(dim):
            total += np.float32(row[c]) * np.float32(row[c])
        square[r] = total
    for j in range(len(sums)):
        row, step2, length = line(room, j), np.float32(0), np.float32(0)
        for r in range(len(tokens)):
            x = row[r] * step[r]
            step2 += x
            length += x * square[r]
        sums[j, NEAR_STEP2] += step2
        sums[j, NEAR_SQUARE] += length
