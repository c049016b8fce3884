"""What the tests of `deploy/` share: its files, and what must hold of every command and job specification in them."""

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
"""Variables that job specifications take from their surroundings."""


def documents(path: str) -> list[dict]:
    return [document for document in yaml.safe_load_all((DEPLOY / path).read_text()) if document]


def check_command(arguments: list[str]) -> str:
    """`tagstream` takes these arguments; raises click's UsageError if not. Returns the name of the subcommand."""
    command = get_command(app).commands[arguments[0]]
    command.make_context(arguments[0], list(arguments[1:]), resilient_parsing=False)
    return arguments[0]


def check_spec(text: str, folder: Path, monkeypatch) -> JobSpec:
    """Loads a job specification, with something in every variable that it takes from its surroundings."""
    for name in ENVIRONMENT:
        monkeypatch.setenv(name, {"JOB_SERVER": "jobserver:8099", "FLINK": "http://flink:8081"}.get(name, name.lower()))
    path = folder / "job.yaml"
    path.write_text(text)
    return load_spec(str(path))
