"""The open writers of a job in this process, by split: what the reader of a split asks before it reads on.

Read, infer and write run fused in one process. So the reader learns at once when another writer took the split over,
and stops reading it.
"""

from __future__ import annotations

import threading

from tagstream.schemas.block import Split
from tagstream.transforms.io.contracts import Sink, Writer
from tagstream.transforms.runtime.job_context import JobContext


class OpenWriters:
    """See the module. Thread-safe, except for the writers themselves. A resource of the job's context."""

    def __init__(self, _: JobContext) -> None:
        self._writers: dict[str, Writer] = {}
        self._opened: set[str] = set()
        self._lock = threading.Lock()

    def open(self, sink: Sink, split: Split, known: int | None = None) -> Writer:
        """The split's writer. If there is none yet, one is opened at the end of the split's chain.

        `known`: a position that the chain has reached for certain.
        """
        if (found := self.of(split.id)) is not None:
            return found
        opened = sink.open(split, known)  # outside the lock: this may take long, and other splits must not wait
        with self._lock:
            writer = self._writers.setdefault(split.id, opened)
            self._opened.add(split.id)
        if writer is not opened:
            opened.close()
        return writer

    def of(self, split: str) -> Writer | None:
        """The open writer of a split; None if the split was given up, or was never opened in this process."""
        with self._lock:
            return self._writers.get(split)

    def was_opened(self, split: str) -> bool:
        """Whether this process has ever had the split's writer. If not, another process reads the split."""
        with self._lock:
            return split in self._opened

    def forget(self, split: str) -> Writer | None:
        """Take a split's writer out of reach without closing it. The thread that uses the writer closes it."""
        with self._lock:
            return self._writers.pop(split, None)

    def close_one(self, split: str) -> None:
        """Close a split's writer. What the writer has not committed is given up."""
        if (writer := self.forget(split)) is not None:
            writer.close()

    def close(self) -> None:
        """Close every writer."""
        for split in list(self._writers):
            self.close_one(split)
