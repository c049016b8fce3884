"""Compares tagstream with its peers on the same rows and the same model, in one run.

All contestants read the same Parquet file and write Parquet with id, label and score, on the CPU with the same version
of torch. All but `certified` compute in fp32. In each round, every contestant runs once as a process of its own, one
after the other:

- tagstream: `tagstream run`, precision fp32
- engine: tagstream's engine, fed with the same blocks without a pipeline. It runs right after tagstream, because a
  machine's speed drifts
- certified, engine_certified: the same with `backend: auto` and the certificate that `tagstream optimize` wrote before
  the first round, with rows of the input as its sample
- beam, beam_32: Beam's RunInference(HuggingFacePipelineModelHandler), as the documentation shows it, in an environment
  with transformers 4.57; once as shown, once with batch_size 32. The faster of the two counts.
- transformers: `transformers.pipeline("text-classification")` over all rows as they arrive, one at a time;
  transformers_32 with batch_size 32; transformers_sorted with batch_size 32 and the rows sorted by length
- sorted_batches: batches of 32 from sorted texts, as sentence-transformers does it
- ray: Ray Data's `map_batches`; daft: a class UDF of Daft; each as its guide shows it, in an environment of its own

rows/s do not count imports and loading the model, for any contestant; the figure for the whole process is printed too.
A speed-up is the median, over the rounds, of the ratio within a round. label_agreement: the smallest share of rows with
the same label as any fp32 peer. A model with random weights could have logits so close that rounding decides the label,
so its head is scaled to logits of deviation 1; the largest difference of a score is printed too. padding: share of
padding in the computed tokens. end_to_end_share, certified_end_to_end_share: rows/s of tagstream divided by rows/s of
its engine alone.

    python -m benchmarks.bulk [--json FILE] [--data FOLDER] [--rows N] [--model FOLDER] [--rounds N] [--record]
                              [--only NAME …]
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.children import CACHE, FP32, PYTHON, Child, certify, parquet_job, run
from benchmarks.environments import environment, same
from benchmarks.plot import draw
from benchmarks.results import save, versions

ROWS = 5000
PEERS = Path(__file__).parent / "peers"
TITLES = {
    "tagstream": "tagstream, fp32",
    "engine": "tagstream's engine alone, fp32",
    "certified": "tagstream, certified",
    "engine_certified": "tagstream's engine alone, certified",
    "beam": "Beam's handler, as documented",
    "beam_32": "Beam's handler, batch_size 32",
    "transformers": "transformers.pipeline, one by one",
    "transformers_32": "transformers.pipeline, batch_size 32",
    "transformers_sorted": "transformers.pipeline, batch_size 32, sorted",
    "sorted_batches": "sorted batches, as sentence-transformers",
    "ray": "Ray Data",
    "daft": "Daft",
}
ENGINES = {"engine": "tagstream", "engine_certified": "certified"}
OURS = (*ENGINES, *ENGINES.values())
SCRIPTS = {
    "beam": ("beam_handler.py", "1"),
    "beam_32": ("beam_handler.py", "32"),
    "transformers": ("transformers_loop.py", "1", "arrival"),
    "transformers_32": ("transformers_loop.py", "32", "arrival"),
    "transformers_sorted": ("transformers_loop.py", "32", "sorted"),
    "sorted_batches": ("sorted_batches.py",),
    "ray": ("ray_data.py",),
    "daft": ("daft_udf.py",),
}
ENVIRONMENTS = {
    "beam": ("beam-handler", [same("apache-beam"), "transformers==4.57.*"]),
    "ray": ("ray", ["ray[data]==2.*", same("transformers")]),
    "daft": ("daft", ["daft==0.7.*", same("transformers")]),
}
SHARED = [same("torch"), same("pyarrow"), same("numpy")]
AS_FOLDER = ("beam", "beam_32", "ray", "daft")


class Race:
    """One input and one model. Each contestant is a method that returns its seconds and its child process."""

    def __init__(self, folder: Path, model: Path, names: list[str]) -> None:
        self.folder, self.model, self.input = folder, str(model), str(folder / "in.parquet")
        self.names = names
        self.reports: list[dict[str, Any]] = []
        self.backend: dict[str, Any] = {}
        self.certified: str | None = None
        self._pythons = {
            name: str(environment(folder_name, [*requirements, *SHARED]))
            for name, (folder_name, requirements) in ENVIRONMENTS.items()
            if any(contestant.startswith(name) for contestant in names)
        }
        if "certified" in names:
            self.backend, self.certified = certify(self.model, self.input, folder)

    def round(self) -> dict[str, tuple[float, Child]]:
        done = {}
        for name in self.names:
            print(f"{TITLES[name]} …", flush=True)
            done[name] = self._run(name)
        return done

    def outputs(self, name: str) -> list[str]:
        found = [path for path in self.folder.glob(f"out-{name}*") if path.name.partition(".")[0] == f"out-{name}"]
        found += self.folder.glob(f"out-{name}-*.parquet")  # Beam's shards
        return sorted(str(file) for path in found for file in (path.rglob("*.parquet") if path.is_dir() else [path]))

    def _run(self, name: str) -> tuple[float, Child]:
        out = self.folder / f"out-{name}"
        if out.is_dir():
            shutil.rmtree(out)
        if name == "tagstream":
            return self._tagstream(name, FP32)
        if name == "certified":
            return self._tagstream(name, self.backend)
        if name in ENGINES:
            backend = json.dumps(FP32 if name == "engine" else self.backend)
            child = run([PYTHON, str(PEERS / "engine_alone.py"), self.model, self.input, backend])
            return child.said["seconds"], child
        script, *arguments = SCRIPTS[name]
        python = self._pythons.get(name.partition("_")[0], PYTHON)
        target = str(out) if name in AS_FOLDER else f"{out}.parquet"
        child = run([python, str(PEERS / script), self.model, self.input, target, *arguments])
        return child.said["seconds"], child

    def _tagstream(self, name: str, backend: dict[str, Any]) -> tuple[float, Child]:
        child, report = parquet_job(self.folder, name, self.model, self.input, backend)
        if name == "tagstream":
            self.reports.append(report)
        return report["seconds"], child


def measure(race: Race, rows: int, rounds: int) -> dict[str, Any]:
    done = [race.round() for _ in range(rounds)]
    seconds = [{name: took for name, (took, _) in one.items()} for one in done]
    peers = [name for name in race.names if name not in OURS]

    def speedup(names: list[str], ours: str = "tagstream") -> float | None:
        """How many times as fast `ours` is as the fastest of `names`."""
        if ours not in race.names or not names:
            return None
        return round(median(min(s[name] for name in names) / s[ours] for s in seconds), 3)

    def share(engine: str) -> float:
        """The pipeline's speed as a share of its engine's."""
        return round(median(s[engine] / s[ENGINES[engine]] for s in seconds), 4)

    def agreement(ours: str, names: list[str]) -> list[dict[str, Any]]:
        command = [PYTHON, "-m", "benchmarks.agreement", *race.outputs(ours)]
        return [run([*command, "--", *race.outputs(name)]).said for name in names]

    beams = [name for name in peers if name.startswith("beam")]
    same_as_peers = agreement("tagstream", peers)
    return {
        "rows": rows,
        "rounds": rounds,
        "speedup_vs_beam": speedup(beams),
        "speedup_vs_transformers": speedup([name for name in peers if name == "transformers_32"]),
        "speedup_vs_best_peer": speedup(peers),
        "best_peer": min(peers, key=lambda name: median(s[name] for s in seconds)) if peers else None,
        "certified_speedup_vs_beam": speedup(beams, "certified"),
        "certified_speedup_vs_best_peer": speedup(peers, "certified"),
        "certified_agreement": agreement("certified", ["tagstream"])[0]["agreement"] if race.certified else None,
        "certified_backend": race.certified,
        "label_agreement": min((a["agreement"] for a in same_as_peers), default=None),
        "max_score_difference": max((a["difference"] for a in same_as_peers), default=None),
        "padding": median(report["padding"] for report in race.reports),
        "end_to_end_share": share("engine"),
        "certified_end_to_end_share": share("engine_certified"),
        "mean_tokens": round(race.reports[0]["tokens"] / rows, 1),
        "duplicates": race.reports[0]["duplicates"],
        "rows_per_s": {name: round(median(rows / s[name] for s in seconds), 1) for name in race.names},
        "rows_per_s_whole_process": {
            name: round(median(rows / one[name][1].wall for one in done), 1) for name in race.names
        },
        "peak_mb": {name: round(median(one[name][1].peak_mb for one in done)) for name in race.names},
    }


def table(found: dict[str, Any]) -> list[str]:
    """Markdown."""
    lines = [
        f"{found['rows']:,} rows, {found['mean_tokens']} tokens on average, rounds: {found['rounds']}",
        "",
        "| | rows/s | rows/s, whole process | peak memory of the first process |",
        "|---|---|---|---|",
        *(
            f"| {TITLES[name]} | {rate:,} | {found['rows_per_s_whole_process'][name]:,} "
            f"| {found['peak_mb'][name]:,} MiB |"
            for name, rate in found["rows_per_s"].items()
        ),
        "",
    ]
    if found["speedup_vs_beam"]:
        lines.append(f"- fp32: {found['speedup_vs_beam']:.2f} times Beam's handler")
    if found["best_peer"]:
        lines += [
            f"- fp32: {found['speedup_vs_best_peer']:.2f} times the best peer, {TITLES[found['best_peer']]}",
            f"- labels agree with every peer's in at least {found['label_agreement']:.2%} of the rows",
            f"- scores differ from theirs by at most {found['max_score_difference']:.1e}",
        ]
    if backend := found["certified_backend"]:
        against = {"Beam's handler": "certified_speedup_vs_beam", "the best peer": "certified_speedup_vs_best_peer"}
        times = [f"{found[key]:.2f} times {who}, " for who, key in against.items() if found[key]]
        lines.append(f"- certified ({backend}): {''.join(times)}labels as in fp32: {found['certified_agreement']:.2%}")
    shares = f"{found['end_to_end_share']:.1%}, certified {found['certified_end_to_end_share']:.1%}"
    return [*lines, f"- padding: {found['padding']:.1%}; end to end over engine alone: {shares}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="Parquet files with a column text")
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--model", type=Path, metavar="FOLDER", help="any sequence classifier; needed for real texts")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--only", nargs="+", choices=[n for n in TITLES if n not in OURS], help="these peers only")
    parser.add_argument("--record", action="store_true", help="write benchmarks/RESULTS.md and a plot")
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
        race = Race(folder, model, [name for name in TITLES if name in (*OURS, *(options.only or TITLES))])
        found = measure(race, race_rows(folder), options.rounds)
    packages = versions("torch", "transformers", "apache-beam", "pyarrow")
    section = f"bulk-{model.name}" if options.model else "bulk"
    save("bulk", found, table(found), packages, options.json, record=options.record, section=section)
    if options.record:
        bars = [[TITLES[n], rate, n in OURS] for n, rate in found["rows_per_s"].items() if n not in ENGINES]
        draw(section, {"bars": bars})


def _fresh(model: Path) -> bool:
    """Whether the model was made by the present version of `generated.py`."""
    weights = model / "model.safetensors"
    return weights.is_file() and weights.stat().st_mtime > Path(__file__).with_name("generated.py").stat().st_mtime


def race_rows(folder: Path) -> int:
    """How many rows the input has. It may have fewer than asked for."""
    return run([PYTHON, "-m", "benchmarks.agreement", str(folder / "in.parquet")]).said["rows"]


if __name__ == "__main__":
    main()
