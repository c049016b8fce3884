"""Hive's partitions: folders named `day=2026-01-01` are columns whose value holds for every row of the files below."""

from __future__ import annotations

import re
from collections.abc import Iterable
from urllib.parse import unquote

import pyarrow as pa

NULL = "__HIVE_DEFAULT_PARTITION__"
_INTEGER = re.compile(r"0|-?[1-9][0-9]{0,18}")


def partitions(path: str) -> dict[str, str | None]:
    """The partitions of a file, by name, as text. Hive escapes special characters as in URLs."""
    found: dict[str, str | None] = {}
    for folder in path.split("/")[:-1]:
        name, equals, value = folder.partition("=")
        if equals and name:
            found[_plain(name)] = None if value == NULL else _plain(value)
    return found


def partition_type(values: Iterable[str | None]) -> pa.DataType:
    """int64 if every value is an integer as it is usually written, else string; null if there is no value."""
    kind = pa.null()
    for value in values:
        if value is not None:
            if not _INTEGER.fullmatch(value) or not -(2**63) <= int(value) < 2**63:
                return pa.string()
            kind = pa.int64()
    return kind


def _plain(escaped: str) -> str:
    try:
        return unquote(escaped, errors="strict")
    except UnicodeDecodeError:
        return escaped
