"""Adds whole files to a folder on a local disk or an object store. Readers never see a half-written file.

`publish` is the compare-and-set under the Parquet chains. It creates a name exclusively, with all the bytes of the
file. On a local disk it uses `os.link` after an fsync. On an object store it uses fsspec's mode `xb`, which becomes a
conditional write.
"""

from __future__ import annotations

import errno
import os
import shutil
import socket
import tempfile
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import fsspec
from fsspec.implementations.local import LocalFileSystem

from tagstream.schemas.errors import SinkError

TMP = "_tmp"
_ASIDE = "~"
"""Separates a file's final name from the unique part. Two writers may want the same final name."""
_STALE_SECONDS = 24 * 3600


class Folder:
    """One folder, given by path or fsspec URL.

    Temporary files of a local folder live in its `_tmp`; those of an object store in a local folder of the user's own.
    """

    def __init__(self, url: str) -> None:
        try:
            self.fs, path = fsspec.core.url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise SinkError(f"{url}: {error}") from None
        self.url = url
        self.path = path.rstrip("/")
        self.local = isinstance(self.fs, LocalFileSystem)
        self._tmp = Path(self.path if self.local else f"{tempfile.gettempdir()}/tagstream-{os.getuid()}", TMP)

    def create(self) -> None:
        """Make the folder and its `_tmp`. Raises OSError if nothing can be written there."""
        self._tmp.mkdir(parents=True, exist_ok=True)
        self.fs.makedirs(self.path, exist_ok=True)
        tmp = self.new_tmp()
        tmp.touch()
        tmp.unlink()

    def names(self) -> list[str]:
        """Names of the files directly in the folder."""
        try:
            if self.local:
                return [entry.name for entry in os.scandir(self.path)]
            return [name.rpartition("/")[2] for name in self.fs.ls(self.path, detail=False, refresh=True)]
        except (FileNotFoundError, NotADirectoryError):
            return []

    def at(self, name: str) -> str:
        return f"{self.path}/{name}"

    def exists(self, name: str) -> bool:
        if self.local:
            return Path(self.at(name)).exists()
        self.fs.invalidate_cache(self.path)
        return bool(self.fs.exists(self.at(name)))

    def new_tmp(self) -> Path:
        """A local path for a temporary file. The name holds host and process id."""
        self._tmp.mkdir(parents=True, exist_ok=True)  # `create` may have run on another machine
        return self._tmp / f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex}.tmp"

    def publish(self, tmp: Path, name: str) -> bool:
        """Make the complete file `tmp` visible as `name`. False if `name` exists. `tmp` is kept either way."""
        with tmp.open("rb") as opened:
            os.fsync(opened.fileno())
            if not self.local:
                try:
                    self._upload(opened, self.at(name), "xb")
                except FileExistsError:
                    return False
                return True
        try:
            os.link(tmp, self.at(name))
        except FileExistsError:
            return False
        self.sync()
        return True

    def _upload(self, opened: BinaryIO, path: str, mode: str) -> None:
        """Copy a file to an object store. Nothing appears at `path` unless all bytes have arrived.

        Leaving `with fs.open(…)` by an exception would close the remote file, and closing makes it visible.
        """
        remote = self.fs.open(path, mode)
        try:
            shutil.copyfileobj(opened, remote, 1 << 20)
            remote.close()
        except BaseException as error:
            with suppress(Exception):
                remote.discard()  # aborts an upload of several parts
            remote.closed = True  # else the garbage collector closes the file
            if isinstance(error, OSError) or not isinstance(error, Exception):
                raise
            raise OSError(f"{type(error).__name__}: {error}") from error  # the client's own error

    def publish_text(self, text: str, name: str) -> bool:
        """Like `publish`, for a short text instead of a file."""
        return self.publish_bytes(text.encode(), name)

    def publish_bytes(self, content: bytes, name: str) -> bool:
        """Like `publish`, for a short content instead of a file."""
        tmp = self.new_tmp()
        tmp.write_bytes(content)
        try:
            return self.publish(tmp, name)
        finally:
            tmp.unlink(missing_ok=True)

    def put_aside(self, tmp: Path, name: str) -> str:
        """Move the complete file `tmp` to the folder's `_tmp`. `move_in` later makes it visible as `name`.

        Returns the name under `_tmp`, which `move_in` and `drop_aside` take.
        """
        aside = f"{name}{_ASIDE}{tmp.name}"
        with tmp.open("rb") as opened:
            os.fsync(opened.fileno())
            if not self.local:
                self.fs.makedirs(f"{self.path}/{TMP}", exist_ok=True)
                self._upload(opened, f"{self.path}/{TMP}/{aside}", "wb")
        if self.local:
            tmp.rename(self._tmp / aside)
        else:
            tmp.unlink()
        return aside

    def waiting(self, prefix: str = "") -> list[tuple[str, str]]:
        """Files that are still put aside, as (name under `_tmp`, final name). `prefix` filters by the final name."""
        try:
            found = self.fs.ls(f"{self.path}/{TMP}", detail=False, refresh=True)
        except FileNotFoundError:
            return []
        names = [path.rpartition("/")[2] for path in found]
        return [(name, name.partition(_ASIDE)[0]) for name in names if _ASIDE in name and name.startswith(prefix)]

    def move_in(self, aside: str, name: str) -> None:
        """Make a file that was put aside visible as `name`. Calling this again changes nothing."""
        source = f"{self.path}/{TMP}/{aside}"
        if self.local:
            try:
                Path(source).rename(self.at(name))
            except FileNotFoundError:
                return
            self.sync()
            return
        with suppress(FileNotFoundError):
            self.fs.cp_file(source, self.at(name))
            self.fs.rm_file(source)

    def drop_aside(self, aside: str) -> None:
        """Delete a file that was put aside, if there is one."""
        with suppress(FileNotFoundError):
            self.fs.rm_file(f"{self.path}/{TMP}/{aside}")

    def delete(self, name: str) -> None:
        try:
            self.fs.rm_file(self.at(name))
        except FileNotFoundError:
            return

    def clear_tmp(self, *, everything: bool) -> None:
        """Remove temporary files that killed processes left behind.

        Only files older than a day are removed, because a running process may own a younger one. `everything` removes
        the younger ones too, but not for object stores: their temporary folder is shared with other outputs.
        """
        if not self._tmp.is_dir():
            return
        everything = everything and self.local
        for file in self._tmp.iterdir():
            try:
                if everything or time.time() - file.stat().st_mtime > _STALE_SECONDS:
                    file.unlink()
            except FileNotFoundError:
                continue

    def error(self, error: OSError, doing: str) -> SinkError:
        """A SinkError that tells the user what went wrong and what to do."""
        what = {
            errno.ENOSPC: "no space left; free some and start again",
            errno.EDQUOT: "disk quota used up; free some and start again",
            errno.EROFS: "read-only file system; choose another sink.path",
            errno.EACCES: "permission denied; choose another sink.path or change its rights",
            errno.EPERM: "operation not permitted (perhaps no hard links there); choose another sink.path",
            errno.ENOTDIR: "part of the path is a file; choose another sink.path",
            errno.EEXIST: "a file of that name is in the way; choose another sink.path",
        }.get(error.errno or 0, str(error) or type(error).__name__)
        return SinkError(f"{self.url}: {doing}: {what}. Committed output is kept; the next run continues from there")

    def sync(self) -> None:
        """Make renames in a local folder durable."""
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
