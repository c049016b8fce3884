"""Finds the Parquet files behind a path: a file, a folder or a glob. Says which files are data, and names the others.

1. Hidden files and markers are skipped: names that begin with `.` or `_` (`_SUCCESS`, `_metadata`, `_temporary`), and
   checksums (`.crc`). A glob finds one of them only if it spells the first character, as in a shell.
2. A file is data if its suffix says so (`.parquet`, `.PARQUET`, `.parquet.snappy`), or if it begins with Parquet's
   magic, as Hive's `000000_0` does. A file that is named without a wildcard is data whatever its name.
3. All other files are named in `Found.skipped`.

Symlinked folders are followed. A file that is reached twice is read once.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from fsspec.implementations.local import LocalFileSystem
from fsspec.utils import glob_translate

_GLOB = "*?["
_THREADS = 8
_SHOWN = 3
_SUFFIX = re.compile(
    r"\.(parquet|parq|pq)(\.(snappy|gz|gzip|zstd|zst|lz4|lz4_raw|br|brotli|lzo|uncompressed|none))?$", re.IGNORECASE
)
_MAGICS = (b"PAR1", b"PARE")
"""The first bytes of a Parquet file, and of one whose footer is encrypted."""
_CHECKSUMS = (".crc", "._copying_")


@dataclass(frozen=True)
class Found:
    """`root`: the folder below which files have their names. `files`: paths of data files, in order.

    `skipped`: names, below the root, of files that are not read, hidden files and markers excepted.
    """

    root: str
    files: tuple[str, ...]
    skipped: tuple[str, ...] = ()


def find_files(fs: Any, path: str) -> Found:
    """What `path` stands for; perhaps no file at all. Raises OSError, also for a folder that can't be listed."""
    if any(char in path for char in _GLOB) and not fs.exists(path):
        head = path[: min(path.index(char) for char in _GLOB if char in path)]
        root = head.rpartition("/")[0] or "/"
        parts = posixpath.relpath(path, root).split("/")
        listed = _local_glob(path, root, parts) if _is_local(fs) else _remote(fs.glob(path, detail=True), root, parts)
        literal = not any(char in parts[-1] for char in _GLOB)
        return _sorted_out(fs, root, listed, all_data=literal)
    if fs.isdir(path):
        root = path.rstrip("/") or "/"
        listed = _local_files(root, _shown([])) if _is_local(fs) else _remote(fs.find(path, detail=True), root, [])
        return _sorted_out(fs, root, listed)
    return Found(posixpath.dirname(path), (path,) if fs.exists(path) else ())


def skipped_note(skipped: tuple[str, ...]) -> str:
    """One sentence about files that are not read."""
    names = ", ".join(skipped[:_SHOWN]) + (", …" if len(skipped) > _SHOWN else "")
    return f"{len(skipped):,} {'file is' if len(skipped) == 1 else 'files are'} not Parquet and not read: {names}"


def _is_local(fs: Any) -> bool:
    return isinstance(fs, LocalFileSystem)


def _marker(name: str, *, folder: bool) -> bool:
    """Whether a file or folder of this name is hidden, or a marker. `_day=1` is a partition, as in Spark."""
    if folder and name.startswith("_") and "=" in name:
        return False
    return name.startswith((".", "_")) or (not folder and name.lower().endswith(_CHECKSUMS))


def _shown(parts: list[str]) -> Callable[[str, bool], bool]:
    """Tells whether a name (of a folder, if True) is looked at. `parts`: components of the glob, if there is one.

    A marker is looked at if a component of the glob begins as it does, or ends as a checksum does, and matches it.
    """

    def shown(name: str, folder: bool) -> bool:
        if not _marker(name, folder=folder):
            return True
        hidden = name[0] in "._"
        spelled = (part for part in parts if (part[:1] == name[0] if hidden else part.lower().endswith(_CHECKSUMS)))
        return any(fnmatchcase(name, part) for part in spelled)

    return shown


def _local_glob(path: str, root: str, parts: list[str]) -> Iterator[tuple[str, str]]:
    try:
        pattern = re.compile(glob_translate(path))
    except ValueError as error:
        raise OSError(str(error)) from None
    depth = None if "**" in parts else len(parts)
    for found, real in _local_files(root, _shown(parts), depth) if Path(root).is_dir() else ():
        if pattern.match(found):
            yield found, real


def _local_files(root: str, shown: Callable[[str, bool], bool], depth: int | None = None) -> Iterator[tuple[str, str]]:
    """Path and real path of every file below `root`, at most `depth` levels down. Follows links; ends in a loop."""
    real = os.path.realpath(root)
    folders: list[tuple[str, str, tuple[str, ...]]] = [(root, real, (real,))]
    while folders:
        folder, real, above = folders.pop()
        for entry in os.scandir(folder):
            path, its = f"{folder.rstrip('/')}/{entry.name}", f"{real.rstrip('/')}/{entry.name}"
            is_folder = entry.is_dir()
            if not shown(entry.name, is_folder):
                continue
            its = os.path.realpath(entry.path) if entry.is_symlink() else its
            if not is_folder:
                yield path, its
            elif its not in above and (depth is None or len(above) < depth):
                folders.append((path, its, (*above, its)))


def _remote(listed: dict[str, Any], root: str, parts: list[str]) -> Iterator[tuple[str, str]]:
    shown = _shown(parts)
    for path, info in listed.items():
        *folders, name = posixpath.relpath(path, root).split("/")
        is_file = info["type"] == "file" and not info["name"].endswith("/")  # some stores keep an object a folder
        if is_file and shown(name, False) and all(shown(folder, True) for folder in folders):
            yield path, path


def _sorted_out(fs: Any, root: str, listed: Iterator[tuple[str, str]], *, all_data: bool = False) -> Found:
    """Data and other files. Of several paths to one file, the one without a link is kept, or the first."""
    paths = sorted(listed, key=lambda item: (item[0] != item[1], item[0]))
    first: dict[str, str] = {}
    skipped = []
    for path, real in paths:
        if first.setdefault(real, path) != path:
            same = posixpath.relpath(first[real], root)
            skipped.append(f"{posixpath.relpath(path, root)} (the same file as {same})")
    with ThreadPoolExecutor(_THREADS) as pool:
        kinds = pool.map(lambda path: _is_data(fs, path, named=all_data), first.values())
        data = dict(zip(first.values(), kinds, strict=True))
    skipped += [posixpath.relpath(path, root) for path, is_data in data.items() if not is_data]
    return Found(root, tuple(sorted(path for path, is_data in data.items() if is_data)), tuple(sorted(skipped)))


def _is_data(fs: Any, path: str, *, named: bool) -> bool:
    """A file that can't be opened counts as data, so that it is an error by name later and not left out."""
    if _is_local(fs) and Path(path).exists() and not Path(path).is_file():
        return False  # a pipe or a socket: opening it could wait for ever
    if named or _SUFFIX.search(path):
        return True
    try:
        with fs.open(path, "rb") as opened:
            return opened.read(4) in _MAGICS
    except OSError:
        return True
