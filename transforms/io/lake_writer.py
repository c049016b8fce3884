"""The writer of a lake table: rows wait in files, and one commit appends them where the chain ends. See `lake_sink`."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from schemas.block import Block, Split
from schemas.errors import ChainMovedError, SinkError
from transforms.io import Commit
from transforms.io.chain import ChainWriter
from transforms.io.lake_table import ConflictError, Staged, lake_rows, new_token
from transforms.io.letter_rows import REPLACES, letter_rows
from transforms.io.spool import Spool

if TYPE_CHECKING:
    from transforms.io.lake_sink import LakeSink

_SPOOL_BYTES = 256 << 20


class LakeWriter(ChainWriter):
    """See `transforms.io.Writer`, and `lake_sink` for the order of a commit."""

    def __init__(self, sink: LakeSink, split: Split, position: int, commit_every: float) -> None:
        super().__init__(split, position, commit_every)
        self._sink = sink
        self._labels: Spool | None = None
        self._letters: Spool | None = None
        self._settled: int | None = None

    @property
    def due(self) -> bool:
        waiting = sum(spool.nbytes for spool in (self._labels, self._letters) if spool)
        return super().due or waiting >= _SPOOL_BYTES

    def _stage(self, block: Block) -> None:
        names = [name for name in block.batch.schema.names if not name.startswith("__")]
        labels = lake_rows(block.batch.select(names))
        self._labels = self._labels or Spool(labels.schema)
        self._labels.add(labels)
        letters = letter_rows(self._sink.spec.name, block.dead)
        self._letters = self._letters or Spool(letters.schema)
        self._letters.add(letters)

    def _append(self, commit: Commit, seconds: float) -> None:
        assert self._labels is not None
        assert self._letters is not None
        sink, span, token = self._sink, commit.span, new_token()
        rows = Staged(self._labels.schema, self._labels.rows, self._labels.reader)
        replaces = self.split.payload.get(REPLACES)
        letters = self._letters if self._letters.rows or replaces else None
        unsure = False

        def attempt() -> int:
            """Where the chain ends: at the span's stop if it was appended."""
            nonlocal unsure
            state = sink.owned(rows.schema)
            chain = sink.chain(span.split)
            end = state.get(chain)
            if state.get(f"{chain}/by") == token:  # the answer to the last try was lost, the commit was not
                return span.stop
            if (self.split.start if end is None else end) != span.start:
                sink.settle_letters(span.split)
                raise ChainMovedError(self.split.start if end is None else end)
            if end is not None and end != self._settled and state.get(f"{chain}/dead") == end:
                sink.settle_letters(span.split)
            values = {chain: span.stop, f"{chain}/by": token}
            if letters is not None:
                sink.labels.put(letters_file(token), letters.reader(), replaces or {})
                values[f"{chain}/dead"] = span.stop
            before, unsure = unsure, True  # an error that is no refusal leaves open whether the commit was made
            try:
                sink.labels.append(state, rows, values, sink.note(token, commit, seconds), None)
            except ConflictError as conflict:
                unsure = before or conflict.unsure
                raise
            except SinkError:
                if sink.owned().get(f"{chain}/by") != token:
                    raise
            return span.stop

        try:
            sink.retried(attempt)
        except BaseException:
            if not unsure:  # else the table may know the files, now or when a slow request arrives
                with suppress(ConflictError, SinkError):
                    sink.labels.forget(rows)
                    sink.labels.drop(letters_file(token))
            raise
        if letters is not None:
            sink.settle_letters(span.split)
            self._settled = span.stop

    def _discard(self) -> None:
        for spool in (self._labels, self._letters):
            if spool is not None:
                spool.close()
        self._labels = self._letters = None


def letters_file(token: int | None) -> str:
    """Where the dead letters of a commit wait."""
    return f"dead-{token}"
