"""One Iceberg table of a catalog: see `lake.table.LakeTable`. Each number is a table property.

One commit sets the properties and adds the snapshot. The commit requires that the branch `main` has not moved since
the chain's end was read. PyIceberg's own retry would not read the chain's end again, so it is switched off.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, cast

import pyarrow as pa

from tagstream.schemas.errors import LedgerError, SinkError, TagstreamError
from tagstream.schemas.lake_spec import IcebergSink, secrets_of
from tagstream.schemas.spec import JobSpec
from tagstream.transforms.io.lake.iceberg.null_lists import check_nulls
from tagstream.transforms.io.lake.sink import LakeSink
from tagstream.transforms.io.lake.table import (
    COMMIT,
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
    from pyiceberg.catalog import Catalog
    from pyiceberg.table import Table

_RETRIES = "commit.retry.num-retries"
_HEAD = "head"
"""Name of the number that holds the token of the job's last commit.

The snapshot of that commit has the same token. If no ancestor of the current snapshot has it, the table was rolled
back.
"""

_CATALOG_CONFLICTS = ("database is locked", "IntegrityError", "SerializationFailure", "DeadlockDetected")
"""Texts in the errors of a SQL catalog's database that mean a lost race."""

_OWNER = re.compile(r"^tagstream\.([^/]+)\.job$")


@functools.lru_cache(maxsize=8)
def _catalog(properties: str) -> Catalog:
    from pyiceberg.catalog import load_catalog

    named = json.loads(properties)
    return load_catalog(named.pop("name", "default"), **named)


class IcebergAccess:
    """Opens a table and translates PyIceberg's errors. `failure`: the error to raise, SinkError or SourceError."""

    def __init__(
        self, properties: dict[str, str], name: str, secrets: list[str], failure: type[TagstreamError]
    ) -> None:
        self.properties = json.dumps(properties, sort_keys=True)
        self.name = name
        self.where = f"Iceberg table {name}"
        self._secrets = secrets
        self._failure = failure

    def catalog(self) -> Catalog:
        return _catalog(self.properties)

    def table(self) -> Table | None:
        """The table, freshly loaded; None if the catalog does not have it."""
        from pyiceberg.exceptions import NoSuchTableError

        try:
            return self.catalog().load_table(self.name)
        except NoSuchTableError:
            return None

    @contextmanager
    def translated(self) -> Iterator[None]:
        """Turns a lost race or a missing answer into ConflictError, any other error into `failure`, without secrets."""
        try:
            from pyiceberg import exceptions
        except ImportError:
            raise self._failure("Iceberg is not installed: pip install 'tagstream[iceberg]'") from None
        conflicts = (
            exceptions.CommitFailedException,
            exceptions.CommitStateUnknownException,
            exceptions.ServiceUnavailableError,
            exceptions.TableAlreadyExistsError,
            exceptions.NamespaceAlreadyExistsError,
            exceptions.ValidationException,
        )
        try:
            yield
        except (TagstreamError, ConflictError):
            raise
        except Exception as error:  # noqa: BLE001  every catalog raises errors of its own; all lose their secrets
            message = " ".join(f"{type(error).__name__}: {error}".split())
            for secret in self._secrets:
                message = message.replace(secret, "***")
            if self._failure is SinkError and (
                isinstance(error, conflicts) or any(text in message for text in _CATALOG_CONFLICTS)
            ):
                raise ConflictError(message, unsure=not isinstance(error, exceptions.CommitFailedException)) from None
            if isinstance(error, exceptions.NotInstalledError | ModuleNotFoundError):
                message += ": pip install 'tagstream[iceberg]', or PyIceberg's extra for this catalog"
            raise self._failure(f"{self.where}: {message}") from None


class _IcebergState:
    def __init__(self, table: Table, job: str) -> None:
        self.table = table
        self.schema = pa.schema([f.remove_metadata() for f in table.schema().as_arrow()])
        self._job, self._prefix = job, f"tagstream.{job}."

    def check(self) -> None:
        head = self.get(_HEAD)
        if head is not None and not self._holds(str(head)):
            raise LedgerError(
                f"Iceberg table {'.'.join(self.table.name())} was rolled back to before the last commit of job "
                f"{self._job!r}; --overwrite starts again with all rows"
            )

    def get(self, name: str) -> int | None:
        found = self.table.properties.get(self._prefix + name)
        return None if found is None else int(found)

    def others(self) -> list[str]:
        return sorted({m[1] for m in map(_OWNER.match, self.table.properties) if m} - {self._job})

    def all(self) -> dict[str, int]:
        cut = len(self._prefix)
        found = self.table.properties.items()
        return {name[cut:]: int(value) for name, value in found if name.startswith(self._prefix)}

    def seconds(self) -> dict[str, tuple[int, float]]:
        found: dict[str, tuple[int, float]] = {}
        for snapshot in self.table.metadata.snapshots:
            note = snapshot.summary.additional_properties if snapshot.summary else {}
            if note.get("tagstream.job") == self._job and "tagstream.split" in note:
                rows, seconds = found.get(note["tagstream.split"], (0, 0.0))
                more = int(note["tagstream.rows-in"]), float(note["tagstream.seconds"])
                found[note["tagstream.split"]] = rows + more[0], seconds + more[1]
        return found

    def _holds(self, head: str) -> bool:
        """Whether the commit's snapshot is the current one or its ancestor, or has expired."""
        metadata = self.table.metadata
        at = metadata.current_snapshot_id
        by_id = {snapshot.snapshot_id: snapshot for snapshot in metadata.snapshots}
        ids = [i for i, s in by_id.items() if s.summary and s.summary.additional_properties.get(COMMIT) == head]
        while ids and at in by_id and at not in ids:
            at = by_id[at].parent_snapshot_id
        return not ids or at in ids


class IcebergTable:
    """See `lake.table.LakeTable`."""

    def __init__(self, properties: dict[str, str], name: str, secrets: list[str], job: str) -> None:
        self.access = IcebergAccess(properties, name, secrets, SinkError)
        self.where = self.access.where
        self.job = job

    def load(self) -> _IcebergState | None:
        with self.access.translated():
            table = self.access.table()
        return None if table is None else _IcebergState(table, self.job)

    def create(self, schema: pa.Schema, values: dict[str, int]) -> None:
        with self.access.translated():
            catalog = self.access.catalog()
            catalog.create_namespace_if_not_exists(tuple(self.access.name.split("."))[:-1])
            catalog.create_table(self.access.name, schema, properties=self._properties(values))

    def replace(self, state: _IcebergState, schema: pa.Schema, values: dict[str, int]) -> None:
        from pyiceberg.exceptions import NoSuchTableError

        with self.access.translated(), suppress(NoSuchTableError):
            self.access.catalog().purge_table(self.access.name)
        self.create(schema, values)

    def values(self, column: pa.Array, name: str) -> pa.Array:
        found = lake_values(column, name)
        check_nulls(found)
        return found

    def append(
        self,
        state: _IcebergState,
        rows: StagedRows | None,
        values: dict[str, int],
        note: dict[str, str],
        without: LetterFilter | None,
    ) -> None:
        with self.access.translated():
            table = state.table
            if rows is not None and lacks(state.schema, rows.schema):
                with table.update_schema() as update:
                    update.union_by_name(rows.schema)
                raise ConflictError("columns were added")
            if rows is not None and rows.rows and not rows.made:
                rows.made = self._write(table, rows)
            once = {**table.metadata.properties, _RETRIES: "0"}
            table.metadata = table.metadata.model_copy(update={"properties": once})
            head = int(note[COMMIT])
            with table.transaction() as transaction:
                if without is not None:
                    transaction.delete(without.predicate)
                with transaction.update_snapshot(snapshot_properties=note).fast_append() as new:
                    for file in rows.made if rows else ():
                        new.append_data_file(file)
                transaction.set_properties(self._properties({**values, _HEAD: head}))

    def _write(self, table: Table, rows: StagedRows) -> list[Any]:
        """Write the rows to data files that no snapshot refers to yet."""
        from pyiceberg.io.pyarrow import _check_pyarrow_schema_compatible, _dataframe_to_data_files

        _check_pyarrow_schema_compatible(table.schema(), rows.schema)
        reader = rows.reader()
        found = reader if table.spec().is_unpartitioned() else reader.read_all()
        return list(_dataframe_to_data_files(table.metadata, found, table.io))

    def forget(self, staged: StagedRows) -> None:
        if staged.made:
            with self.access.translated():
                table = self._known()
                for file in staged.made:
                    with suppress(FileNotFoundError):
                        table.io.delete(file.file_path)
            staged.made = []

    def rows(self, columns: list[str], letters: LetterFilter | None, limit: int | None) -> pa.Table:
        with self.access.translated():
            table = self.access.table()
            if table is None:
                return pa.table({})
            where = letters.predicate if letters else "true"
            scan = table.scan(where, selected_fields=tuple(columns) or ("*",), limit=limit)
            return scan.to_arrow()

    def put(self, name: str, rows: pa.RecordBatchReader, note: dict[str, str]) -> None:
        with self.access.translated():
            table = self._known()
            with table.io.new_output(self._path(table, name)).create(overwrite=True) as opened:
                opened.write(as_bytes(rows, note))

    def take(self, name: str) -> tuple[pa.Table, dict[str, str]] | None:
        with self.access.translated():
            table = self._known()
            try:
                with table.io.new_input(self._path(table, name)).open() as opened:
                    return from_bytes(opened.read())
            except FileNotFoundError:
                return None

    def drop(self, name: str) -> None:
        with self.access.translated(), suppress(FileNotFoundError):
            table = self._known()
            table.io.delete(self._path(table, name))

    def _known(self) -> Table:
        table = self.access.table()
        if table is None:
            raise ConflictError("the table was removed")
        return table

    @staticmethod
    def _path(table: Table, name: str) -> str:
        return f"{table.location().rstrip('/')}/{FOLDER}/{name}"

    def _properties(self, values: dict[str, int]) -> dict[str, str]:
        return {f"tagstream.{self.job}.{name}": str(value) for name, value in values.items()}


def open_sink(spec: JobSpec, _: JobContext) -> LakeSink:
    """See `io.registry.open_sink`."""
    sink = cast("IcebergSink", spec.sink)
    catalog = {name: value.get_secret_value() for name, value in sink.catalog.items()}
    dead = getattr(spec.dead_letters, "table", None) or f"{sink.table}_dead"
    labels, letters = (IcebergTable(catalog, name, secrets_of(sink.catalog), spec.name) for name in (sink.table, dead))
    return LakeSink(spec, labels, letters)
