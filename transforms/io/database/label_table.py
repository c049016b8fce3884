"""The label table: chooses the columns that a job writes, adds the missing ones, and moves staged rows in.

A job writes only to columns that it added itself, unless the specification says `adopt: true`.
"""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from tagstream.schemas.block import POSITION
from tagstream.schemas.errors import DeadCode, LedgerError, SinkError
from tagstream.schemas.sql_spec import SqlSink
from tagstream.transforms.io.database.dialect import Dialect, quote, table_name
from tagstream.transforms.io.database.ledger import create_table
from tagstream.transforms.io.database.rows import stored
from tagstream.transforms.io.database.session import Session

Columns = list[str] | None
"""Names of a table's columns; None if there is no such table."""
TABLE = "*"
"""Entry in the list of columns that a job made: the job made the table itself."""


class LabelTable:
    """The table that a job's labels go to.

    `key`: the columns by which modes update and upsert find a row. `kept`: the source's kept columns, key included.
    """

    def __init__(self, sink: SqlSink, key: Sequence[str], kept: Sequence[str]) -> None:
        self.sink = sink
        self.key = tuple(key)
        self.kept = tuple(kept)
        self.table = table_name(sink.table)
        self.dialect = Dialect()
        """The database's, once `ensure` has run."""
        self._declared: dict[str, str] | None = None
        self._held: dict[str, pa.DataType] = {}
        self._labels: list[str] = []

    @property
    def known(self) -> bool:
        """Whether `ensure` has run, so that the columns are known."""
        return self._declared is not None

    def written(self, schema: pa.Schema) -> list[str]:
        """Names of the columns to write: key and labels in mode update; in other modes the kept columns too."""
        names = [name for name in schema.names if not name.startswith("__")]
        if self.sink.mode == "update":
            names = [name for name in names if name in self.key or name not in self.kept]
        return names

    def stored(self, column: pa.Array, name: str) -> pa.Array:
        """A column as it is staged for the column `name`. Raises ArrowException for a value that would change."""
        return stored(column, self.dialect, self._held.get(name))

    def ensure(self, session: Session, schema: pa.Schema, there: Columns, made: list[str]) -> list[str]:
        """Create the table, or add those columns of `schema` that are missing.

        `there`: the table's present columns, None if there is no table. `made`: the columns that the job made before.
        Returns `made` with the new columns. Raises SinkError or LedgerError.
        """
        names = self.written(schema)
        self._labels = [name for name in names if name not in self.key]
        if there is None:
            if self.sink.mode == "update":
                raise SinkError(
                    f"table {self.sink.table} does not exist. With mode: update the sink must be the table that holds "
                    "the rows"
                )
            key = self.key if self.sink.mode == "upsert" else ()
            session.run(create_table(session, self.table, pa.schema([schema.field(name) for name in names]), key))
            made = [TABLE, *names]
        else:
            made = self._extend(session, schema, there, made)
        self.dialect = session.dialect
        now = session.query(f"SELECT * FROM {self.table} WHERE 1 = 0").schema
        if session.dialect.has_column_types:
            self._held = {f.name: f.type for f in now if not isinstance(f.type, pa.BaseExtensionType)}
        declared = ((field.name, session.dialect.declared(field)) for field in now)
        self._declared = {name: kind for name, kind in declared if kind is not None}
        return made

    def _extend(self, session: Session, schema: pa.Schema, there: list[str], made: list[str]) -> list[str]:
        names = self.written(schema)
        own = names if self.sink.mode != "update" else [name for name in names if name not in self.key]
        foreign = [name for name in own if name in there and name not in made]
        if foreign and not self.sink.adopt:
            raise LedgerError(
                f"table {self.sink.table} has a column {foreign[0]!r} that this job did not make. Choose another name "
                "for the label columns (as) or another table, or allow writing to the column with adopt: true"
            )
        if missing := [name for name in self.key if name in names and name not in there]:
            raise SinkError(f"table {self.sink.table} has no key column {missing[0]!r}; it has {', '.join(there)}")
        for name in (name for name in names if name not in there):
            kind = session.dialect.type_of(schema.field(name).type)
            session.run(f"ALTER TABLE {self.table} ADD COLUMN {quote(name)} {kind}")
            made = [*made, name]
        return made

    def clear(self, session: Session, there: Columns, made: list[str]) -> tuple[Columns, list[str]]:
        """Remove the table, columns or labels that the job made. Arguments as in `ensure`.

        Returns the remaining columns of the table and the remaining part of `made`. Raises LedgerError if the job's
        rows can't be told from others.
        """
        if there is None:
            return None, []
        if TABLE in made:
            session.run(f"DROP TABLE {self.table}")
            return None, []
        if self.sink.mode == "update":
            mine = [name for name in made if name in there]
            if mine and not session.dialect.drops_columns:
                session.run(f"UPDATE {self.table} SET {', '.join(f'{quote(name)} = NULL' for name in mine)}")
                return there, mine
            for name in mine:
                session.run(f"ALTER TABLE {self.table} DROP COLUMN {quote(name)}")
            return [name for name in there if name not in made], []
        if self.sink.mode == "append":
            raise LedgerError(
                f"table {self.sink.table} was not made by this job, so its rows can't be told from others. Delete them "
                "yourself and give the job another name"
            )
        return there, []

    def move(self, session: Session, staged: str, schema: pa.Schema) -> list[tuple[int, DeadCode]]:
        """Move staged rows into the table by one statement, which casts them to the table's types.

        In modes upsert and update, only the last row of each key is used. An upsert fails if one statement has two
        rows of the same key, and an update would take any of them. The database says how many rows it has changed.
        Returns the positions of rows that an update has not changed, with the reasons. Raises SinkError if an insert
        has stored fewer rows.
        """
        names = [name for name in schema.names if name != POSITION]
        rows = staged
        if self.sink.mode != "append":
            key = ", ".join(map(self._as_declared, self.key))
            number = f"row_number() OVER (PARTITION BY {key} ORDER BY {quote(POSITION)} DESC) AS n_"
            rows = f"(SELECT *, {number} FROM {staged}) AS r_ WHERE n_ = 1"
        select = f"SELECT {', '.join(map(self._cast, names))} FROM {rows}"
        if self.sink.mode == "upsert":
            statement = session.dialect.upsert(self.table, names, self.key, select)
        elif self.sink.mode == "update":
            sets = [name for name in names if name not in self.key]
            statement = session.dialect.update(self.table, sets, self.key, select)
        else:
            statement = f"INSERT INTO {self.table} ({', '.join(quote(name) for name in names)}) {select}"
        changed = session.query(f"{statement} RETURNING 1 AS one").num_rows
        wanted = count_rows(session, staged)
        if changed < wanted and self.sink.mode != "append":
            wanted = count_rows(session, rows)  # a key may have come twice
        if changed == wanted:
            return []
        if self.sink.mode == "update" and (lost := self._not_changed(session, staged, names)):
            return lost
        raise SinkError(
            f"table {self.sink.table}: the database says that it stored {changed:,} of {wanted:,} rows. A trigger or a "
            "policy of the table keeps rows out; write to a table without it"
        )

    def _not_changed(self, session: Session, staged: str, names: list[str]) -> list[tuple[int, DeadCode]]:
        """Positions of the staged rows that are not in the table as they should be, and why."""
        differs = session.dialect.differs
        position = quote(POSITION)
        select = f"SELECT {', '.join([*map(self._cast, names), position])} FROM {staged}"
        unlike = " OR ".join(f"t.{quote(n)} {differs} s.{quote(n)}" for n in names if n not in self.key)
        same = " AND ".join(f"t.{quote(k)} = s.{quote(k)}" for k in self.key)
        gone = f"t.{quote(self.key[0])} IS NULL"
        found = session.query(
            f"SELECT s.{position} AS p, CASE WHEN {gone} THEN 1 ELSE 0 END AS gone FROM ({select}) AS s "
            f"LEFT JOIN {self.table} AS t ON {same} WHERE {gone} OR {unlike} ORDER BY 1"
        )
        pairs = zip(found["p"].to_pylist(), found["gone"].to_pylist(), strict=True)
        return [(p, DeadCode.NO_SUCH_KEY if gone else DeadCode.REFUSED) for p, gone in pairs]

    def unlabel(self, session: Session, staged: str, schema: pa.Schema, only: str = "true") -> None:
        """Remove the labels of the rows whose keys are staged. `only`: a condition that these rows must meet."""
        where = f"EXISTS (SELECT 1 FROM {self.staged_keys(staged)} AS s WHERE {self.same_key('s')}) AND ({only})"
        if self.sink.mode == "update":
            sets = ", ".join(f"{quote(name)} = NULL" for name in self._labels)
            session.run(f"UPDATE {self.table} SET {sets} WHERE {where}")
        else:
            session.run(f"DELETE FROM {self.table} WHERE {where}")

    def staged_keys(self, staged: str, more: Sequence[str] = ()) -> str:
        """A subquery: the staged key columns cast to the table's types, and the columns `more` unchanged."""
        return f"(SELECT {', '.join([*map(self._cast, self.key), *map(quote, more)])} FROM {staged})"

    def same_key(self, alias: str, *, cast: bool = False) -> str:
        """The condition that a row of the table has the same key as a row of `alias`. `cast`: to the table's types."""
        kinds = (self._declared or {}) if cast else {}
        mine = {k: f"{alias}.{quote(k)}" for k in self.key}
        given = {k: f"CAST({value} AS {kinds[k]})" if k in kinds else value for k, value in mine.items()}
        return " AND ".join(f"{self.table}.{quote(k)} = {given[k]}" for k in self.key)

    def _cast(self, name: str) -> str:
        return f"{self._as_declared(name)} AS {quote(name)}"

    def _as_declared(self, name: str) -> str:
        kind = (self._declared or {}).get(name)
        return f"CAST({quote(name)} AS {kind})" if kind else quote(name)


def count_rows(session: Session, rows: str) -> int:
    """How many rows a table, or what stands in its place in a SELECT, has."""
    found = session.query(f"SELECT CAST(count(*) AS {session.dialect.type_of(pa.int64())}) AS n FROM {rows}")
    return int(found["n"][0].as_py())
