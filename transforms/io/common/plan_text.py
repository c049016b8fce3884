"""The plan of a `PlanningSource` as text, for sinks that store it beside their rows."""

from __future__ import annotations

import json

from tagstream.schemas.block import Split


def splits_to(splits: list[Split]) -> str:
    """Splits as JSON."""
    return json.dumps([split.__dict__ for split in splits])


def splits_from(text: str | bytes) -> list[Split]:
    """The inverse of `splits_to`."""
    return [Split(**split) for split in json.loads(text)]
