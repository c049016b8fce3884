"""Iceberg and Delta tables of one test each: how a specification reaches them, how to fill them and look into them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa


class Lake:
    """Base: what is the same whatever the format is."""

    type: str

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def settings(self, table: str) -> dict[str, Any]:
        """What a specification says to reach a table."""
        raise NotImplementedError

    def append(self, table: str, rows: pa.Table) -> None:
        """Adds rows as one data file, to a table that is made if need be."""
        raise NotImplementedError

    def table(self, table: str) -> pa.Table:
        """All rows, as an outside reader sees them; no columns if the table is not there."""
        raise NotImplementedError


class IcebergLake(Lake):
    """A catalog in SQLite, tables in a folder beside it."""

    type = "iceberg"

    @property
    def properties(self) -> dict[str, str]:
        return {
            "name": "tests",
            "type": "sql",
            "uri": f"sqlite:///{self.folder}/catalog.db",
            "warehouse": f"file://{self.folder}/warehouse",
        }

    def catalog(self) -> Any:
        from pyiceberg.catalog import load_catalog

        return load_catalog(**self.properties)

    def settings(self, table: str) -> dict[str, Any]:
        return {"type": "iceberg", "catalog": self.properties, "table": f"lake.{table}"}

    def append(self, table: str, rows: pa.Table) -> None:
        catalog = self.catalog()
        catalog.create_namespace_if_not_exists("lake")
        catalog.create_table_if_not_exists(f"lake.{table}", rows.schema).append(rows)

    def table(self, table: str) -> pa.Table:
        from pyiceberg.exceptions import NoSuchTableError

        try:
            found = self.catalog().load_table(f"lake.{table}").scan().to_arrow()
        except NoSuchTableError:
            return pa.table({})
        return found


class DeltaLake(Lake):
    """Tables in a folder."""

    type = "delta"

    def settings(self, table: str) -> dict[str, Any]:
        return {"type": "delta", "path": f"{self.folder}/{table}"}

    def append(self, table: str, rows: pa.Table) -> None:
        from deltalake import write_deltalake

        write_deltalake(f"{self.folder}/{table}", rows, mode="append")

    def table(self, table: str) -> pa.Table:
        from deltalake import DeltaTable

        if not DeltaTable.is_deltatable(f"{self.folder}/{table}"):
            return pa.table({})
        return DeltaTable(f"{self.folder}/{table}").to_pyarrow_table()
