"""All of torch's work in one thread, the same one for the whole life of the page.

A web server answers every event in whatever thread is free. With GNU's OpenMP each of them gets threads of its own, and once
there are more than cores, all of them sleep between two operations instead of waiting awake: a decode step of the embedded model,
some 300 operations, took 33 ms on two cores from one thread, and 62 ms from any once a second one had asked.
Steps of several answers take turns here; they would share the cores anyway. A long prefill makes the others wait.
"""

import inspect
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from functools import wraps
from queue import SimpleQueue

_tasks: SimpleQueue = SimpleQueue()
_END = object()


def _fulfil(future: Future, function: Callable, arguments: tuple, named: dict) -> None:
    try:
        future.set_result(function(*arguments, **named))
    except BaseException as error:  # whatever it is, it belongs to who asked
        future.set_exception(error)


def _work() -> None:
    while True:
        _fulfil(*_tasks.get())


# A daemon: whoever stops the page need not wait for an answer.
_thread = threading.Thread(target=_work, name="torch", daemon=True)
_thread.start()


def is_here() -> bool:
    """Whether the caller runs in the one thread."""
    return threading.current_thread() is _thread


def run(function: Callable, *arguments, **named):
    """``function`` of its arguments, in the one thread; waits for it."""
    return function(*arguments, **named) if is_here() else _later(function, *arguments, **named).result()


def _later(function: Callable, *arguments, **named) -> Future:
    future: Future = Future()
    _tasks.put((future, function, arguments, named))
    return future


def steps(iterator: Iterator) -> Iterator:
    """What a generator yields, its every step in the one thread; between two steps others have their turn."""
    item = None
    try:
        while (item := run(next, iterator, _END)) is not _END:
            yield item
    finally:
        if item is not _END:
            # Nobody waits for it: the server closes what a visitor left from the thread that all events come through.
            _later(iterator.close)


def here(function: Callable) -> Callable:
    """Decorator of functions and generators: they run in the one thread, whoever calls."""

    @wraps(function)
    def call(*arguments, **named):
        if inspect.isgeneratorfunction(function):
            return steps(function(*arguments, **named))
        return run(function, *arguments, **named)

    return call


def apart(function: Callable, *arguments):
    """``function`` of its arguments, in a new thread that ends with it, and OpenMP's threads with that; waits for it."""
    future: Future = Future()
    threading.Thread(target=_fulfil, args=(future, function, arguments, {}), daemon=True).start()
    return future.result()
