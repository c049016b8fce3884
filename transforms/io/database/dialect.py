"""The differences between databases: names, types, parameters, upserts.

This module only makes the text of statements. It opens no connection.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from tagstream.schemas.block import unwrapped_type
from tagstream.schemas.errors import SpecError
from tagstream.transforms.io.database.stored_types import DUCKDB, POSTGRESQL, SQLITE, STANDARD, Rule

Query = Callable[[str], pa.Table]


def quote(name: str) -> str:
    """A quoted identifier."""
    return '"' + name.replace('"', '""') + '"'


def table_name(text: str) -> str:
    """`schema.table` as a quoted identifier.

    In `text`, a part that holds a dot or a quote must itself be in double quotes. Raises SpecError otherwise.
    """
    parts = re.findall(r'"((?:[^"]|"")+)"|([^".]+)', text)
    names = [quoted.replace('""', '"') or plain for quoted, plain in parts]
    if not names or ".".join(quote(n) if q else n for n, (q, _) in zip(names, parts, strict=True)) != text:
        raise SpecError(f'{text!r} is not a table name. Write table, schema.table or "odd.schema"."odd table"')
    return ".".join(quote(name) for name in names)


def beside(text: str, name: str) -> str:
    """The quoted table `name` in the schema of table `text`."""
    *schema, _ = re.findall(r'"(?:[^"]|"")+"|[^".]+', text)
    return table_name(".".join([*schema, quote(name)]))


def last_part(text: str) -> str:
    """The table's name without schema and quotes."""
    last: str = re.findall(r'"(?:[^"]|"")+"|[^".]+', text)[-1]
    return last.strip('"').replace('""', '"')


@dataclass(frozen=True)
class Column:
    """A column of a table or query.

    `expression`: what a SELECT names to get the column, under its own name. `type`: its Arrow type. `declared`: the
    database's name of its type; None where a bound value needs no cast.
    """

    name: str
    expression: str
    type: pa.DataType
    declared: str | None = None
    mixed: str = ""
    """The types of the values, if the database lets a column hold several."""


@dataclass
class Values:
    """The bound values of a statement. `add` takes a value and returns its placeholder."""

    dialect: Dialect
    given: list[pa.Scalar] = field(default_factory=list)

    def add(self, value: Any, cast: str | None = None) -> str:
        self.given.append(value if isinstance(value, pa.Scalar) else pa.scalar(value))
        mark = self.dialect.placeholder(len(self.given))
        return f"CAST({mark} AS {cast})" if cast else mark


class Dialect:
    """Standard SQL. Databases without a subclass below use this dialect."""

    name = "sql"
    enforces_keys = False
    """Whether the database rejects a second row with the same primary key.

    Some databases accept the declaration and do not check it. They can't be sinks, because the sink's compare-and-set
    is an insert into the ledger that must fail if the key exists.
    """
    row_values = False
    """Whether the database can compare rows: `(a, b) > (c, d)`."""
    numbered = False
    """Whether a statement may use the same bound value twice."""
    drops_columns = True
    """Whether a column can be dropped from a table that has an index."""
    begin: tuple[str, ...] = ()
    """Statements that begin a reading transaction, so that it sees one consistent snapshot."""
    setup: tuple[str, ...] = ()
    """Statements that run once on every new connection."""
    keep_row = ""
    """Appended to a SELECT (`FOR SHARE`): locks the rows against changes until the transaction ends.

    Empty where the database lets only one transaction write at a time.
    """
    refuses_nul = False
    """Whether the database refuses the character U+0000 in a text."""
    has_infinite_times = False
    """Whether the latest and the earliest timestamp of 64 bits mean infinity."""
    differs = "IS DISTINCT FROM"
    """Compares two values, of which both may be NULL."""
    has_column_types = True
    """Whether a column holds values of one type only."""
    has_nan = True
    """Whether a column of floating-point numbers can hold a NaN."""
    rules: tuple[Rule, ...] = STANDARD
    text_type = "VARCHAR"
    json_type = "VARCHAR"

    def placeholder(self, number: int) -> str:
        """The placeholder of bound value `number`, counted from 1."""
        return "?"

    def type_of(self, kind: pa.DataType) -> str:
        """The database's type of a new column for values of an Arrow type. Nested values become JSON."""
        kind = unwrapped_type(kind)
        if pa.types.is_nested(kind):
            return self.json_type
        rule = self._rule(kind)
        return self.text_type if rule is None else rule.sql_of(kind)

    def staged_type(self, kind: pa.DataType) -> pa.DataType:
        """The Arrow type in which values of a type that is not nested are handed to the database."""
        rule = self._rule(kind)
        return pa.string() if rule is None else rule.staged_of(kind)

    def _rule(self, kind: pa.DataType) -> Rule | None:
        """None: the values become text."""
        return next((rule for rule in self.rules if rule.test(kind)), None)

    def key_type(self, kind: pa.DataType) -> str:
        """The database's type of a new primary key column."""
        return self.type_of(kind)

    def columns(self, query: Query, relation: str, names: Sequence[str]) -> list[Column]:
        """The named columns of a table or query. Types that Arrow does not have are selected as text."""
        fields = query(f"SELECT {', '.join(quote(name) for name in names)} FROM {relation} WHERE 1 = 0").schema
        return [self._column(field) for field in fields]

    def _column(self, field: pa.Field) -> Column:
        declared = self.declared(field)
        if isinstance(field.type, pa.BaseExtensionType):
            text = f"CAST({quote(field.name)} AS {self.text_type}) AS {quote(field.name)}"
            return Column(field.name, text, pa.string(), declared)
        return Column(field.name, quote(field.name), field.type, declared)

    def declared(self, field: pa.Field) -> str | None:
        """The database's type of a result's column. None if values need no cast to this type."""
        return None

    def bound(self, value: pa.Scalar, declared: str | None) -> pa.Scalar:
        """A key's value as it is bound, if it is then cast to the type `declared`."""
        return value

    def holds_infinity(self, column: pa.ChunkedArray) -> bool:
        """Whether a column of a result has a date or timestamp that means infinity, which Arrow does not have."""
        return False

    def above(self, columns: Sequence[str], marks: Sequence[str], compare: str) -> str:
        """The condition that the key `columns` is above (`>`) or not above (`<=`) the bound values `marks`."""
        names = [quote(column) for column in columns]
        if len(names) == 1:
            return f"{names[0]} {compare} {marks[0]}"
        if self.row_values:
            return f"({', '.join(names)}) {compare} ({', '.join(marks)})"
        if self.numbered:
            equal = [
                " AND ".join(f"{n} = {m}" for n, m in zip(names[:i], marks[:i], strict=True)) for i in range(len(names))
            ]
            strict = [compare.rstrip("=")] * (len(names) - 1) + [compare]
            parts = zip(equal, names, strict, marks, strict=True)
            return "(" + " OR ".join(f"({e} AND {n} {c} {m})" if e else f"{n} {c} {m}" for e, n, c, m in parts) + ")"
        raise SpecError(f"a key of several columns is not supported on {self.name}; give source.query with one column")

    def upsert(self, target: str, columns: Sequence[str], key: Sequence[str], select: str) -> str:
        """A statement that inserts the selected rows, and updates rows whose key exists."""
        names = ", ".join(quote(c) for c in columns)
        sets = ", ".join(f"{quote(c)} = excluded.{quote(c)}" for c in columns if c not in key)
        action = f"UPDATE SET {sets}" if sets else "NOTHING"
        conflict = ", ".join(quote(k) for k in key)
        insert = f"INSERT INTO {target} ({names}) SELECT * FROM ({select}) AS s WHERE true"
        return f"{insert} ON CONFLICT ({conflict}) DO {action}"

    def update(self, target: str, columns: Sequence[str], key: Sequence[str], select: str) -> str:
        """A statement that sets `columns` in the rows whose key is in the selection."""
        sets = ", ".join(f"{quote(c)} = s.{quote(c)}" for c in columns)
        on = " AND ".join(f"{target}.{quote(k)} = s.{quote(k)}" for k in key)
        return f"UPDATE {target} SET {sets} FROM ({select}) AS s WHERE {on}"


class _WithKeys(Dialect):
    """A database that enforces primary keys, so that a sink may write to it."""

    enforces_keys = True
    row_values = True


class PostgreSQL(_WithKeys):
    """PostgreSQL 12 and later."""

    name = "PostgreSQL"
    keep_row = "FOR SHARE"
    refuses_nul = True
    begin = ("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY",)
    text_type = "TEXT"
    json_type = "JSONB"
    rules = POSTGRESQL

    def placeholder(self, number: int) -> str:
        return f"${number}"

    def declared(self, field: pa.Field) -> str | None:
        name = (field.metadata or {}).get(b"POSTGRESQL:type")
        return quote(name.decode()) if name else None

    def holds_infinity(self, column: pa.ChunkedArray) -> bool:
        """The driver counts from 1970 in place of 2000, and infinities wrap around to before PostgreSQL's first day."""
        first = {pa.date32(): -2_440_588}.get(column.type, -2_440_588 * 86_400 * 10**6)
        return _is_day_or_microseconds(column.type) and bool(pc.any(pc.less(_count(column), first)).as_py())


class SQLite(_WithKeys):
    """SQLite 3.33 and later. A column may hold values of any type, so `columns` looks at the values to find a type."""

    name = "SQLite"
    setup = ("PRAGMA busy_timeout = 5000",)
    text_type = "TEXT"
    json_type = "TEXT"
    has_nan = False
    differs = "IS NOT"
    has_column_types = False
    rules = SQLITE

    def placeholder(self, number: int) -> str:
        return f"?{number}"

    def columns(self, query: Query, relation: str, names: Sequence[str]) -> list[Column]:
        found = []
        for name in names:
            column = quote(name)
            kinds = query(f"SELECT DISTINCT typeof({column}) AS kind FROM {relation} WHERE {column} IS NOT NULL")[
                "kind"
            ]
            held = frozenset(kinds.to_pylist())
            kind, cast = _AFFINITY.get(held, (pa.string(), "TEXT"))
            mixed = " and ".join(sorted(held)) if len(held) > 1 else ""
            found.append(Column(name, f"CAST({column} AS {cast}) AS {column}", kind, mixed=mixed))
        return found


class DuckDB(_WithKeys):
    """DuckDB 1.2 and later.

    `row_values` is off because DuckDB rewrites `(a, b) > … AND (a, b) <= …` as a BETWEEN and then fails.
    """

    name = "DuckDB"
    row_values = False
    numbered = True
    drops_columns = False
    json_type = "JSON"
    has_infinite_times = True
    rules = DUCKDB

    def columns(self, query: Query, relation: str, names: Sequence[str]) -> list[Column]:
        """Enumerations have an order of their own, and nanoseconds are lost in a Python value: both need a cast."""
        selected = ", ".join(quote(name) for name in names)
        kinds = query(f"SELECT column_name, column_type FROM (DESCRIBE SELECT {selected} FROM {relation})")
        declared = dict(zip(kinds["column_name"].to_pylist(), kinds["column_type"].to_pylist(), strict=True))
        return [
            replace(column, declared=declared[column.name]) if declared[column.name].startswith(_CAST) else column
            for column in super().columns(query, relation, names)
        ]

    def bound(self, value: pa.Scalar, declared: str | None) -> pa.Scalar:
        if declared is None:
            return value
        text = pa.array([value.as_py()]) if pa.types.is_dictionary(value.type) else pa.array([value]).cast(pa.string())
        return text[0]

    def holds_infinity(self, column: pa.ChunkedArray) -> bool:
        most = 2**31 - 1 if column.type == pa.date32() else 2**63 - 1
        time = column.type == pa.date32() or pa.types.is_timestamp(column.type)
        return bool(time and pc.any(pc.is_in(_count(column), pa.array([most, -most]))).as_py())

    def placeholder(self, number: int) -> str:
        return f"${number}"


def _is_day_or_microseconds(kind: pa.DataType) -> bool:
    return bool(kind == pa.date32() or (pa.types.is_timestamp(kind) and kind.unit == "us"))


def _count(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Days or units since 1970, int64."""
    return column.cast(pa.int32()).cast(pa.int64()) if column.type == pa.date32() else column.cast(pa.int64())


_CAST = ("ENUM", "TIMESTAMP_NS", "TIME WITH TIME ZONE")
"""Types of DuckDB to which a bound value must be cast."""
_AFFINITY = {
    frozenset({"integer"}): (pa.int64(), "INTEGER"),
    frozenset({"real"}): (pa.float64(), "REAL"),
    frozenset({"integer", "real"}): (pa.float64(), "REAL"),
    frozenset({"blob"}): (pa.binary(), "BLOB"),
}
