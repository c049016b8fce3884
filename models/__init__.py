"""The bundled models: one standard Hugging Face folder for each, installed with the package.

Knows where the folders are, and nothing of engines or jobs.
"""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parent
PREFIX = "tagstream/"


def bundled() -> dict[str, Path]:
    """The folder of each bundled model, by name (`tagstream/<folder>`)."""
    return {f"{PREFIX}{path.parent.name}": path.parent for path in sorted(ROOT.glob("*/config.json"))}
