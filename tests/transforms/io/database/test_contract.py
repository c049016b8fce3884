"""PostgreSQL, SQLite and DuckDB keep what sources and sinks promise."""

from __future__ import annotations

import hashlib
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from tagstream.schemas.block import POSITION, Block, Span
from tagstream.schemas.dead_letters import no_dead
from tagstream.schemas.errors import LedgerError
from tagstream.schemas.fingerprint import Fingerprint
from tagstream.schemas.spec import JobSpec
from tagstream.transforms.io.contracts import Sink, Source
from tagstream.transforms.io.registry import open_sink, open_source
from tagstream.transforms.runtime.job_context import JobContext
from tests.services.postgres import Postgres
from tests.transforms.io.database.databases import Database, DuckDatabase, PostgresDatabase, SqliteDatabase
from tests.transforms.io.sink_contract import JOB, KEPT, OTHER, SPLIT, SinkContract, block
from tests.transforms.io.source_contract import SourceContract, job


class _OnPostgres:
    @pytest.fixture(autouse=True)
    def _server(self, postgres: Postgres) -> None:
        type(self).server = postgres

    def database(self, folder: Path) -> Database:
        return PostgresDatabase(self.server, hashlib.md5(str(folder).encode()).hexdigest())


class _OnSqlite:
    def database(self, folder: Path) -> Database:
        return SqliteDatabase(folder)


class _OnDuckDB:
    def database(self, folder: Path) -> Database:
        return DuckDatabase(folder)


class TableSourceContract(SourceContract):
    key = "id"

    def open_source(self, folder: Path, table: pa.Table, blocks: dict[str, int], **settings: Any) -> Source:
        database = self.database(folder)
        if not database.table("SELECT * FROM rows").num_columns:
            database.fill("rows", table, key="id")
        return open_source(job({**database.settings(), "table": "rows", **settings}, **blocks), JobContext())


class TableSinkContract(SinkContract):
    def open_sink(self, folder: Path, **settings: Any) -> Sink:
        return open_sink(self.job({**self.database(folder).settings(), "table": "labels", **settings}), JobContext())

    def labels(self, folder: Path) -> pa.Table:
        found = self.database(folder).table("SELECT * FROM labels")
        if "tag_score" in found.column_names:
            score = found.column_names.index("tag_score")
            found = found.set_column(score, "tag_score", found["tag_score"].cast(pa.float32()))
        if not found.num_rows:  # SQLite knows no types then
            return pa.table({})
        return found.cast(pa.schema([field.remove_metadata() for field in found.schema]))

    def dead(self, folder: Path) -> pa.Table:
        return self.database(folder).dead("labels_dead", KEPT)

    def test_nothing_is_committed_behind_a_hole(self, tmp_path: Path) -> None:
        """If another process overwrites the output, the ledger is emptied. A run that is still alive must stop."""
        alive = self.ready(tmp_path).open(SPLIT)
        alive.write(block(0, 20))
        alive.commit()
        anew = self.ready(tmp_path, overwrite=True)
        other = anew.open(OTHER)
        other.write(block(100, 110, OTHER))
        other.commit()
        alive.write(block(20, 40))
        with pytest.raises(LedgerError, match="was overwritten while this one ran"):
            alive.commit()
        alive.close()
        self.check(tmp_path, 0)
        writer = anew.open(SPLIT)
        writer.write(block(0, 40))
        writer.commit()
        self.check(tmp_path, 40)

    @pytest.mark.parametrize("mode", ["upsert", "update"])
    def test_the_last_row_of_a_key_wins(self, tmp_path: Path, mode: str) -> None:
        """If a key occurs twice, the last row wins, also within one commit and in any order of blocks."""
        database = self.database(tmp_path)
        database.fill("labels", pa.table({"id": ["a", "b"]}), key="id")
        sink = open_sink(
            JobSpec.model_validate(
                {
                    "source": {"type": "parquet", "path": "unused", "id": "id"},
                    "infer": [{"as": "tag", "backend": {"type": "constant"}}],
                    "sink": {**database.settings(), "table": "labels", "mode": mode, "adopt": True},
                }
            ),
            JobContext(),
        )
        sink.prepare(JOB, overwrite=False)
        writer = sink.open(SPLIT)
        for start, keys, labels in [(0, "aba", "xyz"), (3, "bab", "uvw")]:
            positions = pa.array(range(start, start + 3), pa.int64())
            batch = pa.record_batch([[*keys], positions, [*labels]], ["id", POSITION, "tag"])
            writer.write(Block(Span(SPLIT.id, start, start + 3), batch, no_dead(KEPT)))
        writer.commit()
        assert database.query('SELECT "id", "tag" FROM labels ORDER BY "id"') == [
            {"id": "a", "tag": "v"},
            {"id": "b", "tag": "w"},
        ]


class TestPostgresSource(_OnPostgres, TableSourceContract):
    kept_types = ("bool", "double", "date", "instant", "string", "binary", "list", "a.b")

    def test_null_and_invalid_texts_are_kept(self, tmp_path: Path) -> None:
        """The database holds valid UTF-8 without NUL only."""
        table = pa.table({"id": range(3), "text": ["ok", None, ""]})
        source = self.source(tmp_path, table)
        assert self.rows(source, "__text") == ["ok", None, ""]


class TestPostgresSink(_OnPostgres, TableSinkContract):
    def test_overwritten_within_a_commit(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A commit and an overwrite don't mix: the commit is complete before the overwrite, or is refused."""
        job = Fingerprint({"model": "a"}, block(0, 20).batch.schema)
        sink = self.ready(tmp_path, job)
        writer = sink.open(SPLIT)
        writer.write(block(0, 20))
        writer.commit()
        thread = threading.Thread(target=lambda: self.ready(tmp_path, job, overwrite=True))
        move = sink.target.move

        def slowly(*given: Any) -> None:
            if thread.ident is None:
                thread.start()
                thread.join(0.5)
            move(*given)

        monkeypatch.setattr(sink.target, "move", slowly)
        writer.write(block(20, 40))
        with suppress(LedgerError):
            writer.commit()
        thread.join()
        assert sink.progress() == {}
        assert not self.labels(tmp_path).num_rows


class TestDuckDBSource(_OnDuckDB, TableSourceContract):
    kept_types = ("bool", "int8", "uint64", "double", "decimal", "date", "instant", "string", "binary", "list", "a.b")

    def test_null_and_invalid_texts_are_kept(self, tmp_path: Path) -> None:
        """The database holds valid UTF-8 only."""
        table = pa.table({"id": range(4), "text": ["ok", None, "", "nul\x00"]})
        source = self.source(tmp_path, table)
        assert self.rows(source, "__text") == ["ok", None, "", "nul\x00"]


class TestDuckDBSink(_OnDuckDB, TableSinkContract):
    pass


class TestSqliteSource(_OnSqlite, TableSourceContract):
    kept_types = ("string", "binary", "a.b")  # a NaN is NULL there


class TestSqliteSink(_OnSqlite, TableSinkContract):
    pass
