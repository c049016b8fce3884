"""The request to stop a job: read no more, finish what is in flight, commit, end."""

from __future__ import annotations

import threading
import time

GRACE = 3.5
"""Seconds from the request to stop until work in flight is given up instead of committed."""


class Stop:
    """Whether a job is asked to stop, and how long it may still take. Thread-safe."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._deadline = 0.0

    def request(self) -> None:
        """Ask for it. A second request changes nothing but the deadline."""
        self._deadline = time.monotonic() + GRACE
        self._event.set()

    def is_set(self) -> bool:
        """Whether the job is asked to stop."""
        return self._event.is_set()

    def wait(self, seconds: float) -> bool:
        """Wait up to `seconds`, or until the job is asked to stop. Returns whether it is."""
        return self._event.wait(seconds)

    def seconds_left(self) -> float:
        """Seconds of grace that are left, at least 0."""
        return max(0.0, self._deadline - time.monotonic())
