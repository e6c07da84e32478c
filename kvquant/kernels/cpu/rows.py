"""Weighted sums of rows of V for several query heads at once, in float32: a row is loaded and converted once for all heads."""

from __future__ import annotations

from collections.abc import Callable

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from kvquant.kernels.cpu.vectors import F32, I8, I32, I64, LANES, fetch, index, load, multiply_add, splat, store, vector
from kvquant.planes import BASE

# Channels done in one go: two registers a head, so that up to 8 heads stay in 32 registers.
STRIDE = 2 * LANES
HEADS = 8
# Rows ahead whose cache lines are asked for; also how many are done in one go.
AHEAD = 16


def high_numbers(builder: ir.IRBuilder, row: ir.Value, channel: ir.Value, low: ir.Value) -> list[ir.Value]:
    """Channels channel..channel+31 of the row of one int8 plane, as two float32 vectors."""
    return [
        builder.sitofp(builder.sext(load(builder, vector(I8), builder.add(row, channel), LANES * part), vector(I32)), vector(F32))
        for part in (0, 1)
    ]


def both_numbers(builder: ir.IRBuilder, row: ir.Value, channel: ir.Value, low: ir.Value) -> list[ir.Value]:
    """As ``high_numbers``, with the row of the low plane ``low`` bytes further on."""
    unit = ir.Constant(vector(F32), [1 / BASE] * LANES)
    parts = (high_numbers(builder, builder.add(row, offset), channel, low) for offset in (index(0), low))
    return [multiply_add(builder, fine, unit, coarse) for coarse, fine in zip(*parts, strict=True)]


def row_adder(numbers: Callable) -> Callable:
    """The intrinsic add(rows, low, weights, pitch, count, dim, out, heads): out[j] += sum_r weights[j, r] rows[r], of 1 to 8 heads.

    rows: the address of ``count`` addresses, and of AHEAD more, of rows wanted next; low: from the high plane to the low one, in
    bytes; weights: float32 [heads, count], ``pitch`` bytes per head; out: float32
    [heads, dim]; dim: a multiple of 32.
    """

    @intrinsic
    def add_rows(typing_context, rows, low, weights, pitch, count, dim, out, heads):
        def codegen(context, builder, signature, arguments):
            *operands, heads = arguments
            for n in range(1, HEADS + 1):
                with builder.if_then(builder.icmp_signed("==", heads, index(n))):
                    _add(builder, numbers, *operands, n)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 8), codegen

    return add_rows


def _add(builder, numbers, rows, low, weights, pitch, count, dim, out, heads):
    sums = [cgutils.alloca_once(builder, vector(F32)) for _ in range(2 * heads)]
    with cgutils.for_range_slice(builder, index(0), dim, index(STRIDE), intp=I64) as (channel, _):
        at = [builder.add(out, builder.mul(builder.add(builder.mul(dim, index(j)), channel), index(4))) for j in range(heads)]
        places = [(a, 4 * LANES * part) for a in at for part in (0, 1)]
        for total, place in zip(sums, places, strict=True):
            builder.store(load(builder, vector(F32), *place), total)
        with cgutils.for_range(builder, count, intp=I64) as loop:
            place = builder.mul(loop.index, index(8))
            values = numbers(builder, load(builder, I64, rows, place), channel, low)
            fetch(builder, builder.add(load(builder, I64, rows, builder.add(place, index(8 * AHEAD))), channel))
            first = builder.add(weights, builder.mul(loop.index, index(4)))
            for i, total in enumerate(sums):
                weight = splat(builder, load(builder, F32, first, builder.mul(pitch, index(i // 2))))
                builder.store(multiply_add(builder, weight, values[i % 2], builder.load(total)), total)
        for total, place in zip(sums, places, strict=True):
            store(builder, builder.load(total), *place)


add_high_rows, add_both_rows = row_adder(high_numbers), row_adder(both_numbers)
