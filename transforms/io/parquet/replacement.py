"""Takes the rows of rewritten input files out of a Parquet folder and puts their new rows in.

The new rows are labelled into folders of their own, beside the output and beside its dead letters. Their names begin
with a dot, so no reader looks there. Then they are switched:

1. `_switch.json` is published, which names the old and the new files. Until then all old rows are visible.
2. Old files are deleted but one, the first new file is renamed over that one, and the other new files are moved in. So
   where an input file has one file of labels, before and after, its rows change in one step. With several files of
   labels, a kill in between leaves rows missing, but never old and new rows beside each other.
3. `_switch.json` is deleted. Whoever opens the output before completes the switch first.
"""

from __future__ import annotations

import errno
import fcntl
import json
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tagstream.schemas.block import split_id
from tagstream.transforms.io.common.atomic_folder import TMP, Folder

SWITCH_FILE = "_switch.json"


@contextmanager
def switching(labels: Folder) -> Iterator[None]:
    """Only one process at a time. The lock ends with its process."""
    lock = Path(labels.at(f"{TMP}/switch.lock"))
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as opened:
        fcntl.flock(opened, fcntl.LOCK_EX)
        yield


def switch(labels: Folder, dead: Folder, old: list[str], new: list[str]) -> None:
    """Replace the label files `old` by the files `new` that wait, dead letters included."""
    if old or new:
        slot = next((name for name in old if name not in new), None)
        finals = {name: name for name in new} | ({new[0]: slot} if new and slot else {})
        with_dead = [name for name in new if Path(changed_path(dead), name).exists()]
        labels.publish_text(json.dumps({"old": old, "new": finals, "dead": with_dead}), SWITCH_FILE)
    complete_switch(labels, dead)


def complete_switch(labels: Folder, dead: Folder) -> None:
    """Complete a switch that was interrupted; does nothing if there is none. Calling this again changes nothing."""
    if labels.exists(SWITCH_FILE):
        planned = json.loads(Path(labels.at(SWITCH_FILE)).read_text(encoding="utf-8"))
        finals: dict[str, str] = planned["new"]
        for name in planned["old"]:
            if name not in finals.values():
                labels.delete(name)
                dead.delete(name)
            _forget_replay(dead, name)
        for name, final in finals.items():
            _move(labels, name, final)
            if name in planned["dead"]:
                _move(dead, name, final)
            else:
                dead.delete(final)
        labels.sync()
        dead.sync()
        drop_changed(labels, dead)
        labels.delete(SWITCH_FILE)


def changed_path(folder: Folder) -> str:
    """Where the labels, or the dead letters, wait for the switch."""
    parent, _, name = folder.path.rpartition("/")
    return f"{parent}/.{name}.changed-by-tagstream"


def drop_changed(*folders: Folder) -> None:
    """Forget what waits for a switch."""
    for folder in folders:
        shutil.rmtree(changed_path(folder), ignore_errors=True)


def replays_of(names: Collection[str]) -> set[str]:
    """Ids of the splits in which the dead letters of these files were replayed."""
    return {split_id("replay", file=name) for name in names}


def _forget_replay(dead: Folder, name: str) -> None:
    Path(dead.at(f"_replayed/{name}")).unlink(missing_ok=True)


def _move(folder: Folder, name: str, final: str) -> None:
    with suppress(FileNotFoundError):  # moved before an interruption
        waiting = Path(changed_path(folder), name)
        try:
            waiting.replace(folder.at(final))
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            near = folder.new_tmp()  # the output is a mount point, so what stands beside it is on another disk
            shutil.copyfile(waiting, near)
            near.replace(folder.at(final))
            waiting.unlink()
