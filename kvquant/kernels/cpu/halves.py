"""Halves from their planes of 8, 4 and 4 bits, in LLVM's terms: numbers of V's rows, and K's scores channel by channel.

What is not read is filled with the mid-point, as in kvquant.planes. Stored halves are finite, so exponent 31 needs no care.
"""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from kvquant.half_planes import BLOCK
from kvquant.kernels.cpu.rows import HEADS, row_adder
from kvquant.kernels.cpu.vectors import F32, I8, I16, I32, I64, LANES, index, load, multiply_add, splat, store, vector

HALF = ir.HalfType()


def _whole(builder: ir.IRBuilder, bits: int, high: ir.Value, packed: tuple[ir.Value, ir.Value], shift: ir.Value) -> ir.Value:
    """Sixteen halves as float32: high bytes at an address, nibbles in bytes at two, in the upper half of them where shift is 4."""

    def wide(address: ir.Value) -> ir.Value:
        return builder.zext(load(builder, vector(I8), address), vector(I32))

    def number(value: int) -> ir.Constant:
        return ir.Constant(vector(I32), [value] * LANES)

    whole = builder.shl(wide(high), number(8))
    for plane, (least, place) in enumerate(((12, 4), (16, 0))):
        if bits >= least:
            nibble = builder.and_(builder.lshr(wide(packed[plane]), splat(builder, shift)), number(15))
            whole = builder.or_(whole, builder.shl(nibble, number(place)))
    whole = builder.or_(whole, number({8: 0x80, 12: 0x8, 16: 0}[bits]))
    return builder.fpext(builder.bitcast(builder.trunc(whole, vector(I16)), vector(HALF)), vector(F32))


def _packed(builder: ir.IRBuilder, channel: ir.Value, half: ir.Value) -> tuple[ir.Value, ir.Value]:
    """Where the nibble of a channel lies: its byte in a row, and by how much it is shifted (i32)."""
    upper = builder.icmp_signed(">=", channel, half)
    byte = builder.select(upper, builder.sub(channel, half), channel)
    return byte, builder.select(upper, ir.Constant(I32, 4), ir.Constant(I32, 0))


def half_numbers(bits: int):
    """``numbers`` of kvquant.kernels.cpu.rows.row_adder for rows of V of which ``bits`` are read."""

    def numbers(builder, planes, dim, token, channel, parts):
        half, found = builder.lshr(dim, index(1)), []
        for part in range(parts):
            place = builder.add(channel, index(LANES * part))
            if part % 2 == 0:  # 32 channels lie in the same halves of their bytes, as dim is a multiple of 64
                byte, shift = _packed(builder, place, half)
            high = builder.add(builder.add(planes[0], builder.mul(dim, token)), place)
            offset = builder.add(byte, index(LANES * (part % 2)))
            packed = tuple(builder.add(builder.add(plane, builder.mul(half, token)), offset) for plane in planes[1:])
            found.append(_whole(builder, bits, high, packed, shift))
        return found

    return numbers


add_rows_8, add_rows_12, add_rows_16 = (row_adder(half_numbers(bits)) for bits in (8, 12, 16))


@intrinsic
def block_scores(typing_context, high, middle, low, bits, query, out, stride, dim, heads):
    """out float32 [heads, 64], ``stride`` bytes per head: queries [heads, dim] times one block of K, [dim, 64] in three planes.

    bits: int32 [dim], of each channel; 1 to 8 heads.
    """

    def codegen(context, builder, signature, arguments):
        *operands, heads = arguments
        for n in range(1, HEADS + 1):
            with builder.if_then(builder.icmp_signed("==", heads, index(n))):
                for first in (0, BLOCK // 2):
                    _scores(builder, *operands, n, first)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 9), codegen


def _scores(builder, high, middle, low, bits, query, out, stride, dim, heads, first):
    """Half a block, whose nibbles are all in the same halves of their bytes: two registers a head."""
    sums = [cgutils.alloca_once_value(builder, ir.Constant(vector(F32), [0.0] * LANES)) for _ in range(2 * heads)]
    with cgutils.for_range(builder, dim, intp=I64) as loop:
        width = load(builder, I32, bits, builder.mul(loop.index, index(4)))
        row = builder.add(high, builder.add(builder.mul(loop.index, index(BLOCK)), index(first)))
        place = builder.mul(loop.index, index(BLOCK // 2))
        packed = [builder.add(plane, place) for plane in (middle, low)]
        shift = ir.Constant(I32, 4 if first else 0)
        for n in (8, 12, 16):
            with builder.if_then(builder.icmp_signed("==", width, ir.Constant(I32, n))):
                at = [(builder.add(row, index(o)), tuple(builder.add(p, index(o)) for p in packed)) for o in (0, LANES)]
                values = [_whole(builder, n, *a, shift) for a in at]
                for i, total in enumerate(sums):
                    place_of = builder.mul(builder.add(builder.mul(dim, index(i // 2)), loop.index), index(4))
                    weight = splat(builder, load(builder, F32, query, place_of))
                    builder.store(multiply_add(builder, weight, values[i % 2], builder.load(total)), total)
    for i, total in enumerate(sums):
        offset = builder.add(builder.mul(stride, index(i // 2)), index(4 * (first + LANES * (i % 2))))
        store(builder, builder.load(total), out, offset)
