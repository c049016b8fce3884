"""Talks to a schema registry: finds the Avro schema for an id in a message, registers the schema of a job's output.

Knows Confluent's client library and nothing about messages. Its errors are translated here. A registry that does not
answer is a `SourceError` or `SinkError` that may pass. An unknown id is an error of the message that has the id.
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
"""Seconds for which an id stays unknown before the registry is asked again."""
REMEMBER = 10_000
"""How many unknown ids are remembered. Damaged messages may bring a new id each, so the number needs a limit."""
DEFAULTS = {"timeout": 10, "max.retries": 2}
NO_SUCH_SCHEMA = 40403
"""The registry's error code for an unknown id. HTTP status 404 alone may also mean a wrong URL."""
SERVER_ERROR = 500
"""From this HTTP status on, the error is the server's and may pass."""


class SchemaRegistry:
    """One registry. Can be pickled for workers; each process connects at the first call."""

    def __init__(self, spec: Registry) -> None:
        self.spec = spec
        self._client: SchemaRegistryClient | None = None
        self._parsed: dict[int, Any] = {}
        self._unknown: dict[int, tuple[float, str]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_client": None, "_parsed": {}, "_unknown": {}}

    def __call__(self, schema_id: int) -> Any:
        """The parsed Avro schema of an id. The registry is asked only once for each id.

        Raises UnknownSchemaError if there is no such schema, SourceError if the registry does not answer or refuses
        access.
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
        """The id of `schema` under `subject`. Registers the schema if necessary. Raises SinkError."""
        from confluent_kafka.schema_registry import Schema, SchemaRegistryError

        try:
            return int(self._connected().register_schema(subject, Schema(json.dumps(schema), "AVRO")))
        except SchemaRegistryError as error:
            if error.http_status_code in (409, 422):
                raise SinkError(
                    f"the schema registry does not accept this job's schema as a version of subject {subject!r}: "
                    f"{error.error_message}. Give a schema that it accepts (sink.avro_schema), write to another topic, "
                    "or change the subject's compatibility"
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
                raise UnknownSchemaError(f"the schema registry has no schema with id {schema_id}") from None
            raise self._explained(error, SourceError) from error
        except TagstreamError:
            raise
        except Exception as error:
            raise self._explained(error, SourceError) from error
        if schema.schema_type not in (None, "AVRO"):
            raise UnknownSchemaError(f"the schema with id {schema_id} is {schema.schema_type}, not Avro")
        try:
            return fastavro.parse_schema(json.loads(str(schema.schema_str)), named_schemas=named)
        except Exception as error:  # noqa: BLE001  fastavro raises many kinds
            raise UnknownSchemaError(f"the schema with id {schema_id} can't be used: {error}") from None

    def _named(self, schema: Any, named: dict[str, Any]) -> dict[str, Any]:
        """The schemas that `schema` refers to, directly or indirectly, parsed, by full name."""
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
        """The error for the user. The message names only the registry's hosts, because a URL may hold a password."""
        hosts = ", ".join(urlsplit(url.strip()).netloc.rpartition("@")[2] for url in self.spec.url.split(","))
        status = getattr(error, "http_status_code", None)
        if status in (401, 403):
            return kind(f"the schema registry at {hosts} refuses the credentials ({error}); check registry.client")
        failed = kind(f"the schema registry at {hosts} does not answer correctly ({type(error).__name__}: {error})")
        failed.transient = status >= SERVER_ERROR if status else "certificate" not in str(error).lower()
        return failed
