"""What every writer of a chain does the same way: drop, refuse, count, and start again after a lost race.

A sink's writer derives from `ChainWriter` and supplies three steps: `_stage` rows, `_append` them, `_discard` them.
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
        """Stage the part of the block at and above `position`."""
        if block.span.start > self.position:
            raise LedgerError(
                f"split {self.split.id}: rows {self.position:,} to {block.span.start:,} are missing before this block; "
                "was output deleted while the job ran? Start the job again"
            )
        if block.span.stop <= self.position:
            return block.after(block.span.stop)
        block = block.after(self.position)
        self._stage(block)
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
        """By time; sinks add their size."""
        late = self._hurried or time.monotonic() - self._opened >= self._commit_every
        return self.position > self._start and late

    def hurry(self) -> None:
        """Until the next commit."""
        self._hurried = True

    def commit(self) -> Commit | None:
        """Append the staged rows; on a lost race forget them and stand at the chain's end."""
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
        """What is staged. Raises LedgerError if it does not add up."""
        commit = Commit(Span(self.split.id, self._start, self.position), self._rows_in, self._rows_out, self._dead)
        if commit.rows_in != commit.rows_out + commit.dead.total():
            raise LedgerError(
                f"{commit.span}: {commit.rows_in} rows in, but {commit.rows_out} out and {commit.dead} dead"
            )
        return commit

    def close(self) -> None:
        """Give up what is staged."""
        self._restart(self._start)

    def _restart(self, position: int) -> None:
        self._discard()
        self.position = self._start = position
        self._rows_in = self._rows_out = 0
        self._dead = Counter()
        self._hurried = False
        self._opened = time.monotonic()

    @abstractmethod
    def _stage(self, block: Block) -> None:
        """Keep the block's labels and dead letters for the next append; nothing may be visible."""

    @abstractmethod
    def _append(self, commit: Commit, seconds: float) -> Commit | None:
        """The one atomic step: staged rows and span become visible if the chain ends at `commit.span.start`.

        `seconds`: how long the rows took. Returns the commit if it became another: a label that the system does not
        take is a dead letter. Raises ChainMovedError with the chain's end if it does not, or SinkError.
        """

    @abstractmethod
    def _discard(self) -> None:
        """Drop what is staged, if anything is. Must not raise for what is already gone."""
