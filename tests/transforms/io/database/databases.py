"""Databases of one test each, for tests of table sources and sinks: how to reach them, fill them and look into them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa

from tagstream.schemas.dead_letters import DEAD_ROW, dead_schema
from tagstream.transforms.io.database import duckdb as duckdb_session
from tagstream.transforms.io.database.adbc import connect
from tagstream.transforms.io.database.dialect import quote
from tagstream.transforms.io.database.session import DatabaseError, Session
from tests.services.postgres import Postgres


class Database:
    """Base class: the parts that are the same for every database."""

    type = "sql"

    def session(self) -> Session:
        raise NotImplementedError

    def settings(self) -> dict[str, Any]:
        """The settings by which a specification reaches the database."""
        raise NotImplementedError

    def fill(self, table: str, rows: pa.Table, key: str | None = None) -> None:
        """Creates `table` with the rows."""
        session = self.session()
        staged = session.stage("filling", rows.to_reader())
        session.run(f"CREATE TABLE {quote(table)} AS SELECT * FROM {staged}")
        if key:
            session.run(f"CREATE UNIQUE INDEX {quote(f'{table}_key')} ON {quote(table)} ({quote(key)})")
        session.commit()
        session.close()

    def run(self, *statements: str) -> None:
        session = self.session()
        for statement in statements:
            session.run(statement)
        session.commit()
        session.close()

    def query(self, statement: str) -> list[dict[str, Any]]:
        return self.table(statement).to_pylist()

    def table(self, statement: str) -> pa.Table:
        """Rows of a query. A table without columns if the queried table does not exist."""
        session = self.session()
        try:
            return session.query(statement).replace_schema_metadata(None)
        except DatabaseError as error:
            if not any(words in str(error) for words in ("does not exist", "no such table")):
                raise
            return pa.table({})
        finally:
            session.close()

    def dead(self, table: str, kept: pa.Schema) -> pa.Table:
        """Dead letters as they were before they became rows of a table."""
        return as_letters(self.table(f"SELECT * FROM {quote(table)}"), kept)


def as_letters(found: pa.Table, kept: pa.Schema) -> pa.Table:
    """Rows of a dead-letter table, converted back to dead letters. No columns if there are none."""
    if not found.num_rows:
        return pa.table({})
    rows = pa.array([row and json.loads(row) for row in found[DEAD_ROW].to_pylist()], pa.struct(list(kept)))
    schema = dead_schema(kept)
    return pa.table([rows if f.name == DEAD_ROW else found[f.name].cast(f.type) for f in schema], schema)


class PostgresDatabase(Database):
    def __init__(self, server: Postgres, name: str) -> None:
        self.uri = server.uri(name)
        if name not in server.databases():
            server.create_database(name)

    def session(self) -> Session:
        return connect(self.uri)

    def settings(self) -> dict[str, Any]:
        return {"type": "sql", "uri": self.uri}


class DuckDatabase(Database):
    def __init__(self, folder: Path) -> None:
        self.path = f"{folder}/data.duckdb"

    def session(self) -> Session:
        return duckdb_session.connect(self.path)

    def settings(self) -> dict[str, Any]:
        return {"type": "duckdb", "path": self.path}


class SqliteDatabase(Database):
    def __init__(self, folder: Path) -> None:
        self.uri = f"sqlite:///{folder}/data.db"

    def session(self) -> Session:
        return connect(self.uri)

    def settings(self) -> dict[str, Any]:
        return {"type": "sql", "uri": self.uri}
