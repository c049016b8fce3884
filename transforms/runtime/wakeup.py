"""How the end of an inference reaches a reader that waits for input: by a call, not by polling.

A live reader waits for the next message. When the engine has finished a block meanwhile, the reader is to send a
heartbeat down the stage, so that the block is emitted and committed now and not with the next message.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

_LISTENERS: dict[int, Callable[[], None]] = {}
_LOCK = threading.Lock()


def listen(listener: Callable[[], None]) -> Callable[[], None]:
    """Calls `listener` whenever a block is finished, from any thread; returns what ends that."""
    key = id(listener)
    with _LOCK:
        _LISTENERS[key] = listener
    return lambda: _LISTENERS.pop(key, None) and None


def beat(_: object = None) -> None:
    """A block is finished."""
    for listener in list(_LISTENERS.values()):
        listener()
