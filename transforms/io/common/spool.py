"""Rows that wait for a commit: in a temporary file, so that memory stays bounded however long a split is.

The file has no name, so nothing is left of it however the process ends.
"""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress

import pyarrow as pa

from tagstream.schemas.errors import SinkError


class Spool:
    """Record batches of one schema, written once, read as often as the commit is tried."""

    def __init__(self, schema: pa.Schema) -> None:
        self.schema = schema
        self.rows = 0
        self.nbytes = 0
        self._file = tempfile.TemporaryFile(prefix="tagstream-")  # noqa: SIM115
        self._stream = pa.ipc.new_stream(self._file, schema)
        self._finished = False

    def add(self, batch: pa.RecordBatch) -> None:
        """Raises SinkError if the disk is full."""
        try:
            self._stream.write_batch(batch)
        except OSError as error:
            raise SinkError(f"{tempfile.gettempdir()}: rows that wait for a commit can't be kept: {error}") from None
        self.rows += batch.num_rows
        self.nbytes += batch.nbytes

    def reader(self) -> pa.RecordBatchReader:
        """The rows from the first one on. Nothing can be added after the first call."""
        if not self._finished:
            self._stream.close()
            self._file.flush()
            self._finished = True
        again = os.fdopen(os.dup(self._file.fileno()), "rb")
        again.seek(0)
        return pa.ipc.open_stream(again)

    def close(self) -> None:
        """Deletes the file."""
        if not self._finished:
            with suppress(OSError, pa.ArrowException):
                self._stream.close()
        with suppress(OSError):
            self._file.close()
