"""The open writers of this process, by job and split: what the reader of a split asks before it reads on.

Read, infer and write are fused into one process. So the reader learns at once when another writer took the split
over, and stops reading it.
"""

from __future__ import annotations

import threading

from tagstream.schemas.block import Split
from tagstream.transforms.io.contracts import Sink, Writer

_WRITERS: dict[tuple[str, str], Writer] = {}
_LOCK = threading.Lock()


def open_writer(job: str, sink: Sink, split: Split, known: int | None = None) -> Writer:
    """The split's writer; opened at the end of its chain if there is none yet."""
    with _LOCK:
        if (job, split.id) in _WRITERS:
            return _WRITERS[job, split.id]
    opened = sink.open(split, known)  # may take long, and other splits' writers are asked for meanwhile
    with _LOCK:
        writer = _WRITERS.setdefault((job, split.id), opened)
    if writer is not opened:
        opened.close()
    return writer


def writer_of(job: str, split: str) -> Writer | None:
    """The open writer of a split; None when the split was given up."""
    with _LOCK:
        return _WRITERS.get((job, split))


def forget_writer(job: str, split: str) -> Writer | None:
    """Take the split's writer out of reach without closing it: the thread that uses it does that."""
    with _LOCK:
        return _WRITERS.pop((job, split), None)


def close_writer(job: str, split: str) -> None:
    """Close the split's writer; what it has not committed is given up."""
    writer = forget_writer(job, split)
    if writer is not None:
        writer.close()


def close_writers() -> None:
    """Close every writer of this process."""
    for job, split in list(_WRITERS):
        close_writer(job, split)
