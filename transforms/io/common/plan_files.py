"""Keeps the plan of a `PlanningSource` in an output folder, because tomorrow the source would plan other splits.

Each extension of the plan is one file. Its name holds the number of splits planned before it, and is created
exclusively: if two processes extend the plan at once, the first one wins.
"""

from __future__ import annotations

import json
import re

from tagstream.schemas.block import Split
from tagstream.transforms.io.common.atomic_folder import Folder

_PLAN = re.compile(r"^_plan-\d{9}\.json$")


def read_plan(folder: Folder) -> list[Split]:
    """The planned splits, in order."""
    splits: list[Split] = []
    for name in plan_files(folder):
        with folder.fs.open(folder.at(name), "rb") as opened:
            splits += splits_from(opened.read())
    return splits


def write_plan(folder: Folder, planned: int, more: list[Split]) -> None:
    """Append `more` to a plan of `planned` splits. Does nothing if another process was first."""
    folder.publish_text(splits_to(more), f"_plan-{planned:09d}.json")


def plan_files(folder: Folder) -> list[str]:
    """Names of the plan's files, in order."""
    return sorted(name for name in folder.names() if _PLAN.match(name))


def splits_to(splits: list[Split]) -> str:
    """Splits as JSON."""
    return json.dumps([split.__dict__ for split in splits])


def splits_from(text: str | bytes) -> list[Split]:
    """The inverse of `splits_to`."""
    return [Split(**split) for split in json.loads(text)]
