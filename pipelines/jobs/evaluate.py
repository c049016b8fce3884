"""Measures how good the labels of a job are, against a column of true labels. scikit-learn computes the metrics."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console
from rich.table import Table

from tagstream.pipelines.jobs.figures import check_measurable, figures
from tagstream.pipelines.jobs.run import run_job
from tagstream.schemas.errors import SourceError, SpecError
from tagstream.schemas.memory_spec import MemorySink
from tagstream.schemas.spec import JobSpec
from tagstream.transforms.inference.backends.registry import describe
from tagstream.transforms.io.memory import Memory
from tagstream.transforms.tasks.text_classification import LabelHead

BINS = 15
Array = np.ndarray
_PRINTED = 40
"""How many labels the tables show at most."""


def evaluate_job(
    spec: JobSpec, label: str, console: Console, *, limit: int | None = None, without: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Metrics for each entry of `infer`.

    `label`: the column of true labels. `without`: labels that the model may not choose. Rows without a true label are
    left out. Dead letters are counted. Raises TagstreamError.
    """
    if importlib.util.find_spec("sklearn") is None:
        raise SpecError("evaluate needs scikit-learn: pip install 'tagstream[evaluate]'")
    # names that can't be those of the label or the id; the output is only in memory, so nobody sees them
    columns = [f"{label} {spec.source.id} {number}" for number in range(len(spec.infer))]
    heads = [describe(entry)[0] for entry in spec.infer]
    changes: dict[str, Any] = {"scores": "all", "thresholds": {}, "abstain": None}
    infer = tuple(
        c.model_copy(update={"as_": column, **(changes if isinstance(head, LabelHead) else {})})
        for c, column, head in zip(spec.infer, columns, heads, strict=True)
    )
    texts = [name for entry in spec.infer for name in entry.texts if name not in (label, spec.source.text)]
    source = spec.source.model_copy(update={"keep": (label, *dict.fromkeys(texts))})
    memory = Memory()
    job = spec.model_copy(
        update={"source": source, "sink": MemorySink(rows=memory), "infer": infer, "dead_letters": None}
    )
    for head in heads:
        if isinstance(head, LabelHead):
            _check_labels(head, without)
        elif without:
            raise SpecError(f"{head.entry.as_}: --without names labels to leave out, and this task has none")
        else:
            check_measurable(head)
    try:
        report = run_job(job, console, overwrite=True, limit=limit)
    except SourceError as error:  # nothing but the true labels is kept
        raise SourceError(str(error).replace("(source.keep)", "(--label)")) from None
    labels = memory.labels()
    labels = labels.filter(pc.is_valid(labels[label])) if labels.num_rows else labels
    if not labels.num_rows:
        raise SpecError(f"no row has both a true label in {label!r} and a prediction")
    result: dict[str, Any] = {"rows": labels.num_rows, "dead_letters": dict(report.counts.dead), "label": label}
    result["entries"] = {
        head.entry.as_: _metrics(head, labels[f"{column}_scores"], labels[label], without)
        if isinstance(head, LabelHead)
        else figures(head, column, labels, label)
        for head, column in zip(heads, columns, strict=True)
    }
    return result


def _check_labels(head: LabelHead, without: tuple[str, ...]) -> None:
    name = head.entry.as_
    if head.activation == "identity":
        raise SpecError(f"{name}: a regression model has no labels to evaluate")
    if unknown := sorted(set(without) - set(head.names)):
        raise SpecError(f"{name}: no label {unknown[0]!r}; there are {', '.join(head.names)}")
    if not set(head.names) - set(without):
        raise SpecError(f"{name}: --without leaves no label to choose")


def _metrics(
    head: LabelHead, scores: pa.ChunkedArray, truth: pa.ChunkedArray, without: tuple[str, ...]
) -> dict[str, Any]:
    columns = [pc.struct_field(scores, name).to_numpy() for name in head.names]
    values = np.stack(columns, axis=1)
    values[:, [head.names.index(name) for name in without]] = -1.0
    names = [name for name in head.names if name not in without]
    if head.activation == "sigmoid":
        return _multi_label(head, values, truth)
    try:
        true = truth.cast(pa.string()).to_numpy()
    except pa.ArrowException:
        raise SpecError(f"the true labels are {truth.type}; one label a row must be text or a number") from None
    predicted = np.asarray(head.names, object)[values.argmax(axis=1)]
    unknown = sorted(set(true) - set(names))
    if len(unknown) == len(set(true)):
        raise SpecError(
            f"{head.entry.as_}: the column of true labels has none of the model's labels ({_some(names)}); it holds "
            f"{_some(unknown)}. Name another column with --label, or map the model's labels with infer.labels"
        )
    from sklearn.metrics import classification_report, confusion_matrix

    names += unknown
    table = classification_report(true, predicted, labels=names, output_dict=True, zero_division=0)
    correct = predicted == true
    return {
        "accuracy": float(correct.mean()),
        "labels": {name: table[name] for name in names},
        "macro": table["macro avg"],
        "weighted": table["weighted avg"],
        "confusion": {"labels": names, "rows_true": confusion_matrix(true, predicted, labels=names).tolist()},
        "expected_calibration_error": calibration_error(values.max(axis=1), correct),
        "labels_the_model_lacks": unknown,
    }


def _multi_label(head: LabelHead, values: Array, truth: pa.ChunkedArray) -> dict[str, Any]:
    """Metrics for a model that gives several labels. `truth`: lists of labels, or strings of labels between commas."""
    from sklearn.metrics import classification_report

    lists = truth.to_pylist()
    sets = [{name.strip() for name in (v.split(",") if isinstance(v, str) else v)} - {""} for v in lists]
    true = np.array([[name in labels for name in head.names] for labels in sets])
    predicted = values >= 0.5
    table = classification_report(true, predicted, target_names=list(head.names), output_dict=True, zero_division=0)
    return {
        "accuracy": float((true == predicted).all(axis=1).mean()),
        "labels": {name: table[name] for name in head.names},
        "macro": table["macro avg"],
        "weighted": table["weighted avg"],
        "expected_calibration_error": calibration_error(values.ravel(), true.ravel()),
        "labels_the_model_lacks": sorted(set().union(*sets) - set(head.names)),
    }


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:5])
    return f"{shown}, …" if len(names) > 5 else shown


def calibration_error(confidence: Array, correct: Array) -> float:
    """Expected calibration error (Guo et al. 2017): mean |accuracy - confidence| over 15 bins, weighted by rows.

    `confidence`: float, 0 to 1. `correct`: bool.
    """
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    counts = np.bincount(bins, minlength=BINS)
    gaps = np.abs(
        np.bincount(bins, weights=correct, minlength=BINS) - np.bincount(bins, weights=confidence, minlength=BINS)
    )
    return float(gaps.sum() / max(1, counts.sum()))


def print_evaluation(console: Console, result: dict[str, Any]) -> None:
    """Print a table of labels and a confusion matrix for each entry."""
    for name, metrics in result["entries"].items():
        if "labels" not in metrics:
            _print_figures(console, name, result["rows"], metrics)
            continue
        table = Table(
            title=f"{name}: {result['rows']:,} rows, accuracy {metrics['accuracy']:.4f}", title_justify="left"
        )
        for column in ("label", "precision", "recall", "F1", "rows"):
            table.add_column(column, justify="left" if column == "label" else "right")
        every = list(metrics["labels"].items())
        if len(every) > _PRINTED:
            console.print(f"the first {_PRINTED} of {len(every):,} labels; --report writes all", highlight=False)
        for label, m in [*every[:_PRINTED], ("macro", metrics["macro"]), ("weighted", metrics["weighted"])]:
            cells = (f"{m[key]:.4f}" for key in ("precision", "recall", "f1-score"))
            table.add_row(label, *cells, f"{m['support']:,.0f}")
        console.print(table)
        if "confusion" in metrics and len(metrics["confusion"]["labels"]) <= _PRINTED:
            confusion = Table(title="true label (rows), predicted label (columns)", title_justify="left")
            confusion.add_column("")
            for label in metrics["confusion"]["labels"]:
                confusion.add_column(label, justify="right")
            for label, row in zip(metrics["confusion"]["labels"], metrics["confusion"]["rows_true"], strict=True):
                confusion.add_row(label, *(f"{count:,}" for count in row))
            console.print(confusion)
        console.print(f"expected calibration error {metrics['expected_calibration_error']:.4f}", highlight=False)
        if lacking := metrics["labels_the_model_lacks"]:
            console.print(f"[yellow]labels that the model does not have: {', '.join(lacking[:10])}[/]")
    if result["dead_letters"]:
        console.print(f"dead letters: {result['dead_letters']}", highlight=False)


def _print_figures(console: Console, name: str, rows: int, metrics: dict[str, Any]) -> None:
    title = f"{name}: {rows:,} rows"
    if "spans" not in metrics:
        said = ", ".join(f"{what.replace('_', ' ')} {value:.4f}" for what, value in metrics.items())
        console.print(f"{title}, {said}", highlight=False)
        return
    table = Table(title=title, title_justify="left")
    for column in ("label", "precision", "recall", "F1", "spans"):
        table.add_column(column, justify="left" if column == "label" else "right")
    for label, m in [*list(metrics["spans"].items())[:_PRINTED], ("all", metrics["micro"])]:
        table.add_row(label, *(f"{m[key]:.4f}" for key in ("precision", "recall", "f1")), f"{m['support']:,}")
    console.print(table)
