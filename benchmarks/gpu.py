"""Measures how much of a GPU the engine uses, beside plain transformers, with a generated BERT-base in bf16.

There are two inputs: texts of lognormal lengths (median 30, mean 46 tokens, at most 512) and texts of 128 tokens. On
each input, the contestants run one after the other, each as a process of its own, warmed up:

- tagstream: the engine alone, fed with blocks, on all GPUs unless --device says otherwise. With --compile it runs a
  second time with `compile: true`, whose graphs are compiled before the clock starts
- end to end: `tagstream run` with the same backend, Parquet to Parquet, from the first row to the last, not warmed up
- transformers: texts sorted by length, batches of 256 padded to their longest, same model, bf16, on one device
- tokeniser: the engine's tokenizer alone. If it is not much faster than the engine, it limits the engine

Only real tokens are counted, no padding. MFU is the FLOPs that the real tokens need, divided by the devices' peak:

    FLOPs of a text of n tokens = n * (2 * parameters + 4 * layers * hidden * n)

The parameters exclude the embeddings. The pooler computes only one token of each text but is counted for every token,
which is 0.7 % too much for BERT-base. The second term is the attention's two products. The peak is for dense bf16 with
fp32 sums: NVIDIA's data sheet for the device's name, or --peak-tflops (for one device). Without either there is no MFU.

    python -m benchmarks.gpu [--json FILE] [--rows N] [--device cuda:0] [--peak-tflops N] [--compile] [--record]
    python -m benchmarks.gpu --device cpu --layers 2 --rows 64       the same path, small
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.children import CACHE, PYTHON, parquet_job, run
from benchmarks.results import save, versions

ROWS = 100_000
FIXED = 128
INPUTS = {"lognormal": "lognormal lengths", "fixed": f"{FIXED} tokens each"}
CONTESTANTS = {
    "tagstream": "tagstream",
    "compiled": "tagstream, compiled",
    "end_to_end": "tagstream, end to end",
    "transformers": "transformers, sorted",
}
PEAKS = (
    ("B200", 2250.0),
    ("H200", 989.0),
    ("H100 PCIe", 756.0),
    ("H100 NVL", 835.0),
    ("H100", 989.0),
    ("A100", 312.0),
    ("L40S", 362.0),
    ("A10G", 70.0),
    ("L4", 121.0),
)
"""TFLOP/s of devices whose name has all these words; the first that fits."""


def peak_tflops(name: str) -> float | None:
    """The peak of one device. `name`: as CUDA gives it, such as `NVIDIA A100-SXM4-80GB`."""
    words = set(re.split(r"[ -]", name))
    return next((peak for wanted, peak in PEAKS if set(wanted.split()) <= words), None)


def flops(parameters: int, layers: int, width: int, tokens: int, squares: int) -> float:
    """The FLOPs that texts need. `squares`: the sum, over the texts, of the squared number of tokens."""
    return 2 * parameters * tokens + 4 * layers * width * squares


def race(
    model: Path, source: Path, options: argparse.Namespace, peak: float | None, gpus: int
) -> dict[str, dict[str, float | None]]:
    """Figures of every contestant on one input. `peak`: TFLOP/s of one device."""
    script = [PYTHON, "-m", "benchmarks.peers.on_device"]
    names = [name for name in CONTESTANTS if name != "compiled" or options.compile]
    labels = {name: str(source.with_name(f"{source.stem}-{name}.parquet")) for name in names}
    said = {}
    for name in (*names, "tokeniser"):
        print(f"{source.stem}: {name} …", flush=True)
        begun = time.monotonic()
        if name == "end_to_end":
            backend = {"type": "pytorch", "device": options.device, "precision": "bf16"}
            report = parquet_job(source.parent, source.stem, str(model), str(source), backend)[1]
            one = {"seconds": report["seconds"], "rows": report["rows_out"], "padding": report["padding"]}
        else:
            more = [labels[name]] if name in labels else []
            one = run([*script, name, str(model), str(source), options.device, *more]).said
        said[name] = one
        spent = time.monotonic() - begun
        print(f"{source.stem}: {name}: {one['rows'] / one['seconds']:,.0f} rows/s ({spent:.0f} s in all)", flush=True)
    tokens, squares = said["tagstream"]["tokens"], said["tagstream"]["squares"]
    needed = flops(said["tokeniser"]["parameters"], options.layers, options.width, tokens, squares)
    found: dict[str, dict[str, float | None]] = {}
    for name in names:
        seconds, devices = said[name]["seconds"], 1 if name == "transformers" else max(1, gpus)
        found[name] = {
            "rows_per_s": round(said[name]["rows"] / seconds, 1),
            "tokens_per_s": round(tokens / seconds, 1),
            "tflops": needed / seconds / 1e12,
            "mfu": needed / seconds / 1e12 / (peak * devices) if peak else None,
            "padding": said[name].get("padding"),
            "devices": devices,
        }
        if name == "end_to_end":
            found[name]["share"] = round(said["tagstream"]["seconds"] / seconds, 4)
        elif name != "transformers":
            agreement = [PYTHON, "-m", "benchmarks.agreement", labels[name], "--", labels["transformers"]]
            found[name]["label_agreement"] = run(agreement).said["agreement"]
            found[name]["speedup"] = round(said["transformers"]["seconds"] / seconds, 3)
    rate = said["tokeniser"]["rows"] / said["tokeniser"]["seconds"]
    found["tokeniser"] = {"rows_per_s": round(rate, 1), "mean_tokens": round(tokens / said["tagstream"]["rows"], 1)}
    return found


def table(found: dict[str, dict[str, Any]], about: str) -> list[str]:
    """Markdown."""
    lines = [about, "", "| | rows/s | real tokens/s | MFU | padding |", "|---|---|---|---|---|"]
    titles = {kind: title for kind, title in INPUTS.items() if kind in found}
    for kind, title in titles.items():
        for name in (name for name in CONTESTANTS if name in found[kind]):
            at = found[kind][name]
            mfu = f"{at['mfu']:.1%}" if at["mfu"] is not None else "peak unknown"
            padding = f"{at['padding']:.1%}" if at["padding"] is not None else ""
            lines.append(
                f"| {CONTESTANTS[name]}; {title} | {at['rows_per_s']:,} | {at['tokens_per_s']:,} | {mfu} | {padding} |"
            )
    lines.append("")
    for kind, title in titles.items():
        ours, tokenised = found[kind]["tagstream"], found[kind]["tokeniser"]["rows_per_s"]
        lines.append(
            f"- {title}: {ours['speedup']:.2f} times transformers' rows/s (on one device), labels equal in "
            f"{ours['label_agreement']:.1%}; the tokenizer alone does {tokenised:,} rows/s, "
            f"{tokenised / ours['rows_per_s']:.1f} times the engine's"
        )
        lines.append(
            f"- {title}: end to end, not warmed up, over the engine alone: {found[kind]['end_to_end']['share']:.1%}"
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--device", default="cuda", help="cuda: all GPUs; cuda:N; cpu")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=768, help="hidden size; a multiple of 12")
    parser.add_argument("--peak-tflops", type=float, metavar="N", help="of one device, in bf16")
    parser.add_argument("--inputs", nargs="+", default=[*INPUTS], choices=[*INPUTS])
    parser.add_argument("--compile", action="store_true", help="also with compile: true")
    parser.add_argument("--record", action="store_true", help="write benchmarks/RESULTS.md")
    options = parser.parse_args()
    gpus = run([PYTHON, "-m", "benchmarks.peers.on_device", "look", options.device]).said["gpus"]
    if not gpus and options.device != "cpu":
        print(
            f"benchmarks.gpu: PyTorch finds no device {options.device} here; --device cpu runs it small",
            file=sys.stderr,
        )
        raise SystemExit(2)
    peak = options.peak_tflops or (peak_tflops(gpus[0]) if gpus else None)
    model = CACHE / f"model-{options.layers}-{options.width}"
    generate = [PYTHON, "-m", "benchmarks.generated"]
    if not (model / "model.safetensors").is_file():
        run([*generate, "model", str(model), str(options.layers), str(options.width)])
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="tagstream-") as folder:
        for kind in options.inputs:
            source = Path(folder) / f"{kind}.parquet"
            how = ["fixed", str(source), str(options.rows), str(FIXED)]
            run([*generate, *(how if kind == "fixed" else ["texts", *how[1:3]])])
            found[kind] = race(model, source, options, peak, len(gpus))
    device = f"{len(gpus)} x {gpus[0]}" if gpus else "CPU"
    figures = {"device": device, "peak_tflops": peak, "rows": options.rows, "layers": options.layers}
    figures |= {"width": options.width, **found}
    size = f"{options.rows:,} rows, {options.layers} layers of {options.width}"
    about = f"{device}, peak {peak or 'unknown'} TFLOP/s each; {size}"
    save("gpu", figures, table(found, about), versions("torch", "transformers"), options.json, record=options.record)


if __name__ == "__main__":
    main()
