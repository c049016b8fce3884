"""Iceberg and Delta tables of one test each: how a specification reaches them, how to fill them and look into them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa


class Lake:
    """Base class: the parts that are the same for every format."""

    type: str

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def settings(self, table: str) -> dict[str, Any]:
        """The settings by which a specification reaches a table."""
        raise NotImplementedError

    def append(self, table: str, rows: pa.Table) -> None:
        """Adds rows as one data file. Creates the table or adds columns if necessary."""
        raise NotImplementedError

    def rewrite(self, table: str) -> None:
        """Rewrites files with changed rows, in one commit."""
        raise NotImplementedError

    def delete(self, table: str, where: str) -> None:
        """Deletes rows, in one commit."""
        raise NotImplementedError

    def expire(self, table: str) -> None:
        """Forgets all history."""
        raise NotImplementedError

    def version(self, table: str) -> int:
        """The current version."""
        raise NotImplementedError

    def roll_back(self, table: str, version: int) -> None:
        """Makes an older version the current one."""
        raise NotImplementedError

    def notes(self, table: str) -> list[dict[str, Any]]:
        """The note of each commit."""
        return self.rows_and_notes(table, None)[1]

    def rows_and_notes(self, table: str, column: str | None) -> tuple[list[Any], list[dict[str, Any]]]:
        """Values of a column, if one is named, and the notes of the commits, all of the same version."""
        raise NotImplementedError

    def exists(self, table: str) -> bool:
        """The table has been made."""
        raise NotImplementedError

    def table(self, table: str) -> pa.Table:
        """All rows, as an outside reader sees them. No columns if the table does not exist."""
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
        found = catalog.create_table_if_not_exists(f"lake.{table}", rows.schema)
        with found.update_schema() as update:
            update.union_by_name(rows.schema)
        found.append(rows)

    def rewrite(self, table: str) -> None:
        self.load(table).delete("id < 10")

    def delete(self, table: str, where: str) -> None:
        self.load(table).delete(where)

    def expire(self, table: str) -> None:
        found = self.load(table)
        old = [s.snapshot_id for s in found.metadata.snapshots if s.snapshot_id != found.metadata.current_snapshot_id]
        found.maintenance.expire_snapshots().by_ids(old).commit()

    def version(self, table: str) -> int:
        return self.load(table).metadata.current_snapshot_id

    def roll_back(self, table: str, version: int) -> None:
        self.load(table).manage_snapshots().rollback_to_snapshot(version).commit()

    def rows_and_notes(self, table: str, column: str | None) -> tuple[list[Any], list[dict[str, Any]]]:
        found = self.load(table)
        rows = found.scan(selected_fields=(column,)).to_arrow()[column].to_pylist() if column else []
        return rows, [snapshot.summary.additional_properties for snapshot in found.metadata.snapshots]

    def exists(self, table: str) -> bool:
        return self.catalog().table_exists(f"lake.{table}")

    def load(self, table: str) -> Any:
        return self.catalog().load_table(f"lake.{table}")

    def table(self, table: str) -> pa.Table:
        return self.load(table).scan().to_arrow() if self.exists(table) else pa.table({})


class DeltaLake(Lake):
    """Tables in a folder."""

    type = "delta"

    def settings(self, table: str) -> dict[str, Any]:
        return {"type": "delta", "path": f"{self.folder}/{table}"}

    def append(self, table: str, rows: pa.Table) -> None:
        from deltalake import write_deltalake

        write_deltalake(f"{self.folder}/{table}", rows, mode="append", schema_mode="merge")

    def rewrite(self, table: str) -> None:
        self.load(table).update({"lang": "'de'"})

    def delete(self, table: str, where: str) -> None:
        self.load(table).delete(where)

    def compact(self, table: str) -> None:
        """Rewrites the files as one."""
        self.load(table).optimize.compact()

    def vacuum(self, table: str) -> None:
        """Deletes files that the current version does not refer to."""
        self.load(table).vacuum(retention_hours=0, enforce_retention_duration=False, dry_run=False)

    def expire(self, table: str) -> None:
        """Writes a checkpoint and removes the commits before it."""
        found = self.load(table)
        found.create_checkpoint()
        for commit in (self.folder / table / "_delta_log").glob("*.json"):
            if int(commit.stem) < found.version():
                commit.unlink()

    def hide(self, table: str) -> None:
        """Gives the table's only file a deletion vector: the protocol's inline example, which deletes six rows."""
        found = self.load(table)
        log = self.folder / table / "_delta_log"
        actions = [json.loads(line) for line in (log / f"{found.version():020d}.json").read_text().splitlines()]
        (add,) = (action["add"] for action in actions if "add" in action)
        vector = {
            "storageType": "i",
            "pathOrInlineDv": "^Bg9^0rr910000000000iXQKl0rr91000f55c8Xg0@@D72lkbi5=-{L",
            "sizeInBytes": 44,
            "cardinality": 6,
        }
        features = {"readerFeatures": ["deletionVectors"], "writerFeatures": ["deletionVectors"]}
        remove = {"path": add["path"], "deletionTimestamp": 0, "dataChange": True}
        lines = [
            {"protocol": {"minReaderVersion": 3, "minWriterVersion": 7, **features}},
            {"remove": remove},
            {"add": {**add, "deletionVector": vector}},
        ]
        (log / f"{found.version() + 1:020d}.json").write_text("\n".join(map(json.dumps, lines)))

    def version(self, table: str) -> int:
        return self.load(table).version()

    def roll_back(self, table: str, version: int) -> None:
        self.load(table).restore(version)

    def rows_and_notes(self, table: str, column: str | None) -> tuple[list[Any], list[dict[str, Any]]]:
        found = self.load(table)
        rows = found.to_pyarrow_table(columns=[column])[column].to_pylist() if column else []
        log = self.folder / table / "_delta_log"
        commits = sorted(c for c in log.glob("*.json") if c.stem.isdigit() and int(c.stem) <= found.version())
        actions = [json.loads(line) for commit in commits for line in commit.read_text().splitlines()]
        return rows, [action["commitInfo"] for action in actions if "commitInfo" in action]

    def exists(self, table: str) -> bool:
        from deltalake import DeltaTable

        return DeltaTable.is_deltatable(f"{self.folder}/{table}")

    def load(self, table: str) -> Any:
        from deltalake import DeltaTable

        return DeltaTable(f"{self.folder}/{table}")

    def table(self, table: str) -> pa.Table:
        if not self.exists(table):
            return pa.table({})
        return self.load(table).to_pyarrow_table()
