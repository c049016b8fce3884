"""The request to stop a job. The job then reads nothing more, finishes the blocks in flight, commits them, and ends."""

from __future__ import annotations

import threading
import time

GRACE = 3.5
"""Seconds after the request. Blocks that are not finished by then are given up; the next run does them again."""


class Stop:
    """Whether a job is asked to stop, and how long it may still take. Thread-safe."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._deadline = 0.0

    def request(self) -> None:
        """Ask the job to stop. A second request only moves the deadline."""
        self._deadline = time.monotonic() + GRACE
        self._event.set()

    def is_set(self) -> bool:
        """Whether the job is asked to stop."""
        return self._event.is_set()

    def wait(self, seconds: float) -> bool:
        """Wait for `seconds`, or until the job is asked to stop. Returns whether the job is asked to stop."""
        return self._event.wait(seconds)

    def seconds_left(self) -> float:
        """Seconds until the deadline, at least 0."""
        return max(0.0, self._deadline - time.monotonic())
