"""The Kafka parts of a specification: source, sink, dead letters."""

from __future__ import annotations

import datetime as dt
from typing import Annotated, Any, ClassVar, Literal, Self, get_args

from pydantic import BeforeValidator, Field, field_validator, model_validator

from tagstream.schemas.errors import SpecError
from tagstream.schemas.spec_base import EVERYTHING, DeadLettersPart, Names, Parts, Says, SinkPart, SourcePart, Spec

META: tuple[str, ...] = ("topic", "partition", "offset", "timestamp", "key", "headers")
"""Names that `id` and `keep` may use for every message, besides the fields of its payload."""
Moment = Annotated[
    str | int,
    BeforeValidator(lambda value: value.isoformat() if isinstance(value, dt.date) else value),  # YAML parses dates
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

    url: str = Field(repr=False, description="One URL, or several separated by commas. Apicurio: …/apis/ccompat/v7.")
    client: dict[str, Any] = Field(
        default_factory=dict,
        repr=False,
        description="Properties of confluent-kafka's SchemaRegistryClient: basic.auth.user.info, ssl.ca.location, … "
        "Secrets as ${NAME}.",
    )


class KafkaSource(SourcePart):
    """Topics, read live by a consumer group. With `until` they are read up to that point, and the job ends."""

    type: Literal["kafka"] = "kafka"
    servers: str = Field(description="host:port, several separated by commas.", examples=["localhost:9092"])
    topics: Names = Field(min_length=1, description="One topic or a list.", examples=[["messages"]])
    group: str | None = Field(default=None, min_length=1, description="Consumer group; default: the job's name.")
    instance_id: str | None = Field(
        default=None,
        description="Static membership: a name for each process. If a process restarts within "
        "client.session_timeout_ms, it keeps its partitions. Set that to the time that the model takes to load; the "
        "default is 6,000.",
    )
    start: Moment = Field(
        default="earliest",
        description="Where to begin partitions that the job has not read yet: earliest, latest, committed (an error "
        "if the group has committed nothing), or a time (ISO 8601, or milliseconds since 1970).",
    )
    until: Moment | None = Field(
        default=None,
        description="Where to end the job: latest, or a time. Without it the job reads live and never ends.",
    )
    payload: Literal["text", "json", "avro"] = Field(
        default="text",
        description="text: the value is the text; json, avro: text, id and keep are paths of fields, such as "
        "user.name. id and keep may also be " + ", ".join(META) + ".",
    )
    avro_schema: str | None = Field(
        default=None,
        description="File with the Avro schema of the values. With a registry it is optional: the schema to which the "
        "values are converted.",
    )
    avro_framing: Literal["none", "confluent"] = Field(
        default="none", description="confluent: five bytes with a schema id precede each value."
    )
    registry: Registry | None = Field(
        default=None,
        description="Holds the schemas whose ids precede the values; implies avro_framing: confluent.",
    )
    consumer: Library = Field(
        default="kafka-python",
        description="The client that reads live. confluent-kafka (extra `confluent`) needs less CPU time.",
    )
    client: Client = Field(default_factory=dict)

    @field_validator("keep")
    @classmethod
    def _named(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if EVERYTHING in names:
            raise ValueError(
                "'*' needs columns that are known before the first row, and messages have no such columns: list the "
                "fields to keep, for example keep: [topic, offset]"
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
            raise ValueError(
                f"{value!r} is none of {', '.join(words)}, a time (ISO 8601), milliseconds since 1970"
            ) from None
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
        """Whether the source has no end."""
        return self.until is None

    def both_ways(self, group: str) -> tuple[Self, Self]:
        """The source up to the newest message (or `until`), and the same source live."""
        if self.start == "committed":
            raise SpecError(
                "verify reads in a group of its own, which has committed nothing: give --set source.start=earliest"
            )
        bulk, live = (
            self.model_copy(update={"until": until, "group": group}) for until in (self.until or "latest", None)
        )
        return bulk, live


class KafkaSink(SinkPart):
    """A topic. Labels, dead letters and the input position are committed in one transaction."""

    type: Literal["kafka"] = "kafka"
    servers: str | None = Field(default=None, description="Default: the servers of a Kafka source.")
    topic: str = Field(description="Output topic; must exist.", examples=["labels"])
    mode: Literal["json", "avro", "headers"] = Field(
        default="json",
        description="json, avro: the value is an object (record) with the id, kept and label columns; headers: value, "
        "key and timestamp stay as they were, and the labels become headers.",
    )
    avro_schema: str | None = Field(
        default=None,
        description="File with an Avro schema to use instead of the generated one (`tagstream schema --avro SPEC`).",
    )
    registry: Registry | None = Field(
        default=None,
        description="mode: avro registers its schema here as <topic>-value, and the schema's id precedes each value.",
    )
    partitioner: Literal["same-partition", "by-key"] = Field(
        default="same-partition",
        description="same-partition: the number of the input's partition; by-key: chosen by the hash of the key.",
    )
    compression: Literal["none", "gzip", "zstd"] = "none"
    producer: Library = Field(
        default="kafka-python",
        description="The client that writes. confluent-kafka (extra `confluent`) needs less time for a transaction, "
        "but turns a timestamp of exactly 0 into the time of the write.",
    )
    client: Client = Field(default_factory=dict)

    wants_messages: ClassVar[bool] = True
    commits_offsets: ClassVar[bool] = True

    @model_validator(mode="after")
    def _avro(self) -> Self:
        if self.mode != "avro" and (self.avro_schema is not None or self.registry is not None):
            raise ValueError("avro_schema and registry need mode: avro")
        return self

    @property
    def commit_every(self) -> float:
        """Always 0: every block is committed at once, in a transaction."""
        return 0.0

    @property
    def passes_text_on(self) -> bool:
        """With labels in headers the message stays as it is."""
        return self.mode == "headers"

    def check_beside(self, job: Parts) -> None:
        """Raises ValueError for settings that need a Kafka source if the job's source is another one."""
        if kafka_source(job) is None:
            if self.servers is None:
                raise ValueError("sink.servers is missing; for example localhost:9092")
            if self.mode == "headers":
                raise ValueError("sink.mode: headers needs a Kafka source: there is no original message to keep")


class KafkaDeadLetters(DeadLettersPart):
    """The topic for the dead letters of a Kafka sink. It is in the same cluster and the same transaction."""

    type: Literal["kafka"] = "kafka"
    topic: str = Field(description="Topic of the dead letters; must exist.", examples=["labels-dead"])


def kafka_source(job: Parts) -> KafkaSource | None:
    """The job's source if it is Kafka, else None. A Kafka sink uses the source's servers, messages and group."""
    return job.source if isinstance(job.source, KafkaSource) else None
