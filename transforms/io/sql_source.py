"""A database as a source, through ADBC: see `table_source` for how it reads, `sql_session` for how it connects."""

from __future__ import annotations

from functools import partial
from typing import cast

from schemas.spec import JobSpec
from schemas.sql_spec import SqlSource, masked
from transforms.io.sql_session import connect
from transforms.io.table_source import TableSource


def open_source(spec: JobSpec) -> TableSource:
    """See `transforms.io.open_source`."""
    uri = cast("SqlSource", spec.source).uri.get_secret_value()
    return TableSource(spec, partial(connect, uri), masked(uri))
