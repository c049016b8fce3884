"""An Iceberg or Delta table as a sink. For every format that has a `LakeTable`.

One commit of the label table holds the rows and the ledger's numbers, and succeeds only if the chain ends where the
span starts: the table is loaded, the end compared, and a commit that somebody else's has overtaken looks again.

    job              token of the output as it was begun; names a file with the fingerprint. A new one resets the chains
    plan             token of the last part of the plan, in a file that names the part before it
    <job>/<split>    where the chain ends; …/by: token of the last commit; …/dead: its stop, if it has dead letters

Dead letters are a table of their own, and no commit spans two tables. So they wait in a file that the token of their
commit names, and move into their table right after it, together with the number <job>/<split>, the stop of their
span: repeating the move changes nothing. No span is committed before the letters of the one before have moved. Crash
points of a commit:

1. before the label table's commit: nothing happened; files that no table knows may be left over
2. after that, before the dead letters' commit: whoever opens the chain next, or starts the job, moves them in first
3. after that: done, but for the file, which is deleted
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from typing import Any, TypeVar

import pyarrow as pa

from schemas.block import Split
from schemas.errors import LedgerError, SinkError
from schemas.fingerprint import Fingerprint, not_ours
from schemas.results import dead_schema
from schemas.spec import JobSpec
from transforms.io import Commit, Progress, open_source
from transforms.io.dead_letters import TableLetters
from transforms.io.lake_table import (
    COMMIT,
    FOLDER,
    ConflictError,
    LakeTable,
    Letters,
    Staged,
    State,
    lake_schema,
    new_token,
)
from transforms.io.lake_writer import LakeWriter, letters_file
from transforms.io.plan_files import splits_from, splits_to

_TRIES = 100
T = TypeVar("T")


class LakeSink:
    """See `transforms.io.Sink`. `labels` and `dead`: the two tables."""

    def __init__(self, spec: JobSpec, labels: LakeTable, dead: LakeTable) -> None:
        self.spec = spec
        self.sink: Any = spec.sink
        self.labels = labels
        self.dead = dead
        self.token: int | None = None
        self._fingerprint: Fingerprint | None = None

    def prepare(self, fingerprint: Fingerprint, *, overwrite: bool) -> None:
        self._fingerprint = fingerprint
        schema = None if fingerprint.schema is None else lake_schema(fingerprint.schema)
        self.retried(lambda: self._claim(schema, overwrite=overwrite))
        self.settle_letters()

    def progress(self) -> dict[str, Progress]:
        state = self.retried(self.labels.load)
        if state is None:
            return {}
        state.check()
        prefix, known = f"{state.get('job')}/split/", state.seconds()
        ends = {n.removeprefix(prefix): end for n, end in state.all().items() if n.startswith(prefix)}
        return {split: Progress(end, *known.get(split, ())) for split, end in ends.items() if "/" not in split}

    def plan(self) -> list[Split]:
        """See `transforms.io.PlanKeeper`."""
        return self.retried(lambda: self._plan(self.labels.load()))

    def extend_plan(self, planned: int, more: list[Split]) -> list[Split]:
        """See `transforms.io.PlanKeeper`."""

        def work() -> None:
            state = self.owned()
            if len(self._plan(state)) == planned:
                token, before = new_token(), state.get(f"{self.token}/plan") or 0
                self.labels.put(f"plan-{token}", _text(splits_to(more)), {"before": str(before)})
                self.labels.append(state, None, {f"{self.token}/plan": token}, self.note(token), None)

        self.retried(work)
        return self.plan()

    def open(self, split: Split, known: int | None = None) -> LakeWriter:
        if self.token is None:
            self.retried(lambda: self._claim(None, overwrite=False))
        self.settle_letters(split.id)
        state = self.retried(self.labels.load)
        end = None if state is None else state.get(self.chain(split.id))
        return LakeWriter(self, split, split.start if end is None else end, self.sink.commit_every)

    def sample(self, count: int) -> pa.Table:
        """See `transforms.io.ReadableSink`."""
        return self.labels.rows([], None, count)

    def dead_letters(self) -> TableLetters:
        """See `transforms.io.ReplayingSink`."""
        state, kept = self.retried(self.labels.load), open_source(self.spec).kept
        self.token = state.get("job") if state else None
        self.settle_letters()
        names = [field.name for field in dead_schema(pa.schema([("any", pa.string())]))]
        rows = self.dead.rows(["split", "position"], Letters(self.spec.name, None, 0), None)
        groups = []
        if rows.num_rows:
            found = rows.group_by("split").aggregate([("position", "max"), ("position", "count")])
            groups = [(r["split"], r["position_max"] + 1, r["position_count"]) for r in found.to_pylist()]

        def fetch(split: str, stop: int) -> pa.Table:
            return self.dead.rows(names, Letters(self.spec.name, split, stop), None)

        return TableLetters(self.dead.where, kept, self.spec.blocks, groups, fetch)

    def chain(self, split: str) -> str:
        """Name of the number where a split's chain ends."""
        return f"{self.token}/split/{split}"

    def owned(self, schema: pa.Schema | None = None) -> State:
        """The label table now; made if it is not there. Raises LedgerError if the output belongs to others by now."""
        if self.token is None:
            self._claim(schema, overwrite=False)
        state = self.labels.load()
        if state is None or state.get("job") != self.token:
            raise LedgerError(
                f"{self.labels.where}: the output of job {self.spec.name!r} was overwritten while this one ran"
            )
        return state

    def settle_letters(self, split: str | None = None) -> None:
        """Move in the dead letters of the last commits, of a split or of all, if they still wait."""

        def work() -> None:
            state = self.labels.load()
            if state is None or self.token is None:
                return
            names = [self.chain(split)] if split else [name.removesuffix("/dead") for name in state.all()]
            for name in names:
                stop = state.get(f"{name}/dead")
                if name.startswith(f"{self.token}/split/") and stop is not None and stop == state.get(name):
                    self._move_in(name, stop, letters_file(state.get(f"{name}/by")))

        self.retried(work)

    def _move_in(self, name: str, stop: int, file: str) -> None:
        state = self.dead.load()
        if ((state and state.get(name)) or -1) < stop:
            if (found := self.labels.take(file)) is None:
                raise ConflictError(f"{file} is not there: the dead letters moved in meanwhile, or were removed")
            letters, replaces = found
            if state is None:
                self.dead.create(letters.schema, {})
                raise ConflictError("the table was made")
            rows = Staged(letters.schema, letters.num_rows, letters.to_reader)
            without = Letters(self.spec.name, replaces["split"], int(replaces["stop"])) if replaces else None
            self.dead.append(state, rows, {name: stop}, self.note(new_token()), without)
        self.labels.drop(file)

    def _claim(self, schema: pa.Schema | None, *, overwrite: bool) -> None:
        """Make the output this job's, or see that it is. Without a schema a new table is made with the first rows."""
        assert self._fingerprint is not None
        mine, state = self._fingerprint, self.labels.load()
        token = new_token()
        values = {"job": token, f"{token}/fingerprint": int(mine.hash[:15], 16)}
        if state is None:
            if schema is None:
                return
            self.labels.create(schema, {**values, f"{token}/made": 1})
        elif (held := state.get("job")) is None:
            if not self.sink.adopt:
                raise LedgerError(
                    f"{self.labels.where} is there already and was not made by job {self.spec.name!r}; choose another "
                    "table, or allow it with adopt: true"
                )
            self.labels.append(state, None, values, self.note(token), None)
        elif overwrite:
            if not state.get(f"{held}/made"):
                raise LedgerError(
                    f"{self.labels.where} was not made by this job: its rows can't be told from others. Delete them "
                    "yourself and give the job another name"
                )
            if others := state.others():  # their rows would go; Delta would even keep telling them that all is done
                raise LedgerError(
                    f"{self.labels.where} also holds the output of job {', '.join(map(repr, others))}, which "
                    "--overwrite would remove; give this job another table"
                )
            self._remove_letters()
            self.labels.replace(state, schema or state.schema, {**values, f"{token}/made": 1})
        else:
            if state.get(f"{held}/fingerprint") != values[f"{token}/fingerprint"]:
                raise LedgerError(self._differs(held))
            state.check()
            self.token = held
            return
        self.token = token
        self.labels.put(f"job-{token}", _text(mine.to_json()), {})

    def _remove_letters(self) -> None:
        if (state := self.dead.load()) is not None:
            everything = Letters(self.spec.name, None, 0)
            self.dead.append(state, None, {}, self.note(new_token()), everything)

    def _differs(self, held: int) -> str:
        mine, found = self._fingerprint, self.labels.take(f"job-{held}")
        assert mine is not None
        other = Fingerprint.from_json(found[0]["text"][0].as_py()) if found else None
        told = not_ours(self.labels.where, other, mine)
        return f"{told}\n--overwrite replaces that output; another name and table write beside it"

    def _plan(self, state: State | None) -> list[Split]:
        token = state.get(f"{state.get('job')}/plan") if state else None
        parts: list[list[Split]] = []
        while token:
            if (found := self.labels.take(f"plan-{token}")) is None:
                raise LedgerError(f"{self.labels.where}: plan-{token} is missing in its folder {FOLDER}; --overwrite")
            parts.insert(0, splits_from(found[0]["text"][0].as_py()))
            token = int(found[1]["before"])
        return [split for part in parts for split in part]

    def note(self, token: int, commit: Commit | None = None, seconds: float = 0.0) -> dict[str, str]:
        """What the table's history says of a commit, for people, and to find it again."""
        note = {COMMIT: str(token), "tagstream.job": self.spec.name}
        if commit is not None:
            assert self._fingerprint is not None
            note |= {
                "tagstream.split": commit.span.split,
                "tagstream.start": str(commit.span.start),
                "tagstream.stop": str(commit.span.stop),
                "tagstream.rows-in": str(commit.rows_in),
                "tagstream.rows-out": str(commit.rows_out),
                "tagstream.dead": json.dumps(dict(commit.dead)),
                "tagstream.seconds": str(round(seconds, 3)),
                "tagstream.fingerprint": self._fingerprint.hash,
            }
        return note

    def retried(self, work: Callable[[], T]) -> T:
        """What `work` returns, done anew as long as others change the tables meanwhile. Raises SinkError."""
        pause = 0.02
        for _ in range(_TRIES):
            try:
                return work()
            except ConflictError as conflict:
                last = conflict
            time.sleep(random.uniform(0, pause))  # noqa: S311
            pause = min(2 * pause, 1.0)
        raise SinkError(f"{self.labels.where}: other processes are first all the time, the last time: {last}")


def _text(text: str) -> pa.RecordBatchReader:
    return pa.table({"text": [text]}).to_reader()
