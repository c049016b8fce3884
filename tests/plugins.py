"""Toy distributions with entry points, in a folder that stands in for site-packages."""

from __future__ import annotations

from pathlib import Path


def install(folder: Path, name: str, version: str, points: dict[str, str], **modules: str) -> None:
    """Put a distribution into `folder`: its entry points, lines by group, and its modules' sources by name."""
    info = folder / f"{name}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (info / "entry_points.txt").write_text("".join(f"[{group}]\n{lines}\n\n" for group, lines in points.items()))
    for module, text in modules.items():
        (folder / f"{module}.py").write_text(text)
