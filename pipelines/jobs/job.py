"""An opened job: its source, sink, splits and fingerprint. `run`, `plan`, `evaluate` and `replay` all use it."""

from __future__ import annotations

import importlib.metadata
from dataclasses import dataclass, field, replace
from posixpath import splitext
from typing import Any, Self

import pyarrow as pa

from tagstream.pipelines.jobs.column_checks import check_distinct, check_redacted, check_text_columns
from tagstream.schemas.block import Split, is_whole, split_id, split_stem
from tagstream.schemas.errors import LedgerError, SpecError
from tagstream.schemas.fingerprint import Fingerprint
from tagstream.schemas.spec import JobSpec
from tagstream.transforms.inference.backends.registry import describe, identify
from tagstream.transforms.inference.engines import Engines
from tagstream.transforms.io.contracts import (
    CountedSource,
    InputCounts,
    PlanKeeper,
    PlanningSource,
    Progress,
    ReclassifyingSink,
    ReplacingSink,
    RoundsSource,
    Sink,
    Source,
    StateSink,
    again_of,
)
from tagstream.transforms.io.registry import open_sink, open_source
from tagstream.transforms.runtime.job_context import JobContext


@dataclass
class Job:
    """See the module. Use a job as a context manager, or call `close`.

    `splits`: the splits of the whole input, or of its first `limit` rows. `replays`: whether the input is the dead
    letters of the job. `context`: everything that the job owns in this process.
    """

    spec: JobSpec
    source: Source
    sink: Sink
    splits: list[Split]
    limit: int | None = None
    replays: bool = False
    context: JobContext = field(default_factory=JobContext)
    first_run_rows: int | None = field(default=None, init=False)
    """Rows of the job, if no earlier run has done any of them."""
    unfinished: bool = field(default=False, init=False)
    """Whether this run finishes a round of an earlier one, so that it has not looked for missing rows yet."""
    known: set[str] = field(default_factory=set, init=False, repr=False)
    """Ids of the splits of the whole input, whatever the limit."""
    _fingerprint: Fingerprint | None = field(default=None, init=False, repr=False)

    @classmethod
    def open(
        cls,
        spec: JobSpec,
        limit: int | None = None,
        *,
        overwrite: bool = False,
        context: JobContext | None = None,
    ) -> Job:
        """Open source and sink, and list the splits. Changes nothing yet.

        `overwrite`: ignore what the output holds. Raises SpecError, SourceError.
        """
        context = context or JobContext(spec.name)
        source = open_source(spec, context)
        spec = spec.with_columns(source.kept.names)
        check_text_columns(spec, source.kept)
        sink = open_sink(spec, context)
        if isinstance(source, PlanningSource) and not isinstance(sink, PlanKeeper):
            raise SpecError(
                f"a {spec.source.type} source needs a sink that stores the plan of the job. A {spec.sink.type} sink "
                "can't do that: choose another sink.type"
            )
        if spec.source.by_state and not isinstance(sink, StateSink):
            raise SpecError(
                f"source.only_new: missing needs a sink that is a database table. A {spec.sink.type} sink does not "
                "know which rows have a label: choose another sink.type, or only_new: key"
            )
        job = cls(spec, source, sink, [], limit, context=context)
        check_distinct(job.columns)
        check_redacted(spec)
        agreed = [] if overwrite else job.plan()
        more = job.more_splits(agreed)
        job.splits = job.splits_of(agreed + more)
        return job

    def close(self) -> None:
        """Close everything that the job has opened in this process: engines, writers, consumers."""
        self.context.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def settle(self) -> None:
        """Take the splits from the plan in the sink, because another process may have planned differently.

        The sink must be prepared.
        """
        if self.replays:
            return
        agreed = self.plan()
        more = self.more_splits(agreed)
        if more and isinstance(self.sink, PlanKeeper):
            before, agreed = len(agreed), self.sink.extend_plan(len(agreed), more)
            if len(agreed) == before:
                raise LedgerError(
                    "the output has lost the plan of the job. Was the output removed meanwhile? Start the job again"
                )
        if agreed:
            self.splits = self.splits_of(agreed)

    def more_splits(self, agreed: list[Split]) -> list[Split]:
        """Splits to plan in addition to `agreed`. A job by state finishes the earlier rounds first."""
        if not isinstance(self.source, PlanningSource):
            return []
        planned = _planned(agreed)
        if isinstance(self.source, RoundsSource) and self.source.by_state and planned:
            progress = self.sink.progress()
            self.unfinished = any(split.id not in progress for split in planned)
            if self.unfinished:
                return []
        return self.source.more_splits(planned, self.limit)

    def resume(self) -> tuple[dict[str, Progress], list[tuple[Split, int]]]:
        """The progress of earlier runs, and the splits that are left with positions. The sink must be prepared."""
        self.settle()
        progress = self.sink.progress()
        if not self.rows_done(progress):
            self.first_run_rows = self.rows
        return progress, self.left(progress)

    def plan(self) -> list[Split]:
        """The plan in the sink: the splits of a source that needs a plan, and the splits that are labelled again."""
        keeps = isinstance(self.source, PlanningSource) or isinstance(self.sink, ReclassifyingSink)
        return self.sink.plan() if keeps and isinstance(self.sink, PlanKeeper) else []

    def splits_of(self, agreed: list[Split]) -> list[Split]:
        """The splits of the input and those of the last change of the model, cut to the limit."""
        splits = _planned(agreed) if isinstance(self.source, PlanningSource) else self.source.splits()
        known = {split.id for split in splits}
        if isinstance(self.source, RoundsSource) and self.source.by_state and splits:
            splits = self.source.last_round(splits)
        there = {split.id for split in splits}
        rounds = [(again, split) for split in agreed if (again := again_of(split)) is not None]
        last = max((again.number for again, _ in rounds), default=0)
        repeated = [split for again, split in rounds if again.number == last and again.of in there]
        self.known = known | {split.id for split in repeated}
        return _first_rows([*splits, *repeated], self.limit)

    @property
    def live(self) -> bool:
        """Whether the input has no end."""
        return any(split.stop is None for split in self.splits)

    @property
    def rows(self) -> int:
        return sum(split.rows for split in self.splits)

    @property
    def input(self) -> InputCounts | None:
        """Files and rows that a source of files has found."""
        return self.source.counts if isinstance(self.source, CountedSource) else None

    @property
    def notes(self) -> list[str]:
        """What the user should know about the input, a sentence each."""
        return self.source.notes if isinstance(self.source, CountedSource | PlanningSource) else []

    @property
    def columns(self) -> pa.Schema:
        """The columns of a labelled row in the output."""
        position = [pa.field("split", pa.string()), pa.field("position", pa.int64())]
        return pa.schema(
            [
                *self.source.kept,
                *(field for entry in self.spec.infer for field in describe(entry)[0].fields),
                *(position if getattr(self.spec.sink, "position", False) else []),
            ]
        )

    def fingerprint(self) -> Fingerprint:
        """The fingerprint of this job. The first call reads the models' weights to hash them. Raises ModelError."""
        self._fingerprint = self._fingerprint or self._hashed()
        return self._fingerprint

    def _hashed(self) -> Fingerprint:
        settings = {"labels", "thresholds", "abstain", "max_length"}
        heads = [describe(entry)[0] for entry in self.spec.infer]
        return Fingerprint(
            {
                "classify": [  # `infer` had this name when the first outputs were made; another one changes the hash
                    {
                        "as": c.as_,
                        **c.model_dump(mode="json", include=settings),
                        "long_text": head.long_text,
                        **head.identity,
                        **identify(c),
                    }
                    for c, head in zip(self.spec.infer, heads, strict=True)
                ],
                "text": self.spec.source.text,
                "split_rows": getattr(
                    self.spec.source, "split_rows", None
                ),  # with other splits all rows are done again
                "columns": [f"{field.name}: {field.type}" for field in self.columns],
            },
            self.columns,
            self.source.kept,
        )

    def load_models(self) -> int:
        """Load every model that is not loaded yet. Returns the number of engines. Raises ModelError."""
        engines = self.context.resource(Engines)
        return len({engines.of(entry) for entry in self.spec.infer})

    def expectations(self) -> list[dict[str, Any]]:
        """What workers on other machines must have: the same models, precision and version of tagstream."""
        version = importlib.metadata.version("tagstream")
        return [{"tagstream": version, **identify(entry)} for entry in self.spec.infer]

    def left(self, progress: dict[str, Progress]) -> list[tuple[Split, int]]:
        """The splits that are not done, each with the position that its chain has reached."""
        reached = [(split, progress[split.id].stop if split.id in progress else split.start) for split in self.splits]
        return [(split, position) for split, position in reached if split.stop is None or position < split.stop]

    def rows_done(self, progress: dict[str, Progress]) -> int:
        """How many rows of this input are committed, dead letters included."""
        reached = ((split, progress.get(split.id)) for split in self.splits)
        return sum(split.rows_up_to(p.stop) for split, p in reached if p is not None)

    def changed(self, progress: dict[str, Progress]) -> dict[str, list[str]]:
        """Input files that were rewritten since they were labelled: the splits of their old rows in the output.

        An output that does not record the file of a split is understood by the stem of the split's id, where that is
        whole and only one file has it.
        """
        if self.replays or not isinstance(self.source, CountedSource):
            return {}
        names = self.source.names()
        origins = self.sink.origins() if isinstance(self.sink, ReplacingSink) else {}
        stems: dict[str, list[str]] = {}
        for name in names:
            stems.setdefault(split_stem(split_id(splitext(name)[0])), []).append(name)
        found: dict[str, list[str]] = {}
        for split in progress:
            if split in self.known or split.startswith(("replay-", "again-")):
                continue
            origin = origins.get(split)
            if origin is None and is_whole(split) and len(alike := stems.get(split_stem(split), [])) == 1:
                origin = alike[0]
            if origin in names:
                found.setdefault(origin, []).append(split)
        return found

    def foreign(self, progress: dict[str, Progress]) -> int:
        """How many splits of the output are not in the input, because the input was changed, moved or removed."""
        if self.replays:
            return 0
        return sum(split not in self.known and not split.startswith(("replay-", "again-")) for split in progress)


def _planned(agreed: list[Split]) -> list[Split]:
    """The splits of a plan without those that are labelled again."""
    return [split for split in agreed if again_of(split) is None]


def values_schema(spec: JobSpec) -> dict[str, Any]:
    """The Avro schema of the values that a job writes, whatever the sink's mode. Changes neither input nor output."""
    from tagstream.transforms.io.kafka.avro_rows import avro_schema

    with JobContext(spec.name) as context:
        source = open_source(spec, context)
        spec = spec.with_columns(source.kept.names)
        columns = Job(spec, source, open_sink(spec, context), [], context=context).columns
    return avro_schema(pa.schema([field for field in columns if not field.name.startswith("~")]), spec.name)


def _first_rows(splits: list[Split], limit: int | None) -> list[Split]:
    if limit is None:
        return splits
    kept, room = [], limit
    for split in splits:
        if room <= 0:
            break
        if split.whole and split.rows > room:
            before = limit - room
            ways = " or ".join(f"--limit {rows}" for rows in (before, before + split.rows) if rows)
            raise SpecError(
                f"--limit {limit}: the rows are planned in parts that are done as a whole, and this limit is inside "
                f"one. Give {ways}"
            )
        kept.append(split if split.whole else replace(split, stop=split.start + min(split.rows, room)))
        room -= split.rows
    return kept
