"""The lake parts of a specification: Iceberg tables in a catalog, Delta Lake tables at a path."""

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
        "{type: sql, uri: sqlite:///catalog.db, warehouse: file:///…}. `name` is the catalog's name; default: default. "
        "Never shown."
    ),
    Says("a mapping of fields", {"type": "rest", "uri": "https://catalog.example"}),
]
Storage = Annotated[Settings, Field(description="deltalake's options for the object store. Never shown.")]
Table = Annotated[
    str,
    Field(pattern=r"^[^.]+(\.[^.]+)+$", description="namespace.table"),
    Says("namespace and table with a dot between them", "sales.messages"),
]
OnlyNew = Annotated[
    bool, Field(description="A later run also labels the rows that were appended since the earlier runs.")
]
SplitRows = Annotated[int, Field(ge=1, description="Most rows in one split of a data file.")]
Adopt = Annotated[bool, Field(description="Allow appending to a table that this job has not created.")]
CommitEvery = Annotated[float, Field(gt=0, description="Seconds after which rows of a long split are committed.")]


def secrets_of(settings: dict[str, SecretStr]) -> list[str]:
    """Values that must not appear in a message: values of names that mean a secret, and passwords inside URIs."""
    found = []
    for name, secret in settings.items():
        value = secret.get_secret_value()
        if re.search(r"token|credential|secret|password|key|sas|connection", name, re.IGNORECASE):
            found.append(value)
        found += re.findall(r"://[^/@:]*:([^/@]+)@", value)
    return sorted(filter(None, found), key=len, reverse=True)


def _as_text(value: object) -> object:
    """Numbers and booleans as text, because the libraries accept only text."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, int | float) else value


class IcebergSource(SourcePart):
    """An Iceberg table. The job reads the snapshot that is current when it begins."""

    type: Literal["iceberg"] = "iceberg"
    catalog: Catalog
    table: Table
    split_rows: SplitRows = 65_536
    only_new: OnlyNew = False


class IcebergSink(SinkPart):
    """An Iceberg table to which labels are appended. The job creates table and namespace if they are missing."""

    type: Literal["iceberg"] = "iceberg"
    catalog: Catalog
    table: Table
    adopt: Adopt = False
    commit_every: CommitEvery = 60.0


class IcebergDeadLetters(DeadLettersPart):
    """The table for dead letters, in the sink's catalog."""

    type: Literal["iceberg"] = "iceberg"
    table: Table


class DeltaSource(SourcePart):
    """A Delta Lake table. The job reads the version that is current when it begins."""

    type: Literal["delta"] = "delta"
    path: str = Field(
        description="Folder of the table, or its URL: s3://…, abfss://…, gs://….", examples=["lake/messages"]
    )
    storage: Storage = Field(default_factory=dict)
    split_rows: SplitRows = 65_536
    only_new: OnlyNew = False


class DeltaSink(SinkPart):
    """A Delta Lake table to which labels are appended. The job creates the table if it is missing."""

    type: Literal["delta"] = "delta"
    path: str = Field(description="Folder of the table, or its URL.", examples=["lake/labels"])
    storage: Storage = Field(default_factory=dict)
    adopt: Adopt = False
    commit_every: CommitEvery = 60.0


class DeltaDeadLetters(DeadLettersPart):
    """The table for dead letters, with the sink's storage options."""

    type: Literal["delta"] = "delta"
    path: str = Field(description="Folder of the table, or its URL.", examples=["lake/labels"])
