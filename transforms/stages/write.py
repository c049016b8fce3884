"""Writes blocks of labels to the sink. Decides when to commit, and what to do if another writer was first."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import apache_beam as beam
from apache_beam.metrics import Metrics

from tagstream.schemas.block import Block
from tagstream.schemas.errors import ChainMovedError, RunnerError
from tagstream.schemas.spec import JobSpec
from tagstream.transforms.inference.backends.registry import describe
from tagstream.transforms.io.common.open_writers import OpenWriters
from tagstream.transforms.io.contracts import Commit, JointWriter, Writer
from tagstream.transforms.runtime.job_context import JobContext

COMMITS_AT_ONCE = 8
NOT_FUSED = (
    "split {split} was read in another process than the one that should write its labels: the runner does not fuse the "
    "steps Read, Infer and Write, which must run in one process. Choose another runner (runner.type local or flink), "
    "and put no Reshuffle or GroupByKey between these steps"
)
"""The reader of a split opens the split's writer, and the writing step commits through that writer. In another process
there is no such writer, and no row could be committed."""


class _WriteFn(beam.DoFn):  # type: ignore[misc]
    """Writes and commits each split's blocks. After a lost race the split is given up; the next pass finds its rows."""

    def __init__(self, context: JobContext, spec: JobSpec) -> None:
        self.context = context
        self.spec = spec

    def setup(self) -> None:
        self.heads = {entry.as_: describe(entry)[0] for entry in self.spec.infer}
        self.metrics, self.writers = self.context.metrics, self.context.resource(OpenWriters)
        self.labels: defaultdict[str, Counter[tuple[str, str]]] = defaultdict(Counter)
        self.waiting: set[str] = set()
        self.pool = ThreadPoolExecutor(COMMITS_AT_ONCE, thread_name_prefix="commit")

    def teardown(self) -> None:
        self.pool.shutdown(wait=False)

    def process(self, block: Block) -> None:
        with self.context.failing():
            split = block.span.split
            writer = self.writers.of(split)
            if writer is None:  # given up after a lost race: the next pass finds these rows again
                if not self.writers.was_opened(split):
                    raise RunnerError(NOT_FUSED.format(split=split))
                self.metrics.add(dropped=block.num_rows)
                return
            if block.span.start == block.span.stop:  # a heartbeat: the reader waits for the commits that are due
                self.waiting.add(split)
                self._commit_waiting()
                return
            live = writer.split.stop is None
            if live and block.span.start > writer.position:  # a gap: the reader goes back to the chain's end
                self.metrics.add(dropped=block.num_rows)
                return
            with self.metrics.busy("write"):
                taken = writer.write(block)
                self.metrics.add(dropped=block.num_rows - taken.num_rows)
                self._tally(taken)
                done = writer.position == writer.split.stop
                if live:
                    self.waiting.add(split)
                elif done or (writer.due and not writer.split.whole):
                    self._commit(writer, split)
                if done:
                    self.writers.close_one(split)
                    self.labels.pop(split, None)

    def finish_bundle(self) -> None:
        with self.context.failing(), self.metrics.busy("write"):
            for split in list(self.labels):
                if (writer := self.writers.of(split)) is None:
                    continue
                live = writer.split.stop is None
                if not writer.split.whole and (writer.due or not live or self.context.stop.is_set()):
                    self._commit(writer, split)
                if not live:  # the writer of a live split stays open over many bundles
                    self.writers.close_one(split)
                    self.labels.pop(split)

    def _commit_waiting(self) -> None:
        """Commit the live splits that are due, in parallel, because a commit mostly waits for the system's answers."""
        writers = {split: self.writers.of(split) for split in self.waiting}
        due = {split: writer for split, writer in writers.items() if writer is not None and writer.due}
        self.waiting.clear()
        groups = _groups(list(due.values()))
        with self.metrics.busy("write"):
            outcomes = map(self._append, groups) if len(groups) == 1 else self.pool.map(self._append, groups)
            for group, found in zip(groups, outcomes, strict=True):
                for writer, outcome in zip(group, found, strict=True):
                    self._settle(writer.split.id, outcome)

    def _commit(self, writer: Writer, split: str) -> None:
        (outcome,) = self._append([writer])
        self._settle(split, outcome)

    def _append(self, writers: list[Writer]) -> list[Commit | ChainMovedError | None]:
        """Commit what these writers hold, in one atomic step if they can. Any thread may call this."""
        started = time.perf_counter()
        first, *others = writers
        if others and isinstance(first, JointWriter):
            first.commit_with(others)
        outcomes = [_try_commit(writer) for writer in writers]
        self.metrics.commit_took(time.perf_counter() - started)
        return outcomes

    def _settle(self, split: str, outcome: Commit | ChainMovedError | None) -> None:
        if isinstance(outcome, ChainMovedError):
            self.metrics.add(lost_races=1)
            self.writers.close_one(split)
        elif outcome is not None:
            self._count(outcome, self.labels[split])
        self.labels[split].clear()

    def _count(self, commit: Commit, labels: Counter[tuple[str, str]]) -> None:
        self.metrics.committed(commit.rows_in, commit.rows_out, commit.dead, labels)
        Metrics.counter("tagstream", "rows_in").inc(commit.rows_in)
        Metrics.counter("tagstream", "rows_out").inc(commit.rows_out)
        for code, count in commit.dead.items():
            Metrics.counter("tagstream", f"dead_{code}").inc(count)

    def _tally(self, block: Block) -> None:
        tally = self.labels[block.span.split]
        for name, head in self.heads.items():
            for label, count in head.tally(block.batch.column(name)).items():
                tally[name, label] += count


def _try_commit(writer: Writer) -> Commit | ChainMovedError | None:
    try:
        return writer.commit()
    except ChainMovedError as moved:
        return moved


def _groups(writers: list[Writer]) -> list[list[Writer]]:
    """The writers in groups that commit together."""
    groups: list[list[Writer]] = []
    for writer in writers:
        if groups and isinstance(writer, JointWriter) and writer.fits(groups[-1]):
            groups[-1].append(writer)
        else:
            groups.append([writer])
    return groups


class WriteOutput(beam.PTransform):  # type: ignore[misc]
    """Writes blocks of labels to the job's sink. Must run in the process that read them, see `pipelines.jobs.build`."""

    def __init__(self, context: JobContext, spec: JobSpec) -> None:
        super().__init__()
        self.fn = _WriteFn(context, spec)

    def expand(self, blocks: Any) -> Any:
        return blocks | beam.ParDo(self.fn)
