"""What a source and a sink must do: the two seams of the pipeline, as protocols.

A new source or sink is one module that offers what `SourceModule` or `SinkModule` says. One of ours has its part of the
specification in `schemas/` and a line in `io/registry.py`; a third party's is named by an entry point, and carries its
part with it.

A sink is the ledger of its job: what it has committed is the truth about what is done. A writer appends to the
chain of one split, and an append succeeds only where the chain ends.
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
    """One append to a chain: rows in = rows out + dead."""

    span: Span
    rows_in: int
    rows_out: int
    dead: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class Progress:
    """What the ledger says of one split: where its chain ends; rows of its last commits and the seconds they took."""

    stop: int
    rows: int = 0
    seconds: float = 0.0


class Source(Protocol):
    """Where text comes from. `kept`: schema of the id and kept columns; blocks have these, TEXT and POSITION."""

    kept: pa.Schema

    def splits(self) -> list[Split]:
        """Every split of the input, in order. Raises SourceError, before work starts, for what can be seen then."""

    def read(self, split: Split, start: int) -> Iterator[Block]:
        """Blocks from position `start` to the end of the split, without gap or overlap. Raises SourceError."""


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
    """A source that would plan other splits tomorrow, as its rows come and go: the sink keeps what was planned."""

    def more_splits(self, planned: list[Split]) -> list[Split]:
        """Splits for the rows that `planned` does not cover and that the job should do; all rows if it is empty.

        Raises LedgerError if `planned` was not planned for this input.
        """


class Writer(Protocol):
    """Appends to the chain of one split. Used by one thread.

    split: what it appends to; position: where the next row must come from. Rows below it are dropped; a gap above it
    is a LedgerError. committed: where the chain ends; what lies between the two is written and not yet committed.
    """

    split: Split
    position: int

    @property
    def committed(self) -> int:
        """See above."""

    def write(self, block: Block) -> Block:
        """Take the rows at and above `position`; nothing is visible yet. Returns the part that was taken."""

    @property
    def due(self) -> bool:
        """It is time to commit: by seconds, by size, or because of `hurry`."""

    def hurry(self) -> None:
        """Somebody else takes the split over soon: what is written is due now."""

    def commit(self) -> Commit | None:
        """Append what was written since the last commit, labels and dead letters in one atomic step.

        None if nothing was written. Raises ChainMovedError if another writer was first: `position` then says where
        the chain ends, and what was written below that is dropped; SinkError if the system refuses.
        """

    def close(self) -> None:
        """Give up what is not committed."""


@runtime_checkable
class JointWriter(Writer, Protocol):
    """A writer that can commit in one atomic step with others of its sink."""

    def fits(self, others: list[Any]) -> bool:
        """Whether that is worth while."""

    def commit_with(self, others: list[Any]) -> None:
        """Append what is written in all of these, or nothing; `commit` then only counts it, or does it alone."""


class Sink(Protocol):
    """Where labels and dead letters go."""

    def prepare(self, fingerprint: Fingerprint, *, overwrite: bool) -> None:
        """Called once before a job: checks that the output belongs to this job, or makes it so.

        Completes what an interrupted commit left. Raises LedgerError for an output of another fingerprint.
        """

    def progress(self) -> dict[str, Progress]:
        """What is committed, by split id. Reads only; empty if there is no output yet."""

    def open(self, split: Split, known: int | None = None) -> Writer:
        """A writer at the end of the split's chain; `known`: a position that the chain has reached for certain."""


@runtime_checkable
class PlanKeeper(Sink, Protocol):
    """A sink that can keep the plan of a `PlanningSource` beside its ledger, so that all processes follow the same."""

    def plan(self) -> list[Split]:
        """The splits that were agreed on, in order; empty if there is no output yet."""

    def extend_plan(self, planned: int, more: list[Split]) -> list[Split]:
        """Append `more` if the plan still has `planned` splits. Returns the plan, by whoever was first."""


@dataclass(frozen=True)
class Again:
    """Which of the rows that split `of` covers are labelled once more, in round `number`: all, or those whose label is
    one of `labels`, and whose score is below `below`, where these are given. Values of a payload, see `AGAIN`.
    """

    of: str
    number: int
    below: float | None = None
    labels: tuple[str, ...] = ()

    @property
    def everything(self) -> bool:
        """Rows without a label are labelled as well."""
        return self.below is None and not self.labels


def again_of(split: Split) -> Again | None:
    """What a split is labelled again for; None if it is not."""
    held = split.payload.get(AGAIN)
    return None if held is None else Again(**{**held, "labels": tuple(held["labels"])})


@runtime_checkable
class ReclassifyingSink(PlanKeeper, Protocol):
    """A sink that finds rows by key, and so can replace their labels by those of another model."""

    def made_by(self) -> Fingerprint | None:
        """What its labels were made by; None if there is no output yet."""

    def reclassify(self, fingerprint: Fingerprint, planned: int, more: list[Split]) -> bool:
        """In one step, belong to another fingerprint from now on and append `more` to a plan of `planned` splits.

        Dead letters of rows that are all to be labelled again are forgotten. False if another process was first.
        Raises SpecError if it can't replace labels as it is set up.
        """

    def chosen(self, block: Block, again: Again) -> Block:
        """The block with those rows only that are to be labelled again."""


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
    """A job's dead letters, to be classified again."""

    def retire(self, progress: dict[str, Progress]) -> None:
        """Take away the dead letters that have been replayed, where the commits have not done that themselves."""


@runtime_checkable
class ReplayingSink(Sink, Protocol):
    """A sink whose dead letters can be read again."""

    def dead_letters(self, kept: Callable[[], pa.Schema]) -> LetterSource:
        """The dead letters that there are, after completing what an interrupted commit left. SourceError if none.

        `kept`: tells the id and kept columns of the job's source; asked where the dead letters do not say it.
        """


@runtime_checkable
class ReadableSink(Sink, Protocol):
    """A sink whose labels can be looked at."""

    def sample(self, count: int) -> pa.Table:
        """At most `count` committed rows, with their id and kept columns; no columns if there are none."""


class FeedStatus(NamedTuple):
    """lag: messages by split that were not read yet; silence: seconds since the source last answered; strangers: who
    else is given messages of this source in the job's name, and does not label them.
    """

    lag: dict[str, int]
    splits: int
    silence: float
    age: float
    where: str
    strangers: tuple[str, ...] = ()


class Feed(Protocol):
    """Blocks of the splits that a member of a group was given. Used by one thread at a time."""

    def next(self, timeout: float) -> Block | None:
        """A block, or after `timeout` seconds, or at a `wake`, a heartbeat; None when there is no split."""

    def drain(self) -> Block | None:
        """A heartbeat that makes the sink commit what was read; None when there is nothing left to commit."""

    def wake(self) -> None:
        """Ends a `next` that waits. From any thread."""

    def status(self) -> FeedStatus:
        """How far behind. From any thread."""

    def close(self, seconds: float = 5.0) -> None:
        """Leave the group."""


class LiveSource(Protocol):
    """A source without an end."""

    def feed(self, sink: Sink) -> Feed:
        """A new member of the source's group. Raises SourceError."""


class SourceModule(Protocol):
    """What the module of a source offers. A third party registers one by the entry-point group `tagstream.sources`.

    The name of the entry point is the `type` in a specification. Beside `open_source` the module has, if it is a third
    party's, a class `Specification`: a `schemas.spec_base.SourcePart` with the fields that follow `type`. For example:

        class Specification(SourcePart):
            type: Literal["mongo"] = "mongo"
            collection: str = Field(examples=["messages"])
    """

    def open_source(self, spec: JobSpec, context: JobContext, /) -> Source:
        """The source of a job. `spec.source` is a `Specification`; `context`: what the job owns in this process.

        Raises SourceError for what can be seen at once.

        The source is pickled: other processes read its splits.
        """


class SinkModule(Protocol):
    """What the module of a sink offers. A third party registers one by the entry-point group `tagstream.sinks`.

    The name of the entry point is the `type` in a specification. Beside `open_sink` the module has, if it is a third
    party's, a class `Specification`: a `schemas.spec_base.SinkPart`. If a job may say where dead letters go, the module
    also has a class `DeadLetters`: a `schemas.spec_base.DeadLettersPart`, the part `dead_letters` of the same `type`.
    """

    def open_sink(self, spec: JobSpec, context: JobContext, /) -> Sink:
        """The sink of a job; touches nothing yet. `spec.sink` is a `Specification`. The sink is pickled.

        `context`: what the job owns in this process.
        """
