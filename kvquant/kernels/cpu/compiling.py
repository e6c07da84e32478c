"""How everything here is compiled, and where the machine code is kept.

numba keys a kept function by its own file's time stamp alone: after a change in a function that it calls, it would go on with the
old machine code. So what is kept lies in a directory named after all sources together.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from numba import cfunc, config, njit, types

HERE = Path(__file__).resolve().parent
# Sums may be reordered, which vector code needs; nan cannot occur, as planes and queries are checked to be finite.
FAST = {"reassoc", "contract", "nsz", "nnan", "arcp"}


def _directory() -> str:
    sources = hashlib.sha256()
    for path in [*sorted(HERE.glob("*.py")), *sorted(HERE.parent.parent.glob("*.py"))]:
        sources.update(path.read_bytes())
    return os.path.join(config.CACHE_DIR or HERE / "__pycache__", f"kvquant-{sources.hexdigest()[:16]}")


@contextmanager
def _keeping(directory: str) -> Iterator[None]:
    before, config.CACHE_DIR = config.CACHE_DIR, directory
    try:
        yield
    finally:
        config.CACHE_DIR = before


KEPT = _directory()


def _kept(make: Callable) -> Callable:
    """make(cache=...) with an on-disk cache where one can be written (a container's site-packages may be read-only)."""
    try:
        with _keeping(KEPT):
            return make(cache=True)
    except RuntimeError:
        return make(cache=False)


def jit(function: Callable | None = None, **options) -> Callable:
    """numba's njit as every function here wants it."""
    if function is None:
        return lambda inner: jit(inner, **options)
    options = {"fastmath": FAST, "error_model": "numpy", **options}
    return _kept(lambda cache: njit(cache=cache, **options)(function))


def c_function(function: Callable, count: int) -> Callable:
    """A C function of ``count`` int64 numbers that returns nothing."""
    signature = types.void(*[types.int64] * count)
    return _kept(lambda cache: cfunc(signature, cache=cache)(function))
