"""Where a job runs: this machine, a Flink cluster, or any other runner that Apache Beam has."""

from __future__ import annotations

import json
import re
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from tagstream.schemas.one_of import OneOf
from tagstream.schemas.spec_base import Says, Spec

Address = Annotated[str, Field(pattern=r"^[^\s:/]+:\d+$", description="host:port"), Says("host:port", "localhost:8099")]


class RunnerPart(Spec):
    """Base of every runner's part. Derived classes set `type`."""

    type: str = ""


class LocalRunner(RunnerPart):
    """The process that the command starts."""

    type: Literal["local"] = "local"


class WorkerEnvironment(Spec):
    """How Flink's task managers get Python workers; see Beam's documentation of `--environment_type`."""

    type: Literal["EXTERNAL", "DOCKER", "PROCESS"] = "EXTERNAL"
    config: str = Field(
        default="localhost:50000",
        description="EXTERNAL: host:port of the worker pool, as task managers see it; DOCKER: image, with Beam's boot "
        'program as its entry point; PROCESS: JSON, {"command": path of a boot program}.',
    )

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.type == "EXTERNAL" and not re.fullmatch(r"[^\s:/]+:\d+", self.config):
            raise ValueError(f"config of an EXTERNAL environment is host:port of the worker pool, not {self.config!r}")
        if self.type == "DOCKER" and "config" not in self.model_fields_set:
            raise ValueError("a DOCKER environment needs config: the image")
        if self.type == "PROCESS":
            try:
                ready = isinstance(json.loads(self.config), dict)
            except ValueError:
                ready = False
            if not ready:
                raise ValueError('a PROCESS environment needs config: JSON, {"command": path of a boot program}')
        return self


class FlinkRunner(RunnerPart):
    """A Flink cluster, through Beam's job server."""

    type: Literal["flink"] = "flink"
    job_server: Address = Field(default="localhost:8099", description="Beam's Flink job server.")
    rest: Annotated[str, Says("an address that begins with http:// or https://", "http://localhost:8081")] = Field(
        default="http://localhost:8081", pattern=r"^https?://", description="Flink's REST address and dashboard."
    )
    parallelism: int = Field(default=1, ge=1, description="Task slots to use.")
    environment: WorkerEnvironment = Field(default_factory=WorkerEnvironment)
    seats_per_slot: int = Field(
        default=4, ge=1, description="Live sources: seats a slot, so that no worker is left without one."
    )


class OptionsRunner(RunnerPart):
    """A runner of Apache Beam that is told by Beam's own options alone."""

    options: tuple[str, ...] = Field(
        min_length=1,
        description="As on Beam's command line: --runner=…, but for dataflow, --region=…",
        examples=[["--runner=FlinkRunner"]],
    )
    seats: int = Field(default=4, ge=1, description="Live sources: a few times the number of parallel workers.")

    @property
    def arguments(self) -> tuple[str, ...]:
        """Beam's command line."""
        return self.options


class BeamRunner(OptionsRunner):
    """Any runner of Apache Beam. `live` sources need one that runs splittable DoFns."""

    type: Literal["beam"] = "beam"


class DataflowRunner(OptionsRunner):
    """Google Cloud Dataflow."""

    type: Literal["dataflow"] = "dataflow"

    @property
    def arguments(self) -> tuple[str, ...]:
        """Beam's command line."""
        return ("--runner=DataflowRunner", *self.options)


Runner = Annotated[
    LocalRunner | FlinkRunner | BeamRunner | DataflowRunner, OneOf(LocalRunner, FlinkRunner, BeamRunner, DataflowRunner)
]
