"""Weighted sums of rows of V for several query heads at once, in float32: a row is loaded and converted once for all heads."""

from __future__ import annotations

from collections.abc import Callable

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from kvquant.kernels.cpu.vectors import F32, I8, I32, I64, LANES, fetch, index, load, multiply_add, splat, store, vector
from kvquant.planes import BASE

# Channels done in one go: two registers a head, so that up to 8 heads stay in 32 registers. AVX2 has 16, and spills; but three
# heads in one go, or one register a head, made no whole step faster on a Zen 3: every row is then converted or visited more often.
STRIDE = 2 * LANES
HEADS = 8
# Rows done in one go, while the cache lines of the next are asked for; and room that lists of rows have for what comes next.
GO, AHEAD = 16, 32


def high_numbers(builder: ir.IRBuilder, planes: tuple[ir.Value, ...], dim: ir.Value, token: ir.Value, channel: ir.Value) -> list:
    """Channels channel..channel+31 of a token in the first of ``planes``, int8 rows of ``dim`` bytes, as two float32 vectors."""
    row = builder.add(builder.add(planes[0], builder.mul(dim, token)), channel)
    parts = (builder.sext(load(builder, vector(I8), row, LANES * part), vector(I32)) for part in (0, 1))
    return [builder.sitofp(part, vector(F32)) for part in parts]


def both_numbers(builder: ir.IRBuilder, planes: tuple[ir.Value, ...], dim: ir.Value, token: ir.Value, channel: ir.Value) -> list:
    """As ``high_numbers``, from the high and the low plane of fixed point."""
    unit = ir.Constant(vector(F32), [1 / BASE] * LANES)
    parts = (high_numbers(builder, planes[k:], dim, token, channel) for k in (0, 1))
    return [multiply_add(builder, fine, unit, coarse) for coarse, fine in zip(*parts, strict=True)]


def row_adder(numbers: Callable) -> Callable:
    """The intrinsic add(first, second, third, tokens, weights, pitch, count, dim, out, heads).

    out[j] += sum_r weights[j, t_r] v[t_r] for 1 to 8 heads j; t: int64 [count] at the address ``tokens``, with GO more to come.
    v[t]: what ``numbers`` reads from up to three planes; weights: float32 [heads, ...], ``pitch`` bytes per head; out: float32
    [heads, dim]; dim: a multiple of 64.
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
    sums = [cgutils.alloca_once(builder, vector(F32)) for _ in range(2 * heads)]
    with cgutils.for_range_slice(builder, index(0), dim, index(STRIDE), intp=I64) as (channel, _):
        at = [builder.add(out, builder.mul(builder.add(builder.mul(dim, index(j)), channel), index(4))) for j in range(heads)]
        places = [(a, 4 * LANES * part) for a in at for part in (0, 1)]
        for total, place in zip(sums, places, strict=True):
            builder.store(load(builder, vector(F32), *place), total)
        with cgutils.for_range(builder, count, intp=I64) as loop:
            place = builder.add(tokens, builder.mul(loop.index, index(8)))
            token, wanted = (load(builder, I64, place, 8 * k) for k in (0, GO))
            values = numbers(builder, planes, dim, token, channel)
            fetch(builder, builder.add(builder.add(planes[0], builder.mul(dim, wanted)), channel))
            first = builder.add(weights, builder.mul(token, index(4)))
            for i, total in enumerate(sums):
                weight = splat(builder, load(builder, F32, first, builder.mul(pitch, index(i // 2))))
                builder.store(multiply_add(builder, weight, values[i % 2], builder.load(total)), total)
        for total, place in zip(sums, places, strict=True):
            store(builder, builder.load(total), *place)


add_high_rows, add_both_rows = row_adder(high_numbers), row_adder(both_numbers)
