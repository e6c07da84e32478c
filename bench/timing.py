"""Fair timing of several functions, interleaved, warm-up dropped, median and quartiles; and how often, from the command line."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import quantiles


def positive(text: str) -> int:
    """A whole number from 1 on, for a parser of the command line."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"a whole number from 1 on, not {text}")
    return int(text)


@dataclass(frozen=True)
class Timing:
    """Seconds: median and quartiles of ``n`` runs."""

    median: float
    q1: float
    q3: float
    n: int


def measure(fns: dict[str, Callable[[], object]], repeats: int, warmup: int = 1) -> dict[str, Timing]:
    """Time each function ``repeats`` times in turn, after ``warmup`` untimed rounds.

    Round-robin, so that a neighbour's load or a clock change meets all of them alike. A function that works
    on a GPU must synchronise itself. Raises ValueError when there is nothing to time.
    """
    if not fns or repeats < 1 or warmup < 0:
        raise ValueError(f"Give functions, repeats >= 1, warmup >= 0; got {len(fns)}, {repeats}, {warmup}.")
    seconds: dict[str, list[float]] = {name: [] for name in fns}
    for turn in range(warmup + repeats):
        for name, fn in fns.items():
            start = time.perf_counter()
            fn()
            elapsed = time.perf_counter() - start
            if turn >= warmup:
                seconds[name].append(elapsed)
    return {name: summary(values) for name, values in seconds.items()}


def summary(values: list[float]) -> Timing:
    """Of at least one run's seconds."""
    if len(values) == 1:
        return Timing(values[0], values[0], values[0], 1)
    q1, median, q3 = quantiles(values, n=4, method="inclusive")
    return Timing(median, q1, q3, len(values))
