"""The ledger of a lake sink: whose output a table is, where the chains end, and dead letters that still wait.

The numbers of the label table are the ledger; `lake.sink` lists them.
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
    Letters,
    Staged,
    State,
    new_token,
)
from tagstream.transforms.runtime.retry import random_up_to, retrying

_TRIES = 100
"""How often a commit may find that another process was first."""
T = TypeVar("T")


class LakeLedger:
    """`labels` and `dead`: the two tables of a job; `token`: of the output as it was begun, once that is known."""

    def __init__(self, spec: JobSpec, labels: LakeTable, dead: LakeTable) -> None:
        self.spec = spec
        self.sink: Any = spec.sink
        self.labels = labels
        self.dead = dead
        self.token: int | None = None
        self._fingerprint: Fingerprint | None = None

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
        self.labels.put(f"job-{token}", table_of_text(mine.to_json()), {})

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
        """What `work` returns. It is done again when another process has changed the tables. Raises SinkError."""
        try:
            return retrying(ConflictError, random_up_to(0.02, 1.0), attempts=_TRIES)(work)
        except ConflictError as last:
            raise SinkError(
                f"{self.labels.where}: other processes are first all the time, the last time: {last}"
            ) from None


def table_of_text(text: str) -> pa.RecordBatchReader:
    return pa.table({"text": [text]}).to_reader()


def letters_file(token: int | None) -> str:
    """Where the dead letters of a commit wait."""
    return f"dead-{token}"
