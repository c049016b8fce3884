"""Shared by the tests of `deploy/`: its files, and the checks of every command and job specification in them."""

from __future__ import annotations

from pathlib import Path

import yaml
from typer.main import get_command

from tagstream.pipelines.cli.main import app
from tagstream.schemas.spec import JobSpec
from tagstream.schemas.spec_file import load_spec
from tests.services.java import ROOT

DEPLOY = ROOT / "deploy"
ENVIRONMENT = ("KAFKA", "KAFKA_PASSWORD", "JOB_SERVER", "FLINK", "PROJECT", "REGION", "BUCKET")
"""Environment variables that the job specifications use."""


def documents(path: str) -> list[dict]:
    return [document for document in yaml.safe_load_all((DEPLOY / path).read_text()) if document]


def check_command(arguments: list[str]) -> str:
    """Check that `tagstream` takes these arguments; else raises click's UsageError. Returns the subcommand's name."""
    command = get_command(app).commands[arguments[0]]
    command.make_context(arguments[0], list(arguments[1:]), resilient_parsing=False)
    return arguments[0]


def check_spec(text: str, folder: Path, monkeypatch) -> JobSpec:
    """Load a job specification, with a value for every environment variable that it uses."""
    for name in ENVIRONMENT:
        monkeypatch.setenv(name, {"JOB_SERVER": "jobserver:8099", "FLINK": "http://flink:8081"}.get(name, name.lower()))
    path = folder / "job.yaml"
    path.write_text(text)
    return load_spec(str(path))
