"""Sharing a device: how many forward passes of this process run on it at once, whichever engines they are of."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

_DEVICES: dict[str, Device] = {}
_LOCK = threading.Lock()


class Device:
    """As many passes at once as the most that one of its users wants; who has waited longest is next. Thread-safe."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._changed = threading.Condition()
        self.wanted: list[int] = []
        """Passes at once, of each user."""
        self._waiting: deque[object] = deque()
        self._running = 0

    @classmethod
    def join(cls, name: str, passes: int) -> Device:
        """The device of this name, the same for all its users, who want so many passes at once; `leave` it."""
        with _LOCK:
            device = _DEVICES.setdefault(name, cls(name))
            device.wanted.append(passes)
            return device

    def leave(self, passes: int) -> None:
        """A user that wanted so many has gone."""
        with _LOCK:
            self.wanted.remove(passes)
            if not self.wanted:
                del _DEVICES[self._name]

    @contextmanager
    def taken(self) -> Iterator[None]:
        """While the body runs, one of the passes is the caller's."""
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
