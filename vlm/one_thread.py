"""All of torch's work in one thread, the same one for the whole life of the page.

A web server answers every event in whatever thread is free. With GNU's OpenMP each of them gets threads of its own, and once
there are more than cores, all of them sleep between two operations instead of waiting awake: a decode step of the embedded model,
some 300 operations, took 33 ms on two cores from one thread, and 62 ms from any once a second one had asked.
Steps of several answers take turns here; they would share the cores anyway.
"""

import inspect
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import wraps

_ONE = ThreadPoolExecutor(1, thread_name_prefix="torch")
_own = threading.local()
_END = object()


def run(function: Callable, *arguments, **named):
    """``function`` of its arguments, in the one thread; waits for it."""
    if getattr(_own, "here", False):
        return function(*arguments, **named)
    return _ONE.submit(_marked, function, *arguments, **named).result()


def _marked(function: Callable, *arguments, **named):
    _own.here = True
    return function(*arguments, **named)


def steps(iterator: Iterator) -> Iterator:
    """What a generator yields, its every step in the one thread; between two steps others have their turn."""
    try:
        while (item := run(next, iterator, _END)) is not _END:
            yield item
    finally:
        run(iterator.close)


def here(function: Callable) -> Callable:
    """Decorator of functions and generators: they run in the one thread, whoever calls."""

    @wraps(function)
    def call(*arguments, **named):
        if inspect.isgeneratorfunction(function):
            return steps(function(*arguments, **named))
        return run(function, *arguments, **named)

    return call
