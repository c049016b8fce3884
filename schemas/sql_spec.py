"""The database parts of a specification: SQL databases by URI, and DuckDB."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator, model_validator

from tagstream.schemas.spec_base import DeadLettersPart, Names, Says, SinkPart, SourcePart

Uri = Annotated[
    SecretStr,
    Field(
        description="postgresql://user:${PASSWORD}@host/database or sqlite:///file.db. A source also takes "
        "snowflake://, grpc:// and grpc+tls:// (Flight SQL) if their ADBC driver is installed. The password is never "
        "shown."
    ),
    Says("text", "postgresql://user:${PASSWORD}@host/database"),
]
Mode = Annotated[
    Literal["append", "update", "upsert"],
    Field(
        description="append: a table of labels with one row for each input row; update: label columns in a table that "
        "has the rows already, found by key; upsert: a table of labels with one row for each key, the newest one."
    ),
]


def masked(uri: str) -> str:
    """A URI that may be shown: without its password and its query."""
    shown = re.sub(r"^([A-Za-z][A-Za-z0-9+.-]*://)([^/@]*@)?", lambda m: m[1] + _user(m[2] or ""), uri)
    return shown.partition("?")[0]


def _user(userinfo: str) -> str:
    user, colon, _ = userinfo.rstrip("@").partition(":")
    return f"{user}{':***' if colon else ''}@" if userinfo else ""


class _TableSource(SourcePart):
    """Common fields of sources with a key."""

    table: str | None = Field(
        default=None, description='table or schema.table. A name may need double quotes: "Order Items".'
    )
    query: str | None = Field(
        default=None, description="SELECT statement to use instead of a table. Its result must have the columns."
    )
    id: str | Names = Field(description="Key: the column or columns that are unique.", examples=["id"])  # type: ignore[assignment]
    split_rows: int = Field(
        default=8192,
        ge=1,
        description="Rows in one split. A split is committed as a whole, and done again as a whole after a kill.",
    )
    only_new: bool | Literal["key", "missing"] = Field(
        default=False,
        description="What a later run labels too. missing: rows that have no label yet, and rows whose text has "
        "changed; each run reads the whole table. key, or true: only rows whose keys are larger than every key of the "
        "earlier runs, so the key must ascend with time.",
    )

    @property
    def key(self) -> tuple[str, ...]:
        """The key columns."""
        return (self.id,) if isinstance(self.id, str) else self.id

    @property
    def by_state(self) -> bool:
        """See `SourcePart.by_state`."""
        return self.only_new == "missing"

    @model_validator(mode="after")
    def _one_relation(self) -> Self:
        if (self.table is None) == (self.query is None):
            raise ValueError("give either table or query")
        if not self.key:
            raise ValueError("id: name the key column, or a list of the key columns")
        return self


class _TableSink(SinkPart):
    """Common fields of sinks that write into a table."""

    table: str = Field(
        description="Table for the labels. The job creates it if it is missing; with mode: update it must be there.",
        examples=["labels"],
    )
    mode: Mode = "append"
    key: Names = Field(default=(), description="Key columns for update and upsert; default: source.id.")
    adopt: bool = Field(
        default=False, description="Allow writing to a table, or to columns, that this job has not created."
    )
    commit_every: float = Field(
        default=30.0, gt=0, description="Seconds after which rows of a long split are committed."
    )


class SqlSource(_TableSource):
    """A table or a query of a database, read through ADBC."""

    type: Literal["sql"] = "sql"
    uri: Uri

    @field_validator("uri")
    @classmethod
    def _uri(cls, uri: SecretStr) -> SecretStr:
        return _checked(uri)


class SqlSink(_TableSink):
    """A table of a database, written through ADBC. The job's ledger is another table in the same database."""

    type: Literal["sql"] = "sql"
    uri: Uri

    @field_validator("uri")
    @classmethod
    def _uri(cls, uri: SecretStr) -> SecretStr:
        return _checked(uri)

    @property
    def where(self) -> str:
        """Where the labels go, in words for the user."""
        return f"{masked(self.uri.get_secret_value())}, table {self.table}"


class DuckDBSource(_TableSource):
    """A table of a DuckDB file, or a query over the file or over anything that DuckDB reads: CSV, JSON, Parquet, …"""

    type: Literal["duckdb"] = "duckdb"
    path: str | None = Field(default=None, description="DuckDB file. Without it, `query` names the files to read.")


class DuckDBSink(_TableSink):
    """A table of a DuckDB file. The job's ledger is another table in the file. Only one process may open the file."""

    type: Literal["duckdb"] = "duckdb"
    path: str = Field(description="DuckDB file. The job creates it if it is missing.", examples=["labels.duckdb"])

    def writes(self, path: str) -> bool:
        """Whether `path` is this sink's file."""
        return Path(path).resolve() == Path(self.path).resolve()


class DuckDBDeadLetters(DeadLettersPart):
    """The table for dead letters, in the sink's file and in the same transaction as the labels."""

    type: Literal["duckdb"] = "duckdb"
    table: str = Field(description="Name of the table.", examples=["labels_dead"])


class SqlDeadLetters(DeadLettersPart):
    """The table for dead letters, in the sink's database and in the same transaction as the labels."""

    type: Literal["sql"] = "sql"
    table: str = Field(description="Name of the table.", examples=["labels_dead"])


def _checked(uri: SecretStr) -> SecretStr:
    """Raises ValueError for a URI whose password could be taken for another part, and then be shown in a message."""
    text = uri.get_secret_value()
    if not re.match(r"^[A-Za-z][A-Za-z0-9+.-]*:", text):
        raise ValueError("not a URI: a URI begins with postgresql://, sqlite:///, …")
    try:
        parts = urlsplit(text)
        parts.port  # noqa: B018  raises ValueError if the port is no number
        plain = parts.netloc.count("@") <= 1 and (not parts.password or "@" not in parts.path)
    except ValueError:
        plain = False
    if not plain:
        raise ValueError("not a valid URI: write special characters of user and password as %40 (@), %2F (/), …")
    return uri
