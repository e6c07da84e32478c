"""Small compiled pieces: powers of two, and views of memory."""

from __future__ import annotations

import numpy as np
from numba import carray, types
from numba.extending import intrinsic

from kvquant.kernels.cpu.compiling import jit
from kvquant.kernels.cpu.vectors import as_bits, as_float, larger

__all__ = ["address", "as_bits", "exp2", "floats", "jit", "larger", "largest", "line", "signed_bytes"]


def _pointer(kind):
    @intrinsic
    def pointer(typing_context, address):
        def codegen(context, builder, signature, arguments):
            return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

        return types.CPointer(kind)(types.int64), codegen

    return pointer


_floats, _bytes = _pointer(types.float32), _pointer(types.int8)


@jit
def address(x):
    """Of an array's first element, signed: numba turns sums of signed and unsigned integers into float64."""
    return np.int64(x.ctypes.data)


@jit
def floats(address, count):
    """float32 [count] at an address."""
    return carray(_floats(address), (count,))


@jit
def line(x, j):
    """x[j] of float32 [J, n] whose rows are contiguous, as numba's vectoriser must know it."""
    return floats(np.int64(x.ctypes.data) + j * x.strides[0], x.shape[1])


@jit
def signed_bytes(address, count):
    """int8 [count] at an address."""
    return carray(_bytes(address), (count,))


@jit
def largest(row):
    """The largest number of a float32 array; nothing is smaller than -1e30, which an empty one gives."""
    most = np.float32(-1e30)
    for i in range(len(row)):
        most = larger(most, row[i])
    return most


@jit
def exp2(x):
    """2**x, float32, to 2e-7; x below -126 counts as -126. In numba exp is a call for every number, which no loop survives."""
    x = larger(x, np.float32(-126.0))
    # numba's difference of int32 is an int64, which AVX2 makes a float32 one by one.
    whole = np.int32(np.int32(x + np.float32(128.5)) - np.int32(128))
    f = x - np.float32(whole)
    y = np.float32(1.5403530e-4) * f + np.float32(1.33335581e-3)
    y = y * f + np.float32(9.61812911e-3)
    y = y * f + np.float32(5.55041087e-2)
    y = y * f + np.float32(2.40226507e-1)
    y = y * f + np.float32(6.93147181e-1)
    y = y * f + np.float32(1.0)
    return y * as_float(np.int32((whole + np.int32(127)) << np.int32(23)))
