"""The ledger of a lake sink: which job owns the table, where the chains end, and which dead letters still wait.

The ledger is kept as whole numbers in the label table. `lake.sink` lists them.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, TypeVar

import pyarrow as pa

from tagstream.schemas.errors import LedgerError, SinkError
from tagstream.schemas.fingerprint import Fingerprint, not_ours
from tagstream.schemas.spec import JobSpec
from tagstream.transforms.io.contracts import Commit
from tagstream.transforms.io.lake.table import (
    COMMIT,
    ConflictError,
    LakeTable,
    LetterFilter,
    StagedRows,
    State,
    new_token,
)
from tagstream.transforms.runtime.retry import random_up_to, retrying

_TRIES = 100
"""How often a commit may find that another process was first."""
T = TypeVar("T")


class LakeLedger:
    """`labels` and `dead`: the job's two tables. `token`: drawn when the output was begun; None until known."""

    def __init__(self, spec: JobSpec, labels: LakeTable, dead: LakeTable) -> None:
        self.spec = spec
        self.sink: Any = spec.sink
        self.labels = labels
        self.dead = dead
        self.token: int | None = None
        self._fingerprint: Fingerprint | None = None

    def chain(self, split: str) -> str:
        """Name of the number that says where a split's chain ends."""
        return f"{self.token}/split/{split}"

    def owned(self, schema: pa.Schema | None = None) -> State:
        """The label table's newest state. Creates the table if there is none.

        Raises LedgerError if another run has overwritten the output.
        """
        if self.token is None:
            self._claim(schema, overwrite=False)
        state = self.labels.load()
        if state is None or state.get("job") != self.token:
            raise LedgerError(
                f"{self.labels.where}: the output of job {self.spec.name!r} was overwritten while this one ran"
            )
        return state

    def settle_letters(self, split: str | None = None) -> None:
        """Move dead letters that still wait into their table. `split`: only this split's; None for all splits."""

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
                raise ConflictError(f"{file} is gone: another process moved the dead letters in, or removed them")
            letters, replaces = found
            if state is None:
                self.dead.create(letters.schema, {})
                raise ConflictError("the dead-letter table had to be created first")
            rows = StagedRows(letters.schema, letters.num_rows, letters.to_reader)
            without = LetterFilter(self.spec.name, replaces["split"], int(replaces["stop"])) if replaces else None
            self.dead.append(state, rows, {name: stop}, self.note(new_token()), without)
        self.labels.drop(file)

    def _claim(self, schema: pa.Schema | None, *, overwrite: bool) -> None:
        """Make the output belong to this job, or check that it does.

        Without a schema no table is created: that happens with the first rows.
        """
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
                    f"{self.labels.where} already exists and was not made by job {self.spec.name!r}. Choose another "
                    "table, or allow writing to this one with adopt: true"
                )
            self.labels.append(state, None, values, self.note(token), None)
        elif overwrite:
            if not state.get(f"{held}/made"):
                raise LedgerError(
                    f"{self.labels.where} was not made by this job, so its rows can't be told from others. Delete them "
                    "yourself and give the job another name"
                )
            if others := state.others():  # their rows would go, but on Delta their chains would stay
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
        self.labels.put(f"job-{token}", table_of_text(mine.to_json()), {})

    def _remove_letters(self) -> None:
        if (state := self.dead.load()) is not None:
            everything = LetterFilter(self.spec.name, None, 0)
            self.dead.append(state, None, {}, self.note(new_token()), everything)

    def _differs(self, held: int) -> str:
        mine, found = self._fingerprint, self.labels.take(f"job-{held}")
        assert mine is not None
        other = Fingerprint.from_json(found[0]["text"][0].as_py()) if found else None
        told = not_ours(self.labels.where, other, mine)
        return f"{told}\n--overwrite replaces that output; another job name and table keep both"

    def note(self, token: int, commit: Commit | None = None, seconds: float = 0.0) -> dict[str, str]:
        """Properties for the table's history: they describe a commit to people, and identify it."""
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
        """Call `work` and return its result. Calls it again if another process changed a table meanwhile.

        Raises SinkError after many tries.
        """
        try:
            return retrying(ConflictError, random_up_to(0.02, 1.0), attempts=_TRIES)(work)
        except ConflictError as last:
            raise SinkError(
                f"{self.labels.where}: other processes kept changing the table. The last conflict: {last}"
            ) from None


def table_of_text(text: str) -> pa.RecordBatchReader:
    return pa.table({"text": [text]}).to_reader()


def letters_file(token: int | None) -> str:
    """Name of the file where the dead letters of a commit wait. `token`: the commit's."""
    return f"dead-{token}"
