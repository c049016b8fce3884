"""The plan of a source that would plan differently tomorrow, kept in an output folder: one file an extension.

A file's name holds how many splits were planned before it, and is created exclusively: whoever plans first wins.
"""

from __future__ import annotations

import json
import re

from tagstream.schemas.block import Split
from tagstream.transforms.io.common.atomic_folder import Folder

_PLAN = re.compile(r"^_plan-\d{9}\.json$")


def read_plan(folder: Folder) -> list[Split]:
    """The splits that were agreed on, in order."""
    splits: list[Split] = []
    for name in plan_files(folder):
        with folder.fs.open(folder.at(name), "rb") as opened:
            splits += splits_from(opened.read())
    return splits


def write_plan(folder: Folder, planned: int, more: list[Split]) -> None:
    """Append `more` to a plan of `planned` splits, unless another process was first."""
    folder.publish_text(splits_to(more), f"_plan-{planned:09d}.json")


def plan_files(folder: Folder) -> list[str]:
    """Names of the plan's files, in order."""
    return sorted(name for name in folder.names() if _PLAN.match(name))


def splits_to(splits: list[Split]) -> str:
    """A part of a plan as JSON."""
    return json.dumps([split.__dict__ for split in splits])


def splits_from(text: str | bytes) -> list[Split]:
    """What `splits_to` was given."""
    return [Split(**split) for split in json.loads(text)]
