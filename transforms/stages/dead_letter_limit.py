"""Stops a job whose input looks wrong: too many of its latest rows became dead letters.

Example: `source.text` names a column of numbers from some night on, and every row becomes a dead letter. The job then
ends with an error that counts the dead letters by code, and none of the rows of that stretch was written.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator

import numpy as np

from tagstream.schemas.block import POSITION, Block
from tagstream.schemas.errors import DeadLetterLimitError

Array = np.ndarray


class DeadLetterLimit:
    """Watches the share of dead letters among the last `ROWS` rows, over the whole of a run.

    share: the largest share, 0 to 1; 1 turns the limit off. rows: how many rows the whole job has, if no earlier run
    has done any of them. A job of fewer than `ROWS` rows is stopped only if all of them are dead letters. holds: blocks
    are given back only when no bad stretch can reach back to them any more. A live job doesn't hold blocks: its dead
    letters are committed as they come, and the job stops when the share is too large.
    """

    ROWS = 1000

    def __init__(self, share: float, rows: int | None = None, *, holds: bool = True) -> None:
        self._share, self._rows, self._holds = share, rows, holds and share < 1
        self._seen = 0
        self._codes: list[str] = []
        self._latest = np.empty(0, np.int16)
        """For each of the last `ROWS` rows: 0, or the number of its code in `_codes`, from 1 on."""
        self._held: deque[Block] = deque()
        self._held_rows = 0

    @property
    def dead_share(self) -> float:
        """The share of dead letters among the last `ROWS` rows, 0 to 1."""
        return float((self._latest > 0).mean()) if len(self._latest) else 0.0

    def see(self, block: Block) -> Iterator[Block]:
        """Count a block's rows. Gives the blocks that may be written now, oldest first. Raises DeadLetterLimitError."""
        self._count(block)
        self._held.append(block)
        self._held_rows += block.num_rows
        while self._held and (not self._holds or self._held_rows - self._held[0].num_rows >= self.ROWS):
            yield self._release()

    def end(self) -> Iterator[Block]:
        """No more rows come for now: gives the blocks that are still held. Raises DeadLetterLimitError."""
        dead = int((self._latest > 0).sum())
        if self._share < 1 and self._rows is not None and 0 < self._seen == dead and self._seen >= self._rows:
            self._stop(self._latest)
        while self._held:
            yield self._release()

    def _release(self) -> Block:
        block = self._held.popleft()
        self._held_rows -= block.num_rows
        return block

    def _count(self, block: Block) -> None:
        self._seen += block.num_rows
        rows = self._rows_of(block)
        joined = np.concatenate([self._latest, rows])
        if len(joined) >= self.ROWS and (block.dead.num_rows or self._latest.any()):
            dead = np.concatenate([[0], np.cumsum(joined > 0)])
            windows = dead[self.ROWS :] - dead[: -self.ROWS]
            if len(bad := np.flatnonzero(windows > self._share * self.ROWS)):
                self._stop(joined[bad[0] : bad[0] + self.ROWS])
        self._latest = joined[-self.ROWS :]

    def _rows_of(self, block: Block) -> Array:
        """The block's rows in the order of their positions; see `_latest`."""
        if not block.dead.num_rows:
            return np.zeros(block.num_rows, np.int16)
        numbers = []
        for code in block.dead.column("code").to_pylist():
            if code not in self._codes:
                self._codes.append(code)
            numbers.append(self._codes.index(code) + 1)
        positions = [block.batch.column(POSITION), block.dead.column("position")]
        order = np.argsort(
            np.concatenate([column.to_numpy(zero_copy_only=False) for column in positions]), kind="stable"
        )
        return np.concatenate([np.zeros(block.batch.num_rows, np.int16), np.array(numbers, np.int16)])[order]

    def _stop(self, stretch: Array) -> None:
        counts = Counter(self._codes[number - 1] for number in stretch[stretch > 0].tolist())
        codes = ", ".join(f"{count:,} {code}" for code, count in counts.most_common())
        written = "none of these rows was written" if self._holds else "the first of them are in the dead letters"
        raise DeadLetterLimitError(
            f"{counts.total():,} of {len(stretch):,} rows in a row are dead letters ({codes}); {written}. Look at the "
            "input and at source.text, or allow it with --set max_dead=1"
        )
