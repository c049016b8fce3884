"""The job specification: frozen pydantic models, one discriminated union a seam.

A specification says where text comes from, which models label it, and where labels go. The same one runs in
bulk and live; only `source` and `sink` differ. `schemas.spec_file` reads it from YAML.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

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
from tagstream.schemas.runner_spec import LocalRunner, Runner
from tagstream.schemas.spec_base import Spec, TextColumns
from tagstream.schemas.sql_spec import DuckDBDeadLetters, DuckDBSink, DuckDBSource, SqlDeadLetters, SqlSink, SqlSource

Name = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", description="Column name: letters, digits, _.")]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]


class ParquetSource(TextColumns):
    """Parquet files: a file, a folder, a glob, or an fsspec URL of one."""

    type: Literal["parquet"] = "parquet"
    path: str = Field(description="File, folder, glob or fsspec URL.")
    split_rows: int = Field(default=65_536, ge=1, description="Most rows in one split.")
    on_bad_file: Literal["fail", "dead_letter"] = Field(
        default="fail", description="dead_letter: an unreadable file becomes dead letters and the rest goes on."
    )


class PyTorchBackend(Spec):
    """PyTorch: any Hugging Face sequence classifier with safetensors weights."""

    type: Literal["pytorch"] = "pytorch"
    device: str = Field(
        default="auto",
        pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$",
        description="auto: all GPUs, else CPU; cuda: all GPUs; cuda:1: that one.",
    )
    precision: Literal["fp32", "bf16"] = Field(
        default="fp32", description="bf16 may change labels; `tagstream optimize` measures how many, for backend auto."
    )
    token_budget: int | None = Field(
        default=None, ge=1, description="Most tokens, padding included, in one micro-batch; default by device."
    )
    compile: bool = Field(
        default=False,
        description="torch.compile, before the first row: on a CPU a graph for each of about ten padded lengths, which "
        "takes minutes; on a GPU the repeated block, for any length. Needs a C++ compiler, on a GPU a C compiler.",
    )


class ConstantBackend(Spec):
    """No model: every row gets the same label. For tests, dry runs and measuring what the pipeline itself costs."""

    type: Literal["constant"] = "constant"
    label: str = "constant"
    ms_per_row: float = Field(default=0.0, ge=0.0, description="Milliseconds of pretended model time a row.")
    fail_on: str | None = Field(default=None, description="RE2 pattern: a matching text fails as a poison row would.")
    memory_tokens: int | None = Field(
        default=None, ge=1, description="A micro-batch of more bytes than this runs out of memory, as on a device."
    )
    token_budget: int | None = Field(default=None, ge=1, description="Most bytes in one micro-batch.")


class OnnxBackend(Spec):
    """ONNX Runtime. fp32 is exported from the model at the first use; int8 comes from `tagstream optimize` only."""

    type: Literal["onnx"] = "onnx"
    file: str | None = Field(default=None, description="The exported model; default: made once, in the cache folder.")
    device: str = Field(default="auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="auto: first GPU, else CPU.")
    token_budget: int | None = Field(default=None, ge=1, description="Most tokens in one micro-batch.")


class AutoBackend(Spec):
    """The fastest backend that `tagstream optimize` has certified for this model; without a certificate fp32."""

    type: Literal["auto"] = "auto"
    certificate: str | None = Field(default=None, description="Folder of the certificate; default: the cache folder.")
    min_agreement: Fraction = Field(default=0.995, description="Least share of labels equal to those of fp32.")


Backend = Annotated[PyTorchBackend | OnnxBackend | AutoBackend | ConstantBackend, Field(discriminator="type")]
Provenance = Literal["tokens", "truncated", "model"]

CERTIFIED_SETTINGS = ("max_length", "long_text", "thresholds")
"""What a certificate names of an entry beside its model."""


class InferEntry(Spec):
    """One entry of `infer`: a model and the columns that it writes."""

    model: str | None = Field(
        default=None, description="Bundled name (tagstream/spam), local folder or Hugging Face id."
    )
    revision: str | None = Field(default=None, description="Branch, tag or commit of a Hugging Face id.")
    as_: Name = Field(default="label", alias="as", description="Prefix of the columns that this entry writes.")
    scores: Literal["top", "all", "none"] = Field(
        default="top", description="top: <as>_score; all: also <as>_scores, one field a label."
    )
    provenance: tuple[Provenance, ...] = Field(
        default=("truncated",), description="Further columns: <as>_tokens, <as>_truncated, <as>_model."
    )
    labels: dict[str, str] = Field(default_factory=dict, description="Label map: name in the model's config to yours.")
    thresholds: dict[str, Fraction] = Field(
        default_factory=dict, description="Least score by label (your names): below it the row gets `abstain`."
    )
    abstain: str | None = Field(default=None, description="Label of rows below their threshold; null if not given.")
    long_text: Literal["truncate", "window", "dead_letter"] = Field(
        default="truncate",
        description="Text longer than max_length: cut and marked, or scored in overlapping windows whose mean "
        "logits count, or a dead letter.",
    )
    max_length: int | None = Field(
        default=None, ge=4, description="Tokens, special ones included; default and upper bound: the model's window."
    )
    memory_bytes: int = Field(
        default=0,
        ge=0,
        description="Answers to remember, so that a text is not inferred again in a later block; about 215 bytes "
        "a text. Equal texts of one block always are.",
    )
    backend: Backend = Field(default_factory=PyTorchBackend)

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of all columns that it may write."""
        suffixes = ("score", "scores", "tokens", "truncated", "model")
        return (self.as_, *(f"{self.as_}_{suffix}" for suffix in suffixes))

    @model_validator(mode="after")
    def _needs_model(self) -> Self:
        if self.model is None and self.backend.type != "constant":
            raise ValueError("model is missing: give a bundled name (tagstream/spam), a folder or a Hugging Face id")
        return self


class ParquetSink(Spec):
    """A folder of Parquet files. Only complete files are ever visible in it."""

    type: Literal["parquet"] = "parquet"
    path: str = Field(description="Output folder, or an fsspec URL of one.")
    commit_every: float = Field(default=60.0, gt=0, description="Seconds after which an open file is committed.")
    file_bytes: int = Field(default=256 << 20, ge=1, description="Bytes after which an open file is committed.")
    compression: Literal["zstd", "snappy", "gzip", "lz4", "none"] = "zstd"
    position: bool = Field(default=False, description="Also write the columns split and position.")


class ParquetDeadLetters(Spec):
    """Where the dead letters of a Parquet sink go."""

    type: Literal["parquet"] = "parquet"
    path: str = Field(description="Folder of the dead letters.")


Source = Annotated[
    ParquetSource | MemorySource | KafkaSource | SqlSource | DuckDBSource | IcebergSource | DeltaSource,
    Field(discriminator="type"),
]
Sink = Annotated[
    ParquetSink | MemorySink | KafkaSink | SqlSink | DuckDBSink | IcebergSink | DeltaSink, Field(discriminator="type")
]
DeadLetters = Annotated[
    ParquetDeadLetters | KafkaDeadLetters | SqlDeadLetters | DuckDBDeadLetters | IcebergDeadLetters | DeltaDeadLetters,
    Field(discriminator="type"),
]


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

    name: str = Field(default="job", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    source: Source
    infer: tuple[InferEntry, ...] = Field(min_length=1)
    sink: Sink
    dead_letters: DeadLetters | None = Field(
        default=None, description="Default: the folder, topic or table of the sink with -dead (_dead) behind its name."
    )
    payload: bool = Field(default=True, description="Keep the text of a row in its dead letter; replay needs it.")
    max_dead: Fraction = Field(
        default=0.05, description="A bulk job stops if more than this share of its first 1,000 rows are dead letters."
    )
    blocks: Blocks = Field(default_factory=Blocks)
    runner: Runner = Field(default_factory=LocalRunner)

    @property
    def live(self) -> bool:
        """The job has no end of its own."""
        return isinstance(self.source, KafkaSource) and self.source.live

    @property
    def output(self) -> str:
        """Where the labels go, for people: a folder, a file, a topic, a table."""
        names = (getattr(self.sink, field, None) for field in ("path", "topic", "table"))
        return next((name for name in names if name), self.sink.type)

    @model_validator(mode="after")
    def _dead_letters_beside_labels(self) -> Self:
        if self.dead_letters is not None and self.sink.type not in ("memory", self.dead_letters.type):
            raise ValueError(f"dead_letters.type must be {self.sink.type!r}, as in sink: both are committed together")
        if isinstance(self.sink, KafkaSink):
            if self.sink.servers is None and not isinstance(self.source, KafkaSource):
                raise ValueError("sink.servers is missing")
            if self.sink.mode == "headers" and not isinstance(self.source, KafkaSource):
                raise ValueError("sink.mode: headers needs a Kafka source: there is no original message to keep")
        return self

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
        seen: dict[str, str] = dict.fromkeys(self.source.kept, "source.id or source.keep")
        if getattr(self.sink, "position", False):
            for column in ("split", "position"):
                if column in seen:
                    raise ValueError(f"column {column!r} of {seen[column]} is already taken by sink.position")
                seen[column] = "sink.position"
        for number, entry in enumerate(self.infer):
            where = f"infer.{number}.as"
            for column in entry.columns:
                if column in seen:
                    raise ValueError(f"column {column!r} of {where} is already taken by {seen[column]}")
                seen[column] = where
        reserved = [c for c in self.source.kept if re.match(r"__", c)]
        if reserved:
            raise ValueError(f"column {reserved[0]!r}: names that begin with __ can't be kept; rename it in the source")
        return self
