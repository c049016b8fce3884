"""Decodes the values of messages (text, JSON or Avro) to texts and fields. Knows no Kafka client.

A message that can't be decoded becomes a dead letter with a reason. Other messages are not affected.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fastavro
import pyarrow as pa

from tagstream.schemas.errors import DeadCode, SpecError, TagstreamError
from tagstream.schemas.kafka_spec import META, KafkaSource
from tagstream.transforms.tokenization.text_checks import as_text

CONFLUENT_BYTES = 5
_MISSING = object()


@dataclass
class Decoded:
    """A batch of decoded messages.

    `texts`: one large_string for each message. `fields`: one string column for each kept path, such as "user.name".
    `errors`: code and message by row number. A row with an error has a null text and null fields. The bytes of
    `payload: text` are not checked here.
    """

    texts: pa.LargeStringArray
    fields: dict[str, pa.StringArray] = field(default_factory=dict)
    errors: dict[int, tuple[DeadCode, str]] = field(default_factory=dict)


class UnknownSchemaError(Exception):
    """A message names a schema id for which there is no Avro schema. The message becomes a dead letter."""


class Decoder:
    """Decodes values as the specification's source says. Raises SpecError for a schema file that can't be used.

    `schemas`: looks up a parsed schema by its id, for a source with a registry; see `SchemaRegistry`.
    """

    def __init__(self, spec: KafkaSource, schemas: Callable[[int], Any] | None = None) -> None:
        self.spec = spec
        self.paths = [name for name in spec.kept if name not in META]
        self._load = _AvroLoader(spec, schemas) if spec.payload == "avro" else json.loads

    def __call__(self, values: pa.BinaryArray) -> Decoded:
        """Decode a column of values; nulls (tombstones) become `null_text`."""
        if self.spec.payload == "text":
            return Decoded(as_text(values, "value"))
        texts: list[str | None] = []
        columns: list[list[str | None]] = [[] for _ in self.paths]
        errors: dict[int, tuple[DeadCode, str]] = {}
        for row, value in enumerate(values.to_pylist()):
            try:
                text, others = self._row(value)
            except _UndecodableError as error:
                errors[row] = (error.code, str(error))
                text, others = None, [None] * len(self.paths)
            texts.append(text)
            for column, other in zip(columns, others, strict=True):
                column.append(other)
        arrays = {path: pa.array(c, pa.string()) for path, c in zip(self.paths, columns, strict=True)}
        return Decoded(pa.array(texts, pa.large_string()), arrays, errors)

    def _row(self, value: bytes | None) -> tuple[str, list[str | None]]:
        if value is None:
            raise _UndecodableError(DeadCode.NULL_TEXT, "the message has no value")
        try:
            record = self._load(value)
        except UnicodeDecodeError as error:
            raise _UndecodableError(DeadCode.BAD_ENCODING, f"the value is not valid UTF-8: {error.reason}") from None
        except TagstreamError:
            raise
        except UnknownSchemaError as error:
            raise _UndecodableError(DeadCode.BAD_PAYLOAD, str(error)) from None
        except RecursionError:
            raise _UndecodableError(DeadCode.BAD_PAYLOAD, "the value is nested too deeply") from None
        except Exception as error:  # noqa: BLE001  a decoder may raise anything for a damaged message
            kind = self.spec.payload.upper() if self.spec.payload == "json" else "Avro"
            raise _UndecodableError(
                DeadCode.BAD_PAYLOAD, f"not {kind}: {str(error)[:200] or type(error).__name__}"
            ) from None
        text = _at(record, self.spec.text)
        if text is _MISSING:
            raise _UndecodableError(DeadCode.BAD_SCHEMA, f"field {self.spec.text!r} is missing")
        if text is None:
            raise _UndecodableError(DeadCode.NULL_TEXT, f"field {self.spec.text!r} is null")
        if not isinstance(text, str):
            raise _UndecodableError(DeadCode.BAD_SCHEMA, f"field {self.spec.text!r} is {type(text).__name__}, not text")
        others = [_plain(_at(record, path)) for path in self.paths]
        try:
            for part in (text, *others):
                if part is not None:
                    part.encode()
        except UnicodeEncodeError:
            raise _UndecodableError(DeadCode.BAD_ENCODING, "a field holds half of a surrogate pair") from None
        return text, others


class _AvroLoader:
    def __init__(self, spec: KafkaSource, schemas: Callable[[int], Any] | None) -> None:
        self.schema: Any = _read_schema(spec.avro_schema) if spec.avro_schema else None
        self.schemas = schemas if spec.registry else None
        self.framed = spec.avro_framing == "confluent" or spec.registry is not None

    def __call__(self, value: bytes) -> Any:
        if self.framed and (len(value) < CONFLUENT_BYTES or value[0] != 0):
            raise ValueError("no schema id precedes the value")
        body = io.BytesIO(value[CONFLUENT_BYTES:] if self.framed else value)
        if self.schemas is None:
            record = fastavro.schemaless_reader(body, self.schema, None)
        else:
            written = self.schemas(int.from_bytes(value[1:CONFLUENT_BYTES], "big"))
            record = fastavro.schemaless_reader(body, written, self.schema)
        if body.read(1):
            raise ValueError("there are more bytes after the record")
        return record


def _read_schema(path: str) -> Any:
    try:
        return fastavro.parse_schema(json.loads(Path(path).read_text(encoding="utf-8")))
    except Exception as error:  # noqa: BLE001  fastavro raises many kinds
        raise SpecError(f"source.avro_schema {path}: not an Avro schema: {error}") from None


class _UndecodableError(Exception):
    def __init__(self, code: DeadCode, message: str) -> None:
        super().__init__(message)
        self.code = code


def _at(record: Any, path: str) -> Any:
    """The value at a dotted path, or `_MISSING`."""
    for name in path.split("."):
        if not isinstance(record, dict) or name not in record:
            return _MISSING
        record = record[name]
    return record


def _plain(value: Any) -> str | None:
    """A field as a string. Strings stay as they are; other values become JSON; a missing field becomes None."""
    if value is _MISSING or value is None:
        return None
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
