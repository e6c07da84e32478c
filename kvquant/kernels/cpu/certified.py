"""Reading of fixed-point planes, stage by stage (kvquant.kernels.cpu.stages), over one wave of rows after another.

Certified:
  1. K's high plane, whole: weights.
  2. The spread of the probabilities (kvquant.kernels.cpu.choice). Tokens that are likely get both planes of K, and their rows
     of V's high plane a first output, so an error allowed and the thresholds.
  3. The rows of K and V over the thresholds, the output and its bound. Rows that miss it go round again with lower thresholds.
Everything: one pass over both planes (kvquant.kernels.cpu.exact).
"""

from __future__ import annotations

from kvquant.kernels.cpu.numbers import jit
from kvquant.kernels.cpu.passes import LEFT, settle
from kvquant.kernels.cpu.queries import prepare
from kvquant.kernels.cpu.stages import CHOOSE, EXACT, FINISH, HIGH, MERGE, READ, share_out

ROUNDS = 4


@jit
def decode(planes, norms, ask, wave, result, size, target, share, threads):
    """Fills result; target 0 reads everything. Returns the rounds, or 0 where a query is not finite, or too loud for it."""
    rows, most, waves = len(result.out), 1, len(wave.level)
    for row in range(rows):
        if not prepare(norms, ask, row):
            return 0
    for first in range(0, rows, waves):
        here = min(waves, rows - first)
        last = target == 0
        stage = EXACT if last else HIGH
        rounds = 1
        while True:
            share_out(stage, planes, norms, ask, wave, result, first, here, size, target, share, last, threads)
            if stage == HIGH:
                for w in range(here):
                    settle(wave, w)
            if stage == CHOOSE and (wave.state[:here] == LEFT).any():
                return 0
            if stage == MERGE or (stage == FINISH and not wave.state[:here].any()):
                break
            if stage == FINISH:
                rounds += 1
                last = rounds == ROUNDS - 1
                stage = READ
            else:
                stage += 1
        most = max(most, rounds)
    return most
