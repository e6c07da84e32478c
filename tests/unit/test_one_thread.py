"""One thread for all of torch's work: it is the same one, generators take turns, and what goes wrong arrives."""

import threading

import pytest

from vlm import one_thread


@one_thread.here
def name() -> str:
    return threading.current_thread().name


@one_thread.here
def names(count: int, closed: list):
    try:
        for _ in range(count):
            yield name()
    finally:
        closed.append(threading.current_thread().name)


def test_functions_and_every_step_of_generators_run_in_the_same_thread_whoever_calls():
    found = [name(), *names(3, [])]
    caller = threading.Thread(target=lambda: found.append(name()))
    caller.start()
    caller.join()
    assert set(found) == {name()} and len(found) == 5
    assert name() != threading.current_thread().name
    assert names.__name__ == "names"


def test_two_generators_take_turns_and_an_abandoned_one_is_closed_there():
    closed: list[str] = []
    one, other = names(3, closed), names(3, closed)
    for _ in range(2):
        assert next(one) == next(other)
    one.close()  # does not wait; what is asked next comes after it
    assert [name()] == closed
    assert list(other) == [name()] and len(closed) == 2


def test_what_goes_wrong_arrives_and_the_thread_goes_on():
    @one_thread.here
    def broken():
        raise ValueError("no such patch")

    @one_thread.here
    def breaks():
        yield 1
        raise ValueError("no such step")

    with pytest.raises(ValueError, match="patch"):
        broken()
    steps = breaks()
    assert next(steps) == 1
    with pytest.raises(ValueError, match="step"):
        next(steps)
    assert name()


def test_an_abandoned_generator_is_closed_without_waiting_for_a_busy_thread():
    closed: list[str] = []
    left, gate = names(3, closed), threading.Event()
    next(left)
    busy = threading.Thread(target=one_thread.run, args=(gate.wait,))
    busy.start()
    left.close()
    assert not closed, "the thread is still busy, and nobody waits for it"
    gate.set()
    busy.join()
    assert [name()] == closed


def test_what_runs_apart_ends_with_its_thread_and_its_errors_arrive():
    found = one_thread.apart(threading.current_thread)
    found.join(5)
    assert not found.is_alive() and found.name != name()
    with pytest.raises(ZeroDivisionError):
        one_thread.apart(lambda: 1 / 0)
