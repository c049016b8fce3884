"""Fixtures of the tests of whole jobs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.transforms.io.database.databases import Database, DuckDatabase, PostgresDatabase, SqliteDatabase


@pytest.fixture(params=["postgres", "sqlite", "duckdb"])
def db(request: pytest.FixtureRequest, tmp_path: Path) -> Database:
    """An empty database of each kind."""
    if request.param == "duckdb":
        return DuckDatabase(tmp_path)
    if request.param == "sqlite":
        return SqliteDatabase(tmp_path)
    server = request.getfixturevalue("postgres")
    return PostgresDatabase(server, re.sub(r"\W+", "_", f"{tmp_path.parent.name}_{tmp_path.name}").lower())
