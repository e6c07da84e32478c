"""Pieces of LLVM vector code for kernels whose inner loops numba's own vectoriser does not find.

Functions here build instructions inside an ``@intrinsic``; sixteen lanes of 32 bits are one AVX-512 register, two AVX2
registers, or four NEON ones: LLVM splits what the CPU does not have.
"""

from __future__ import annotations

import platform

import llvmlite.binding as llvm
from llvmlite import ir
from numba import config, types
from numba.core import cgutils
from numba.extending import intrinsic

LANES = 16
I8, I16, I32, I64, F32 = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64), ir.FloatType()


def vector(kind: ir.Type, lanes: int = LANES) -> ir.VectorType:
    return ir.VectorType(kind, lanes)


def index(value: int) -> ir.Constant:
    return ir.Constant(I64, value)


def load(builder: ir.IRBuilder, kind: ir.Type, address: ir.Value, offset: int | ir.Value = 0) -> ir.Value:
    """The ``kind`` at a byte address (an int64) plus ``offset``; nothing is assumed about alignment."""
    offset = index(offset) if isinstance(offset, int) else offset
    value = builder.load(builder.inttoptr(builder.add(address, offset), kind.as_pointer()))
    value.align = 1
    return value


def store(builder: ir.IRBuilder, value: ir.Value, address: ir.Value, offset: int | ir.Value = 0) -> None:
    offset = index(offset) if isinstance(offset, int) else offset
    builder.store(value, builder.inttoptr(builder.add(address, offset), value.type.as_pointer())).align = 1


def splat(builder: ir.IRBuilder, value: ir.Value, lanes: int = LANES) -> ir.Value:
    """All lanes equal."""
    kind = vector(value.type, lanes)
    first = builder.insert_element(ir.Constant(kind, ir.Undefined), value, ir.Constant(I32, 0))
    return shuffle(builder, first, first, [0] * lanes)


def shuffle(builder: ir.IRBuilder, a: ir.Value, b: ir.Value, lanes: list[int]) -> ir.Value:
    """Lane i of the result is lane lanes[i] of a and b laid end to end."""
    return builder.shuffle_vector(a, b, ir.Constant(vector(I32, len(lanes)), lanes))


def call(builder: ir.IRBuilder, name: str, *arguments: ir.Value) -> ir.Value:
    """A vector operation of LLVM, from and to the type of its first argument."""
    kind = ir.FunctionType(arguments[0].type, [a.type for a in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), arguments)


def multiply_add(builder: ir.IRBuilder, a: ir.Value, b: ir.Value, c: ir.Value) -> ir.Value:
    """a b + c, float32 lanes."""
    return call(builder, f"llvm.fmuladd.v{a.type.count}f32", a, b, c)


def horizontal_sum(builder: ir.IRBuilder, x: ir.Value) -> ir.Value:
    """The sum of all float32 lanes, by halves."""
    lanes = x.type.count
    while lanes > 1:
        lanes //= 2
        x = builder.fadd(x, shuffle(builder, x, x, [*range(lanes, 2 * lanes), *range(x.type.count - lanes)]))
    return builder.extract_element(x, ir.Constant(I32, 0))


def fetch(builder: ir.IRBuilder, address: ir.Value) -> None:
    """Asks for a cache line ahead of its use: rows picked from a list come in no order that a CPU foresees.

    One line at a time, between arithmetic. In a burst it gained nothing; interleaved it made reading a tenth of the rows of a
    cold plane twice as fast.
    """
    pointer = builder.inttoptr(address, I8.as_pointer())
    kind = ir.FunctionType(ir.VoidType(), [I8.as_pointer(), I32, I32, I32])
    function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
    builder.call(function, [pointer, *(ir.Constant(I32, k) for k in (0, 3, 1))])


def has(feature: str) -> bool:
    """Whether the CPU that numba compiles for has ``feature``, by LLVM's name."""
    if config.CPU_NAME or config.CPU_FEATURES:  # another CPU than this one
        return f"+{feature}" in (config.CPU_FEATURES or "")
    return bool(llvm.get_host_cpu_features().get(feature))


def converts_halves() -> bool:
    """Whether it has instructions for halves; an x86 without F16C would call a function that is not there, and the process ends."""
    return platform.machine() not in ("x86_64", "AMD64") or has("f16c")


def has_vnni() -> bool:
    """Whether it multiplies 64 pairs of bytes and adds fours of products in one instruction (AVX-512 VNNI)."""
    return has("avx512vnni")


def byte_dot(builder: ir.IRBuilder, total: ir.Value, unsigned: ir.Value, signed: ir.Value, vnni: bool) -> ir.Value:
    """total + the sums of four neighbouring products: total int32 [16], unsigned uint8 [64], signed int8 [64]."""
    if vnni:  # LLVM takes the operands as int32 lanes, and in newer versions upgrades that by itself
        wide = (builder.bitcast(x, vector(I32)) for x in (unsigned, signed))
        return call(builder, "llvm.x86.avx512.vpdpbusd.512", total, *wide)
    # Products of neighbours as LLVM knows them from vpmaddwd; plain vector code on any other CPU.
    a, b = builder.zext(unsigned, vector(I16, 64)), builder.sext(signed, vector(I16, 64))
    product = builder.mul(builder.sext(a, vector(I32, 64)), builder.sext(b, vector(I32, 64)))
    for lanes in (32, 16):
        parts = (shuffle(builder, product, product, list(range(first, 2 * lanes, 2))) for first in (0, 1))
        product = builder.add(*parts)
    return builder.add(total, product)


def word_dot(builder: ir.IRBuilder, a: ir.Value, b: ir.Value) -> ir.Value:
    """Sums of two neighbouring products: int16 [16] twice -> int32 [8] (AVX2)."""
    kind = ir.FunctionType(vector(I32, 8), [vector(I16, 16)] * 2)
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.avx2.pmadd.wd"), [a, b])


@intrinsic
def as_float(typing_context, bits):
    """The float32 that an int32's bits spell."""

    def codegen(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], F32)

    return types.float32(types.int32), codegen


@intrinsic
def larger(typing_context, a, b):
    """The larger of two float32, neither nan.

    numba's max is a branch, which as vector code for AVX2 becomes a masked store: a dozen cycles on AMD's processors.
    """

    def codegen(context, builder, signature, arguments):
        kind = ir.FunctionType(F32, [F32, F32])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.maxnum.f32")
        return builder.call(function, arguments, fastmath=("nnan", "nsz"))

    return types.float32(types.float32, types.float32), codegen


@intrinsic
def take_number(typing_context, counter):
    """Adds one to the int64 at an address, and returns what it was: the next piece of work, for threads that share them."""

    def codegen(context, builder, signature, arguments):
        return builder.atomic_rmw("add", builder.inttoptr(arguments[0], I64.as_pointer()), index(1), "monotonic")

    return types.int64(types.int64), codegen


@intrinsic
def as_bits(typing_context, number):
    """The bits of a float32, as an int32."""

    def codegen(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], I32)

    return types.int32(types.float32), codegen


@intrinsic
def call_at(typing_context, address, arguments):
    """Calls the compiled void function of int64 numbers at an address; arguments: a tuple of int64."""

    def codegen(context, builder, signature, values):
        count = signature.args[1].count
        kind = ir.FunctionType(ir.VoidType(), [I64] * count)
        numbers = [builder.extract_value(values[1], k) for k in range(count)]
        builder.call(builder.inttoptr(values[0], kind.as_pointer()), numbers)
        return context.get_dummy_value()

    return types.void(types.int64, arguments), codegen
