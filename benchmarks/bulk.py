"""tagstream against Beam's own Hugging Face handler and a plain transformers loop: same rows, same model, one run.

All read the same Parquet file and write Parquet with id, label and score; fp32 on the CPU, the same versions of torch
and Beam. In each round every contestant runs once, one after the other, each as a process of its own:

- tagstream: `tagstream run`
- Beam's handler: RunInference(HuggingFacePipelineModelHandler), as the documentation shows it, in an environment with
  transformers 4.57; once as shown, once with batch_size 32. The faster of the two counts.
- transformers: a loop over `pipeline("text-classification", batch_size=32)`
- the engine alone: tagstream's engine, fed with the same blocks without a pipeline

rows/s leave out imports and the loading of the model on all sides; the whole process is printed beside. Speed-ups are
ratios within a round, medians over the rounds. label_agreement: the smallest share of rows with the same label as
either peer; a model with random weights could have logits so close that rounding decides, so its head is scaled to
logits of deviation 1, and the largest difference of a score is printed too. padding: share of the tokens computed that
are padding. end_to_end_share: rows/s of tagstream over those of its engine alone.

    python -m benchmarks.bulk [--json FILE] [--data FOLDER] [--rows N] [--model FOLDER] [--rounds N] [--record]
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.children import CACHE, PYTHON, Child, run, tagstream
from benchmarks.environments import environment, same
from benchmarks.results import save, versions

ROWS = 1000
PEERS = Path(__file__).parent / "peers"
TITLES = {
    "tagstream": "tagstream",
    "beam": "Beam's handler, as documented",
    "beam_32": "Beam's handler, batch_size 32",
    "transformers": "transformers.pipeline, batch_size 32",
    "engine": "tagstream's engine alone",
}


class Race:
    """One input, one model; each contestant returns its seconds, and its child process."""

    def __init__(self, folder: Path, model: Path) -> None:
        self.folder, self.model, self.input = folder, str(model), str(folder / "in.parquet")
        requirements = [same("apache-beam"), "transformers==4.57.*", same("torch"), same("pyarrow"), same("numpy")]
        self.beam_python = str(environment("beam-handler", requirements))
        self.reports: list[dict[str, Any]] = []

    def round(self) -> dict[str, tuple[float, Child]]:
        return {
            "tagstream": self._tagstream(),
            "beam": self._script(self.beam_python, "beam_handler.py", self._out("beam"), "1"),
            "beam_32": self._script(self.beam_python, "beam_handler.py", self._out("beam_32"), "32"),
            "transformers": self._script(PYTHON, "transformers_loop.py", self._out("transformers") + ".parquet"),
            "engine": self._script(PYTHON, "engine_alone.py"),
        }

    def outputs(self, name: str) -> list[str]:
        found = self.folder.glob("out-tagstream/*.parquet" if name == "tagstream" else f"out-{name}[.-]*parquet")
        return sorted(str(path) for path in found)

    def _out(self, name: str) -> str:
        return str(self.folder / f"out-{name}")

    def _tagstream(self) -> tuple[float, Child]:
        backend = {"type": "pytorch", "device": "cpu", "precision": "fp32"}
        spec = {
            "name": "bulk",
            "source": {"type": "parquet", "path": self.input, "text": "text", "id": "id"},
            "classify": [{"model": self.model, "as": "label", "backend": backend}],
            "sink": {"type": "parquet", "path": self._out("tagstream")},
        }
        path = self.folder / "bulk.yaml"
        path.write_text(json.dumps(spec))  # JSON is YAML
        child, report = tagstream(path, self.folder / "report.json")
        self.reports.append(report)
        return report["seconds"], child

    def _script(self, python: str, script: str, *arguments: str) -> tuple[float, Child]:
        child = run([python, str(PEERS / script), self.model, self.input, *arguments])
        return child.said["seconds"], child


def measure(race: Race, rows: int, rounds: int) -> dict[str, Any]:
    done = [race.round() for _ in range(rounds)]
    seconds = [{name: took for name, (took, _) in one.items()} for one in done]
    agreement = {
        name: run([PYTHON, "-m", "benchmarks.agreement", *race.outputs("tagstream"), "--", *race.outputs(name)]).said
        for name in ("beam", "beam_32", "transformers")
    }
    return {
        "rows": rows,
        "rounds": rounds,
        "speedup_vs_beam": round(median(min(s["beam"], s["beam_32"]) / s["tagstream"] for s in seconds), 3),
        "speedup_vs_transformers": round(median(s["transformers"] / s["tagstream"] for s in seconds), 3),
        "label_agreement": min(a["agreement"] for a in agreement.values()),
        "max_score_difference": max(a["difference"] for a in agreement.values()),
        "padding": median(report["padding"] for report in race.reports),
        "end_to_end_share": round(median(s["engine"] / s["tagstream"] for s in seconds), 4),
        "mean_tokens": round(race.reports[0]["tokens"] / rows, 1),
        "duplicates": race.reports[0]["duplicates"],
        "rows_per_s": {name: round(median(rows / s[name] for s in seconds), 1) for name in TITLES},
        "rows_per_s_whole_process": {
            name: round(median(rows / one[name][1].wall for one in done), 1) for name in TITLES
        },
        "peak_mb": {name: round(median(one[name][1].peak_mb for one in done)) for name in TITLES},
    }


def table(found: dict[str, Any]) -> list[str]:
    """Markdown."""
    return [
        f"{found['rows']:,} rows, {found['mean_tokens']} tokens on average, rounds: {found['rounds']}",
        "",
        "| | rows/s | rows/s, whole process | peak memory |",
        "|---|---|---|---|",
        *(
            f"| {title} | {found['rows_per_s'][name]} | {found['rows_per_s_whole_process'][name]} "
            f"| {found['peak_mb'][name]:,} MiB |"
            for name, title in TITLES.items()
        ),
        "",
        f"- {found['speedup_vs_beam']:.2f} times Beam's handler",
        f"- {found['speedup_vs_transformers']:.2f} times the transformers loop",
        f"- labels agree: {found['label_agreement']:.2%}; scores differ by at most {found['max_score_difference']:.1e}",
        f"- padding: {found['padding']:.1%}; end to end over engine alone: {found['end_to_end_share']:.1%}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="Parquet files with a column text")
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--model", type=Path, metavar="FOLDER", help="any sequence classifier; needed for real texts")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--record", action="store_true", help="write benchmarks/RESULTS.md")
    options = parser.parse_args()
    if options.data and not options.model:
        parser.error("--data needs --model: the generated model knows generated words only")
    model = options.model.resolve() if options.model else CACHE / "model"
    generate = [PYTHON, "-m", "benchmarks.generated"]
    if not options.model and not _fresh(model):
        run([*generate, "model", str(model)])
    with tempfile.TemporaryDirectory(prefix="tagstream-") as name:
        folder = Path(name)
        source = ["sample", str(options.data.resolve())] if options.data else ["texts"]
        run([*generate, source[0], str(folder / "in.parquet"), str(options.rows), *source[1:]])
        race = Race(folder, model)
        found = measure(race, race_rows(folder), options.rounds)
    packages = versions("torch", "transformers", "apache-beam", "pyarrow")
    save("bulk", found, table(found), packages, options.json, record=options.record)


def _fresh(model: Path) -> bool:
    """Made by the code that is there now."""
    weights = model / "model.safetensors"
    return weights.is_file() and weights.stat().st_mtime > Path(__file__).with_name("generated.py").stat().st_mtime


def race_rows(folder: Path) -> int:
    """Rows of the input: fewer than asked for if the data hold fewer."""
    return run([PYTHON, "-m", "benchmarks.agreement", str(folder / "in.parquet")]).said["rows"]


if __name__ == "__main__":
    main()
