"""What one job owns in one process: its request to stop, its counters, its failures, and everything it has opened.

`Job` makes the context and hands it down to sources, sinks and stages. No state of a job belongs to a module. So a
process can run two jobs side by side, or the same job twice, and neither job sees the other's state.

Beam pickles the functions that it runs, even within one process. A context is therefore pickled as its key. In the
process that made the context, unpickling returns that same context. A worker process makes its own context when the
first function of the job arrives there. The module's table of contexts by key exists only for this.
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
"""Added to the traceback of an error that may pass. A runner elsewhere keeps nothing of an error but its traceback."""


class Resource(Protocol):
    """Something that a job opens once in a process and closes at the end of the job. For example: its engines."""

    def close(self) -> None:
        """Free everything that the resource holds. Called once, after the last stage has ended."""


R = TypeVar("R", bound=Resource)
_CONTEXTS: WeakValueDictionary[str, JobContext] = WeakValueDictionary()
_OF_THIS_WORKER: list[JobContext] = []
"""Contexts of jobs that another process has started. Nothing else in this process would keep these contexts alive."""
_LOCK = threading.RLock()


class JobContext:
    """See the module. Thread-safe. Use it as a context manager, or call `close`.

    key: identifies the job in this process and in its workers.
    """

    def __init__(self, name: str = "job", *, key: str | None = None) -> None:
        self.key = key or f"{name}-{uuid.uuid4().hex[:12]}"
        self.stop = Stop()
        self.metrics = JobMetrics()
        self.wakeup = Wakeup()
        self.failures: list[BaseException] = []
        """Exceptions of this process's stages, the oldest first. A runner passes an exception on only as text."""
        self._resources: dict[Any, Any] = {}
        self._lock = threading.RLock()
        with _LOCK:
            _CONTEXTS[self.key] = self

    def resource(self, kind: Callable[[JobContext], R]) -> R:
        """The job's only object of this class in this process. Made at the first call, closed at the end of the job.

        Example: `context.resource(OpenWriters)`. The class is called with the context.
        """
        with self._lock:
            if kind not in self._resources:
                self._resources[kind] = kind(self)
            found: R = self._resources[kind]
            return found

    @contextmanager
    def failing(self) -> Iterator[None]:
        """Remember an exception of the body in `failures`, before the runner turns it into text."""
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
    """The context with this key. Makes one if this process is a worker that has none yet."""
    with _LOCK:
        if (found := _CONTEXTS.get(key)) is not None:
            return found
        made = JobContext(key=key)
        _OF_THIS_WORKER.append(made)
        return made


def open_contexts() -> list[JobContext]:
    """Every context of this process that is not closed. A worker stops these jobs, and serves their metrics."""
    with _LOCK:
        return list(_CONTEXTS.values())
