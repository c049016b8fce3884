"""The lake parts of a specification: Iceberg tables by catalog, Delta Lake tables by path."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, SecretStr

from tagstream.schemas.spec_base import DeadLettersPart, Says, SinkPart, SourcePart

Settings = Annotated[
    dict[str, SecretStr],
    BeforeValidator(
        lambda value: {key: _as_text(item) for key, item in value.items()} if isinstance(value, dict) else value,
        json_schema_input_type=dict[str, str | bool | float],
    ),
]
Catalog = Annotated[
    Settings,
    Field(
        description="PyIceberg's catalog properties: {type: rest, uri: https://…, credential: '${CREDENTIAL}'}, "
        "{type: sql, uri: sqlite:///catalog.db, warehouse: file:///…}; `name` of the "
        "catalog, default: default. Never shown."
    ),
    Says("a mapping of fields", {"type": "rest", "uri": "https://catalog.example"}),
]
Storage = Annotated[Settings, Field(description="Options of the object store, as deltalake takes them. Never shown.")]
Table = Annotated[
    str,
    Field(pattern=r"^[^.]+(\.[^.]+)+$", description="namespace.table"),
    Says("namespace and table with a dot between them", "sales.messages"),
]
OnlyNew = Annotated[
    bool, Field(description="A later run also labels the rows that were appended since: the difference of versions.")
]
SplitRows = Annotated[int, Field(ge=1, description="Most rows in one split of a data file.")]
Adopt = Annotated[bool, Field(description="Also append to a table that this job did not make itself.")]
CommitEvery = Annotated[float, Field(gt=0, description="Seconds after which rows of a long split are committed.")]


def secrets_of(settings: dict[str, SecretStr]) -> list[str]:
    """Values that must not appear in a message: those of secret names, and passwords inside URIs."""
    found = []
    for name, secret in settings.items():
        value = secret.get_secret_value()
        if re.search(r"token|credential|secret|password|key|sas|connection", name, re.IGNORECASE):
            found.append(value)
        found += re.findall(r"://[^/@:]*:([^/@]+)@", value)
    return sorted(filter(None, found), key=len, reverse=True)


def _as_text(value: object) -> object:
    """Numbers and switches as the libraries want them: text."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, int | float) else value


class IcebergSource(SourcePart):
    """An Iceberg table: the snapshot that is current when the job begins."""

    type: Literal["iceberg"] = "iceberg"
    catalog: Catalog
    table: Table
    split_rows: SplitRows = 65_536
    only_new: OnlyNew = False


class IcebergSink(SinkPart):
    """An Iceberg table to which labels are appended; made, with its namespace, if it is not there."""

    type: Literal["iceberg"] = "iceberg"
    catalog: Catalog
    table: Table
    adopt: Adopt = False
    commit_every: CommitEvery = 60.0


class IcebergDeadLetters(DeadLettersPart):
    """The dead letters' table, in the catalog of the sink."""

    type: Literal["iceberg"] = "iceberg"
    table: Table


class DeltaSource(SourcePart):
    """A Delta Lake table: the version that is current when the job begins."""

    type: Literal["delta"] = "delta"
    path: str = Field(
        description="Folder of the table, or its URL: s3://…, abfss://…, gs://….", examples=["lake/messages"]
    )
    storage: Storage = Field(default_factory=dict)
    split_rows: SplitRows = 65_536
    only_new: OnlyNew = False


class DeltaSink(SinkPart):
    """A Delta Lake table to which labels are appended; made if it is not there."""

    type: Literal["delta"] = "delta"
    path: str = Field(description="Folder of the table, or its URL.", examples=["lake/labels"])
    storage: Storage = Field(default_factory=dict)
    adopt: Adopt = False
    commit_every: CommitEvery = 60.0


class DeltaDeadLetters(DeadLettersPart):
    """The dead letters' table, in the store of the sink."""

    type: Literal["delta"] = "delta"
    path: str = Field(description="Folder of the table, or its URL.", examples=["lake/labels"])
