"""Two facts that every stage of a process shares: that the job is asked to stop, and what made it fail.

A runner hands an exception on as text only; the process that runs locally finds the exception itself here.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

GRACE = 3.5
"""Seconds from the request to stop until work in flight is given up instead of committed."""


class Stop:
    """The request to stop reading, finish what is in flight, commit and end."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._deadline = 0.0

    def request(self) -> None:
        self._deadline = time.monotonic() + GRACE
        self._event.set()

    def is_set(self) -> bool:
        return self._event.is_set()

    def wait(self, seconds: float) -> bool:
        """Up to `seconds`, shorter when it is requested; whether it is."""
        return self._event.wait(seconds)

    def seconds_left(self) -> float:
        """Seconds of grace left, at least 0."""
        return max(0.0, self._deadline - time.monotonic())

    def clear(self) -> None:
        self._event.clear()
        FAILURES.clear()


STOP = Stop()
TRANSIENT_NOTE = "tagstream: transient, trying again may help"
"""Stands below the message in the traceback of such an error: all that a runner elsewhere keeps of it."""
FAILURES: list[BaseException] = []
"""Exceptions of this process's stages, oldest first."""


@contextmanager
def failing() -> Iterator[None]:
    """Remember an exception of the body before the runner turns it into text."""
    try:
        yield
    except GeneratorExit:
        raise
    except BaseException as error:
        if error not in FAILURES:
            FAILURES.append(error)
            if getattr(error, "transient", False):
                error.add_note(TRANSIENT_NOTE)
        raise
