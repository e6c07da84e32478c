"""Scores of 16 rows of int8 digits at once: 24-bit queries as three int8 digits, in integer products with 32-bit sums.

The rows are turned so that a lane is a row: no sum across lanes is ever needed, and one register of keys serves all
query heads. Keys are made unsigned by adding 128 to every digit, as the instruction wants one unsigned factor; the sums
start at -128 times the sum of the query's digits, which takes it back exactly. A CPU with AVX2 alone has no such instruction; there
the first two digits are one int16 and keys are widened, in 16-bit products: the same sums, exactly.

Measured against ``torch._int_mm`` on two cores of an AMD EPYC (Zen 4: AVX-512 VNNI, no AMX), K's high plane of 16384 tokens, 28/4
heads of 128, 16-bit queries: 1.4 ms for its products alone, 0.65 to 0.85 ms for these, scores and exponentials included. So there
is one kernel for all shapes. With 16-bit products instead of plain vector code for digits, whole steps that read every bit took
0.53 of their time on two cores with AVX2 (Zen 3), and certified ones 0.58 (28/4 heads, 16384 tokens).
"""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from kvquant.kernels.cpu.vectors import (
    F32,
    I8,
    I16,
    I32,
    I64,
    LANES,
    byte_dot,
    fetch,
    has,
    has_vnni,
    index,
    load,
    shuffle,
    splat,
    store,
    vector,
    word_dot,
)

DIGITS = 3
HEADS = 8
CHUNK = 4 * LANES  # bytes of a row that are turned at once
VNNI = has_vnni()
WORDS = not VNNI and has("avx2")
# Bytes of a turned digit: for 16-bit products they are widened once, not once for every few heads.
WIDTH = 2 if WORDS else 1
# Columns of 16-bit sums in one go, and of how many of the four registers of four rows each: 12 sums and what is multiplied are all
# that the 16 registers of AVX2 hold.
TALL, BROAD = (3, 4), (6, 2)


@intrinsic
def turn_rows(typing_context, plane, dim, tokens, offset, out):
    """Bytes offset..offset+63 of 16 int8 rows, plus 128, as out [16 fours of channels, 16 rows, 4].

    With WORDS they stay as they are, as int16.

    plane: of rows of ``dim`` bytes; tokens: the address of 16 int64 row numbers, not written just before: what was stored with
    wide instructions cannot be loaded piece by piece until it has reached the cache, which made this three times slower.
    """

    def codegen(context, builder, signature, arguments):
        plane, dim, tokens, offset, out = arguments
        flip = ir.Constant(vector(I32), [0 if WORDS else 0x80808080] * LANES)
        rows = [builder.add(plane, builder.mul(dim, load(builder, I64, tokens, 8 * i))) for i in range(LANES)]
        x = [builder.xor(load(builder, vector(I32), row, offset), flip) for row in rows]
        y = [_turned_fours(builder, x[i : i + 4]) for i in range(0, LANES, 4)]
        x = [None] * LANES
        for d in range(4):
            for lane, row in enumerate(_turned_lanes(builder, [four[d] for four in y])):
                x[4 * lane + d] = row
        for i, row in enumerate(x):
            if WORDS:
                row = builder.sext(builder.bitcast(row, vector(I8, CHUNK)), vector(I16, CHUNK))
            store(builder, row, out, WIDTH * CHUNK * i)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 5), codegen


# Lanes of two registers a and b, in 128-bit lanes of four numbers: what the unpacking and the lane instructions of AVX-512 pick, as
# a pattern that crosses lanes takes three times as long.
FIRST, SECOND = ([lane + k for lane in range(0, LANES, 4) for k in (at, at + LANES, at + 1, at + 1 + LANES)] for at in (0, 2))
FIRST_PAIR, SECOND_PAIR = (
    [lane + k for lane in range(0, LANES, 4) for k in (at, at + 1, at + LANES, at + 1 + LANES)] for at in (0, 2)
)
EVEN, ODD = ([LANES * part + 4 * lane + k for part in (0, 1) for lane in (at, at + 2) for k in range(4)] for at in (0, 1))


def _turned_fours(builder: ir.IRBuilder, rows: list[ir.Value]) -> list[ir.Value]:
    """4 x 4 numbers in each 128-bit lane of four registers, turned."""
    a, b, c, d = rows
    pairs = [[shuffle(builder, x, y, lanes) for x, y in ((a, b), (c, d))] for lanes in (FIRST, SECOND)]
    return [shuffle(builder, *pair, lanes) for pair in pairs for lanes in (FIRST_PAIR, SECOND_PAIR)]


def _turned_lanes(builder: ir.IRBuilder, rows: list[ir.Value]) -> list[ir.Value]:
    """4 x 4 lanes of 128 bits in four registers, turned."""
    a, b, c, d = rows
    pairs = [[shuffle(builder, x, y, lanes) for x, y in ((a, b), (c, d))] for lanes in (EVEN, ODD)]
    (even, odd) = ([shuffle(builder, *pair, lanes) for lanes in (EVEN, ODD)] for pair in pairs)
    return [even[0], odd[0], even[1], odd[1]]


@intrinsic
def turned_dots(typing_context, turned, plane, dim, wanted, query, pitch, start, fours, out, stride, heads, digits):
    """The dot products of 16 turned rows with 1 to 8 heads' queries: with the first two ``digits`` (2), or all three.

    turned: [fours, 16, 4], as :func:`turn_rows` leaves it; wanted: the address of the numbers of 16 rows of the plane that will be
    turned next; query: int8 [fours, heads, 3, 4] (with WORDS the first two of three are int16 [4]), ``pitch`` bytes per four;
    start: int32 [heads, 3];
    out: float32 [heads, 16], ``stride`` bytes per head, in units of the last digit used.
    """

    def codegen(context, builder, signature, arguments):
        *operands, heads, digits = arguments
        for n in range(1, HEADS + 1):
            for used in (2, DIGITS):
                fits = (builder.icmp_signed("==", value, index(k)) for value, k in ((heads, n), (digits, used)))
                with builder.if_then(builder.and_(*fits)):
                    (_word_dots if WORDS else _dots)(builder, *operands, n, used)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 12), codegen


def _fetch_next(builder, plane, dim, wanted, four):
    """There are as many cache lines in 16 rows as there are fours in one."""
    place = builder.mul(builder.and_(four, index(LANES - 1)), index(8))
    line = builder.mul(builder.lshr(four, index(4)), index(CHUNK))
    fetch(builder, builder.add(plane, builder.add(builder.mul(dim, load(builder, I64, wanted, place)), line)))


def _dots(builder, turned, plane, dim, wanted, query, pitch, start, fours, out, stride, heads, digits):
    """All sums of ``heads`` times ``digits`` columns stay in registers, 24 of 32 at most."""
    columns = [(j, 4 * (DIGITS * j + d)) for j in range(heads) for d in range(digits)]
    sums = [cgutils.alloca_once_value(builder, splat(builder, load(builder, I32, start, place))) for _, place in columns]
    with cgutils.for_range(builder, fours, intp=I64) as loop:
        keys = load(builder, vector(I8, CHUNK), turned, builder.mul(loop.index, index(CHUNK)))
        row = builder.add(query, builder.mul(loop.index, pitch))
        _fetch_next(builder, plane, dim, wanted, loop.index)
        for (_, place), total in zip(columns, sums, strict=True):
            number = builder.bitcast(splat(builder, load(builder, I32, row, place)), vector(I8, CHUNK))
            builder.store(byte_dot(builder, builder.load(total), keys, number, VNNI), total)
    _write(builder, [(j, builder.load(total)) for (j, _), total in zip(columns, sums, strict=True)], out, stride)


def _write(builder, sums, out, stride):
    """Sums by head, the higher digits first, as one float32 each."""
    values = {}
    for j, total in sums:
        number = builder.sitofp(total, vector(F32))
        if j in values:
            number = builder.fadd(builder.fmul(values[j], ir.Constant(vector(F32), [256.0] * LANES)), number)
        values[j] = number
    for j, value in values.items():
        store(builder, value, out, builder.mul(stride, index(j)))


def _word_dots(builder, turned, plane, dim, wanted, query, pitch, start, fours, out, stride, heads, digits):
    """As :func:`_dots`, in 16-bit products; two sums of every row stay apart until the end. start: not used."""
    columns = [(j, low) for j in range(heads) for low in range(digits - 1)]
    done = []
    while len(done) < len(columns):
        count, parts = TALL if len(columns) - len(done) <= TALL[0] else BROAD
        tile, halves = columns[len(done) :][:count], []
        for part in range(0, 4, parts):
            ahead = (plane, dim, wanted) if not done and not part else None
            halves.append(_word_tile(builder, turned, query, pitch, fours, tile, range(part, part + parts), ahead))
        done += [_row_sums(builder, [x for half in column for x in half]) for column in zip(*halves, strict=True)]
    _write(builder, [(j, total) for (j, _), total in zip(columns, done, strict=True)], out, stride)


def _word_tile(builder, turned, query, pitch, fours, columns, parts, ahead):
    """Sums of every column, for each of ``parts`` (four rows), int32 [8]: two of each row, still apart."""
    sums = [[cgutils.alloca_once_value(builder, ir.Constant(vector(I32, 8), [0] * 8)) for _ in parts] for _ in columns]
    with cgutils.for_range(builder, fours, intp=I64) as loop:
        row = builder.add(query, builder.mul(loop.index, pitch))
        if ahead:
            _fetch_next(builder, *ahead, loop.index)
        place = builder.add(turned, builder.mul(loop.index, index(WIDTH * CHUNK)))
        keys = [load(builder, vector(I16), place, WIDTH * LANES * part) for part in parts]
        for (j, low), totals in zip(columns, sums, strict=True):
            number = builder.bitcast(_four(builder, row, 12 * j, low), vector(I16))
            for key, total in zip(keys, totals, strict=True):
                builder.store(builder.add(builder.load(total), word_dot(builder, key, number)), total)
    return [[builder.load(total) for total in totals] for totals in sums]


def _four(builder, row, place, low):
    """A head's four numbers of 16 bits, four times: of the first two digits, or of the last."""
    if low:
        number = builder.bitcast(builder.sext(load(builder, vector(I8, 4), row, place + 8), vector(I16, 4)), I64)
    else:
        number = load(builder, I64, row, place)
    return splat(builder, number, 4)


def _row_sums(builder, parts):
    """int32 [16] from four times [8], in which two neighbours belong to a row."""
    halves = []
    for a, b in (parts[:2], parts[2:]):
        even, odd = (shuffle(builder, a, b, list(range(first, 16, 2))) for first in (0, 1))
        halves.append(builder.add(even, odd))
    return shuffle(builder, *halves, list(range(LANES)))
