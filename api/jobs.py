"""Jobs from Python: what the commands `run`, `plan` and `evaluate` do, with Python objects as input and output too."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from rich.console import Console

from tagstream.schemas.errors import SpecError
from tagstream.schemas.memory_spec import InMemory
from tagstream.schemas.spec import InferEntry, JobSpec
from tagstream.schemas.spec_file import load_spec

if TYPE_CHECKING:
    from tagstream.pipelines.jobs.plan import Plan
    from tagstream.pipelines.report.report import Report

Specification = str | Path | Mapping[str, Any] | JobSpec
"""A YAML file, its content as a mapping, or a checked specification."""


def run(
    spec: Specification | None = None,
    *,
    source: Any = None,
    infer: Sequence[Mapping[str, Any]] | None = None,
    sink: Any = None,
    text: str | None = None,
    id: str | None = None,  # noqa: A002  the field's name
    keep: str | Sequence[str] | None = None,
    overwrite: bool = False,
    limit: int | None = None,
    max_seconds: float | None = None,
    progress: bool = True,
    **fields: Any,
) -> Report:
    """Run a job to its end; an interrupted job goes on where it stopped. Returns what the command line reports.

        tagstream.run("job.yaml")
        out = tagstream.Memory()
        tagstream.run(source=table, text="body", infer=[{"model": "tagstream/spam", "as": "spam"}], sink=out)
        out.labels()

    spec: a YAML file, or its content as a mapping. What else is given replaces the fields of that name.
    source: as in the YAML, or a path of Parquet files, a `Memory`, or rows of any kind that `Memory` takes.
    sink: as in the YAML, or an output folder, or a `Memory`.
    text, id, keep: the fields of `source` of that name.
    overwrite, limit, max_seconds: as the options of `tagstream run`. progress: print the progress to stderr.
    fields: any other field of the specification, such as `dead_letters` or `max_dead`.

    In the main thread, Ctrl-C stops the job as it stops the command: what is in flight is committed first.
    Raises TagstreamError; its subclasses say whether specification, input, model or output is to blame.
    """
    from tagstream.pipelines.jobs.run import run_job

    _check_limit(limit)
    job = specification(spec, source=source, infer=infer, sink=sink, text=text, id=id, keep=keep, **fields)
    return run_job(job, _console(progress), overwrite=overwrite, limit=limit, max_seconds=max_seconds)


def plan(
    spec: Specification | None = None,
    *,
    source: Any = None,
    infer: Sequence[Mapping[str, Any]] | None = None,
    sink: Any = None,
    limit: int | None = None,
    **fields: Any,
) -> Plan:
    """What `run` would do: rows done and left, columns, expected time. Loads no model and changes nothing.

    Arguments as those of `run`. Raises TagstreamError.
    """
    from tagstream.pipelines.jobs.plan import plan_job

    _check_limit(limit)
    return plan_job(specification(spec, source=source, infer=infer, sink=sink, **fields), limit)


def evaluate(
    spec: Specification | None = None,
    *,
    label: str,
    source: Any = None,
    infer: Sequence[Mapping[str, Any]] | None = None,
    limit: int | None = None,
    without: Sequence[str] = (),
    progress: bool = True,
    **fields: Any,
) -> dict[str, Any]:
    """Compare labels with a column of true ones: F1 by label, confusion matrix, calibration. Writes no output.

    label: the column of true labels. without: labels that the model may not choose. The other arguments are those of
    `run`. Returns what `tagstream evaluate --report` writes. Raises TagstreamError.
    """
    from tagstream.pipelines.jobs.evaluate import evaluate_job
    from tagstream.transforms.io.memory import Memory

    _check_limit(limit)
    job = specification(spec, source=source, infer=infer, sink=Memory(), **{**fields, "dead_letters": None})
    return evaluate_job(job, label, _console(progress), limit=limit, without=tuple(without))


def specification(
    spec: Specification | None = None,
    *,
    source: Any = None,
    infer: Any = None,
    sink: Any = None,
    **fields: Any,
) -> JobSpec:
    """A checked specification from its parts; see `run`. Raises SpecError."""
    columns = {name: fields.pop(name, None) for name in ("text", "id", "keep")}
    given = _copied(fields)
    if source is not None:
        given["source"] = _source(source)
    if infer is not None:
        given["infer"] = _infer(infer)
    if sink is not None:
        given["sink"] = _sink(sink)
    if isinstance(columns["keep"], str) and columns["keep"] != "*":
        columns["keep"] = [columns["keep"]]
    given |= {f"source.{name}": _copied(value) for name, value in columns.items() if value is not None}
    if spec is None or isinstance(spec, str | Path):
        return load_spec(None if spec is None else str(spec), given)
    if isinstance(spec, JobSpec):
        if not given:
            return spec
        spec = spec.model_dump(by_alias=True)
    if not isinstance(spec, Mapping):
        raise SpecError(f"a specification is a YAML file or a mapping, not {type(spec).__name__}")
    return load_spec(None, {**_copied(spec), **given})


def entries_of(infer: Any, caller: str) -> tuple[InferEntry, ...]:
    """Checked entries of `infer`. Raises SpecError, whose message names the function that was called."""
    unused = {"type": "parquet", "path": "unused"}
    try:
        entries = specification(source={**unused, "keep": "*"}, infer=infer, sink=unused, payload=False).infer
    except SpecError as error:
        where = r"^specification: infer\.0(\.|: )" if caller == "load" else "^specification: "
        raise SpecError(re.sub(where, f"{caller}: ", str(error), flags=re.MULTILINE)) from None
    if named := next((entry for entry in entries if entry.texts), None):
        raise SpecError(f"{caller}: {', '.join(named.texts)}: only a job has columns to name")
    return entries


def _infer(given: Any) -> list[Any]:
    if isinstance(given, str | Mapping) or not isinstance(given, Sequence):
        raise SpecError('infer: give a list of entries, such as [{"model": "tagstream/spam", "as": "spam"}]')
    return [_copied(entry) for entry in given]


def _source(given: Any) -> dict[str, Any]:
    from tagstream.transforms.io.memory import Memory

    if isinstance(given, Mapping) and "type" in given and isinstance(given["type"], str):
        return dict(_copied(given))
    if isinstance(given, str | Path):
        return {"type": "parquet", "path": str(given)}
    return {"type": "memory", "rows": given if isinstance(given, InMemory) else Memory(given)}


def _sink(given: Any) -> dict[str, Any]:
    if isinstance(given, InMemory):
        return {"type": "memory", "rows": given}
    if isinstance(given, str | Path):
        return {"type": "parquet", "path": str(given)}
    if isinstance(given, Mapping):
        return dict(_copied(given))
    raise SpecError(f"sink: give a folder, a tagstream.Memory, or the fields of a sink, not {type(given).__name__}")


def _copied(value: Any) -> Any:
    """Mappings and lists of the user as our own, which may be changed; paths as text."""
    if isinstance(value, Mapping):
        return {name: _copied(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_copied(item) for item in value]
    return str(value) if isinstance(value, PurePath) else value


def _check_limit(limit: int | None) -> None:
    if limit is not None and limit < 1:
        raise SpecError(f"limit: give a number of rows from 1 on, not {limit}")


def _console(progress: bool) -> Console:
    return Console(stderr=True, quiet=not progress)
