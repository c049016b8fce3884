"""Reads a Delta table's transaction log directly, for facts that the deltalake package does not expose.

Application transactions of all names come from the last checkpoint and the commits after it. The actions of a range
of versions come from the commits alone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pyarrow.fs as pafs
import pyarrow.parquet as pq

LOG = "_delta_log"
_COMMIT = re.compile(r"^(\d{20})\.json$")
_CHECKPOINT = re.compile(r"^(\d{20})\.checkpoint\.(?:(?P<v2>[0-9a-f-]{36})\.|\d{10}\.\d{10}\.)?(?P<kind>parquet|json)$")


class DeltaLog:
    """The log up to `version`. `files`: the table's folder."""

    def __init__(self, files: pafs.FileSystem, version: int) -> None:
        self.files = files
        self.version = version
        found = files.get_file_info(pafs.FileSelector(LOG, allow_not_found=True))
        names = [info.path.rpartition("/")[2] for info in found]
        self._commits = {int(m[1]): m[0] for m in map(_COMMIT.match, names) if m and int(m[1]) <= version}
        self._checkpoints: dict[int, list[str]] = {}
        for match in map(_CHECKPOINT.match, names):
            if match and int(match[1]) <= version:
                self._checkpoints.setdefault(int(match[1]), []).append(match[0])

    def actions(self, version: int) -> list[dict[str, Any]] | None:
        """Actions of one commit; None if the commit's log file was cleaned up."""
        if version not in self._commits:
            return None
        return list(self._lines(self._commits[version]))

    def transactions(self) -> dict[str, int]:
        """The version of every application transaction, by its name."""
        start = max(self._checkpoints, default=-1)
        found: dict[str, int] = {}
        for name in self._checkpoints.get(start, ()):
            for action in self._checkpoint(name):
                found[action["appId"]] = action["version"]
        for action in self._since(start):
            if "txn" in action:
                found[action["txn"]["appId"]] = action["txn"]["version"]
        return found

    def notes(self) -> list[tuple[int, dict[str, Any]]]:
        """(version, `commitInfo`) of each commit that the log still holds, the oldest first."""
        return [
            (number, action["commitInfo"])
            for number in sorted(self._commits)
            for action in self._lines(self._commits[number])
            if "commitInfo" in action
        ]

    def _since(self, version: int) -> Iterator[dict[str, Any]]:
        for number in sorted(self._commits):
            if number > version:
                yield from self._lines(self._commits[number])

    def _lines(self, name: str) -> Iterator[dict[str, Any]]:
        with self.files.open_input_stream(f"{LOG}/{name}") as opened:
            yield from (json.loads(line) for line in opened.read().splitlines() if line.strip())

    def _checkpoint(self, name: str) -> list[dict[str, Any]]:
        if name.endswith(".json"):
            return [action["txn"] for action in self._lines(name) if "txn" in action]
        with self.files.open_input_file(f"{LOG}/{name}") as opened:
            file = pq.ParquetFile(opened)
            if "txn" not in file.schema_arrow.names:
                return []
            return [row for row in file.read(["txn"])["txn"].to_pylist() if row is not None]
