"""Limits how many forward passes of this process run on one device at once, over all engines that use the device."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

_DEVICES: dict[str, Device] = {}
_LOCK = threading.Lock()


class Device:
    """One device, shared by several users (engines).

    The limit is the largest number of passes that any user wants. The caller that has waited longest comes next.
    Thread-safe.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._changed = threading.Condition()
        self.wanted: list[int] = []
        """For each user, how many passes it wants to run at once."""
        self._waiting: deque[object] = deque()
        self._running = 0

    @classmethod
    def join(cls, name: str, passes: int) -> Device:
        """The device of this name, shared with its other users. `passes`: how many the new user wants to run at once.

        The user must call `leave` in the end.
        """
        with _LOCK:
            device = _DEVICES.setdefault(name, cls(name))
            device.wanted.append(passes)
            return device

    def leave(self, passes: int) -> None:
        """Undo a `join` with the same number of passes."""
        with _LOCK:
            self.wanted.remove(passes)
            if not self.wanted:
                del _DEVICES[self._name]

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Wait for a free pass, and hold it while the `with` body runs."""
        turn = object()
        with self._changed:
            self._waiting.append(turn)
            self._changed.wait_for(lambda: self._waiting[0] is turn and self._running < max(self.wanted, default=1))
            self._waiting.popleft()
            self._running += 1
            self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._running -= 1
                self._changed.notify_all()
