"""Parts that other installed distributions add, by entry points. Looked up only when a type is not one of ours.

An entry point's name is the `type` (of a task: its name), and its value names a module, for example:

    [project.entry-points."tagstream.sinks"]
    mongo = "tagstream_mongo.sink"

What the module must offer is written down as a protocol: `SourceModule` and `SinkModule` in
`transforms/io/contracts.py`, `BackendModule` in `transforms/inference/backends/contracts.py`, `TaskModule` in
`transforms/tasks/contracts.py`.
"""

from __future__ import annotations

import importlib.metadata
from typing import Any

from tagstream.schemas.errors import SpecError

SOURCES, SINKS, BACKENDS, TASKS = (f"tagstream.{kind}" for kind in ("sources", "sinks", "backends", "tasks"))


def installed(group: str) -> dict[str, importlib.metadata.EntryPoint]:
    """The entry points of a group, by name. Reads the metadata of every installed distribution: some milliseconds."""
    return {point.name: point for point in importlib.metadata.entry_points(group=group)}


def module_of(group: str, name: str) -> Any:
    """The module that an entry point names; None if there is none. Raises SpecError if it can't be imported."""
    point = installed(group).get(name)
    if point is None:
        return None
    try:
        return point.load()
    except Exception as error:
        raise SpecError(
            f"{name!r} comes from {_owner(point)}, which can't be imported: {type(error).__name__}: {error}"
        ) from error


def required(group: str, name: str, attribute: str) -> Any:
    """The module of an entry point, which must have `attribute`. Raises SpecError."""
    module = module_of(group, name)
    if module is None:
        raise SpecError(f"nothing that is installed offers {name!r} as one of {group}")
    if not hasattr(module, attribute):
        raise SpecError(f"{name!r} comes from {_owner(installed(group)[name])}, which has no {attribute}")
    return module


def _owner(point: importlib.metadata.EntryPoint) -> str:
    dist = point.dist
    return f"{point.value} of {dist.name} {dist.version}" if dist is not None else point.value
