"""The job specification: where text comes from, which models label it, and where the labels go.

Frozen pydantic models. Sources, sinks and backends are told apart by their `type`. The same specification runs in bulk
and live: only `source` and `sink` differ. `schemas.spec_file` reads one from YAML.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from tagstream.schemas import plugins
from tagstream.schemas.errors import SpecError
from tagstream.schemas.infer_spec import (
    CERTIFIED_SETTINGS,
    AutoBackend,
    Backend,
    ConstantBackend,
    Fraction,
    InferEntry,
    OnnxBackend,
    PyTorchBackend,
)
from tagstream.schemas.kafka_spec import KafkaDeadLetters, KafkaSink, KafkaSource
from tagstream.schemas.lake_spec import (
    DeltaDeadLetters,
    DeltaSink,
    DeltaSource,
    IcebergDeadLetters,
    IcebergSink,
    IcebergSource,
)
from tagstream.schemas.memory_spec import MemorySink, MemorySource
from tagstream.schemas.one_of import OneOf
from tagstream.schemas.runner_spec import LocalRunner, Runner
from tagstream.schemas.spec_base import DeadLettersPart, Says, SinkPart, SourcePart, Spec
from tagstream.schemas.sql_spec import DuckDBDeadLetters, DuckDBSink, DuckDBSource, SqlDeadLetters, SqlSink, SqlSource

__all__ = [
    "CERTIFIED_SETTINGS", "AutoBackend", "Backend", "Blocks", "ConstantBackend", "InferEntry", "JobSpec", "MemorySink",
    "MemorySource", "OnnxBackend", "ParquetDeadLetters", "ParquetSink", "ParquetSource", "PyTorchBackend",
]  # fmt: skip


class ParquetSource(SourcePart):
    """Parquet files: a file, a folder, a glob, or an fsspec URL of one."""

    type: Literal["parquet"] = "parquet"
    path: str = Field(description="File, folder, glob or fsspec URL.", examples=["in/*.parquet"])
    split_rows: int = Field(default=65_536, ge=1, description="Most rows in one split.")
    on_bad_file: Literal["fail", "dead_letter"] = Field(
        default="fail", description="dead_letter: an unreadable file becomes dead letters and the rest goes on."
    )

    @property
    def reads(self) -> tuple[str, ...]:
        """The path."""
        return (self.path,)


class ParquetSink(SinkPart):
    """A folder of Parquet files. Only complete files are ever visible in it."""

    type: Literal["parquet"] = "parquet"
    path: str = Field(description="Output folder, or an fsspec URL of one.", examples=["out/labels"])
    commit_every: float = Field(default=60.0, gt=0, description="Seconds after which an open file is committed.")
    file_bytes: int = Field(default=256 << 20, ge=1, description="Bytes after which an open file is committed.")
    compression: Literal["zstd", "snappy", "gzip", "lz4", "none"] = "zstd"
    position: bool = Field(default=False, description="Also write the columns split and position.")

    @property
    def adds(self) -> tuple[str, ...]:
        """The position, if asked for."""
        return ("split", "position") if self.position else ()


class ParquetDeadLetters(DeadLettersPart):
    """Where the dead letters of a Parquet sink go."""

    type: Literal["parquet"] = "parquet"
    path: str = Field(description="Folder of the dead letters.", examples=["out/labels-dead"])


Source = Annotated[
    SourcePart,
    OneOf(
        ParquetSource, MemorySource, KafkaSource, SqlSource, DuckDBSource, IcebergSource, DeltaSource,
        group=plugins.SOURCES,
    ),
]  # fmt: skip
Sink = Annotated[
    SinkPart,
    OneOf(ParquetSink, MemorySink, KafkaSink, SqlSink, DuckDBSink, IcebergSink, DeltaSink, group=plugins.SINKS),
]
DeadLetters = Annotated[
    DeadLettersPart,
    OneOf(
        ParquetDeadLetters, KafkaDeadLetters, SqlDeadLetters, DuckDBDeadLetters, IcebergDeadLetters, DeltaDeadLetters,
        group=plugins.SINKS, attribute="DeadLetters",
    ),
]  # fmt: skip


class Blocks(Spec):
    """How much moves through the pipeline at a time; bounds memory together."""

    rows: int = Field(default=2048, ge=1, description="Most rows in a block.")
    bytes: int = Field(default=8 << 20, ge=1, description="Most bytes in a block; a single larger row goes alone.")
    in_flight: int | None = Field(
        default=None,
        ge=1,
        description="Blocks read ahead of the one to be written next. Default: 4; 16 if all models are on GPUs.",
    )


class JobSpec(Spec):
    """One job: text in, labels out."""

    name: Annotated[str, Says("letters, digits, . _ and - only, a letter or digit first", "sms-spam")] = Field(
        default="job", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
    )
    source: Source = Field(examples=[{"type": "parquet", "path": "in/*.parquet"}])
    infer: tuple[InferEntry, ...] = Field(min_length=1, examples=[[{"model": "tagstream/spam", "as": "spam"}]])
    sink: Sink = Field(examples=[{"type": "parquet", "path": "out/labels"}])
    dead_letters: DeadLetters | None = Field(
        default=None, description="Default: the folder, topic or table of the sink with -dead (_dead) behind its name."
    )
    payload: bool = Field(default=True, description="Keep the text of a row in its dead letter; replay needs it.")
    max_dead: Fraction = Field(
        default=0.05,
        description="A job stops if more than this share of 1,000 rows in a row are dead letters; a short one if all "
        "of its rows are. 1: never.",
    )
    blocks: Blocks = Field(default_factory=Blocks)
    runner: Runner = Field(default_factory=LocalRunner)

    @property
    def live(self) -> bool:
        """The job has no end of its own."""
        return self.source.live

    @property
    def output(self) -> str:
        """Where the labels go, for people."""
        return self.sink.where

    def with_columns(self, kept: Sequence[str]) -> JobSpec:
        """The same with the columns that `keep: '*'` stands for, as the opened source has found them.

        Raises SpecError if one of them has the name of a column that the job writes.
        """
        if not self.source.keeps_all:
            return self
        job = self.model_copy(update={"source": self.source.with_columns(kept)})
        try:
            job._check_columns()  # noqa: SLF001  of this class
        except ValueError as error:
            raise SpecError(
                f"source.keep: '*' passes on every column of the input: {error}. Rename one, or list the columns to "
                "keep in place of '*'"
            ) from None
        return job

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if self.dead_letters is not None and not self.sink.takes(self.dead_letters):
            raise ValueError(f"dead_letters.type must be {self.sink.type!r}, as in sink: both are committed together")
        self.source.check_beside(self)
        self.sink.check_beside(self)
        self._check_texts()
        return self

    def _check_texts(self) -> None:
        """Raises ValueError if an entry wants a text that the source does not give."""
        there = {self.source.text, *self.source.kept}
        for number, entry in enumerate(self.infer):
            for name in entry.texts:
                if name not in there and not self.source.keeps_all:
                    raise ValueError(
                        f"infer.{number}.text: no column {name!r}: name source.text ({self.source.text!r}) or a column "
                        "of source.keep"
                    )

    @model_validator(mode="after")
    def _distinct_certificates(self) -> Self:
        seen: dict[str, tuple[int, dict[str, object]]] = {}
        for number, entry in enumerate(self.infer):
            if isinstance(auto := entry.backend, AutoBackend) and auto.certificate:
                named = entry.model_dump(include={"model", "revision", *CERTIFIED_SETTINGS})
                first, other = seen.setdefault(auto.certificate.rstrip("/"), (number, named))
                if other != named:
                    raise ValueError(
                        f"infer.{number}.backend.certificate: {auto.certificate!r} is that of infer.{first}, "
                        "and a certificate is for one model and its settings: give each a folder of its own"
                    )
        return self

    @model_validator(mode="after")
    def _distinct_columns(self) -> Self:
        self._check_columns()
        return self

    def _check_columns(self) -> None:
        """Raises ValueError if two columns of the output would have one name, or one has a name of ours."""
        seen: dict[str, str] = dict.fromkeys(self.source.kept, "source.id or source.keep")
        for column in self.sink.adds:
            if column in seen:
                raise ValueError(f"column {column!r} of {seen[column]} is already taken by sink.position")
            seen[column] = "sink.position"
        for number, entry in enumerate(self.infer):
            where = f"infer.{number}.as"
            for column in entry.columns:
                if column in seen:
                    raise ValueError(f"column {column!r} of {where} is already taken by {seen[column]}")
                seen[column] = where
        if redacting := next((entry for entry in self.infer if entry.redact is not None), None):
            if self.payload:
                raise ValueError(
                    f"payload: dead letters would hold the text that {redacting.as_!r} redacts; write payload: false"
                )
            if self.sink.passes_text_on:
                raise ValueError(
                    f"sink.mode: headers passes the message on with its text, which {redacting.as_!r} redacts; write "
                    "mode: json"
                )
            if held := [name for name in (self.source.text, *redacting.texts) if name in self.source.kept]:
                raise ValueError(
                    f"source.keep: has the text {held[0]!r}, which {redacting.as_!r} redacts; leave it out"
                    + ("" if held[0] == self.source.text else f", and make it source.text: {held[0]}")
                )
        reserved = [c for c in self.source.kept if re.match(r"__", c)]
        if reserved:
            raise ValueError(f"column {reserved[0]!r}: names that begin with __ can't be kept; rename it in the source")
