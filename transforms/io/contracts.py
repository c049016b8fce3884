"""The protocols of sources and sinks, which are the two seams of the pipeline.

A source divides its input into splits and reads each split as blocks. A sink stores the labels. The sink is also the
ledger of the job: its commits alone say which rows are done. The commits of one split form a chain. Each commit covers
a span of positions and begins where the previous commit ends.

Example: a file of 250 rows has the splits A with rows 0 to 99, B with rows 100 to 199, and C with rows 200 to 249.

1. `sink.open(B)` returns a writer. Nothing of B is committed yet, so `writer.position` is 100.
2. `source.read(B, 100)` gives blocks. The blocks go through inference to `writer.write`.
3. `writer.commit()` appends rows 100 to 163 to the chain of B. Then the process is killed.
4. The next run calls `sink.open(B)` again. `writer.position` is now 164, and `source.read(B, 164)` gives the rest.
5. Another process may write B as well. The first one to append at 164 succeeds. The other one gets a ChainMovedError
   and drops its rows. So no row is ever committed twice.

A new source or sink is one module with the function that `SourceModule` or `SinkModule` describes. One of tagstream's
own has its part of the specification in `schemas/`, and a line in `io/registry.py`. A third party's module contains its
part of the specification, and an entry point names the module.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, runtime_checkable

import pyarrow as pa

from tagstream.schemas.block import AGAIN, Block, Span, Split
from tagstream.schemas.fingerprint import Fingerprint
from tagstream.schemas.spec import JobSpec
from tagstream.transforms.runtime.job_context import JobContext


@dataclass(frozen=True)
class Commit:
    """One append to a chain. `rows_in` = `rows_out` + the dead letters, which `dead` counts by code."""

    span: Span
    rows_in: int
    rows_out: int
    dead: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class Progress:
    """The ledger's state of one split.

    `stop`: the position where the chain ends. `rows`, `seconds`: rows of the last commits, and how long they took; 0 if
    the sink does not record this.
    """

    stop: int
    rows: int = 0
    seconds: float = 0.0


class Source(Protocol):
    """Reads texts. `kept`: schema of the id and kept columns. Every block has these columns, TEXT and POSITION."""

    kept: pa.Schema

    def splits(self) -> list[Split]:
        """Every split of the input, in order. A split keeps its id for as long as its input stays the same.

        Raises SourceError for every problem that can be seen before the job starts, such as a missing column.
        """

    def read(self, split: Split, start: int) -> Iterator[Block]:
        """Blocks from position `start` to the end of the split, without gap or overlap. Raises SourceError.

        Example: blocks with the spans [164, 180) and [180, 200) for a split that stops at 200.
        """


@dataclass(frozen=True)
class InputCounts:
    """Input before it is read: files, the rows that their footers say, and the names of files that are not read."""

    files: int
    rows: int
    skipped: tuple[str, ...] = ()


@runtime_checkable
class CountedSource(Source, Protocol):
    """A source of files. `notes`: what the user should know about the input, a sentence each."""

    counts: InputCounts
    notes: list[str]

    def names(self) -> set[str]:
        """Names of all files; splits have the name of theirs in their payload."""


@runtime_checkable
class PlanningSource(Source, Protocol):
    """A source whose rows come and go, so that it would give other splits tomorrow. The sink stores the agreed splits.

    Example: a database table is divided into key ranges of equal size. After an INSERT the same ranges would no longer
    come out, and the chains in the sink would belong to no split.

    `notes`: what the user should know about the rows, a sentence each.
    """

    notes: list[str]

    def more_splits(self, planned: list[Split], limit: int | None = None) -> list[Split]:
        """Splits for those rows of the job that `planned` does not cover. All rows if `planned` is empty.

        `limit`: how many rows of the whole plan this run is to do. A split should end there. Raises LedgerError if
        `planned` was made for another input.
        """


class Writer(Protocol):
    """Appends to the chain of `split`. One thread at a time uses a writer.

    `position`: the position that the next written row must have. `committed`: the position where the chain ends. The
    rows between `committed` and `position` are staged: they are written and not yet committed, and no reader sees them.
    """

    split: Split
    position: int

    @property
    def committed(self) -> int:
        """See above."""

    def write(self, block: Block) -> Block:
        """Stage the rows at and above `position`, and return the block of those rows. Rows below are dropped.

        Raises LedgerError if the block begins above `position`, because the rows in between are missing.
        """

    @property
    def due(self) -> bool:
        """Whether it is time to commit: enough seconds or bytes have come together, or `hurry` was called."""

    def hurry(self) -> None:
        """Make the staged rows due now. Called when another process is about to take the split over."""

    def commit(self) -> Commit | None:
        """Append the staged rows to the chain, labels and dead letters in one atomic step. None without staged rows.

        Raises ChainMovedError if another writer was first. The staged rows are then dropped, and `position` is the
        chain's new end. Raises SinkError if the system refuses the rows.
        """

    def close(self) -> None:
        """Drop the staged rows, and free the writer's resources."""


@runtime_checkable
class JointWriter(Writer, Protocol):
    """A writer that can commit several splits in one atomic step, because each commit costs the system time.

    Example: one Kafka transaction for the eight partitions that a process reads.
    """

    def fits(self, others: list[Any]) -> bool:
        """Whether this writer can commit together with `others`, and should."""

    def commit_with(self, others: list[Any]) -> None:
        """Append the staged rows of all these writers, or of none.

        `commit` must still be called on each writer. It returns the counts if the common append succeeded. Otherwise
        it appends the rows of that writer alone.
        """


class Sink(Protocol):
    """Stores labels and dead letters, and is the ledger of its job. Pickled, because other processes write as well."""

    def prepare(self, fingerprint: Fingerprint, *, overwrite: bool) -> None:
        """Get the output ready for a job: create it, or check that it belongs to the job. Called once, before the job.

        Also completes an interrupted commit. `overwrite`: forget all commits of earlier jobs, and remove their rows
        where the system can. Raises LedgerError if the output has another fingerprint.
        """

    def progress(self) -> dict[str, Progress]:
        """The state of every split that has a chain, by split id. Empty if there is no output yet. Changes nothing."""

    def open(self, split: Split, known: int | None = None) -> Writer:
        """A writer at the end of the split's chain.

        `known`: a position that the chain has reached for certain. A sink may begin there to look for the end.
        """


@runtime_checkable
class PlanKeeper(Sink, Protocol):
    """A sink that can store the plan of a `PlanningSource` beside its ledger, so that all processes use one plan."""

    def plan(self) -> list[Split]:
        """The splits that were agreed on, in order. Empty if there is no output yet."""

    def extend_plan(self, planned: int, more: list[Split]) -> list[Split]:
        """Append `more` if the plan still has `planned` splits. Returns the plan as it is then stored.

        If another process has extended the plan first, its splits are returned and `more` is ignored.
        """


@runtime_checkable
class StateWriter(Writer, Protocol):
    """The writer of a sink that knows which text of each key it has labelled, see `SourcePart.by_state`."""

    def missing(self, block: Block) -> Block:
        """Only those rows of the block that have no label, or that had another text when they were labelled."""


@runtime_checkable
class StateSink(PlanKeeper, Protocol):
    """A sink whose writers are `StateWriter`s."""

    keeps_state: bool


@runtime_checkable
class RoundsSource(PlanningSource, Protocol):
    """A source that can plan all its rows anew, so that the sink finds those that are missing."""

    @property
    def by_state(self) -> bool:
        """Whether this job does so. `more_splits` then plans another round, once all planned splits are done."""

    def last_round(self, planned: list[Split]) -> list[Split]:
        """The splits of the newest round."""


@dataclass(frozen=True)
class Again:
    """Which rows of the split `of` are labelled again, because the model has changed. Stored in a payload, see `AGAIN`.

    `number`: counts the changes of the model. `below`: only rows with a smaller score. `labels`: only rows with one of
    these labels. If both are given, both must be true of a row; if neither is given, all rows are chosen.
    """

    of: str
    number: int
    below: float | None = None
    labels: tuple[str, ...] = ()

    @property
    def everything(self) -> bool:
        """Whether all rows are labelled again, rows without a label included."""
        return self.below is None and not self.labels


def again_of(split: Split) -> Again | None:
    """The rows that a split labels again. None for a split that labels its rows for the first time."""
    held = split.payload.get(AGAIN)
    return None if held is None else Again(**{**held, "labels": tuple(held["labels"])})


@runtime_checkable
class ReclassifyingSink(PlanKeeper, Protocol):
    """A sink that finds rows by key, and so can replace their labels by those of another model."""

    def made_by(self) -> Fingerprint | None:
        """The fingerprint of the job that made the labels. None if there is no output yet."""

    def reclassify(self, fingerprint: Fingerprint, planned: int, more: list[Split]) -> bool:
        """Hand the output over to the job with `fingerprint`, and append `more` to the plan, in one atomic step.

        Where all rows of a split are labelled again, their old dead letters are deleted. Returns False if the plan no
        longer has `planned` splits, because another process was first. Raises SpecError if this sink's settings do not
        allow replacing labels.
        """

    def chosen(self, block: Block, again: Again) -> Block:
        """Only those rows of the block that must be labelled again."""


@runtime_checkable
class ReplacingSink(Sink, Protocol):
    """A sink that can replace the rows of input files by those of other splits."""

    @property
    def can_replace(self) -> bool:
        """It can where this output is."""

    def origins(self) -> dict[str, str]:
        """The input file of each split in the output, by split id, where that was recorded; empty: no readable file."""

    def aside(self, fingerprint: Fingerprint) -> Sink:
        """A prepared sink for the new rows, which readers do not see. What it holds stays for the next run."""

    def switch(self, old: Collection[str], new: dict[str, int]) -> None:
        """Take the rows of the splits `old` out, and put in those of the splits `new` that `aside` holds.

        `new`: where each chain must end. Raises LedgerError if one does not.
        """


class LetterSource(Source, Protocol):
    """The dead letters of a job, as the source of a replay."""

    def retire(self, progress: dict[str, Progress]) -> None:
        """Delete the dead letters that have been replayed, unless the replay's commits have deleted them already."""


@runtime_checkable
class ReplayingSink(Sink, Protocol):
    """A sink whose dead letters can be read again."""

    def dead_letters(self, kept: Callable[[], pa.Schema]) -> LetterSource:
        """All dead letters of the job. An interrupted commit is completed first. Raises SourceError if there are none.

        `kept`: returns the id and kept columns of the job's source. Called only if the dead letters do not tell them.
        """


@runtime_checkable
class ReadableSink(Sink, Protocol):
    """A sink that can show its labels, for `--show`."""

    def sample(self, count: int) -> pa.Table:
        """At most `count` committed rows, with their id and kept columns. A table without columns if there are none."""


class FeedStatus(NamedTuple):
    """The state of a feed.

    `lag`: messages that are not read yet, by split. `splits`: how many splits the feed has. `silence`: seconds since
    the source last answered. `age`: seconds since the feed joined its group. `where`: the source's address.
    `strangers`: other programs in the job's group. They are given messages and do not label them.
    """

    lag: dict[str, int]
    splits: int
    silence: float
    age: float
    where: str
    strangers: tuple[str, ...] = ()


class Feed(Protocol):
    """One member of a source's group, and the blocks of the splits that the group has assigned to this member.

    A heartbeat is an empty block (start = stop). It lets finished blocks be emitted, and a sink commit by time, while
    no message arrives. One thread at a time uses a feed.
    """

    def next(self, timeout: float) -> Block | None:
        """The next block. A heartbeat after `timeout` seconds or a `wake`. None if the member has no split."""

    def drain(self) -> Block | None:
        """A heartbeat that makes the sink commit all blocks that were read. None if all of them are committed."""

    def wake(self) -> None:
        """End a `next` that waits. Any thread may call this."""

    def status(self) -> FeedStatus:
        """The state of the feed. Any thread may call this."""

    def close(self, seconds: float = 5.0) -> None:
        """Leave the group. `seconds`: how long this may take."""


class LiveSource(Protocol):
    """A source without an end, such as a Kafka topic. Its consumer group assigns the splits to the members."""

    def feed(self, sink: Sink) -> Feed:
        """A new member of the source's group. `sink`: its chains say where each split continues. Raises SourceError."""


class SourceModule(Protocol):
    """The module of a source. A third party registers its module in the entry-point group `tagstream.sources`.

    The name of the entry point is the `type` in a specification. A third party's module also has a class
    `Specification`: a `schemas.spec_base.SourcePart` with the fields that follow `type`. For example:

        class Specification(SourcePart):
            type: Literal["mongo"] = "mongo"
            collection: str = Field(examples=["messages"])
    """

    def open_source(self, spec: JobSpec, context: JobContext, /) -> Source:
        """The source of a job. It is pickled, because other processes read its splits.

        `spec.source` is a `Specification`. `context`: what the job owns in this process. Raises SourceError for
        problems that can be seen at once, such as a missing file.
        """


class SinkModule(Protocol):
    """The module of a sink. A third party registers its module in the entry-point group `tagstream.sinks`.

    The name of the entry point is the `type` in a specification. A third party's module also has a class
    `Specification`: a `schemas.spec_base.SinkPart` with the fields that follow `type`. If jobs may choose where dead
    letters go, the module has a class `DeadLetters` too: a `schemas.spec_base.DeadLettersPart` with the same `type`.
    """

    def open_sink(self, spec: JobSpec, context: JobContext, /) -> Sink:
        """The sink of a job. Nothing is created or changed before `prepare`.

        `spec.sink` is a `Specification`. `context`: what the job owns in this process.
        """
