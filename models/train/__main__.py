"""Command line of the recipe; every command takes `--data FOLDER`.

- `python -m models.train spam` or `sentiment`: train, calibrate and write a classifier.
- `python -m models.train spam --transfer enron1`: train without a source, and record how the model does on that source.
- `python -m models.train sentiment --teacher FOLDER`: keep the teacher in FOLDER, and reuse it the next time.
- `python -m models.train results`: measure the bundled classifiers, write RESULTS.md and the cards' figures.
- `python -m models.train demo`: write examples/sms.parquet.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from models.train import demo, encoder, export, loop, report, shrink, teacher, tokenizer, transfer
from models.train.data import TRAIN, TUNE
from models.train.task import at_most
from models.train.tasks import TASKS
from tagstream.models import ROOT

if TYPE_CHECKING:
    from models.train.task import Task


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m models.train", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=[*sorted(TASKS), "results", "demo"])
    parser.add_argument("--data", type=Path, required=True, help="folder of the labelled Parquet files")
    parser.add_argument("--out", type=Path, help="where the model goes; default: the bundled one is replaced")
    parser.add_argument("--transfer", metavar="SOURCE", help="leave this source out and measure on it, write no model")
    parser.add_argument("--teacher", type=Path, metavar="FOLDER", help="where the teacher is kept and found again")
    parser.add_argument("--share", type=float, default=1.0, help="learn from this share of the texts: 0.2 for a try")
    parser.add_argument("--fast", action="store_true", help="measure in bfloat16")
    parser.add_argument("--device", default="cpu", help="where it trains: cpu or cuda")
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    if not 0 < given.share <= 1:
        parser.error("--share is above 0 and at most 1")
    if given.share < 1 and not (given.out or given.transfer):
        parser.error("--share would replace a bundled model by a lesser one: give --out FOLDER")
    if given.teacher and (given.share < 1 or given.transfer):
        parser.error("--teacher is kept for all texts: it goes with neither --share nor --transfer")
    torch.set_num_threads(given.threads)
    if given.what == "results":
        report.write(given.data, fast=given.fast)
    elif given.what == "demo":
        demo.write(given.data, given.out or ROOT.parent / "examples" / "sms.parquet")
    else:
        task = TASKS[given.what]
        left_out = frozenset({given.transfer} - {None})

        def build(folder: Path) -> None:
            make(task, given, folder, left_out)

        if given.transfer:
            transfer.run(task, given.transfer, given.share, given.data, build)
        else:
            build(given.out or ROOT / task.name)


def make(task: Task, given: argparse.Namespace, out: Path, without: frozenset[str]) -> None:
    """Collect lessons, teach the teacher and the student, calibrate on the tune rows, write the folder."""
    data = given.data
    settings = loop.Settings(learning_rate=task.learning_rate, kept_as=task.shape.kept_as)
    torch.manual_seed(settings.seed)
    rng = random.Random(settings.seed)
    lessons = task.lessons(data, TRAIN, settings.seed, without).some(given.share, rng)
    print(f"{len(lessons.texts)} lessons", flush=True)
    folder = task.encoder()
    base = tokenizer.full(folder)
    sample = at_most(random.Random(settings.seed), task.sample, lessons.texts)
    whole = encoder.classifier(folder, task.labels).to(given.device)
    if task.teaching:
        more = task.teaching.unlabelled(data, settings.seed, without)
        more = at_most(rng, round(given.share * len(more)), more)
        tokens = loop.encode(base, [*lessons.texts, *more], task.max_length)
        own = tokens[: len(lessons.texts)]
        whole = teacher.find_or_teach(whole, task.teaching, own, lessons, given.teacher)
        lessons = teacher.soften(whole, tokens, lessons, more, task.teaching.trust)
    vocabulary = tokenizer.choose_vocabulary(base, sample, task.shape.vocabulary)
    small = tokenizer.rebuild(base, vocabulary)
    print(f"[UNK] {tokenizer.unknown_share(small, sample):.4%} of the tokens", flush=True)
    encoded = loop.encode(small, lessons.texts, task.max_length)
    print(f"{len(encoded)} texts, {sum(map(len, encoded))} tokens an epoch", flush=True)
    student = shrink.cut(whole, base, vocabulary, task.shape, sample[:300])
    loop.train(student, encoded, lessons, settings, task.epochs)
    export.stored(student, task.shape.kept_as)
    tune = task.lessons(data, TUNE, settings.seed, without)
    logits = loop.score(student, loop.encode(small, tune.texts, task.shape.positions))
    temperature = export.fit_temperature(logits, tune)
    export.export(student, small, temperature, out, task.shape.positions, task.shape.kept_as)
    print(f"temperature {temperature:.3f}, {export.size_of(out)} bytes in {out}", flush=True)


if __name__ == "__main__":
    main()
