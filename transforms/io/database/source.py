"""A table or a query with a key as a source. Works for every database that has a `Session`.

A position must stay true while rows are inserted, deleted and updated, so a position can't be a row number of the
table. Instead:

- **Planning** cuts the key space once into ranges (lo, hi] of `split_rows` rows each. The bounds are exact quantiles,
  so the ranges are even for any distribution of keys. The sink keeps the plan. If two processes plan at once, the
  first one wins, and all processes and later runs follow its plan.
- **A split is read and committed whole.** Positions inside a split are row numbers in key order, and are valid only
  for one attempt. A kill costs at most the work of one split. The last position is always `END`.
- **New rows.** A row inserted into a range that is not read yet is labelled with the range. A row inserted into a
  range that was read, or above the last range, is not labelled. With `only_new`, each run plans another range above
  the highest key. This finds every row only if keys ascend with time: a row that commits late with a lower key is
  missed.
  With `only_new: missing`, each run plans another round: ranges of all keys. The sink then drops the rows of each block
  whose present text has a label (`texts.py`). A round begins when all splits of the rounds before are done.
- **Reading** goes page by page, `key > last`, in the database's order of the key, in one snapshot where the database
  has snapshots (PostgreSQL: REPEATABLE READ). After a lost connection, reading continues above the last key, in a new
  snapshot.

The key must be unique and not null. Both planning and reading check this.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tagstream.schemas.block import END, Block, Span, Split, split_id
from tagstream.schemas.dead_letters import empty_batch, no_dead
from tagstream.schemas.errors import SourceError
from tagstream.schemas.spec import JobSpec
from tagstream.schemas.sql_spec import SqlSource
from tagstream.transforms.io.common.block_cutter import BlockCutter, check_columns, check_planned
from tagstream.transforms.io.database.dialect import Column, Values, last_part, quote, table_name
from tagstream.transforms.io.database.session import DatabaseError, Kind, Session, Sessions, retried
from tagstream.transforms.runtime.job_context import JobContext

_FIRST_PAGE = 256
_CHECKED_BOUNDS = 16
"""About how many bounds of ranges are counted up to when the ranges are planned."""
_PAGE_BYTES = 32 << 20
"""Target size of one page. A page is larger if its rows are much longer than the rows before."""
_ROUND = "round"
"""Payload key: the number of the round. The first round has none."""
Key = list[pa.Scalar]


class TableSource:
    """See `io.contracts.PlanningSource`.

    `connect` opens a session. `where` names the database in messages, without secrets.
    """

    def __init__(self, spec: JobSpec, context: JobContext, connect: Callable[[], Session], where: str) -> None:
        self.spec = cast("SqlSource", spec.source)
        self.sessions = Sessions(connect, context)
        self.relation = table_name(self.spec.table) if self.spec.table else f"({_select(self.spec)}) AS q"
        self.where = f"{where}: {self.spec.table or 'query'}"
        self.columns = self._inspect()
        self.kept = check_columns(self._schema(self.columns), self.spec, self.where)
        if mixed := [column for column in self.columns_of(self.spec.key) if column.mixed]:
            raise SourceError(
                f"{self.where}: the key {mixed[0].name!r} holds values of the types {mixed[0].mixed}, which have no "
                "order that a page can rely on. Choose a key of one type, or a query that casts it"
            )
        self.cutter = BlockCutter(self.spec, self.kept, spec.blocks)
        self.row_bytes: float | None = None
        self.notes: list[str] = []

    def splits(self) -> list[Split]:
        """The splits that a first run plans."""
        return self.more_splits([])

    def more_splits(self, planned: list[Split], limit: int | None = None) -> list[Split]:
        """Splits for the rows above the planned ranges. None are planned without `only_new`, except in a first run."""
        end = None if limit is None else limit - sum(split.rows for split in planned)
        check_planned(planned, "relation", self.relation)
        if planned and not self.spec.only_new:
            return []
        if self.by_state:
            number = _round_of(planned[-1]) + 1 if planned else 0
            return retried(
                lambda: self._plan(None, limit, number), SourceError, lambda message: f"{self.where}: {message}"
            )
        low = planned[-1].payload["hi"] if planned else None
        self.notes = retried(lambda: self._late_rows(planned), SourceError, lambda message: f"{self.where}: {message}")
        return retried(lambda: self._plan(low, end), SourceError, lambda message: f"{self.where}: {message}")

    @property
    def by_state(self) -> bool:
        """See `io.contracts.RoundsSource`."""
        return self.spec.by_state

    def last_round(self, planned: list[Split]) -> list[Split]:
        """See `io.contracts.RoundsSource`."""
        return [split for split in planned if _round_of(split) == _round_of(planned[-1])]

    def read(self, split: Split, start: int) -> Iterator[Block]:
        """Blocks of the split. Reading always begins at the split's first row; rows below `start` are dropped."""
        if start < END:
            yield from (block.after(start) for block in self._blocks(split) if block.span.stop > start)

    def _blocks(self, split: Split) -> Iterator[Block]:
        high, last = self.decode(split.payload["hi"]), self.decode(split.payload["lo"])
        position, before = 0, None
        with self._reading() as reader:
            while True:
                rows = reader.rows()
                page = reader.page(last, cast("Key", high), rows)
                if page.num_rows:
                    keys = page.select(self.spec.key)
                    self._refuse_duplicates(keys if before is None else pa.concat_tables([before, keys]))
                    before = keys.slice(keys.num_rows - 1)
                    last = [before[name][0] for name in self.spec.key]
                    for batch in page.combine_chunks().to_batches():
                        yield from self.cutter.cut(split.id, batch, position)
                        position += batch.num_rows
                if page.num_rows < rows:
                    break
            reader.check_count(split, position)
        yield Block(Span(split.id, position, END), empty_batch(self.cutter.schema), no_dead(self.kept))

    @contextmanager
    def _reading(self) -> Iterator[_Reader]:
        reader = _Reader(self)
        try:
            yield reader
        finally:
            reader.close()

    def _inspect(self) -> list[Column]:
        def work() -> list[Column]:
            with self.sessions.lent() as session:
                every = session.query(f"SELECT * FROM {self.relation} WHERE 1 = 0").schema.names
                kept = every if self.spec.keeps_all else self.spec.kept
                wanted = [n for n in dict.fromkeys([*kept, self.spec.text]) if n in every]
                found = {c.name: c for c in session.dialect.columns(session.query, self.relation, wanted)}
                return [found.get(name) or Column(name, quote(name), pa.null()) for name in every]

        return retried(work, SourceError, lambda message: f"{self.where}: {message}")

    def _schema(self, columns: list[Column]) -> pa.Schema:
        return pa.schema([(column.name, column.type) for column in columns])

    def _plan(self, low: Any, end: int | None, number: int = 0) -> list[Split]:
        """Splits for the keys above `low`. `end`: the number of a row after which a split ends as well.

        `number`: of the round.
        """
        with self.sessions.lent() as session:
            for statement in session.dialect.begin:
                session.run(statement)
            key = ", ".join(quote(name) for name in self.spec.key)
            nulls = " OR ".join(f"{quote(name)} IS NULL" for name in self.spec.key)
            if session.query(f"SELECT 1 FROM {self.relation} WHERE {nulls} LIMIT 1").num_rows:
                raise SourceError(
                    f"{self.where}: there are rows whose key ({key}) is NULL. Choose a key that every row has"
                )
            values = Values(session.dialect)
            where = self.range_clause(values, self.decode(low), None)
            same = f"SELECT {key} FROM {self.relation} {where} GROUP BY {key} HAVING count(*) > 1 LIMIT 1"
            if (double := session.query(same, values.given)).num_rows:
                raise SourceError(f"{self.where}: the key ({key}) is not unique: {double.to_pylist()[0]} occurs twice")
            select = ", ".join(column.expression for column in self.columns_of(self.spec.key))
            bounds = session.query(
                f"SELECT {select}, n_ FROM (SELECT {key}, row_number() OVER (ORDER BY {key}) AS n_, "
                f"count(*) OVER () AS of_ FROM {self.relation} {where}) AS r_ "
                f"WHERE n_ % {self.spec.split_rows} = 0 OR n_ = of_ OR n_ = {int(end or 0)} ORDER BY n_",
                values.given,
            )
            self.refuse_infinity(session, bounds)
            splits = self._splits(bounds, low, {_ROUND: number} if number else {})
            self._check_order(session, splits, low)
        return splits

    def _check_order(self, session: Session, splits: list[Split], low: Any) -> None:
        """Raises SourceError unless the database has as many rows up to some bounds as it counted to find them.

        It has not if a bound is not the same value any more, or if it is compared in another order than that of the
        sorted keys. Rows would then be in no range.
        """
        step = -(-len(splits) // _CHECKED_BOUNDS) or 1
        ends = np.cumsum([split.planned for split in splits]).tolist()
        chosen = sorted({*range(step - 1, len(splits), step), len(splits) - 1} - {-1})
        if not chosen:
            return
        values = Values(session.dialect)
        whole = session.dialect.type_of(pa.int64())
        counts = []
        for number in chosen:
            within = self.range_clause(values, None, self.decode(splits[number].payload["hi"])).removeprefix("WHERE ")
            counts.append(f"CAST(COALESCE(sum(CASE WHEN {within} THEN 1 ELSE 0 END), 0) AS {whole}) AS c{number}")
        where = self.range_clause(values, self.decode(low), None)
        found = session.query(f"SELECT {', '.join(counts)} FROM {self.relation} {where}", values.given)
        for number in chosen:
            if (there := found[f"c{number}"][0].as_py()) != ends[number]:
                raise SourceError(
                    f"{self.where}: the key ({', '.join(self.spec.key)}) can't be used. By its order {ends[number]:,} "
                    f"rows come up to a certain value, but {there:,} compare as not greater. Choose a key of integers, "
                    "text, UUIDs or timestamps, or a query that casts the key to one of these"
                )

    def refuse_infinity(self, session: Session, table: pa.Table) -> None:
        """Raises SourceError for dates and timestamps that are infinite."""
        for name in table.column_names:
            if session.dialect.holds_infinity(table[name]):
                raise SourceError(
                    f"{self.where}: column {name!r} holds infinity, which no output can hold. Use a query that casts "
                    "the column to text, or leave the column out of source.keep"
                )

    def _late_rows(self, planned: list[Split]) -> list[str]:
        """A note if there are more rows up to the highest key of earlier runs than these runs have found."""
        if not planned:
            return []
        with self.sessions.lent() as session:
            there = self.count(session, None, planned[-1].payload["hi"])
        late = there - sum(split.rows for split in planned)
        if late <= 0:
            return []
        note = (
            f"{late:,} rows or more came later with keys below those of earlier runs. Where their range is done,"
            " only_new does not label them: use a key that ascends with time, or label the table anew (--overwrite)"
        )
        return [note]

    def _splits(self, bounds: pa.Table, low: Any, more: dict[str, Any]) -> list[Split]:
        """One split for each row of `bounds`: its highest key and, in the last column, the number of its last row.

        `more`: for the payloads.
        """
        splits, first = [], 0
        numbers = bounds.columns[-1].to_pylist()
        stem = last_part(self.spec.table) if self.spec.table else "query"
        for row, number in enumerate(numbers):
            high = _encode([bounds[name][row] for name in self.spec.key])
            payload = {"relation": self.relation, "lo": low, "hi": high, **more}
            splits.append(Split(split_id(stem, **payload), 0, END, payload, planned=number - first))
            low, first = high, number
        return splits

    def range_clause(self, values: Values, low: Key | None, high: Key | None) -> str:
        """A WHERE clause for the keys above `low` and up to `high`. None: no bound on that side."""
        parts = []
        for bound, compare in ((low, ">"), (high, "<=")):
            if bound is not None:
                casts = [column.declared for column in self.columns_of(self.spec.key)]
                given = [values.dialect.bound(value, cast) for value, cast in zip(bound, casts, strict=True)]
                marks = [values.add(value, cast) for value, cast in zip(given, casts, strict=True)]
                parts.append(values.dialect.above(self.spec.key, marks, compare))
        return f"WHERE {' AND '.join(parts)}" if parts else ""

    def count(self, session: Session, low: Any, high: Any) -> int:
        """How many rows the database has in a range, whose bounds are as a payload holds them."""
        values = Values(session.dialect)
        where = self.range_clause(values, self.decode(low), self.decode(high))
        whole = session.dialect.type_of(pa.int64())
        found = session.query(f"SELECT CAST(count(*) AS {whole}) AS n FROM {self.relation} {where}", values.given)
        return int(found["n"][0].as_py())

    def columns_of(self, names: Sequence[str]) -> list[Column]:
        return [next(column for column in self.columns if column.name == name) for name in names]

    def _refuse_duplicates(self, keys: pa.Table) -> None:
        """Raises SourceError if two keys are equal. `keys` must be in order, so that equal keys are neighbours."""
        if keys.num_rows < 2:
            return
        same = [
            pc.equal(column.slice(1), column.slice(0, keys.num_rows - 1)) for column in keys.combine_chunks().columns
        ]
        for more in same[1:]:
            same[0] = pc.and_(same[0], more)
        if pc.any(same[0]).as_py():
            raise SourceError(f"{self.where}: the key ({', '.join(self.spec.key)}) is not unique any more")

    def decode(self, key: Any) -> Key | None:
        if key is None:
            return None
        if isinstance(key, str):
            with pa.ipc.open_stream(base64.b64decode(key)) as stream:
                return [column[0] for column in stream.read_all().columns]
        return [
            pa.scalar(value, column.type) for value, column in zip(key, self.columns_of(self.spec.key), strict=True)
        ]


class _Reader:
    """Reads the pages of one split. All pages come from one snapshot, unless the connection is lost."""

    def __init__(self, source: TableSource) -> None:
        self.source = source
        self._session: Session | None = None

    def rows(self) -> int:
        """How many rows the next page should have, estimated from the size of the rows seen before."""
        size = self.source.row_bytes
        return _FIRST_PAGE if size is None else max(1, min(self.source.spec.split_rows, int(_PAGE_BYTES / size)))

    def page(self, low: Key | None, high: Key, rows: int) -> pa.Table:
        """The next `rows` rows with keys above `low` and up to `high`."""
        source = self.source

        def work() -> pa.Table:
            try:
                if self._session is None:
                    self._session = source.sessions.take()
                    for statement in self._session.dialect.begin:
                        self._session.run(statement)
                wanted = source.columns_of(list(dict.fromkeys([*source.kept.names, source.spec.text])))
                values = Values(self._session.dialect)
                where = source.range_clause(values, low, high)
                order = ", ".join(f"q.{quote(name)}" for name in source.spec.key)  # by the column, not its text
                relation = f"{source.relation} AS q" if source.spec.table else source.relation
                found = self._session.query(
                    f"SELECT {', '.join(c.expression for c in wanted)} FROM {relation} {where} "
                    f"ORDER BY {order} LIMIT {rows}",
                    values.given,
                )
                source.refuse_infinity(self._session, found)
                if not self._session.dialect.begin:  # no snapshot: hold no lock between pages
                    self._session.rollback()
                return _as_inspected(found, wanted)
            except DatabaseError as failure:
                self.close(lost=failure.kind is Kind.LOST)
                raise
            except pa.ArrowException as error:
                raise DatabaseError(f"a value does not fit its column: {error}", Kind.OTHER) from None

        page = retried(work, SourceError, lambda message: f"{source.where}: {message}")
        if page.num_rows:
            source.row_bytes = max(page.nbytes / page.num_rows, 1.0)
        return page

    def check_count(self, split: Split, read: int) -> None:
        """Raises SourceError if the snapshot has another number of rows in the split's range than were read."""
        if self._session is None or not self._session.dialect.begin:
            return  # without a snapshot, rows may have come and gone in between
        there = self.source.count(self._session, split.payload["lo"], split.payload["hi"])
        if there != read:
            raise SourceError(
                f"{self.source.where}: the database has {there:,} rows between two keys where {read:,} were read. "
                "Choose another key (source.id)"
            )

    def close(self, *, lost: bool = False) -> None:
        if self._session is not None:
            self.source.sessions.give(self._session, lost=lost)
            self._session = None


def _as_inspected(table: pa.Table, columns: list[Column]) -> pa.Table:
    """The table with the column types that `_inspect` found. A database may give a page of nulls any type."""
    arrays = [
        pa.nulls(table.num_rows, column.type) if values.null_count == len(values) else values.cast(column.type)
        for column, values in zip(columns, table.columns, strict=True)
    ]
    return pa.table(arrays, [column.name for column in columns])


def _round_of(split: Split) -> int:
    return int(split.payload.get(_ROUND, 0))


def _select(spec: SqlSource) -> str:
    query = (spec.query or "").strip().rstrip(";")
    return f"{query}\n" if "--" in query.rpartition("\n")[2] else query  # a comment must not hide what follows


def _encode(key: Key) -> Any:
    """A key as a JSON value, exact for every type.

    Integers and text become a JSON list. A key with any other type becomes an Arrow stream in base64.
    """
    if all(pa.types.is_integer(value.type) or pa.types.is_string(value.type) for value in key):
        return [value.as_py() for value in key]
    batch = pa.RecordBatch.from_arrays([pa.array([v.as_py()], v.type) for v in key], [str(i) for i in range(len(key))])
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as stream:
        stream.write_batch(batch)
    return base64.b64encode(sink.getvalue()).decode()
