"""The writer of a lake sink. Rows wait in temporary files; one commit appends them to the table. See `lake.sink`."""

from __future__ import annotations

from contextlib import suppress

from tagstream.schemas.block import Block, Split
from tagstream.schemas.errors import ChainMovedError, SinkError
from tagstream.transforms.io.common.chain_writer import ChainWriter
from tagstream.transforms.io.common.dead_letter_rows import REPLACES, letter_rows
from tagstream.transforms.io.common.exact_values import exactly
from tagstream.transforms.io.common.spool import Spool
from tagstream.transforms.io.contracts import Commit
from tagstream.transforms.io.lake.ledger import LakeLedger, letters_file
from tagstream.transforms.io.lake.table import ConflictError, StagedRows, new_token

_SPOOL_BYTES = 256 << 20


class LakeWriter(ChainWriter):
    """See `io.contracts.Writer`, and `lake.sink` for the order of a commit."""

    def __init__(self, ledger: LakeLedger, split: Split, position: int, commit_every: float) -> None:
        super().__init__(split, position, commit_every)
        self._ledger = ledger
        self._labels: Spool | None = None
        self._letters: Spool | None = None
        self._settled: int | None = None

    @property
    def due(self) -> bool:
        waiting = sum(spool.nbytes for spool in (self._labels, self._letters) if spool)
        return super().due or waiting >= _SPOOL_BYTES

    def _stage(self, block: Block) -> Block:
        names = [name for name in block.batch.schema.names if not name.startswith("__")]
        block, labels = exactly(block, names, self._ledger.labels.values)
        self._labels = self._labels or Spool(labels.schema)
        self._labels.add(labels)
        letters = letter_rows(self._ledger.spec.name, block.dead)
        self._letters = self._letters or Spool(letters.schema)
        self._letters.add(letters)
        return block

    def _append(self, commit: Commit, seconds: float) -> None:
        assert self._labels is not None
        assert self._letters is not None
        ledger, span, token = self._ledger, commit.span, new_token()
        rows = StagedRows(self._labels.schema, self._labels.rows, self._labels.reader)
        replaces = self.split.payload.get(REPLACES)
        letters = self._letters if self._letters.rows or replaces else None
        unsure = False

        def attempt() -> int:
            """One try of the commit. Returns the new end of the chain."""
            nonlocal unsure
            state = ledger.owned(rows.schema)
            chain = ledger.chain(span.split)
            end = state.get(chain)
            if state.get(f"{chain}/by") == token:  # the last try committed, but its answer was lost
                return span.stop
            if (self.split.start if end is None else end) != span.start:
                ledger.settle_letters(span.split)
                raise ChainMovedError(self.split.start if end is None else end)
            if end is not None and end != self._settled and state.get(f"{chain}/dead") == end:
                ledger.settle_letters(span.split)
            values = {chain: span.stop, f"{chain}/by": token}
            if letters is not None:
                ledger.labels.put(letters_file(token), letters.reader(), replaces or {})
                values[f"{chain}/dead"] = span.stop
            before, unsure = unsure, True  # any error except a refusal leaves open whether the commit was made
            try:
                ledger.labels.append(state, rows, values, ledger.note(token, commit, seconds), None)
            except ConflictError as conflict:
                unsure = before or conflict.unsure
                raise
            except SinkError:
                if ledger.owned().get(f"{chain}/by") != token:
                    raise
            return span.stop

        try:
            ledger.retried(attempt)
        except BaseException:
            if not unsure:  # otherwise the table may refer to the files, now or when a slow request arrives
                with suppress(ConflictError, SinkError):
                    ledger.labels.forget(rows)
                    ledger.labels.drop(letters_file(token))
            raise
        if letters is not None:
            ledger.settle_letters(span.split)
            self._settled = span.stop

    def _discard(self) -> None:
        for spool in (self._labels, self._letters):
            if spool is not None:
                spool.close()
        self._labels = self._letters = None
