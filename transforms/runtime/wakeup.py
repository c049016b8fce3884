"""Wakes a reader that waits for input as soon as a block is finished.

A live reader waits for the next message. When the engine finishes a block meanwhile, the reader sends a heartbeat down
the stage. The finished block is then emitted and committed at once, and not only when the next message arrives.
"""

from __future__ import annotations

import threading
from collections.abc import Callable


class Wakeup:
    """The listeners of one job. Thread-safe."""

    def __init__(self) -> None:
        self._listeners: dict[int, Callable[[], None]] = {}
        self._lock = threading.Lock()

    def listen(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Call `listener` whenever a block is finished, from any thread. Returns a function that ends this."""
        key = id(listener)
        with self._lock:
            self._listeners[key] = listener
        return lambda: self._listeners.pop(key, None) and None

    def wake(self, _: object = None) -> None:
        """Tell every listener that a block is finished. The argument is ignored: a future passes itself."""
        for listener in list(self._listeners.values()):
            listener()
