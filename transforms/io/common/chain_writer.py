"""The part of a chain writer that is the same for every sink.

`ChainWriter` drops rows that are already committed, refuses gaps, counts rows, and starts again after a lost race.
A sink's writer derives from it and supplies three steps: `_stage` rows, `_append` them, `_discard` them.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import Counter

import pyarrow.compute as pc

from tagstream.schemas.block import Block, Span, Split
from tagstream.schemas.errors import ChainMovedError, LedgerError
from tagstream.transforms.io.contracts import Commit


class ChainWriter(ABC):
    """See `io.contracts.Writer`."""

    def __init__(self, split: Split, position: int, commit_every: float) -> None:
        self.split = split
        self.position = position
        self._start = position
        self._commit_every = commit_every
        self._opened = time.monotonic()
        self._hurried = False
        self._rows_in = 0
        self._rows_out = 0
        self._dead: Counter[str] = Counter()

    def write(self, block: Block) -> Block:
        """Stage the rows at and above `position`, and return the block of those rows."""
        if block.span.start > self.position:
            raise LedgerError(
                f"split {self.split.id}: rows {self.position:,} to {block.span.start:,} are missing before this block. "
                "Output may have been deleted while the job ran. Start the job again"
            )
        if block.span.stop <= self.position:
            return block.after(block.span.stop)
        block = block.after(self.position)
        block = self._stage(block) or block
        self._rows_in += block.num_rows
        self._rows_out += block.batch.num_rows
        for count in pc.value_counts(block.dead.column("code")):
            self._dead[count["values"].as_py()] += count["counts"].as_py()
        self.position = block.span.stop
        return block

    @property
    def committed(self) -> int:
        """Where the chain ends."""
        return self._start

    @property
    def due(self) -> bool:
        """Whether `commit_every` has passed or `hurry` was called. A sink may add a limit by size."""
        late = self._hurried or time.monotonic() - self._opened >= self._commit_every
        return self.position > self._start and late

    def hurry(self) -> None:
        """Make staged rows due at once. The next commit resets this."""
        self._hurried = True

    def commit(self) -> Commit | None:
        """Append the staged rows. After a lost race, drop them and continue from the chain's new end."""
        if self.position == self._start:
            return None
        commit = self.check()
        seconds = time.monotonic() - self._opened
        try:
            commit = self._append(commit, seconds) or commit
        except ChainMovedError as moved:
            self._restart(moved.position)
            raise
        self._restart(self.position)
        return commit

    def check(self) -> Commit:
        """The commit for the staged rows. Raises LedgerError unless rows in = rows out + dead letters."""
        commit = Commit(Span(self.split.id, self._start, self.position), self._rows_in, self._rows_out, self._dead)
        if commit.rows_in != commit.rows_out + commit.dead.total():
            raise LedgerError(
                f"{commit.span}: {commit.rows_in} rows in, but {commit.rows_out} out and {commit.dead} dead"
            )
        return commit

    def close(self) -> None:
        """Drop the staged rows."""
        self._restart(self._start)

    def _restart(self, position: int) -> None:
        self._discard()
        self.position = self._start = position
        self._rows_in = self._rows_out = 0
        self._dead = Counter()
        self._hurried = False
        self._opened = time.monotonic()

    @abstractmethod
    def _stage(self, block: Block) -> Block | None:
        """Keep the block's labels and dead letters for the next `_append`. Readers must not see them yet.

        Returns the block as it was kept if the system can't store some rows, which became dead letters; otherwise None.
        """

    @abstractmethod
    def _append(self, commit: Commit, seconds: float) -> Commit | None:
        """Make the staged rows and their span visible in one atomic step, if the chain ends at `commit.span.start`.

        `seconds`: time since the last commit. Returns a new commit if the counts changed, because the system refused
        a label and the row became a dead letter; otherwise None. Raises ChainMovedError with the chain's end if
        another writer was first, or SinkError.
        """

    @abstractmethod
    def _discard(self) -> None:
        """Drop the staged rows, if there are any. Must not raise if they are already gone."""
