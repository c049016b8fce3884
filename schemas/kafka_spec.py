"""The Kafka parts of a specification: source, sink, dead letters."""

from __future__ import annotations

import datetime as dt
from typing import Annotated, Any, ClassVar, Literal, Self, get_args

from pydantic import BeforeValidator, Field, field_validator, model_validator

from tagstream.schemas.errors import SpecError
from tagstream.schemas.spec_base import EVERYTHING, DeadLettersPart, Names, Parts, Says, SinkPart, SourcePart, Spec

META: tuple[str, ...] = ("topic", "partition", "offset", "timestamp", "key", "headers")
"""Names that every message has, besides the fields of its payload."""
Moment = Annotated[
    str | int,
    BeforeValidator(lambda value: value.isoformat() if isinstance(value, dt.date) else value),  # YAML's own dates
    Says("a word, a time (ISO 8601), or milliseconds since 1970", "2026-01-31T06:00:00Z"),
]
Library = Literal["kafka-python", "confluent-kafka"]
LIBRARIES: tuple[Library, ...] = get_args(Library)
Client = Annotated[
    dict[str, Any],
    Field(
        repr=False,
        description="Client properties by their kafka-python names: security_protocol, ssl_cafile, sasl_mechanism, "
        "sasl_plain_username, sasl_plain_password, … Secrets as ${NAME}.",
    ),
]


class Registry(Spec):
    """A schema registry with Confluent's REST interface (Confluent, Apicurio, Karapace, Redpanda)."""

    url: str = Field(repr=False, description="Several separated by commas; Apicurio: …/apis/ccompat/v7.")
    client: dict[str, Any] = Field(
        default_factory=dict,
        repr=False,
        description="Properties of confluent-kafka's SchemaRegistryClient: basic.auth.user.info, ssl.ca.location, … "
        "Secrets as ${NAME}.",
    )


class KafkaSource(SourcePart):
    """Topics, read live by a consumer group, or, with `until`, up to a point and no further."""

    type: Literal["kafka"] = "kafka"
    servers: str = Field(description="host:port, several separated by commas.", examples=["localhost:9092"])
    topics: Names = Field(min_length=1, description="One topic or a list.", examples=[["messages"]])
    group: str | None = Field(default=None, min_length=1, description="Consumer group; default: the job's name.")
    instance_id: str | None = Field(
        default=None,
        description="Static membership, a name for each process: a restart within client.session_timeout_ms (6,000; "
        "give it the time that the model takes to load) moves no partition.",
    )
    start: Moment = Field(
        default="earliest",
        description="Where a partition begins that the job has not read yet: earliest, latest, committed (an error "
        "if nothing is), or a time (ISO 8601, or ms since the epoch).",
    )
    until: Moment | None = Field(
        default=None, description="Bounded replay: latest, or a time; the job ends there. Default: never."
    )
    payload: Literal["text", "json", "avro"] = Field(
        default="text",
        description="text: the value is the text; json, avro: text, id and keep are paths of fields (user.name). "
        "id and keep may also name " + ", ".join(META) + ".",
    )
    avro_schema: str | None = Field(
        default=None,
        description="File with the Avro schema of the values; with a registry: of what they are read as (optional).",
    )
    avro_framing: Literal["none", "confluent"] = Field(
        default="none", description="confluent: five bytes with a schema id precede each value."
    )
    registry: Registry | None = Field(
        default=None, description="Where the schemas are whose ids precede the values; implies avro_framing: confluent."
    )
    consumer: Library = Field(
        default="kafka-python",
        description="The client that reads live. confluent-kafka (extra `confluent`) takes less of the CPU.",
    )
    client: Client = Field(default_factory=dict)

    @field_validator("keep")
    @classmethod
    def _named(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if EVERYTHING in names:
            raise ValueError(
                "'*' needs columns that are known before the first row, and messages have none: list what to keep, "
                "for example keep: [topic, offset]"
            )
        return names

    @field_validator("start", "until")
    @classmethod
    def _point(cls, value: str | int | None, info: Any) -> str | int | None:
        words = {"start": ("earliest", "latest", "committed"), "until": ("latest",)}[info.field_name]
        if value is None or isinstance(value, int) or value in words:
            return value
        try:
            moment = dt.datetime.fromisoformat(value)
        except ValueError:
            raise ValueError(f"{value!r} is none of {', '.join(words)}, ISO time, ms since the epoch") from None
        return int(moment.timestamp() * 1000)

    @model_validator(mode="after")
    def _readable(self) -> Self:
        if (self.payload == "avro") != (self.avro_schema is not None or self.registry is not None):
            raise ValueError("payload: avro needs avro_schema or registry, and these need payload: avro")
        if self.payload == "text" and (other := [name for name in self.kept if name not in META]):
            raise ValueError(f"with payload: text a message has no field {other[0]!r}; there are {', '.join(META)}")
        return self

    @property
    def live(self) -> bool:
        """The source has no end."""
        return self.until is None

    def both_ways(self, group: str) -> tuple[Self, Self]:
        """Up to the newest message (or `until`), and live."""
        if self.start == "committed":
            raise SpecError(
                "verify has a group of its own, which has committed nothing: give --set source.start=earliest"
            )
        bulk, live = (
            self.model_copy(update={"until": until, "group": group}) for until in (self.until or "latest", None)
        )
        return bulk, live


class KafkaSink(SinkPart):
    """A topic. Labels, dead letters and the input position are committed in one transaction."""

    type: Literal["kafka"] = "kafka"
    servers: str | None = Field(default=None, description="Default: those of a Kafka source.")
    topic: str = Field(description="Output topic; must exist.", examples=["labels"])
    mode: Literal["json", "avro", "headers"] = Field(
        default="json",
        description="json, avro: the value is an object (record) of id, kept and label columns; headers: value, key "
        "and timestamp stay as they were, and the labels are headers.",
    )
    avro_schema: str | None = Field(
        default=None,
        description="File with a schema to write by in place of the generated one (`tagstream schema --avro SPEC`).",
    )
    registry: Registry | None = Field(
        default=None,
        description="Where the schema of mode: avro is registered, as <topic>-value; its id precedes each value.",
    )
    partitioner: Literal["same-partition", "by-key"] = Field(
        default="same-partition", description="same-partition: as in the input; by-key: by the hash of the key."
    )
    compression: Literal["none", "gzip", "zstd"] = "none"
    producer: Library = Field(
        default="kafka-python",
        description="The client that writes. confluent-kafka (extra `confluent`) takes less time for a transaction; a "
        "timestamp of exactly 0 becomes the time of the write.",
    )
    client: Client = Field(default_factory=dict)

    wants_messages: ClassVar[bool] = True
    commits_offsets: ClassVar[bool] = True

    @model_validator(mode="after")
    def _avro(self) -> Self:
        if self.mode != "avro" and (self.avro_schema is not None or self.registry is not None):
            raise ValueError("avro_schema and registry go with mode: avro")
        return self

    @property
    def commit_every(self) -> float:
        """Every block is a transaction."""
        return 0.0

    def check_beside(self, job: Parts) -> None:
        """Servers and messages may be those of a Kafka source only."""
        if kafka_source(job) is None:
            if self.servers is None:
                raise ValueError("sink.servers is missing; for example localhost:9092")
            if self.mode == "headers":
                raise ValueError("sink.mode: headers needs a Kafka source: there is no original message to keep")


class KafkaDeadLetters(DeadLettersPart):
    """Where the dead letters of a Kafka sink go: a topic of the same cluster, in the same transaction."""

    type: Literal["kafka"] = "kafka"
    topic: str = Field(description="Topic of the dead letters; must exist.", examples=["labels-dead"])


def kafka_source(job: Parts) -> KafkaSource | None:
    """The job's source, if it is Kafka: then the sink can take over its servers, its messages and its group."""
    return job.source if isinstance(job.source, KafkaSource) else None
