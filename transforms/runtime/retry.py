"""Trying again after a failure that may pass: one helper, over tenacity, for every loop that does so."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception,
    retry_if_exception_type,
    wait_chain,
    wait_exponential,
    wait_fixed,
    wait_random_exponential,
)

Wait = Callable[[RetryCallState], float]


class Stopping(Protocol):
    """A request to stop, as `runtime.stop` and threading's Event are."""

    def is_set(self) -> bool: ...

    def wait(self, seconds: float, /) -> bool:
        """Returns after `seconds`, or at once when the request comes."""


def every(seconds: float) -> Wait:
    """The same wait each time."""
    return wait_fixed(seconds)


def listed(*seconds: float) -> Wait:
    """One wait after the other; the last one stays."""
    return wait_chain(*map(wait_fixed, seconds))


def doubling(first: float, most: float) -> Wait:
    """Twice the wait each time, up to `most` seconds."""
    return wait_exponential(multiplier=first, max=most)


def random_up_to(first: float, most: float) -> Wait:
    """Any part of a wait that doubles: those who collided do not collide again."""
    return wait_random_exponential(multiplier=first, max=most)


def retrying(
    passes: type[Exception] | tuple[type[Exception], ...] | Callable[[BaseException], bool],
    wait: Wait,
    *,
    attempts: int | None = None,
    seconds: float | None = None,
    stop: Stopping | None = None,
    before_wait: Callable[[], object] | None = None,
) -> Retrying:
    """To be called with the work, or as an iterator of context managers around the work.

        return retrying(BusyError, doubling(0.05, 2), seconds=60)(work)

        for attempt in retrying(BusyError, every(1), attempts=3):
            with attempt:
                work()

    passes: after which exceptions the work may succeed. Any other is raised at once. The last one is raised after so
    many attempts, or when the work fails `seconds` after its first attempt began. stop: a request to stop ends a wait,
    and work that fails after the request is not tried again. before_wait: called before each wait; an exception of its
    own ends the attempts.
    """

    def enough(state: RetryCallState) -> bool:
        return bool(
            (attempts is not None and state.attempt_number >= attempts)
            or (seconds is not None and (state.seconds_since_start or 0.0) >= seconds)
            or (stop is not None and stop.is_set())
        )

    def sleep(pause: float) -> None:
        if stop is None:
            time.sleep(pause)
        else:
            stop.wait(pause)

    def before_sleep(_: RetryCallState) -> None:
        if before_wait is not None:
            before_wait()

    return Retrying(
        retry=retry_if_exception_type(passes) if isinstance(passes, type | tuple) else retry_if_exception(passes),
        wait=wait,
        stop=enough,
        sleep=sleep,
        before_sleep=before_sleep,
        reraise=True,
    )
