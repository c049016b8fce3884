"""What one job owns in one process: its request to stop, its counters, its failures, and everything it has opened.

A context is handed down from whoever starts the job: `Job` -> sources and sinks -> stages. Nothing of a job belongs to
a module, so a process can run two jobs side by side, or the same job twice, and neither sees the other's state.

Beam pickles the functions that it runs, even within one process. A context is therefore pickled by its key: the
process that made the context gets that very context back, and a worker elsewhere makes one when the first function of
the job arrives. The table of contexts by key, at the end of this module, exists for this only.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, Self, TypeVar
from weakref import WeakValueDictionary

from tagstream.transforms.runtime.metrics import JobMetrics
from tagstream.transforms.runtime.stop import Stop
from tagstream.transforms.runtime.wakeup import Wakeup

TRANSIENT_NOTE = "tagstream: transient, trying again may help"
"""Added to the traceback of an error that may pass: the traceback is all that a runner elsewhere keeps of an error."""


class Resource(Protocol):
    """Something that a job opens once in a process and closes at its end."""

    def close(self) -> None:
        """Free what it holds. Called once, after the last stage has ended."""


R = TypeVar("R", bound=Resource)
_CONTEXTS: WeakValueDictionary[str, JobContext] = WeakValueDictionary()
_OF_THIS_WORKER: list[JobContext] = []
"""Contexts of jobs that another process has started: nobody else here keeps them."""
_LOCK = threading.RLock()


class JobContext:
    """See the module. Thread-safe. Use as a context manager, or call `close`.

    `key` names the job in this process and in its workers.
    """

    def __init__(self, name: str = "job", *, key: str | None = None) -> None:
        self.key = key or f"{name}-{uuid.uuid4().hex[:12]}"
        self.stop = Stop()
        self.metrics = JobMetrics()
        self.wakeup = Wakeup()
        self.failures: list[BaseException] = []
        """Exceptions of this process's stages, oldest first. A runner hands an exception on as text only."""
        self._resources: dict[Any, Any] = {}
        self._lock = threading.RLock()
        with _LOCK:
            _CONTEXTS[self.key] = self

    def resource(self, kind: Callable[[JobContext], R]) -> R:
        """The job's only object of this class in this process, made at the first call and closed with the job.

        For example `context.resource(OpenWriters)`. The class is called with the context.
        """
        with self._lock:
            if kind not in self._resources:
                self._resources[kind] = kind(self)
            found: R = self._resources[kind]
            return found

    @contextmanager
    def failing(self) -> Iterator[None]:
        """Remember an exception of the body before the runner turns it into text."""
        try:
            yield
        except GeneratorExit:
            raise
        except BaseException as error:
            if error not in self.failures:
                self.failures.append(error)
                if getattr(error, "transient", False):
                    error.add_note(TRANSIENT_NOTE)
            raise

    def close(self) -> None:
        """Close every resource, the newest first, and forget the context."""
        with self._lock:
            resources, self._resources = list(self._resources.values()), {}
        try:
            for resource in reversed(resources):
                resource.close()
        finally:
            with _LOCK:
                _CONTEXTS.pop(self.key, None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Callable[[str], JobContext], tuple[str]]:
        return _context_of, (self.key,)


def _context_of(key: str) -> JobContext:
    """The context of that key; made here if this process is a worker that has none yet."""
    with _LOCK:
        if (found := _CONTEXTS.get(key)) is not None:
            return found
        made = JobContext(key=key)
        _OF_THIS_WORKER.append(made)
        return made


def open_contexts() -> list[JobContext]:
    """Every context of this process that is not closed: what a worker ends and measures."""
    with _LOCK:
        return list(_CONTEXTS.values())
