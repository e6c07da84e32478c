"""Weighted sums of rows of V for several query heads at once, in float32: a row is loaded and converted once for all heads."""

from __future__ import annotations

from collections.abc import Callable

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from kvquant.kernels.cpu.vectors import F32, I8, I32, I64, LANES, fetch, has, index, load, multiply_add, splat, store, vector
from kvquant.planes import BASE

HEADS = 8
# Heads done in one go, and how many times 16 of their channels, by the heads asked for: all sums stay in registers, of which
# AVX-512 has 32, each of 16 numbers, and AVX2 has 16, each of 8. Where heads are done in two goes, every row is converted twice.
WIDE = {n: (n, 2) for n in range(1, HEADS + 1)}
NARROW = {1: (1, 4), 2: (2, 2), 3: (3, 1), 4: (4, 1), 5: (5, 1), 6: (6, 1), 7: (6, 1), 8: (4, 1)}
TILES = NARROW if has("avx2") and not has("avx512f") else WIDE
# Rows done in one go, while the cache lines of the next are asked for; and room that lists of rows have for what comes next.
GO, AHEAD = 16, 32


def high_numbers(
    builder: ir.IRBuilder, planes: tuple[ir.Value, ...], dim: ir.Value, token: ir.Value, channel: ir.Value, parts: int
) -> list[ir.Value]:
    """16 ``parts`` channels, from ``channel`` on, of a token in the first of ``planes``, int8 rows of ``dim`` bytes, as float32."""
    row = builder.add(builder.add(planes[0], builder.mul(dim, token)), channel)
    wide = (builder.sext(load(builder, vector(I8), row, LANES * part), vector(I32)) for part in range(parts))
    return [builder.sitofp(part, vector(F32)) for part in wide]


def both_numbers(
    builder: ir.IRBuilder, planes: tuple[ir.Value, ...], dim: ir.Value, token: ir.Value, channel: ir.Value, parts: int
) -> list[ir.Value]:
    """As ``high_numbers``, from the high and the low plane of fixed point."""
    unit = ir.Constant(vector(F32), [1 / BASE] * LANES)
    planes_of = (high_numbers(builder, planes[k:], dim, token, channel, parts) for k in (0, 1))
    return [multiply_add(builder, fine, unit, coarse) for coarse, fine in zip(*planes_of, strict=True)]


def row_adder(numbers: Callable) -> Callable:
    """The intrinsic add(first, second, third, tokens, weights, pitch, count, dim, out, heads).

    out[j] += sum_r weights[j, t_r] v[t_r] for 1 to 8 heads j; t: int64 [count] at the address ``tokens``, with GO more to come.
    v[t]: what ``numbers`` reads from up to three planes, 16, 32 or 64 channels at a multiple of as many; weights: float32
    [heads, ...], ``pitch`` bytes per head; out: float32 [heads, dim]; dim: a multiple of 64.
    """

    @intrinsic
    def add_rows(typing_context, first, second, third, tokens, weights, pitch, count, dim, out, heads):
        def codegen(context, builder, signature, arguments):
            *operands, heads = arguments
            for n in range(1, HEADS + 1):
                with builder.if_then(builder.icmp_signed("==", heads, index(n))):
                    _add(builder, numbers, operands[:3], *operands[3:], n)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 10), codegen

    return add_rows


def _add(builder, numbers, planes, tokens, weights, pitch, count, dim, out, heads):
    done = 0
    while done < heads:
        group, parts = TILES[heads - done]
        _add_tile(builder, numbers, planes, tokens, weights, pitch, count, dim, out, range(done, done + group), parts)
        done += group


def _add_tile(builder, numbers, planes, tokens, weights, pitch, count, dim, out, heads, parts):
    """For some of the heads, 16 ``parts`` channels after another."""
    sums = [[cgutils.alloca_once(builder, vector(F32)) for _ in range(parts)] for _ in heads]
    with cgutils.for_range_slice(builder, index(0), dim, index(LANES * parts), intp=I64) as (channel, _):
        at = [builder.add(out, builder.mul(builder.add(builder.mul(dim, index(j)), channel), index(4))) for j in heads]
        places = [(total, a, 4 * LANES * part) for a, totals in zip(at, sums, strict=True) for part, total in enumerate(totals)]
        for total, *place in places:
            builder.store(load(builder, vector(F32), *place), total)
        with cgutils.for_range(builder, count, intp=I64) as loop:
            place = builder.add(tokens, builder.mul(loop.index, index(8)))
            token, wanted = (load(builder, I64, place, 8 * k) for k in (0, GO))
            values = numbers(builder, planes, dim, token, channel, parts)
            fetch(builder, builder.add(builder.add(planes[0], builder.mul(dim, wanted)), channel))
            first = builder.add(weights, builder.mul(token, index(4)))
            for j, totals in zip(heads, sums, strict=True):
                weight = splat(builder, load(builder, F32, first, builder.mul(pitch, index(j))))
                for value, total in zip(values, totals, strict=True):
                    builder.store(multiply_add(builder, weight, value, builder.load(total)), total)
        for total, *place in places:
            store(builder, builder.load(total), *place)


add_high_rows, add_both_rows = row_adder(high_numbers), row_adder(both_numbers)
