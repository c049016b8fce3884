"""Outputs in folders must not lie inside the input, nor in one another. For every sink that writes files."""

from __future__ import annotations

import fsspec

from tagstream.schemas.errors import SpecError
from tagstream.schemas.spec_base import SourcePart


def keep_apart(source: SourcePart, path: str, dead_path: str | None) -> None:
    """Raises SpecError where a later run would read the output as input, or find two kinds of files in one folder.

    path: `sink.path`; dead_path: `dead_letters.path`, if it is given.
    """
    if dead_path is not None and _plain(dead_path) == _plain(path):
        raise SpecError(f"dead_letters.path {path} is sink.path too: choose a folder of their own")
    for read in source.reads:
        inside = _plain(read)
        for name, written in (("sink.path", path), ("dead_letters.path", dead_path)):
            if written and (_plain(written) == inside or _plain(written).startswith(inside + "/")):
                raise SpecError(f"{name} {written} lies inside source.path {read}: choose a folder outside it")


def _plain(path: str) -> str:
    """Absolute path, up to the first part with a wildcard."""
    try:
        path = fsspec.core.url_to_fs(path)[1]
    except (ImportError, ValueError):
        return path
    parts = path.rstrip("/").split("/")
    wild = next((i for i, part in enumerate(parts) if any(c in part for c in "*?[")), len(parts))
    return "/".join(parts[:wild])
