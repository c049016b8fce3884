"""Measures live tagging of a Kafka topic: latency at steady rates, speed with a backlog, and both for peers.

Latency is the time from a message's timestamp until a read_committed consumer has its label. Broker, load generator,
consumer and job share the machine. Saturation compares the job's rows/s with a backlog to those of `tagstream run`
with the same texts in a Parquet file. Both run in turn for some rounds, after the broker has served one backlog. Speeds
are medians over the rounds; the share is the median of the ratios within a round. The job uses the backend that
`tagstream optimize` certifies for this machine. The peers get the same broker, texts, model (fp32) and rates, and one
backlog of 3,000 messages:

- tagstream_confluent: the job itself, with `consumer: confluent-kafka` and `producer: confluent-kafka`
- kafka_loop: a loop of kafka-python around `transformers.pipeline`; at least once
- quix: Quix Streams around `transformers.pipeline`, its exactly-once switched on

If a peer can't keep up with a rate, its queue grows and a latency would mean nothing. Its figures are then null, and
`behind` is the number of messages that were not labelled half a minute after the last one was sent.

    python -m benchmarks.stream [--json FILE] [--model MODEL] [--rates N …] [--backlog N] [--rounds N] [--no-peers]
                                [--soak MINUTES] [--record]
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import defaultdict
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.children import PYTHON, SAMPLE, certify, tagstream
from benchmarks.environments import environment, same
from benchmarks.results import save, versions
from benchmarks.topics import Contestant, Run, send, unaccounted
from tagstream.transforms.model_files import find_model
from tests.services.kafka import KafkaBroker

PEERS = Path(__file__).parent / "peers"
TITLES = {
    "tagstream": "tagstream",
    "tagstream_confluent": "tagstream, both clients confluent-kafka",
    "kafka_loop": "kafka-python loop, at least once",
    "quix": "Quix Streams, exactly once",
}
SPEC = """
name: {name}
source: {type: kafka, servers: "{servers}", topics: {source}}
infer: [{infer}]
sink: {type: kafka, topic: {target}, mode: headers}
blocks: {rows: 512}
"""
BULK = """
source: {{type: parquet, path: {folder}/bulk.parquet}}
infer: [{infer}]
sink: {{type: parquet, path: {folder}/bulk}}
"""
PEERS_BACKLOG = 3000
WARM_SECONDS = 3
PATIENCE = 30.0


def contestants(options: argparse.Namespace, infer: str) -> list[Contestant]:
    spec, command = SPEC.replace("{infer}", infer), [PYTHON, "-m", "tagstream", "run"]
    confluent = spec.replace("mode: headers", "mode: headers, producer: confluent-kafka")
    confluent = confluent.replace("topics: {source}", "topics: {source}, consumer: confluent-kafka")
    found = [Contestant("tagstream", command, spec), Contestant("tagstream_confluent", command, confluent)]
    if options.peers and options.ms_per_row is None:
        model = str(find_model(options.model).path)
        quix = environment("quix", ["quixstreams==3.28.*", same("torch"), same("transformers")])
        found.append(Contestant("kafka_loop", [PYTHON, str(PEERS / "kafka_loop.py"), model]))
        found.append(Contestant("quix", [str(quix), str(PEERS / "quix.py"), model]))
    return found


def latency(
    broker: KafkaBroker, folder: Path, contestant: Contestant, texts: list[str], rate: float, seconds: float
) -> dict[str, Any]:
    """p50 and p99 in ms over the messages after a warm-up; messages lost or duplicated over all messages."""
    warm, count = int(rate * WARM_SECONDS), int(rate * seconds)
    with Run(broker, folder, contestant, f"{rate:g}") as run:
        run.start()
        send(run.servers, run.source, texts, rate, 10)
        if not run.wait_for(10, 120):
            raise SystemExit(f"{contestant.name} labels nothing:\n{run.log.read_text()[-3000:]}")
        send(run.servers, run.source, texts, rate, warm, 10)
        send(run.servers, run.source, texts, rate, count, warm + 10)
        kept_up = run.wait_for(10 + warm + count, PATIENCE)
        seen = list(run.watcher.seen)
    values = np.array([visible - sent for visible, sent in seen[10 + warm :]]) * 1000
    lost, twice = unaccounted(broker.servers, run.source, run.target) if kept_up else (None, None)
    return {
        "who": contestant.name,
        "rate": rate,
        "p50_ms": round(float(np.percentile(values, 50)), 1) if kept_up else None,
        "p99_ms": round(float(np.percentile(values, 99)), 1) if kept_up else None,
        "behind": 10 + warm + count - len(seen),
        "lost": lost,
        "duplicated": twice,
    }


def backlog_rate(
    broker: KafkaBroker, folder: Path, contestant: Contestant, texts: list[str], count: int, name: str
) -> dict[str, Any]:
    """Messages a second through a backlog. Counted from the first tenth of the output, so without the start."""
    with Run(broker, folder, contestant, f"backlog-{name}") as run:
        send(run.servers, run.source, texts, None, count)
        run.start()
        if not run.wait_for(count, 900):
            raise SystemExit(f"{contestant.name}: {len(run.watcher.seen)} of {count} messages after 900 s")
        times = sorted(visible for visible, _ in run.watcher.seen)
    lost, twice = unaccounted(broker.servers, run.source, run.target)
    skip = count // 10
    rate = (count - skip) / (times[-1] - times[skip])
    return {"per_s": round(rate, 1), "messages": count, "lost": lost, "duplicated": twice}


def bulk_rate(folder: Path, infer: str, texts: list[str], count: int) -> float:
    """Rows a second of a bulk job over `count` of the same texts."""
    pq.write_table(pa.table({"text": [f"{texts[i % len(texts)]} {i}" for i in range(count)]}), folder / "bulk.parquet")
    (folder / "bulk.yaml").write_text(BULK.format(folder=folder, infer=infer))
    return tagstream(folder / "bulk.yaml", folder / "bulk.json")[1]["rows_per_s"]


def saturation(
    broker: KafkaBroker,
    folder: Path,
    racing: list[Contestant],
    texts: list[str],
    infer: str,
    count: int,
    rounds: int,
) -> dict[str, Any]:
    """`backlog` for each contestant. For tagstream's contestants also the share of the bulk job's rows/s."""
    ours = [contestant for contestant in racing if contestant.name.startswith("tagstream")]
    runs: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    bulk = []

    def work_off(contestant: Contestant, messages: int) -> None:
        done = runs[contestant.name]
        done.append(backlog_rate(broker, folder, contestant, texts, messages, str(len(done))))
        print(contestant.name, done[-1], flush=True)

    backlog_rate(broker, folder, ours[0], texts, count, "first")
    for _ in range(rounds):
        for contestant in ours:
            work_off(contestant, count)
        bulk.append(bulk_rate(folder, infer, texts, count))
        print("bulk", bulk[-1], flush=True)
    for contestant in racing:
        if contestant not in ours:
            work_off(contestant, min(count, PEERS_BACKLOG))
    return {
        "rounds": rounds,
        "bulk_per_s": round(median(bulk), 1),
        "shares": {
            c.name: round(median(run["per_s"] / rate for run, rate in zip(runs[c.name], bulk, strict=True)), 3)
            for c in ours
        },
        "backlog": {
            name: {
                "per_s": round(median(run["per_s"] for run in found), 1),
                "messages": found[0]["messages"],
                "lost": sum(run["lost"] for run in found),
                "duplicated": sum(run["duplicated"] for run in found),
            }
            for name, found in runs.items()
        },
    }


def soak(broker: KafkaBroker, folder: Path, contestant: Contestant, texts: list[str], minutes: float) -> dict[str, Any]:
    """Resident memory in MiB of the job while it works off a million messages."""
    count = 1_000_000
    with Run(broker, folder, contestant, "soak") as run:
        send(run.servers, run.source, texts, None, count)
        run.start()
        samples = []
        while len(samples) < minutes * 60 and not run.wait_for(count, 1.0):
            samples.append(run.resident_mb)
        done = len(run.watcher.seen)
    minute = 60
    return {
        "minutes": round(len(samples) / 60, 1),
        "labelled": done,
        "lag_at_end": count - done,
        "peak_mb_second_minute": round(max(samples[minute : 2 * minute])),
        "peak_mb_last_minute": round(max(samples[-minute:])),
    }


def table(found: dict[str, Any]) -> list[str]:
    """Markdown."""
    lines = [f"{found['model']}, {found['certified']}", ""] if found["certified"] else []
    lines += ["| | messages/s | p50 | p99 | lost, twice |", "|---|---|---|---|---|"]
    for part in found["latency"]:
        what = f"{part['p50_ms']} ms | {part['p99_ms']} ms" if not part["behind"] else f"behind by {part['behind']:,} |"
        exact = f"{part['lost']}, {part['duplicated']}" if part["lost"] is not None else ""
        lines.append(f"| {TITLES[part['who']]} | {part['rate']:g} | {what} | {exact} |")
    lines.append("")
    for name, part in found["backlog"].items():
        lines.append(f"- {TITLES[name]}: {part['per_s']:,} messages/s through a backlog of {part['messages']:,}")
    if found["shares"]:
        shares = ", ".join(f"{share:.1%} ({TITLES[name]})" for name, share in found["shares"].items())
        lines.append(f"- the same texts in bulk: {found['bulk_per_s']:,} rows/s; saturation {shares}")
        lines.append(f"- rounds of ours and bulk: {found['rounds']}")
    if soaked := found.get("soak"):
        lines.append(
            f"- {soaked['minutes']:g} minutes at saturation, {soaked['labelled']:,} messages, lag at the end "
            f"{soaked['lag_at_end']:,}: peak memory {soaked['peak_mb_second_minute']:,} MiB in the second minute, "
            f"{soaked['peak_mb_last_minute']:,} in the last"
        )
    return lines


def measure(options: argparse.Namespace, broker: KafkaBroker, folder: Path) -> dict[str, Any]:
    infer, certified = f"{{backend: {{type: constant, ms_per_row: {options.ms_per_row}}}, as: label}}", None
    if options.ms_per_row is None:
        backend, certified = certify(options.model, SAMPLE, folder, "--text", "text")
        infer = f"{{model: {options.model}, as: label, backend: {json.dumps(backend)}}}"
    texts = pq.read_table(SAMPLE).column("text").to_pylist()
    racing = contestants(options, infer)
    found: dict[str, Any] = {
        "model": options.model,
        "certified": certified,
        "latency": [],
        "backlog": {},
        "shares": {},
        "saturation_share": None,
    }
    rates = list(options.rates)
    if options.backlog:
        found |= saturation(broker, folder, racing, texts, infer, options.backlog, options.rounds)
        found["saturation_share"] = found["shares"]["tagstream"]
        live = found["backlog"]["tagstream"]["per_s"]
        rates.append(round(live / 2))
    for rate in rates:
        for contestant in racing:
            found["latency"].append(latency(broker, folder, contestant, texts, rate, options.seconds))
            print(found["latency"][-1], flush=True)
    if options.soak:
        found["soak"] = soak(broker, folder, racing[0], texts, options.soak)
    ours = [part for part in found["latency"] if part["who"] == "tagstream"]
    at = next((part for part in ours if part["rate"] == 300.0), ours[-1] if ours else {"p50_ms": None, "p99_ms": None})
    counted = [*ours, *([found["backlog"]["tagstream"]] if options.backlog else [])]
    return found | {
        "p50_ms": at["p50_ms"],
        "p99_ms": at["p99_ms"],
        "lost": sum(part["lost"] or 0 for part in counted) + sum(part["behind"] for part in ours),
        "duplicated": sum(part["duplicated"] or 0 for part in counted),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--model", default="tagstream/spam")
    parser.add_argument("--ms-per-row", type=float, help="no model, but this much pretended time for each message")
    parser.add_argument("--seconds", type=float, default=20.0, help="length of each latency run")
    parser.add_argument("--rates", type=float, nargs="*", default=[100.0, 300.0], help="beside half of saturation")
    parser.add_argument("--backlog", type=int, default=20_000, help="messages of the saturation run; 0 leaves it out")
    parser.add_argument("--rounds", type=int, default=3, help="of the saturation run and bulk")
    parser.add_argument("--no-peers", dest="peers", action="store_false")
    parser.add_argument("--soak", type=float, default=0.0, metavar="MINUTES", help="memory over a million messages")
    parser.add_argument("--record", action="store_true", help="write benchmarks/RESULTS.md")
    options = parser.parse_args()
    broker = KafkaBroker(lasting=True)
    with tempfile.TemporaryDirectory(prefix="tagstream-") as folder:
        try:
            broker.start()
            found = measure(options, broker, Path(folder))
        finally:
            broker.close()
    packages = versions("torch", "transformers", "kafka-python", "pyarrow")
    save("stream", found, table(found), packages, options.json, record=options.record)
    print(json.dumps({k: found[k] for k in ("p50_ms", "p99_ms", "saturation_share", "lost", "duplicated")}))


if __name__ == "__main__":
    main()
