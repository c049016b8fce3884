"""The bundled models: standard Hugging Face folders, one a model, that come with the package.

Owns where they are. Knows nothing of engines or jobs.
"""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parent
PREFIX = "tagstream/"


def bundled() -> dict[str, Path]:
    """Names (`tagstream/<folder>`) of the bundled models and their folders."""
    return {f"{PREFIX}{path.parent.name}": path.parent for path in sorted(ROOT.glob("*/config.json"))}
