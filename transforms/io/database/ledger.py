"""The tables that a job keeps beside its labels.

    tagstream_jobs     one row for each job: label table, fingerprint, and the columns that the job made
    tagstream_plans    the planned splits. Its primary key (job, number) lets only the first of two planners win
    tagstream_ledger   one row for each commit. Its primary key (job, split, start) is the chain's compare-and-set
    <table>_dead       dead letters of the jobs that write to the table

Every function works in the session's open transaction. The caller commits or rolls back.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from tagstream.schemas.block import Split
from tagstream.schemas.fingerprint import Fingerprint
from tagstream.transforms.io.contracts import Commit, Progress
from tagstream.transforms.io.database.dialect import Values, beside, quote
from tagstream.transforms.io.database.session import DatabaseError, Kind, Session

_TEXT, _WHOLE, _REAL, _BYTES = pa.string(), pa.int64(), pa.float64(), pa.binary()
_COLUMNS: dict[str, dict[str, pa.DataType]] = {
    "jobs": {"job": _TEXT, "target": _TEXT, "fingerprint": _TEXT, "parts": _TEXT, "made": _TEXT},
    "plans": {"job": _TEXT, "number": _WHOLE, "splits": _TEXT},
    "ledger": {
        "job": _TEXT, "split": _TEXT, "start": _WHOLE, "stop": _WHOLE, "rows_in": _WHOLE, "rows_out": _WHOLE,
        "dead": _TEXT, "fingerprint": _TEXT, "seconds": _REAL, "writer": _TEXT,
    },
    "dead": {
        "job": _TEXT, "split": _TEXT, "position": _WHOLE, "code": _TEXT, "message": _TEXT, "payload": _BYTES,
        "row": _TEXT, "origin_split": _TEXT, "origin_position": _WHOLE,
    },
}  # fmt: skip
_KEYS = {"jobs": ("job",), "plans": ("job", "number"), "ledger": ("job", "split", "start"), "dead": ()}


@dataclass
class JobRow:
    """A job's row in `tagstream_jobs`. `made`: label table columns that the job made; `*` if it made the table."""

    target: str
    fingerprint: Fingerprint
    made: list[str] = field(default_factory=list)


class Ledger:
    """The tables of one job. `target`: the label table as the specification names it. `dead`: the dead-letter table."""

    def __init__(self, job: str, target: str, dead: str) -> None:
        self.job = job
        self.target = target
        self.tables = {name: beside(target, f"tagstream_{name}") for name in ("jobs", "plans", "ledger")}
        self.tables["dead"] = dead

    def exists(self, session: Session) -> bool:
        """Whether all the tables exist. If one is missing, the open transaction has been rolled back."""
        return all(columns_in(session, table) is not None for table in self.tables.values())

    def create(self, session: Session) -> None:
        """Create the tables that are missing. Looking for them may roll back the open transaction."""
        missing = [name for name, table in self.tables.items() if columns_in(session, table) is None]
        for name in missing:
            session.run(create_table(session, self.tables[name], pa.schema(_COLUMNS[name].items()), _KEYS[name]))

    def job_row(self, session: Session, lock: str = "") -> JobRow | None:
        """The job's row, None if there is none. `lock`: appended to the SELECT, see `Dialect.keep_row`."""
        found = self._select(session, "jobs", ("target", "parts", "made"), lock).to_pylist()
        if not found:
            return None
        row = found[0]
        return JobRow(row["target"], Fingerprint.from_json(row["parts"]), json.loads(row["made"]))

    def insert_job(self, session: Session, fingerprint: Fingerprint) -> None:
        """Fails as DUPLICATE if another process was first."""
        parts = fingerprint.to_json()
        self._insert(session, "jobs", self.job, self.target, fingerprint.hash, parts, "[]")

    def set_fingerprint(self, session: Session, fingerprint: Fingerprint) -> None:
        values = Values(session.dialect)
        new, parts, job = (values.add(text) for text in (fingerprint.hash, fingerprint.to_json(), self.job))
        sets = f'"fingerprint" = {new}, "parts" = {parts}'
        session.run(f'UPDATE {self.tables["jobs"]} SET {sets} WHERE "job" = {job}', values.given)

    def set_made(self, session: Session, made: list[str]) -> None:
        values = Values(session.dialect)
        made_mark, job_mark = values.add(json.dumps(made)), values.add(self.job)
        session.run(f'UPDATE {self.tables["jobs"]} SET "made" = {made_mark} WHERE "job" = {job_mark}', values.given)

    def forget(self, session: Session) -> None:
        """Delete all rows of the job, dead letters included."""
        for table in self.tables.values():
            values = Values(session.dialect)
            session.run(f'DELETE FROM {table} WHERE "job" = {values.add(self.job)}', values.given)

    def plan(self, session: Session) -> list[Split]:
        """The planned splits, in order."""
        rows = self._select(session, "plans", ("number", "splits")).to_pylist()
        bodies = [row["splits"] for row in sorted(rows, key=lambda row: row["number"])]
        return [Split(**split) for body in bodies for split in json.loads(body)]

    def insert_plan(self, session: Session, number: int, splits: list[Split]) -> None:
        """`number`: how many splits were planned before. Fails as DUPLICATE if another process was first."""
        body = json.dumps([{**split.__dict__} for split in splits])
        self._insert(session, "plans", self.job, number, body)

    def progress(self, session: Session) -> dict[str, Progress]:
        """The end of each chain, with rows and seconds summed over all its commits."""
        whole, real = session.dialect.type_of(_WHOLE), session.dialect.type_of(_REAL)
        values = Values(session.dialect)
        found = session.query(
            f'SELECT "split", max("stop") AS "stop", CAST(sum("rows_in") AS {whole}) AS "rows", CAST(sum("seconds") AS '
            f'{real}) AS "seconds" FROM {self.tables["ledger"]} WHERE "job" = {values.add(self.job)} GROUP BY "split"',
            values.given,
        )
        return {row["split"]: Progress(row["stop"], row["rows"], row["seconds"]) for row in found.to_pylist()}

    def end(self, session: Session, split: str, below: int | None = None) -> int | None:
        """Where the split's chain ends; None before the first commit. `below`: count only spans that start below it."""
        values = Values(session.dialect)
        where = f'"job" = {values.add(self.job)} AND "split" = {values.add(split)}'
        if below is not None:
            where += f' AND "start" < {values.add(below)}'
        statement = f'SELECT max("stop") AS "stop" FROM {self.tables["ledger"]} WHERE {where}'
        found: int | None = session.query(statement, values.given)["stop"][0].as_py()
        return found

    def writer_at(self, session: Session, split: str, start: int) -> str | None:
        """The id of the writer that committed the span starting at `start`; None if there is no such span."""
        values = Values(session.dialect)
        where = f'"job" = {values.add(self.job)} AND "split" = {values.add(split)} AND "start" = {values.add(start)}'
        found = session.query(f'SELECT "writer" FROM {self.tables["ledger"]} WHERE {where}', values.given)
        return found["writer"][0].as_py() if found.num_rows else None

    def append(self, session: Session, commit: Commit, fingerprint: str, seconds: float, writer: str) -> None:
        """Insert the commit's row. Fails as DUPLICATE if the chain already has a span with this start."""
        span = commit.span
        self._insert(
            session, "ledger", self.job, span.split, span.start, span.stop, commit.rows_in, commit.rows_out,
            json.dumps(dict(commit.dead)), fingerprint, seconds, writer,
        )  # fmt: skip

    def letters(self, session: Session) -> list[tuple[str, int, int]]:
        """For each split with dead letters: its id, the position after the last one, and how many there are."""
        whole, values = session.dialect.type_of(_WHOLE), Values(session.dialect)
        found = session.query(
            f'SELECT "split", CAST(max("position") + 1 AS {whole}) AS "stop", CAST(count(*) AS {whole}) AS "n" '
            f'FROM {self.tables["dead"]} WHERE "job" = {values.add(self.job)} GROUP BY "split"',
            values.given,
        )
        return [(row["split"], row["stop"], row["n"]) for row in found.to_pylist()]

    def letters_below(self, session: Session, split: str, stop: int) -> pa.Table:
        """The dead letters of a split at positions below `stop`."""
        values = Values(session.dialect)
        where = self._below(values, split, stop)
        names = ", ".join(quote(name) for name in _COLUMNS["dead"])
        return session.query(f"SELECT {names} FROM {self.tables['dead']} WHERE {where}", values.given)

    def forget_letters(self, session: Session, split: str, stop: int) -> None:
        """Delete the dead letters of a split at positions below `stop`."""
        values = Values(session.dialect)
        session.run(f"DELETE FROM {self.tables['dead']} WHERE {self._below(values, split, stop)}", values.given)

    def forget_all_letters(self, session: Session) -> None:
        """Delete all dead letters of the job."""
        values = Values(session.dialect)
        session.run(f'DELETE FROM {self.tables["dead"]} WHERE "job" = {values.add(self.job)}', values.given)

    def _below(self, values: Values, split: str, stop: int) -> str:
        job, name, end = values.add(self.job), values.add(split), values.add(stop)
        return f'"job" = {job} AND "split" = {name} AND "position" < {end}'

    def _select(self, session: Session, table: str, columns: Sequence[str], lock: str = "") -> pa.Table:
        """The job's rows."""
        values = Values(session.dialect)
        names = ", ".join(quote(column) for column in columns)
        where = f'"job" = {values.add(self.job)}'
        return session.query(f"SELECT {names} FROM {self.tables[table]} WHERE {where} {lock}", values.given)

    def _insert(self, session: Session, table: str, *row: Any) -> None:
        values = Values(session.dialect)
        columns = _COLUMNS[table]
        given = (values.add(pa.scalar(v, kind)) for v, kind in zip(row, columns.values(), strict=True))
        names = ", ".join(quote(column) for column in columns)
        session.run(f"INSERT INTO {self.tables[table]} ({names}) VALUES ({', '.join(given)})", values.given)


def create_table(session: Session, table: str, schema: pa.Schema, key: Sequence[str]) -> str:
    """A CREATE TABLE statement for the columns of `schema`. `key`: the primary key; empty for none."""
    kinds = session.dialect
    columns = [
        f"{quote(f.name)} {kinds.key_type(f.type) if f.name in key else kinds.type_of(f.type)}"
        + (" NOT NULL" if f.name in key else "")
        for f in schema
    ]
    if key:
        columns.append(f"PRIMARY KEY ({', '.join(quote(name) for name in key)})")
    return f"CREATE TABLE {table} ({', '.join(columns)})"


def columns_in(session: Session, table: str) -> list[str] | None:
    """Columns of a table. None if there is no such table; the open transaction has then been rolled back."""
    try:
        return list(session.query(f"SELECT * FROM {table} WHERE 1 = 0").schema.names)
    except DatabaseError as failure:
        if failure.kind is not Kind.OTHER:
            raise
        session.rollback()
        return None
