"""Scratch memory that decode steps share, and the lock that lets one at a time have it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# A tail of whole tokens grows with every step; its scratch grows by this many.
TAIL = 128
_lock = threading.Lock()
_kept: dict[Callable, tuple] = {}


@contextmanager
def scratch(make: Callable, rows: int, group: int, tokens: int, tail: int, dim: int) -> Iterator[tuple]:
    """make(rows, group, tokens, at least ``tail``, dim), or what it made for the step before; for one thread at a time.

    The lock serves numba as well, whose simplest threads allow one parallel call at a time.
    """
    key = (rows, group, tokens, -(-tail // TAIL) * TAIL, dim)
    with _lock:
        kept = _kept.get(make)
        if kept is None or kept[0] != key:
            kept = _kept[make] = (key, make(*key))
        yield kept[1]
