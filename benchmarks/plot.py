"""Plots measured figures as SVG beside RESULTS.md, with matplotlib in an environment of its own.

    python -m benchmarks.plot FIGURES.json FILE.svg       in that environment

Figures: `{"panels": [{"title", "points": [[x, rows/s], …]}, …]}` or `{"bars": [[name, rows/s, is it ours], …]}`.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

INK, OURS, OTHERS = "#333333", "#1f6feb", "#b8bec6"


def draw(name: str, figures: dict[str, Any]) -> None:
    """Write `benchmarks/NAME.svg`."""
    from benchmarks.children import run
    from benchmarks.environments import environment

    python = environment("plot", ["matplotlib==3.*"])
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(figures, file)
        file.flush()
        run([str(python), "-m", "benchmarks.plot", file.name, str(Path(__file__).with_name(f"{name}.svg"))])


def main(source: str, target: str) -> None:
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams.update({"svg.hashsalt": "tagstream", "font.size": 9, "text.color": INK, "axes.edgecolor": INK})
    from matplotlib import pyplot as plt

    figures = json.loads(Path(source).read_text())
    if bars := figures.get("bars"):
        bars.sort(key=lambda bar: bar[1])
        figure, axes = plt.subplots(figsize=(7, 0.4 * len(bars) + 0.8), layout="constrained")
        drawn = axes.barh(
            [bar[0] for bar in bars], [bar[1] for bar in bars], color=[OURS if b[2] else OTHERS for b in bars]
        )
        axes.bar_label(drawn, fmt="{:,.0f}", padding=3)
        axes.set_xlabel("rows/s")
        axes.spines[["top", "right"]].set_visible(False)
    else:
        panels = figures["panels"]
        figure, every = plt.subplots(1, len(panels), figsize=(2.6 * len(panels), 2.6), layout="constrained")
        for axes, panel in zip(every, panels, strict=True):
            x, y = zip(*panel["points"], strict=True)
            axes.plot(x, y, marker="o", color=OURS)
            axes.set(xscale="log", xlabel=panel["title"], ylim=(0, 1.15 * max(y)), xticks=x, xticklabels=x)
            axes.minorticks_off()
            axes.spines[["top", "right"]].set_visible(False)
        every[0].set_ylabel("rows/s")
    figure.savefig(target, metadata={"Date": None})


if __name__ == "__main__":
    main(*sys.argv[1:])
