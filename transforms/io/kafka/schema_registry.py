"""A schema registry: Avro schemas by the ids that precede messages, and the id of the schema that a job writes by.

Knows Confluent's client library and nothing of messages. Its errors become ours here: a registry that does not answer
is a `SourceError` or `SinkError` that may pass, an id that it does not know is the message's fault.
"""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import fastavro

from tagstream.schemas.errors import SinkError, SourceError, SpecError, TagstreamError
from tagstream.schemas.kafka_spec import Registry
from tagstream.transforms.io.kafka.payloads import UnknownSchemaError

if TYPE_CHECKING:
    from confluent_kafka.schema_registry import SchemaRegistryClient

FORGET_SECONDS = 30.0
"""How long an id that the registry does not know is taken for unknown without asking again."""
REMEMBER = 10_000
"""Ids at most that are remembered as unknown: fuzzed messages have a new one each."""
DEFAULTS = {"timeout": 10, "max.retries": 2}
NO_SUCH_SCHEMA = 40403
"""The interface's own code; a mere 404 may come from a wrong URL."""
SERVER_ERROR = 500
"""HTTP status from which on the fault is the server's, and may pass."""


class SchemaRegistry:
    """One registry. Travels to workers; the connection is made where it is first needed."""

    def __init__(self, spec: Registry) -> None:
        self.spec = spec
        self._client: SchemaRegistryClient | None = None
        self._parsed: dict[int, Any] = {}
        self._unknown: dict[int, tuple[float, str]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_client": None, "_parsed": {}, "_unknown": {}}

    def __call__(self, schema_id: int) -> Any:
        """The parsed Avro schema of an id, asked for once.

        Raises UnknownSchemaError if there is none, SourceError if the registry does not answer or does not let us.
        """
        if (found := self._parsed.get(schema_id)) is not None:
            return found
        until, why = self._unknown.get(schema_id, (0.0, ""))
        if time.monotonic() < until:
            raise UnknownSchemaError(why)
        try:
            self._parsed[schema_id] = self._fetch(schema_id)
        except UnknownSchemaError as error:
            if len(self._unknown) >= REMEMBER:
                self._unknown.clear()
            self._unknown[schema_id] = (time.monotonic() + FORGET_SECONDS, str(error))
            raise
        return self._parsed[schema_id]

    def register(self, subject: str, schema: dict[str, Any]) -> int:
        """The id of `schema` under `subject`, registered if it is not yet. Raises SinkError."""
        from confluent_kafka.schema_registry import Schema, SchemaRegistryError

        try:
            return int(self._connected().register_schema(subject, Schema(json.dumps(schema), "AVRO")))
        except SchemaRegistryError as error:
            if error.http_status_code in (409, 422):
                raise SinkError(
                    f"the schema registry does not take this job's schema as a version of subject {subject!r}: "
                    f"{error.error_message}; write by a schema that it takes (sink.avro_schema), to another topic, or "
                    "change the subject's compatibility"
                ) from error
            raise self._explained(error, SinkError) from error
        except TagstreamError:
            raise
        except Exception as error:
            raise self._explained(error, SinkError) from error

    def _fetch(self, schema_id: int) -> Any:
        from confluent_kafka.schema_registry import SchemaRegistryError

        try:
            schema = self._connected().get_schema(schema_id)
            named = self._named(schema, {})
        except SchemaRegistryError as error:
            if error.error_code == NO_SUCH_SCHEMA:
                raise UnknownSchemaError(f"the schema registry has no schema of id {schema_id}") from None
            raise self._explained(error, SourceError) from error
        except TagstreamError:
            raise
        except Exception as error:
            raise self._explained(error, SourceError) from error
        if schema.schema_type not in (None, "AVRO"):
            raise UnknownSchemaError(f"the schema of id {schema_id} is {schema.schema_type}, not Avro")
        try:
            return fastavro.parse_schema(json.loads(str(schema.schema_str)), named_schemas=named)
        except Exception as error:  # noqa: BLE001  fastavro raises many kinds
            raise UnknownSchemaError(f"the schema of id {schema_id} can't be used: {error}") from None

    def _named(self, schema: Any, named: dict[str, Any]) -> dict[str, Any]:
        """The schemas that `schema` refers to, parsed, by full name; those that they refer to first."""
        for reference in schema.references or ():
            other = self._connected().get_version(reference.subject, reference.version).schema
            self._named(other, named)
            fastavro.parse_schema(json.loads(str(other.schema_str)), named_schemas=named)
        return named

    def _connected(self) -> SchemaRegistryClient:
        if self._client is None:
            try:
                from confluent_kafka.schema_registry import SchemaRegistryClient
            except ImportError:
                raise SpecError("a schema registry needs its client: pip install 'tagstream[registry]'") from None
            try:
                self._client = SchemaRegistryClient({**DEFAULTS, **self.spec.client, "url": self.spec.url})
            except (ValueError, TypeError, OSError) as error:
                raise SpecError(f"registry: {error}") from None
        return self._client

    def _explained(self, error: Exception, kind: type[TagstreamError]) -> TagstreamError:
        """One sentence for a user; a URL may hold a password, so only the hosts are told."""
        hosts = ", ".join(urlsplit(url.strip()).netloc.rpartition("@")[2] for url in self.spec.url.split(","))
        status = getattr(error, "http_status_code", None)
        if status in (401, 403):
            return kind(f"the schema registry at {hosts} refuses the credentials ({error}); check registry.client")
        failed = kind(f"the schema registry at {hosts} does not answer as it should ({type(error).__name__}: {error})")
        failed.transient = status >= SERVER_ERROR if status else "certificate" not in str(error).lower()
        return failed
