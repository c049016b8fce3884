"""Trying again: what is tried again, how long, and what ends it."""

from __future__ import annotations

import threading
import time

import pytest

from tagstream.transforms.runtime import retry
from tagstream.transforms.runtime.retry import doubling, every, listed, random_up_to, retrying


class BusyError(Exception):
    pass


class Work:
    """Fails so many times, with the given exception."""

    def __init__(self, failures: int, error: Exception | None = None) -> None:
        self.left, self.calls, self.error = failures, 0, error or BusyError()

    def __call__(self) -> int:
        self.calls += 1
        if self.calls <= self.left:
            raise self.error
        return self.calls


@pytest.fixture
def waits(monkeypatch):
    """The waits, which take no time."""
    found: list[float] = []
    monkeypatch.setattr(retry.time, "sleep", found.append)
    return found


def test_what_the_work_returns_at_last(waits):
    assert retrying(BusyError, every(1.5))(Work(3)) == 4
    assert waits == [1.5] * 3


def test_waits_double_up_to_the_most(waits):
    retrying(BusyError, doubling(0.05, 2.0))(Work(8))
    assert waits == [0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0]


def test_listed_waits(waits):
    with pytest.raises(BusyError):
        retrying(BusyError, listed(0.1, 0.5, 2.0), attempts=4)(Work(9))
    assert waits == [0.1, 0.5, 2.0]


def test_random_waits_stay_below_one_that_doubles(waits):
    retrying(BusyError, random_up_to(0.02, 1.0))(Work(50))
    assert all(wait <= min(1.0, 0.02 * 2**n) for n, wait in enumerate(waits))
    assert len(set(waits)) == len(waits)


def test_other_exceptions_are_raised_at_once(waits):
    work = Work(1, KeyError("x"))
    with pytest.raises(KeyError):
        retrying(BusyError, every(1))(work)
    assert (work.calls, waits) == (1, [])


def test_a_predicate_decides(waits):
    busy = retrying(lambda error: "again" in str(error), every(0))
    assert busy(Work(1, ValueError("again"))) == 2
    with pytest.raises(ValueError, match="never"):
        busy(Work(1, ValueError("never")))


def test_attempts_end(waits):
    work = Work(99)
    with pytest.raises(BusyError):
        retrying(BusyError, every(0), attempts=3)(work)
    assert work.calls == 3


@pytest.mark.parametrize(("seconds", "calls"), [(0.0, 1), (60.0, 3)])
def test_the_last_failure_is_raised_when_the_time_is_over(monkeypatch, seconds, calls):
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)

    def sleep(pause: float) -> None:
        nonlocal now
        now += pause

    monkeypatch.setattr(retry.time, "sleep", sleep)
    work = Work(99)
    with pytest.raises(BusyError):
        retrying(BusyError, every(30), seconds=seconds)(work)
    assert work.calls == calls


def test_a_request_to_stop_ends_a_wait():
    stop, work = threading.Event(), Work(99)
    timer = threading.Timer(0.1, stop.set)
    timer.start()
    began = time.monotonic()
    with pytest.raises(BusyError):
        retrying(BusyError, every(600), stop=stop)(work)
    assert time.monotonic() - began < 60
    assert work.calls == 2
    timer.join()


def test_before_each_wait_something_may_end_it_all(waits):
    def give_up() -> None:
        raise LookupError

    work = Work(99)
    with pytest.raises(LookupError):
        retrying(BusyError, every(1), before_wait=give_up)(work)
    assert (work.calls, waits) == (1, [])


def test_a_generator_goes_on_where_it_was(waits):
    def rows():
        at, failures = 0, [BusyError(), BusyError()]
        for attempt in retrying(BusyError, every(0), attempts=3):
            with attempt:
                while at < 4:
                    yield at
                    at += 1
                    if failures and at == 2:
                        raise failures.pop()

    assert list(rows()) == [0, 1, 2, 3]
    closed = rows()
    next(closed)
    closed.close()
