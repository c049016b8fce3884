"""The command line. Large libraries are imported only when a command runs, so that `--help` takes 0.3 s."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from tagstream.pipelines.cli import cluster_commands as cli_cluster  # noqa: F401  registers its commands
from tagstream.pipelines.cli.options import (
    DeadOption,
    DebugOption,
    IdOption,
    KeepOption,
    LimitOption,
    ModelOption,
    ReportOption,
    RunnerOption,
    SetOption,
    SinkOption,
    SourceOption,
    Spec,
    TextOption,
    app,
    column_name,
    command,
    consoles,
    load,
)

if TYPE_CHECKING:
    from rich.console import Console

    from tagstream.pipelines.jobs.changed import Choice as Changed
    from tagstream.schemas.spec import JobSpec


def _print_version(asked: bool) -> None:
    if asked:
        import importlib.metadata

        typer.echo(f"tagstream {importlib.metadata.version('tagstream')}")
        raise typer.Exit


@app.callback()
def _before_all(
    *,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    pass


@command
def run(
    *,
    spec: Spec = None,
    source: SourceOption = None,
    text: TextOption = None,
    id: IdOption = None,  # noqa: A002
    keep: KeepOption = None,
    model: ModelOption = None,
    sink: SinkOption = None,
    dead_letters: DeadOption = None,
    set_: SetOption = None,
    runner: RunnerOption = None,
    limit: LimitOption = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the output of an earlier job.")] = False,
    reclassify: Annotated[
        bool, typer.Option("--reclassify", help="The model has changed: label the rows of the table again.")
    ] = False,
    reclassify_below: Annotated[
        float | None, typer.Option("--reclassify-below", min=0, max=1, help="Only rows whose score is below this.")
    ] = None,
    reclassify_label: Annotated[
        list[str] | None, typer.Option("--reclassify-label", help="Only rows with this label; repeatable.")
    ] = None,
    replace_changed: Annotated[
        bool, typer.Option("--replace-changed", help="Rewritten input files: label them anew, take the old rows out.")
    ] = False,
    keep_changed: Annotated[
        bool, typer.Option("--keep-changed", help="Rewritten input files: keep the old rows, do not read the files.")
    ] = False,
    show: Annotated[int, typer.Option("--show", min=0, help="Print N labelled rows at the end.")] = 0,
    report: ReportOption = None,
    max_seconds: Annotated[
        float | None, typer.Option("--max-seconds", min=0, help="Stop after this time, as SIGTERM would.")
    ] = None,
    metrics_port: Annotated[
        int | None, typer.Option("--metrics-port", help="Serve Prometheus metrics on this port.")
    ] = None,
    must_finish: Annotated[
        bool, typer.Option("--must-finish", help="Exit 7 if rows are left, even if the job was asked to stop.")
    ] = False,
    detach: Annotated[bool, typer.Option("--detach", help="On Flink: return as soon as the job runs.")] = False,
    debug: DebugOption = False,
) -> None:
    """Label all rows that are not done yet. After a kill at any time, the same command continues where it stopped."""
    from tagstream.pipelines.jobs.reclassify import Choice
    from tagstream.pipelines.jobs.run import run_job
    from tagstream.pipelines.jobs.show import readable_sink, sample_rows
    from tagstream.pipelines.report.progress import print_report, print_rows
    from tagstream.pipelines.report.report import write_json
    from tagstream.transforms.runtime.job_context import JobContext

    out, err = consoles()
    job = load(locals())
    asked = reclassify or reclassify_below is not None or bool(reclassify_label)
    context = JobContext(job.name)
    here = {"--metrics-port": metrics_port is not None}
    if replace_changed and keep_changed:
        _refuse({"--replace-changed": True}, "--keep-changed is its contrary")
    changed: Changed | None = "replace" if replace_changed else "keep" if keep_changed else None
    followed = {
        "--replace-changed": replace_changed,
        "--keep-changed": keep_changed,
        "--reclassify…": asked,
        "--show": bool(show),
        "--report": bool(report),
        "--must-finish": must_finish,
    }
    if detach:
        _refuse(here | followed | {"--max-seconds": max_seconds is not None}, "--detach leaves the job to the cluster")
        _detach(err, job, limit=limit, overwrite=overwrite)
        return
    if job.runner.type != "local":
        _refuse(here, "the job runs in workers, and they serve the metrics: `tagstream workers --metrics-port`")
    if metrics_port is not None:
        from tagstream.pipelines.report.prometheus import JobCollector, serve_metrics

        serve_metrics(metrics_port, JobCollector(lambda: [context]))
    if job.live and job.runner.type == "local":  # nothing else would restart the job if a call hangs
        from tagstream.transforms.runtime.watchdog import WATCHDOG, restart_process

        WATCHDOG.end = restart_process
    if show:
        readable_sink(job)  # raises its error now and not at the end of the job
    again = Choice(reclassify_below, tuple(reclassify_label or ())) if asked else None
    result = run_job(
        job,
        err,
        overwrite=overwrite,
        limit=limit,
        max_seconds=max_seconds,
        again=again,
        changed=changed,
        context=context,
    )
    if report:
        write_json(report, result.to_dict())
    if show:
        print_rows(out, sample_rows(job, show), f"{show} of {result.rows_total:,} rows")
    print_report(out, result)
    if must_finish and result.rows_left:
        raise typer.Exit(7)


def _refuse(given: dict[str, bool], why: str) -> None:
    from tagstream.schemas.errors import SpecError

    if names := [name for name, is_given in given.items() if is_given]:
        raise SpecError(f"{names[0]} does not go with this: {why}")


def _detach(console: Console, job: JobSpec, *, limit: int | None, overwrite: bool) -> None:
    from tagstream.pipelines.jobs.run_remote import detach_job
    from tagstream.schemas.runner_spec import FlinkRunner

    if (submitted := detach_job(job, console, limit=limit, overwrite=overwrite)) is None:
        console.print("nothing is left to do")
    else:
        rest = f" --rest {job.runner.rest}" if isinstance(job.runner, FlinkRunner) else ""
        names = f"{submitted.name}{rest}"
        console.print(f"tagstream status {names}; tagstream stop {names}", soft_wrap=True, highlight=False)


@command
def plan(
    *,
    spec: Spec = None,
    source: SourceOption = None,
    text: TextOption = None,
    id: IdOption = None,  # noqa: A002
    keep: KeepOption = None,
    model: ModelOption = None,
    sink: SinkOption = None,
    dead_letters: DeadOption = None,
    set_: SetOption = None,
    limit: LimitOption = None,
    report: ReportOption = None,
    debug: DebugOption = False,
) -> None:
    """Show what `run` would do: rows done and left, columns, expected time. Loads no model and changes nothing."""
    from tagstream.pipelines.jobs.changed import refusal
    from tagstream.pipelines.jobs.plan import plan_job, print_plan
    from tagstream.pipelines.report.report import write_json

    out, _ = consoles()
    result = plan_job(load(locals()), limit)
    print_plan(out, result)
    if report:
        write_json(report, result.to_dict())
    if result.changed:
        raise refusal(result.changed, result.output)


@command
def evaluate(
    *,
    spec: Spec = None,
    label: Annotated[str, typer.Option("--label", help="Column of the true labels.")],
    source: SourceOption = None,
    text: TextOption = None,
    model: ModelOption = None,
    set_: SetOption = None,
    limit: LimitOption = None,
    without: Annotated[
        list[str] | None, typer.Option("--without", help="Label that the model may not choose; repeatable.")
    ] = None,
    report: ReportOption = None,
    debug: DebugOption = False,
) -> None:
    """Compare labels with a column of true labels: F1 by label, confusion matrix, calibration. Writes no output."""
    from tagstream.pipelines.jobs.evaluate import evaluate_job, print_evaluation
    from tagstream.pipelines.report.report import write_json

    out, err = consoles()
    result = evaluate_job(load(locals(), sink=False), label, err, limit=limit, without=tuple(without or ()))
    print_evaluation(out, result)
    if report:
        write_json(report, result)


@command
def replay(
    *,
    spec: Spec = None,
    source: SourceOption = None,
    text: TextOption = None,
    id: IdOption = None,  # noqa: A002
    keep: KeepOption = None,
    model: ModelOption = None,
    sink: SinkOption = None,
    dead_letters: DeadOption = None,
    set_: SetOption = None,
    report: ReportOption = None,
    debug: DebugOption = False,
) -> None:
    """Run the dead letters again, and append the rows that succeed now to the output."""
    from tagstream.pipelines.jobs.replay import replay_job
    from tagstream.pipelines.report.progress import print_report
    from tagstream.pipelines.report.report import write_json

    out, err = consoles()
    result = replay_job(load(locals()), err)
    print_report(out, result)
    if report:
        write_json(report, result.to_dict())


@command
def optimize(
    *,
    what: Annotated[str, typer.Argument(metavar="SPEC|MODEL", help="Job specification, or a model's name.")],
    sample: Annotated[str, typer.Option("--sample", help="Parquet file with typical texts.", metavar="FILE")],
    text: Annotated[
        str | None, typer.Option("--text", help="Column with the text; default: the SPEC's source.text, or text.")
    ] = None,
    rows: Annotated[
        int, typer.Option("--rows", min=1, help="Texts of the sample to use; half of them make the certificate.")
    ] = 4000,
    min_agreement: Annotated[
        float | None,
        typer.Option(
            "--min-agreement",
            min=0,
            max=1,
            help="Least share of labels that equal fp32's; default: the SPEC's, or 0.995.",
        ),
    ] = None,
    out: Annotated[
        str | None, typer.Option("--out", help="Folder for the certificate; default: the SPEC's, or the cache folder.")
    ] = None,
    compiled: Annotated[
        bool,
        typer.Option("--compile", help="Try torch.compile too. On a CPU it takes minutes at each start."),
    ] = False,
    report: ReportOption = None,
    debug: DebugOption = False,
) -> None:
    """Find the fastest backend for this machine whose labels agree with fp32's, and write its certificate."""
    from dataclasses import asdict
    from pathlib import Path

    from tagstream.pipelines.optimize.search import optimize_entry, print_measured, read_sample
    from tagstream.pipelines.report.report import write_json
    from tagstream.schemas.spec import AutoBackend, InferEntry
    from tagstream.schemas.spec_file import load_spec

    console, err = consoles()
    column = text or "text"
    if what.endswith((".yaml", ".yml")):
        spec = load_spec(what)
        entries = [c for c in spec.infer if c.backend.needs_model]
        column = text or spec.source.text
    else:
        entries = [InferEntry.model_validate({"model": what, "as": column_name(what)})]
    texts = read_sample(sample, column, rows)
    certificates = {}
    for entry in entries:
        console.print(f"[bold]{entry.model}[/]")
        folder = Path(out, entry.as_) if out and len(entries) > 1 else Path(out) if out else None
        least = 0.995 if min_agreement is None else min_agreement
        if isinstance(auto := entry.backend, AutoBackend):
            least = auto.min_agreement if min_agreement is None else min_agreement
        result = optimize_entry(entry, texts, folder, least, err, compiled=compiled)
        print_measured(console, *result)
        certificates[entry.as_] = asdict(result[0])
    if report:
        write_json(report, certificates)


@command
def models(*, debug: DebugOption = False) -> None:
    """List the models that come with tagstream."""
    from rich.table import Table

    from tagstream.models import bundled
    from tagstream.transforms.model_files import find_model

    out, _ = consoles()
    table = Table()
    for heading in ("model", "labels", "size", "card"):
        table.add_column(heading)
    for name, path in bundled().items():
        files = find_model(name)
        size = sum(file.stat().st_size for file in path.iterdir())
        table.add_row(name, ", ".join(files.labels), f"{size / 1e6:.1f} MB", str(path / "README.md"))
    out.print(table)


@command
def verify(
    *,
    spec: Annotated[str, typer.Argument(metavar="SPEC", help="Job specification with a Kafka source.")],
    set_: SetOption = None,
    seconds: Annotated[float, typer.Option("--seconds", min=1, help="Most time for the live path.")] = 600.0,
    report: ReportOption = None,
    debug: DebugOption = False,
) -> None:
    """Label the messages in the topics live and in bulk, and compare every label. Writes no output."""
    from tagstream.pipelines.jobs.verify import verify_job
    from tagstream.pipelines.report.report import write_json

    out, err = consoles()
    verdict = verify_job(load(locals()), err, seconds)
    if report:
        write_json(report, verdict.to_dict())
    for example in verdict.examples:
        out.print(example)
    out.print(f"{verdict.rows:,} labels and {verdict.dead:,} dead letters compared, {verdict.different:,} differ")
    if verdict.different:
        raise typer.Exit(1)


@command
def schema(
    *,
    avro: Annotated[
        str | None,
        typer.Option(
            "--avro", help="Instead, print the Avro schema of the values that this job writes.", metavar="SPEC"
        ),
    ] = None,
    debug: DebugOption = False,
) -> None:
    """Print the JSON Schema of the specification, for editors."""
    import json

    from tagstream.schemas.spec import JobSpec

    if avro is not None:
        from tagstream.pipelines.jobs.job import values_schema
        from tagstream.schemas.spec_file import load_spec

        typer.echo(json.dumps(values_schema(load_spec(avro)), indent=2))
    else:
        typer.echo(json.dumps(JobSpec.model_json_schema(), indent=2))


def main() -> NoReturn:
    """Entry point of the `tagstream` command.

    Ends the process without the interpreter's clean-up. During that, daemon threads of native libraries sometimes abort
    the process, and a scheduler would see a failure although the work is done.
    """
    code: Any = 0
    try:
        app()
    except SystemExit as end:
        code = end.code
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 0 if code is None else 1)


if __name__ == "__main__":
    main()
