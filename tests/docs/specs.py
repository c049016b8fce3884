"""Job specifications in the documentation: whole ones, and parts that need the rest of a job around them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

REST: dict[str, Any] = {
    "source": {"type": "parquet", "path": "in/", "id": "id"},
    "infer": [{"model": "tagstream/spam", "as": "spam"}],
    "sink": {"type": "parquet", "path": "out/"},
}


def complete(text: str, path: Path, monkeypatch) -> None:
    """Write the specification to `path`, what it lacks added, and set the environment variables that it names."""
    for name in re.findall(r"\$\{(\w+)\}", text):
        monkeypatch.setenv(name, "secret")
    given = yaml.safe_load(text)
    rest = dict(REST)
    if (source := given.get("source")) and source["type"] == "kafka" and "sink" not in given:
        rest["sink"] = {"type": "kafka", "topic": "labels"}
    path.write_text(yaml.safe_dump({**rest, **given}))
