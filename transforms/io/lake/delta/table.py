"""One Delta Lake table: see `lake.table.LakeTable`. Each number is the version of an application transaction.

The transactions' names begin with `tagstream/<job>/`. Delta refuses a commit if, since the table was loaded, another
commit changed one of the same transactions or the table's definition. Other commits do not conflict.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, cast

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs

from tagstream.schemas.errors import LedgerError, SinkError, TagstreamError
from tagstream.schemas.lake_spec import DeltaSink, secrets_of
from tagstream.schemas.spec import JobSpec
from tagstream.transforms.io.lake.delta.log import DeltaLog
from tagstream.transforms.io.lake.sink import LakeSink
from tagstream.transforms.io.lake.table import (
    FOLDER,
    ConflictError,
    LetterFilter,
    StagedRows,
    as_bytes,
    from_bytes,
    lacks,
    lake_values,
)
from tagstream.transforms.runtime.job_context import JobContext

if TYPE_CHECKING:
    from deltalake import CommitProperties, DeltaTable


_BUFFER = 1 << 20
"""Buffer size of streams that write. A buffered stream passes `bytes` on; the package takes nothing else."""

_STORE_ERRORS = ("Log storage error", "Transaction failed")
"""Texts in a CommitFailedError that is not a lost race: the store failed while the commit was being written."""

_OWNER = re.compile(r"^tagstream/([^/]+)/job$")


class DeltaAccess:
    """Opens a table and translates the package's errors. `failure`: the error to raise, SinkError or SourceError."""

    def __init__(self, path: str, storage: dict[str, str], secrets: list[str], failure: type[TagstreamError]) -> None:
        self.path = path
        self.storage = storage
        self.where = f"Delta table {path}"
        self._secrets = secrets
        self._failure = failure

    def table(self, version: int | None = None) -> DeltaTable | None:
        """The table, freshly loaded; None if it does not exist."""
        from deltalake import DeltaTable
        from deltalake.exceptions import TableNotFoundError

        try:
            return DeltaTable(self.path, version=version, storage_options=self.storage or None)
        except TableNotFoundError:
            return None

    def files(self, table: DeltaTable) -> pafs.FileSystem:
        """The table's folder."""
        from deltalake.fs import DeltaStorageHandler

        return pafs.PyFileSystem(DeltaStorageHandler.from_table(table._table, self.storage or None))  # noqa: SLF001

    @contextmanager
    def translated(self) -> Iterator[None]:
        """Turns a lost race into ConflictError and any other error into `failure`, without secrets."""
        try:
            from deltalake.exceptions import CommitFailedError, DeltaError
        except ImportError:
            raise self._failure("Delta Lake is not installed: pip install 'tagstream[delta]'") from None
        try:
            yield
        except (TagstreamError, ConflictError):
            raise
        except Exception as error:  # noqa: BLE001  the package documents no list of errors; all lose their secrets
            message = " ".join(f"{type(error).__name__}: {error}".split())
            for secret in self._secrets:
                message = message.replace(secret, "***")
            if isinstance(error, CommitFailedError) or (isinstance(error, DeltaError) and "already exists" in message):
                unsure = any(text in message for text in _STORE_ERRORS)
                raise ConflictError(message, unsure=unsure) from None
            raise self._failure(f"{self.where}: {message}") from None


class _DeltaState:
    def __init__(self, table: DeltaTable, files: pafs.FileSystem, job: str) -> None:
        self.table = table
        self.schema = pa.schema(table.schema().to_arrow())
        self._files = files
        self._job = job

    def get(self, name: str) -> int | None:
        return self.table.transaction_version(_app(self._job, name))

    def all(self) -> dict[str, int]:
        prefix = _app(self._job, "")
        found = DeltaLog(self._files, self.table.version()).transactions().items()
        return {name.removeprefix(prefix): value for name, value in found if name.startswith(prefix)}

    def others(self) -> list[str]:
        found = DeltaLog(self._files, self.table.version()).transactions()
        return sorted({m[1] for m in map(_OWNER.match, found) if m} - {self._job})

    def check(self) -> None:
        last, lost = -1, False
        for version, note in DeltaLog(self._files, self.table.version()).notes():
            if note.get("tagstream.job") == self._job and "tagstream.split" in note:
                last = version
            elif note.get("operation") == "RESTORE":
                lost = lost or _restored(note, version) < last
            elif str(note.get("operation")).startswith("CREATE"):
                last, lost = -1, False
        if lost:
            raise LedgerError(
                f"Delta table {self.table.table_uri} was restored to before the last commit of job {self._job!r}; "
                "--overwrite starts again with all rows"
            )

    def seconds(self) -> dict[str, tuple[int, float]]:
        found: dict[str, tuple[int, float]] = {}
        for _, note in DeltaLog(self._files, self.table.version()).notes():
            if note.get("tagstream.job") == self._job and (split := note.get("tagstream.split")):
                rows, seconds = found.get(split, (0, 0.0))
                found[split] = rows + int(note["tagstream.rows-in"]), seconds + float(note["tagstream.seconds"])
        return found


class DeltaLakeTable:
    """See `lake.table.LakeTable`."""

    def __init__(self, path: str, storage: dict[str, str], secrets: list[str], job: str) -> None:
        self.access = DeltaAccess(path, storage, secrets, SinkError)
        self.where = self.access.where
        self.job = job

    def load(self) -> _DeltaState | None:
        with self.access.translated():
            table = self.access.table()
            return None if table is None else _DeltaState(table, self.access.files(table), self.job)

    def create(self, schema: pa.Schema, values: dict[str, int]) -> None:
        self._create(schema, values, "error")

    def replace(self, state: _DeltaState, schema: pa.Schema, values: dict[str, int]) -> None:
        self._create(schema, values, "overwrite")

    def _create(self, schema: pa.Schema, values: dict[str, int], mode: Any) -> None:
        if hidden := [f.name for f in schema if _zoneless_times(f.type, in_map=False)]:
            raise SinkError(
                f"{self.where}: column {hidden[0]!r} has timestamps without a time zone inside a map, for which "
                "deltalake can't make a table. Leave the column out of source.keep"
            )
        with self.access.translated():
            from deltalake import DeltaTable

            properties = self._properties(values, {}, once=True)
            storage = self.access.storage or None
            DeltaTable.create(self.access.path, schema, mode, storage_options=storage, commit_properties=properties)

    def values(self, column: pa.Array, name: str) -> pa.Array:
        return lake_values(column, name)

    def append(
        self,
        state: _DeltaState,
        rows: StagedRows | None,
        values: dict[str, int],
        note: dict[str, str],
        without: LetterFilter | None,
    ) -> None:
        with self.access.translated():
            from deltalake import write_deltalake

            if without is not None:  # a separate commit; if the append is tried again, it finds nothing to delete
                state.table.delete(without.predicate)
            merge = rows is not None and lacks(state.schema, rows.schema)
            reader = rows.reader() if rows else state.schema.empty_table().to_reader()
            write_deltalake(
                state.table,
                reader,
                mode="append",
                schema_mode="merge" if merge else None,
                commit_properties=self._properties(values, note),
            )

    def forget(self, staged: StagedRows) -> None:
        """Does nothing: Delta's own clean-up (VACUUM) removes files that no version refers to."""

    def rows(self, columns: list[str], letters: LetterFilter | None, limit: int | None) -> pa.Table:
        with self.access.translated():
            table = self.access.table()
            if table is None:
                return pa.table({})
            found = table.to_pyarrow_dataset()
            where = None if letters is None else pc.field("job") == letters.job
            if letters and letters.split is not None:
                where &= (pc.field("split") == letters.split) & (pc.field("position") < letters.stop)
            if limit is not None:
                return found.head(limit, columns=columns or None, filter=where)
            return found.to_table(columns=columns or None, filter=where)

    def put(self, name: str, rows: pa.RecordBatchReader, note: dict[str, str]) -> None:
        with (
            self.access.translated(),
            self._folder().open_output_stream(f"{FOLDER}/{name}", buffer_size=_BUFFER) as opened,
        ):
            opened.write(as_bytes(rows, note))

    def take(self, name: str) -> tuple[pa.Table, dict[str, str]] | None:
        with (
            self.access.translated(),
            suppress(FileNotFoundError),
            self._folder().open_input_stream(f"{FOLDER}/{name}") as opened,
        ):
            return from_bytes(opened.read())
        return None

    def drop(self, name: str) -> None:
        with self.access.translated(), suppress(FileNotFoundError):
            self._folder().delete_file(f"{FOLDER}/{name}")

    def _folder(self) -> pafs.FileSystem:
        table = self.access.table()
        if table is None:
            raise ConflictError("the table was removed")
        return self.access.files(table)

    def _properties(self, values: dict[str, int], note: dict[str, str], *, once: bool = False) -> CommitProperties:
        """`once`: do not retry. A retried creation would replace a table that another process has just created."""
        from deltalake import CommitProperties, Transaction

        transactions = [Transaction(_app(self.job, name), value) for name, value in values.items()]
        return CommitProperties(note, max_commit_retries=0 if once else None, app_transactions=transactions)


def _restored(note: dict[str, Any], version: int) -> int:
    """The version that a RESTORE went back to. If the RESTORE named a date, the version just before the RESTORE."""
    to = note.get("operationParameters", {}).get("version")
    return int(to) if str(to).isdigit() else version - 1


def _app(job: str, name: str) -> str:
    return f"tagstream/{job}/{name}"


def _zoneless_times(kind: pa.DataType, *, in_map: bool) -> bool:
    """Whether a type has timestamps without a time zone inside a map."""
    types = pa.types
    if types.is_timestamp(kind):
        return in_map and kind.tz is None
    children = [kind.field(number).type for number in range(kind.num_fields)] if types.is_nested(kind) else []
    return any(_zoneless_times(child, in_map=in_map or types.is_map(kind)) for child in children)


def open_sink(spec: JobSpec, _: JobContext) -> LakeSink:
    """See `io.registry.open_sink`."""
    sink = cast("DeltaSink", spec.sink)
    storage = {name: value.get_secret_value() for name, value in sink.storage.items()}
    dead = getattr(spec.dead_letters, "path", None) or f"{sink.path.rstrip('/')}-dead"
    labels, letters = (DeltaLakeTable(path, storage, secrets_of(sink.storage), spec.name) for path in (sink.path, dead))
    return LakeSink(spec, labels, letters)
