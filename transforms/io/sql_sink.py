"""A database as a sink, through ADBC: see `table_sink` for how it commits, `sql_session` for how it connects."""

from __future__ import annotations

from functools import partial
from typing import cast

from schemas.spec import JobSpec
from schemas.sql_spec import SqlSink, masked
from transforms.io.sql_session import connect
from transforms.io.table_sink import TableSink


def open_sink(spec: JobSpec) -> TableSink:
    """See `transforms.io.open_sink`."""
    uri = cast("SqlSink", spec.sink).uri.get_secret_value()
    return TableSink(spec, partial(connect, uri), masked(uri))
