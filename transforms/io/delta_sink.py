"""A Delta Lake table as a sink: see `lake_sink` for how it commits, `delta_table` for what a commit is."""

from __future__ import annotations

from typing import cast

from schemas.lake_spec import DeltaSink, secrets_of
from schemas.spec import JobSpec
from transforms.io.delta_table import DeltaLakeTable
from transforms.io.lake_sink import LakeSink


def open_sink(spec: JobSpec) -> LakeSink:
    """See `transforms.io.open_sink`."""
    sink = cast("DeltaSink", spec.sink)
    storage = {name: value.get_secret_value() for name, value in sink.storage.items()}
    dead = getattr(spec.dead_letters, "path", None) or f"{sink.path.rstrip('/')}-dead"
    labels, letters = (DeltaLakeTable(path, storage, secrets_of(sink.storage), spec.name) for path in (sink.path, dead))
    return LakeSink(spec, labels, letters)
