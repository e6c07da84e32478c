"""Which rows to read: how the probabilities of one KV head are spread, and from that a threshold for every query head.

The squares of all probabilities below a threshold are what the bounds of kvquant.bounds need. They are summed once, in
octaves: exactly from ``FLOOR`` times the average probability up, where tokens are few; below it in four steps of
five octaves in vector code, the octaves between by interpolation. The choice may be rough, as the bound is computed afterwards
from what was read.
"""

from __future__ import annotations

import numpy as np

from kvquant.kernels.cpu.numbers import as_bits, jit, larger, line

STEPS, WIDTH = 4, 5
BELOW = WIDTH * (STEPS - 1)
OCTAVES = BELOW + 24
FLOOR = 32.0


@jit
def floor_of(tokens):
    """The power of two at or below FLOOR times the average probability."""
    return np.float32(2.0 ** np.floor(np.log2(FLOOR / tokens)))


@jit
def survey(p, floor, squares, top):
    """p: float32 [g, n]. Adds to squares float64 [g, OCTAVES + 1]; top: float32 [n], the largest p of each token.

    squares[j, k] gets what lies in octave k, whose upper end is ``floor`` times 2**(k - BELOW); below BELOW only every
    WIDTH-th counts, with all that lies below its end.
    """
    top[:] = 0
    parts = np.zeros(STEPS, np.float32)
    for j in range(len(p)):
        row = line(p, j)
        a, b, c, d = floor, floor / np.float32(2**5), floor / np.float32(2**10), floor / np.float32(2**15)
        s, t, u, v = np.float32(0), np.float32(0), np.float32(0), np.float32(0)
        for i in range(len(row)):
            x = row[i]
            y = x * x
            s += y if x < a else np.float32(0)
            t += y if x < b else np.float32(0)
            u += y if x < c else np.float32(0)
            v += y if x < d else np.float32(0)
            top[i] = larger(top[i], x)
        parts[0], parts[1], parts[2], parts[3] = v, u, t, s
        for k in range(STEPS):
            squares[j, WIDTH * k] += parts[k]


@jit
def survey_likely(p, likely, floor, squares):
    """Adds the probabilities from ``floor`` up: those of the tokens ``likely`` have them all."""
    low = as_bits(floor) >> 23
    for j in range(len(p)):
        for i in likely:
            x = p[j, i]
            if x >= floor:
                squares[j, min(BELOW + 1 + (as_bits(x) >> 23) - low, OCTAVES)] += np.float64(x) * x


@jit
def roots(squares):
    """In place: squares [OCTAVES + 1] of one head as gathered -> the root of all squares below the upper end of each octave."""
    for k in range(0, BELOW, WIDTH):
        a = max(squares[k], 1e-60)
        ratio = (max(squares[k + WIDTH], a) / a) ** (1 / WIDTH)
        for i in range(WIDTH):
            squares[k + i] = a
            a *= ratio
    for k in range(BELOW + 1, OCTAVES + 1):
        squares[k] += squares[k - 1]
    for k in range(OCTAVES + 1):
        squares[k] = np.sqrt(squares[k])


@jit
def below(roots, octave):
    """The root of the squares below an end given in octaves, interpolated."""
    place = min(max(octave, 0.0), len(roots) - 1.0)
    k = min(int(place), len(roots) - 2)
    return roots[k] + (place - k) * (roots[k + 1] - roots[k])


@jit
def threshold(roots, floor, linear, factor, other, shift, budget):
    """The largest x with linear x + factor below(x) + other below(x 2**shift) <= budget, or almost none."""
    last, before = 0.0, 0.0
    for k in range(len(roots)):
        end = floor * 2.0 ** (k - BELOW)
        now = linear * end + factor * roots[k] + other * below(roots, k + shift)
        if now > budget:
            if k == 0:
                return end * budget / now
            return last + (end - last) * max(budget - before, 0.0) / (now - before)
        last, before = end, now
    return last
