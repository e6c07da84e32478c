"""The stages of a decode step, and how threads share them: piece by piece, by a common counter.

Sums are kept per piece and added in order, so the result does not depend on which thread did what. One parallel function serves
all stages, as every one would be compiled with everything below it once more.
"""

from __future__ import annotations

from numba import prange

from kvquant.kernels.cpu.choice import floor_of
from kvquant.kernels.cpu.exact import exact_unit, merge
from kvquant.kernels.cpu.judge import judge
from kvquant.kernels.cpu.numbers import address, jit
from kvquant.kernels.cpu.passes import DONE, choose, high_unit, survey_unit
from kvquant.kernels.cpu.reading import finish, read_unit
from kvquant.kernels.cpu.vectors import take_number

# What the first choice may use of the error allowed.
AIM = 0.92
# Certified reading takes the first five, reading everything the last two.
HIGH, SURVEY, CHOOSE, READ, FINISH, EXACT, MERGE = range(7)


@jit
def work(stage, planes, norms, ask, wave, result, first, rows, size, target, share, last):
    """Takes pieces of one stage until none is left; any number of threads may call it at once."""
    units, floor = wave.sums.shape[1] + (stage != READ), floor_of(planes.tokens)
    pieces = rows if stage in (CHOOSE, FINISH, MERGE) else rows * units
    number = take_number(address(wave.counter))
    while number < pieces:
        w, u = number, 0
        if pieces > rows:
            w, u = number // units, number % units
        row = first + w
        if stage == HIGH:
            high_unit(planes, ask, wave, w, row, u, size)
        elif stage == SURVEY:
            survey_unit(planes, ask, wave, w, row, u, size, floor)
        elif stage == CHOOSE:
            choose(planes, norms, ask, wave, w, row, floor, AIM * target, share)
        elif stage == READ:
            if wave.state[w] != DONE:
                read_unit(planes, ask, wave, w, row, u, size)
        elif stage == FINISH:
            if wave.state[w] != DONE:
                finish(planes, norms, ask, wave, result, w, row, size)
                judge(wave, result, w, row, target, last)
        elif stage == EXACT:
            exact_unit(planes, ask, wave, w, row, u, size)
        else:
            merge(planes, norms, ask, wave, result, w, row)
        number = take_number(address(wave.counter))


# The body of a parallel loop only calls: an array of a tuple that it writes to itself would not change.
@jit(parallel=True)
def share_out(stage, planes, norms, ask, wave, result, first, rows, size, target, share, last, threads):
    """One stage for the rows first..first+rows-1, on all threads; they meet again at its end."""
    wave.counter[0] = 0
    for _ in prange(threads):
        work(stage, planes, norms, ask, wave, result, first, rows, size, target, share, last)
