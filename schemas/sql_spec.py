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
        description="postgresql://user:${PASSWORD}@host/database, sqlite:///file.db; of a source, with their ADBC "
        "driver installed, also snowflake://, grpc://, grpc+tls:// (Flight SQL). Never shown with its password."
    ),
    Says("text", "postgresql://user:${PASSWORD}@host/database"),
]
Mode = Annotated[
    Literal["append", "update", "upsert"],
    Field(
        description="append: a table of labels, one row an input row; update: label columns of a table that has the "
        "rows, found by key; upsert: a table of labels, one row a key, the newest wins."
    ),
]


def masked(uri: str) -> str:
    """A URI as it may be shown: without password and without query."""
    shown = re.sub(r"^([A-Za-z][A-Za-z0-9+.-]*://)([^/@]*@)?", lambda m: m[1] + _user(m[2] or ""), uri)
    return shown.partition("?")[0]


def _user(userinfo: str) -> str:
    user, colon, _ = userinfo.rstrip("@").partition(":")
    return f"{user}{':***' if colon else ''}@" if userinfo else ""


class _TableSource(SourcePart):
    """What sources with a key have in common."""

    table: str | None = Field(default=None, description='Table, "schema.table"; parts in double quotes if need be.')
    query: str | None = Field(default=None, description="SELECT statement in place of a table; must have the columns.")
    id: str | Names = Field(description="Key: the column or columns that are unique.", examples=["id"])  # type: ignore[assignment]
    split_rows: int = Field(
        default=8192, ge=1, description="Rows in one split: the unit that is committed, and done again after a kill."
    )
    only_new: bool = Field(
        default=False, description="A later run also labels the rows whose keys are above all that earlier runs saw."
    )

    @property
    def key(self) -> tuple[str, ...]:
        """The key columns."""
        return (self.id,) if isinstance(self.id, str) else self.id

    @model_validator(mode="after")
    def _one_relation(self) -> Self:
        if (self.table is None) == (self.query is None):
            raise ValueError("give either table or query")
        if not self.key:
            raise ValueError("id: name the key column")
        return self


class _TableSink(SinkPart):
    """What sinks that write into a table have in common."""

    table: str = Field(
        description="Table of the labels; made if it is not there (mode update: must be there).", examples=["labels"]
    )
    mode: Mode = "append"
    key: Names = Field(default=(), description="Key columns for update and upsert; default: source.id.")
    adopt: bool = Field(
        default=False, description="Also write to a table or to columns that this job did not make itself."
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
    """A table of a database, written through ADBC, with the ledger beside it in the same database."""

    type: Literal["sql"] = "sql"
    uri: Uri

    @field_validator("uri")
    @classmethod
    def _uri(cls, uri: SecretStr) -> SecretStr:
        return _checked(uri)

    @property
    def where(self) -> str:
        """Where the labels go, for people."""
        return f"{masked(self.uri.get_secret_value())}, table {self.table}"


class DuckDBSource(_TableSource):
    """A table of a DuckDB file, or a query over it or over anything that DuckDB reads: CSV, JSON, Parquet, …"""

    type: Literal["duckdb"] = "duckdb"
    path: str | None = Field(default=None, description="DuckDB file; without one, query names what it reads.")


class DuckDBSink(_TableSink):
    """A table of a DuckDB file, with the ledger beside it. One process at a time may open the file."""

    type: Literal["duckdb"] = "duckdb"
    path: str = Field(description="DuckDB file; made if it is not there.", examples=["labels.duckdb"])

    def writes(self, path: str) -> bool:
        """Whether the output is in this local file."""
        return Path(path).resolve() == Path(self.path).resolve()


class DuckDBDeadLetters(DeadLettersPart):
    """The dead letters' table, in the file of the sink and in the same transaction as the labels."""

    type: Literal["duckdb"] = "duckdb"
    table: str = Field(description="Table of the dead letters.", examples=["labels_dead"])


class SqlDeadLetters(DeadLettersPart):
    """The dead letters' table, in the database of the sink and in the same transaction as the labels."""

    type: Literal["sql"] = "sql"
    table: str = Field(description="Table of the dead letters.", examples=["labels_dead"])


def _checked(uri: SecretStr) -> SecretStr:
    """Refuses what would be misread with a part of the password outside its place, and so perhaps shown."""
    text = uri.get_secret_value()
    if not re.match(r"^[A-Za-z][A-Za-z0-9+.-]*:", text):
        raise ValueError("not a URI: begin with postgresql://, sqlite:///, …")
    try:
        parts = urlsplit(text)
        parts.port  # noqa: B018  raises for what is no number
        plain = parts.netloc.count("@") <= 1 and (not parts.password or "@" not in parts.path)
    except ValueError:
        plain = False
    if not plain:
        raise ValueError("not a valid URI: write special characters of user and password as %40 (@), %2F (/), …")
    return uri
