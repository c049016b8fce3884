"""Tries work again after a failure that may pass. Every such loop of tagstream uses this helper, built on tenacity."""

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
    """A request to stop. `runtime.stop.Stop` and `threading.Event` are such requests."""

    def is_set(self) -> bool: ...

    def wait(self, seconds: float, /) -> bool:
        """Wait for `seconds`, or until the request comes."""


def every(seconds: float) -> Wait:
    """Wait equally long each time."""
    return wait_fixed(seconds)


def listed(*seconds: float) -> Wait:
    """Wait for the first number of seconds, then for the second, and so on. The last number is repeated."""
    return wait_chain(*map(wait_fixed, seconds))


def doubling(first: float, most: float) -> Wait:
    """Wait twice as long each time, up to `most` seconds."""
    return wait_exponential(multiplier=first, max=most)


def random_up_to(first: float, most: float) -> Wait:
    """Wait a random part of a time that doubles up to `most`, so that processes that collided do not collide again."""
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
    """Tries work until it succeeds. Call the result with the work, or iterate over it:

        return retrying(BusyError, doubling(0.05, 2), seconds=60)(work)

        for attempt in retrying(BusyError, every(1), attempts=3):
            with attempt:
                work()

    passes: exceptions after which the work may succeed. Any other exception is raised at once.
    attempts: after this many failures the last exception is raised. seconds: a failure is raised if it comes this long
    after the first attempt began. stop: the request ends a wait, and a later failure is raised.
    before_wait: called before each wait. If it raises an exception, the attempts end.
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
