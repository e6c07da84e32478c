"""The sums over tokens that the output and its bound need, and the rows of V that are added up."""

from __future__ import annotations

import numpy as np

from kvquant.kernels.cpu.numbers import address, jit, larger, line, signed_bytes
from kvquant.kernels.cpu.rows import GO, HEADS
from kvquant.kernels.cpu.vectors import call_at

# What is known of a token: both planes of K were read, V's high plane, V's low plane.
K_FINE, V_READ, V_FINE = np.uint8(1), np.uint8(2), np.uint8(4)
# Sums per query head, p its weights: y**2 over coarse rows of K (y of kvquant.bounds.score_error); p and p**2 over unread rows
# of V; p step and its square over coarse rows of V, p step over fine ones; p, p step and p step**2 over fine rows of K; over
# *near* tokens, with K fine and V read, p, p step**2 (V's step) and p |row|**2; p over all.
Y2, UNREAD, UNREAD2, COARSE, COARSE2, FINE, K_MASS, K_STEP, K_STEP2, NEAR, NEAR_STEP2, NEAR_SQUARE, TOTAL = range(13)
SUMS = 13
# Rows of a token's marks, float32: 1 where K is coarse, V unread, V coarse, and near; |row|**2 of near rows of V, in steps.
ROUGH, MISSING, HALF, CLOSE, SQUARE = range(5)
MARKS = 5


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
            top[i] = larger(top[i], out[i] * inverse)


@jit
def largest_over(p, limit, top):
    """top float32 [n]: the largest p[j] / limit[j]."""
    top[:] = 0
    for j in range(len(p)):
        row, inverse = line(p, j), np.float32(1.0) / limit[j]
        for i in range(len(row)):
            top[i] = larger(top[i], row[i] * inverse)


@jit
def marks_of(known, marks):
    """Fills rows ROUGH to CLOSE of marks, float32 [MARKS, n], from known uint8 [n], and clears SQUARE."""
    rough, missing, half, close = line(marks, ROUGH), line(marks, MISSING), line(marks, HALF), line(marks, CLOSE)
    marks[SQUARE] = 0
    for i in range(len(known)):
        bits = np.int32(known[i])
        k, v, f = np.float32(np.int32(bits & 1)), np.float32(np.int32((bits >> 1) & 1)), np.float32(np.int32(bits >> 2))
        rough[i], missing[i], half[i], close[i] = np.float32(1) - k, np.float32(1) - v, v - f, k * v


@jit
def squares_of(plane, tokens, dim, square):
    """square[t]: |row t|**2 of an int8 plane at an address, for the tokens of a list."""
    for t in tokens:
        row, total = signed_bytes(plane + dim * t, dim), np.int32(0)
        for c in range(dim):  # numba's product of int32 is an int64
            total = np.int32(total + np.int32(np.int32(row[c]) * np.int32(row[c])))
        square[t] = np.float32(total)


@jit
def add_score_sums(p, y, k_steps, marks, sums):
    """Adds the sums over all tokens and over fine rows of K."""
    rough, missing = line(marks, ROUGH), line(marks, MISSING)
    for j in range(len(p)):
        row, score = line(p, j), line(y, j)
        total, y2, u1, u2 = np.float32(0), np.float32(0), np.float32(0), np.float32(0)
        mass, step, step2 = np.float32(0), np.float32(0), np.float32(0)
        for i in range(len(row)):
            total += row[i]
            s = score[i] * rough[i]
            y2 += s * s
            u = row[i] * missing[i]
            u1 += u
            u2 += u * u
            fine = row[i] - row[i] * rough[i]
            mass += fine
            fine *= k_steps[i]
            step += fine
            step2 += fine * k_steps[i]
        sums[j, TOTAL] += total
        sums[j, Y2] += y2
        sums[j, UNREAD] += u1
        sums[j, UNREAD2] += u2
        sums[j, K_MASS] += mass
        sums[j, K_STEP] += step
        sums[j, K_STEP2] += step2


@jit
def weigh(p, v_steps, weights):
    """weights float32 [g, n] become p times V's step: of the rows of V as they are stored."""
    for j in range(len(p)):
        row, weight = line(p, j), line(weights, j)
        for i in range(len(row)):
            weight[i] = row[i] * v_steps[i]


@jit
def add_value_sums(p, v_steps, marks, weights, near_tokens, sums, best):
    """Adds the sums over rows of V that are read; weights: of :func:`weigh`.

    near_tokens: the list of near tokens; best: float32 [g], becomes at least the largest p of them.
    """
    missing, half, close, square = line(marks, MISSING), line(marks, HALF), line(marks, CLOSE), line(marks, SQUARE)
    for j in range(len(p)):
        row, weight, most = line(p, j), line(weights, j), best[j]
        for t in near_tokens:
            most = max(most, row[t])
        best[j] = most
        c1, c2, f1 = np.float32(0), np.float32(0), np.float32(0)
        near, near2, length = np.float32(0), np.float32(0), np.float32(0)
        for i in range(len(row)):
            c = weight[i] * half[i]
            c1 += c
            c2 += c * c
            f1 += weight[i] - c - weight[i] * missing[i]
            near += row[i] * close[i]
            a = weight[i] * v_steps[i]
            near2 += a * close[i]
            length += a * square[i]
        sums[j, COARSE] += c1
        sums[j, COARSE2] += c2
        sums[j, FINE] += f1
        sums[j, NEAR] += near
        sums[j, NEAR_STEP2] += near2
        sums[j, NEAR_SQUARE] += length


@jit
def add_rows(add, planes, tokens, count, weights, dim, out):
    """out float32 [g, dim] += the rows tokens[:count] of planes at three addresses, times weights float32 [g, n] at those tokens.

    add: the address of a row adder; tokens: int64, with room for GO more, whose contents are free.
    """
    pitch = weights.strides[0]
    for first in range(0, count, GO):
        here, at = min(GO, count - first), address(tokens) + 8 * first
        for head in range(0, len(weights), HEADS):
            heads, place = min(HEADS, len(weights) - head), address(out) + 4 * dim * head
            call_at(add, (*planes, at, address(weights) + pitch * head, pitch, here, dim, place, heads))
