"""Keeps rows that wait for a commit in a temporary file, so that a long split does not fill the memory.

The file has no name. The system removes it even if the process is killed.
"""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress

import pyarrow as pa

from tagstream.schemas.errors import SinkError


class Spool:
    """Record batches of one schema. They are written once and can be read again for every try of a commit."""

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
            raise SinkError(f"{tempfile.gettempdir()}: can't store rows that wait for a commit: {error}") from None
        self.rows += batch.num_rows
        self.nbytes += batch.nbytes

    def reader(self) -> pa.RecordBatchReader:
        """A reader from the first row on. After the first call, no rows can be added."""
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
