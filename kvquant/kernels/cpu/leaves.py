"""The innermost kernels, compiled once and called by address: inlined, each would be compiled again in every function above it."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable
from functools import lru_cache

from kvquant.kernels.cpu.compiling import c_function
from kvquant.kernels.cpu.dots import turn_rows, turned_dots
from kvquant.kernels.cpu.halves import add_rows_8, add_rows_12, add_rows_16, block_scores
from kvquant.kernels.cpu.rows import add_both_rows, add_high_rows

# Addresses of the intrinsics of the modules above.
FixedLeaves = namedtuple("FixedLeaves", "turn dots add_high add_both")
HalfLeaves = namedtuple("HalfLeaves", "scores add_8 add_12 add_16")


def _turn(plane, dim, tokens, offset, out):
    turn_rows(plane, dim, tokens, offset, out)


def _dots(turned, plane, dim, wanted, query, pitch, start, fours, out, stride, heads, digits):
    turned_dots(turned, plane, dim, wanted, query, pitch, start, fours, out, stride, heads, digits)


def _add_high(first, second, third, tokens, weights, pitch, count, dim, out, heads):
    add_high_rows(first, second, third, tokens, weights, pitch, count, dim, out, heads)


def _add_both(first, second, third, tokens, weights, pitch, count, dim, out, heads):
    add_both_rows(first, second, third, tokens, weights, pitch, count, dim, out, heads)


def _add_8(first, second, third, tokens, weights, pitch, count, dim, out, heads):
    add_rows_8(first, second, third, tokens, weights, pitch, count, dim, out, heads)


def _add_12(first, second, third, tokens, weights, pitch, count, dim, out, heads):
    add_rows_12(first, second, third, tokens, weights, pitch, count, dim, out, heads)


def _add_16(first, second, third, tokens, weights, pitch, count, dim, out, heads):
    add_rows_16(first, second, third, tokens, weights, pitch, count, dim, out, heads)


def _scores(high, middle, low, bits, query, out, stride, dim, heads):
    block_scores(high, middle, low, bits, query, out, stride, dim, heads)


@lru_cache(maxsize=2)
def _kept(kind: type) -> tuple[Callable, ...]:
    """The compiled functions, which must live as long as their addresses are used."""
    fixed = ((_turn, 5), (_dots, 12), (_add_high, 10), (_add_both, 10))
    halves = ((_scores, 9), (_add_8, 10), (_add_12, 10), (_add_16, 10))
    return tuple(c_function(f, count) for f, count in (fixed if kind is FixedLeaves else halves))


def fixed_leaves() -> FixedLeaves:
    """Compiles on the first call."""
    return FixedLeaves(*(function.address for function in _kept(FixedLeaves)))


def half_leaves() -> HalfLeaves:
    """Compiles on the first call."""
    return HalfLeaves(*(function.address for function in _kept(HalfLeaves)))
