"""Scores of 16 rows of int8 digits at once: 24-bit queries as three int8 digits, in 8-bit products with 32-bit sums.

The rows are turned so that a lane is a row: no sum across lanes is ever needed, and one register of keys serves all
query heads. Keys are made unsigned by adding 128 to every digit, as the instruction wants one unsigned factor; the sums
start at -128 times the sum of the query's digits, which takes it back exactly.

Measured against torch._int_mm: see kvquant.kernels.fast.
"""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from kvquant.kernels.cpu.vectors import F32, I8, I32, I64, LANES, byte_dot, fetch, has_vnni, index, load, shuffle, splat, store, vector

DIGITS = 3
HEADS = 8
CHUNK = 4 * LANES  # bytes of a row that are turned at once
VNNI = has_vnni()


@intrinsic
def turn_rows(typing_context, rows, offset, out):
    """Bytes offset..offset+63 of 16 int8 rows, plus 128, as uint8 out [16 fours of channels, 16 rows, 4].

    rows: the address of 16 int64 addresses.
    """

    def codegen(context, builder, signature, arguments):
        rows, offset, out = arguments
        flip = ir.Constant(vector(I32), [0x80808080] * LANES)
        x = [builder.xor(load(builder, vector(I32), load(builder, I64, rows, 8 * i), offset), flip) for i in range(LANES)]
        # A 16 x 16 transpose by interleaving: after the pass with distance d, lanes hold runs of 2 d rows.
        low = [lane for i in range(LANES // 2) for lane in (i, LANES + i)]
        high = [lane + LANES // 2 for lane in low]
        for _ in range(4):
            pairs = [(x[i], x[i + LANES // 2]) for i in range(LANES // 2)]
            x = [shuffle(builder, a, b, lanes) for a, b in pairs for lanes in (low, high)]
        for i, row in enumerate(x):
            store(builder, row, out, 4 * LANES * i)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), codegen


@intrinsic
def turned_dots(typing_context, turned, wanted, query, pitch, start, fours, out, stride, heads, digits):
    """The dot products of 16 turned rows with 1 to 8 heads' queries: with the first two ``digits`` (2), all three, or the last (1).

    turned: uint8 [fours, 16, 4]; wanted: the addresses of 16 rows that will be turned next; query: int8 [fours, heads, 3, 4], ``pitch`` bytes per four; start: int32 [heads, 3].
    out: float32 [heads, 16], ``stride`` bytes per head, in units of the last digit used.
    """

    def codegen(context, builder, signature, arguments):
        *operands, heads, digits = arguments
        for n in range(1, HEADS + 1):
            for used in (1, 2, 3):
                fits = (builder.icmp_signed("==", value, index(k)) for value, k in ((heads, n), (digits, used)))
                with builder.if_then(builder.and_(*fits)):
                    _dots(builder, *operands, n, used)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 10), codegen


def _dots(builder, turned, wanted, query, pitch, start, fours, out, stride, heads, digits):
    """All sums of ``heads`` times ``digits`` columns stay in registers, 24 of 32 at most."""
    used = {1: (2,), 2: (0, 1), 3: (0, 1, 2)}[digits]
    columns = [(j, 4 * (DIGITS * j + d)) for j in range(heads) for d in used]
    sums = [cgutils.alloca_once_value(builder, splat(builder, load(builder, I32, start, place))) for _, place in columns]
    with cgutils.for_range(builder, fours, intp=I64) as loop:
        keys = load(builder, vector(I8, CHUNK), turned, builder.mul(loop.index, index(CHUNK)))
        row = builder.add(query, builder.mul(loop.index, pitch))
        # There are as many cache lines in 16 rows as there are fours in one.
        place = builder.mul(builder.and_(loop.index, index(LANES - 1)), index(8))
        line = builder.mul(builder.lshr(loop.index, index(4)), index(CHUNK))
        fetch(builder, builder.add(load(builder, I64, wanted, place), line))
        for (_, place), total in zip(columns, sums, strict=True):
            number = builder.bitcast(splat(builder, load(builder, I32, row, place)), vector(I8, CHUNK))
            builder.store(byte_dot(builder, builder.load(total), keys, number, VNNI), total)
    values = {}
    for (j, _), total in zip(columns, sums, strict=True):
        number = builder.sitofp(builder.load(total), vector(F32))
        if j in values:
            number = builder.fadd(builder.fmul(values[j], ir.Constant(vector(F32), [256.0] * LANES)), number)
        values[j] = number
    for j, value in values.items():
        store(builder, value, out, builder.mul(stride, index(j)))
