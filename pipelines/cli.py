"""The command line. Imports nothing heavy until a command runs, so that `--help` is instant."""

from __future__ import annotations

import functools
import os
import re
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from schemas.spec import JobSpec

app = typer.Typer(
    name="tagstream",
    help="Labels on text at scale: one YAML file, any Hugging Face classifier, every row accounted for.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

_INPUT, _OUTPUT, _MORE = "Input, instead of a SPEC", "Output, instead of a SPEC", "More"
Spec = Annotated[str | None, typer.Argument(metavar="[SPEC]", help="Job specification, YAML.")]
SourceOption = Annotated[
    str | None, typer.Option("--source", help="Parquet file, folder or glob.", rich_help_panel=_INPUT)
]
TextOption = Annotated[str | None, typer.Option("--text", help="Column with the text.", rich_help_panel=_INPUT)]
IdOption = Annotated[str | None, typer.Option("--id", help="Column that identifies a row.", rich_help_panel=_INPUT)]
KeepOption = Annotated[
    list[str] | None, typer.Option("--keep", help="Column to pass through; repeatable.", rich_help_panel=_INPUT)
]
ModelOption = Annotated[
    list[str] | None,
    typer.Option("--model", help="Bundled name, folder or Hugging Face id; repeatable.", rich_help_panel=_INPUT),
]
SinkOption = Annotated[str | None, typer.Option("--sink", help="Output folder.", rich_help_panel=_OUTPUT)]
DeadOption = Annotated[
    str | None, typer.Option("--dead-letters", help="Folder of the dead letters.", rich_help_panel=_OUTPUT)
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", help="Override: source.path=in/. Repeatable.", metavar="FIELD=VALUE"),
]
LimitOption = Annotated[int | None, typer.Option("--limit", min=1, help="Only the first N rows of the input.")]
ReportOption = Annotated[str | None, typer.Option("--report", help="Write the result as JSON.", metavar="FILE.json")]
DebugOption = Annotated[bool, typer.Option("--debug", help="Full logs and tracebacks.")]


def _command(function: Callable[..., None]) -> Callable[..., None]:
    """Errors of ours become a message and an exit code; a defect shows its traceback with --debug only."""

    @functools.wraps(function)
    def run(**options: Any) -> None:
        debug = options.get("debug", False)
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
        from schemas.errors import TagstreamError

        _set_logs(debug=debug)
        try:
            function(**options)
        except TagstreamError as error:
            if debug:
                raise
            _fail(str(error), error.exit_code)
        except KeyboardInterrupt:
            _fail("interrupted; what was committed stays", 130)
        except BrokenPipeError:
            sys.stderr.close()
            raise typer.Exit(1) from None
        except Exception as error:
            if debug:
                raise
            _fail(f"{type(error).__name__}: {error}\nThis is a defect of tagstream; --debug shows where.", 1)

    return app.command()(run)


def _set_logs(*, debug: bool) -> None:
    """Beam and its friends log what we say better ourselves; `debug` lets them. Before they are imported."""
    import logging

    logging.basicConfig(level=logging.INFO if debug else logging.CRITICAL)
    if not debug:
        for name in ("apache_beam", "transformers", "huggingface_hub"):
            logging.getLogger(name).setLevel(logging.CRITICAL)


def _fail(message: str, code: int) -> NoReturn:
    from rich.console import Console

    Console(stderr=True).print(f"[bold red]error:[/] {_escape(message)}", highlight=False, soft_wrap=True)
    raise typer.Exit(code)


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def _load(options: dict[str, Any], *, sink: bool = True) -> JobSpec:
    """The specification from file, flags and --set, in this order of precedence from low to high."""
    from schemas.errors import SpecError
    from schemas.spec_file import load_spec, parse_override

    overrides: dict[str, Any] = {}
    if options.get("source"):
        overrides |= {"source.type": "parquet", "source.path": options["source"]}
    for flag in ("text", "id", "keep"):
        if options.get(flag):
            overrides[f"source.{flag}"] = options[flag]
    if options.get("model"):
        overrides["classify"] = [{"model": name, "as": _column(name)} for name in options["model"]]
    if options.get("sink"):
        overrides |= {"sink.type": "parquet", "sink.path": options["sink"]}
    if options.get("dead_letters"):
        overrides["dead_letters"] = {"type": "parquet", "path": options["dead_letters"]}
    if not sink:
        overrides["sink"] = {"type": "memory", "name": "none"}
        overrides["dead_letters"] = None
    overrides |= dict(parse_override(text) for text in options.get("set_") or [])
    if options.get("spec") is None:
        needed = {"--source": "source", "--model": "model"} | ({"--sink": "sink"} if sink else {})
        given = {*overrides, *(field.split(".")[0] for field in overrides)}
        names = {"source": "source", "model": "classify", "sink": "sink"}
        if missing := [flag for flag, name in needed.items() if names[name] not in given]:
            raise SpecError(f"give a SPEC file, or {', '.join(missing)} as well")
    return load_spec(options.get("spec"), overrides)


def _column(model: str) -> str:
    """A column name from a model's name: its last part."""
    name = re.sub(r"[^A-Za-z0-9]+", "_", model.rstrip("/").rpartition("/")[2]).strip("_").lower()
    return name if re.match(r"[a-z]", name) else f"label_{name}" if name else "label"


def _consoles() -> tuple[Console, Console]:
    """For results, and for what goes on meanwhile."""
    from rich.console import Console

    return Console(), Console(stderr=True)


@_command
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
    limit: LimitOption = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the output of an earlier job.")] = False,
    show: Annotated[int, typer.Option("--show", min=0, help="Print N labelled rows at the end.")] = 0,
    report: ReportOption = None,
    max_seconds: Annotated[
        float | None, typer.Option("--max-seconds", min=0, help="Stop after this time, as SIGTERM would.")
    ] = None,
    metrics_port: Annotated[int | None, typer.Option("--metrics-port", help="Serve Prometheus metrics.")] = None,
    debug: DebugOption = False,
) -> None:
    """Classify all input that is not done yet. Kill it at any time: the same command goes on where it stopped."""
    from pipelines.progress import print_report, print_rows
    from pipelines.report import write_json
    from pipelines.run import run_job
    from pipelines.show import sample_rows

    out, err = _consoles()
    job = _load(locals())
    if metrics_port is not None:
        from pipelines.prometheus import serve_metrics

        serve_metrics(metrics_port)
    if job.live:  # a call that hangs for ever must not end a job that nobody starts again
        from transforms.watchdog import WATCHDOG, restart_process

        WATCHDOG.end = restart_process
    result = run_job(job, err, overwrite=overwrite, limit=limit, max_seconds=max_seconds)
    if show:
        print_rows(out, sample_rows(job, show), f"{show} of {result.rows_total:,} rows")
    print_report(out, result)
    if report:
        write_json(report, result.to_dict())


@_command
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
    """Show what `run` would do: rows done and left, columns, expected time. Loads no model, changes nothing."""
    from pipelines.plan import plan_job, print_plan
    from pipelines.report import write_json

    out, _ = _consoles()
    result = plan_job(_load(locals()), limit)
    print_plan(out, result)
    if report:
        write_json(report, result.to_dict())


@_command
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
    """Compare labels with a column of true ones: F1 by label, confusion matrix, calibration. Writes no output."""
    from pipelines.evaluate import evaluate_job, print_evaluation
    from pipelines.report import write_json

    out, err = _consoles()
    result = evaluate_job(_load(locals(), sink=False), label, err, limit=limit, without=tuple(without or ()))
    print_evaluation(out, result)
    if report:
        write_json(report, result)


@_command
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
    """Run the dead letters again and append what now succeeds to the output."""
    from pipelines.progress import print_report
    from pipelines.replay import replay_job
    from pipelines.report import write_json

    out, err = _consoles()
    result = replay_job(_load(locals()), err)
    print_report(out, result)
    if report:
        write_json(report, result.to_dict())


@_command
def optimize(
    *,
    what: Annotated[str, typer.Argument(metavar="SPEC|MODEL", help="Job specification, or a model's name.")],
    sample: Annotated[str, typer.Option("--sample", help="Parquet file with typical texts.", metavar="FILE")],
    text: Annotated[str, typer.Option("--text", help="Column with the text.")] = "text",
    rows: Annotated[int, typer.Option("--rows", min=1, help="Texts of the sample to use.")] = 2000,
    min_agreement: Annotated[
        float, typer.Option("--min-agreement", min=0, max=1, help="Least share of labels equal to fp32's.")
    ] = 0.995,
    out: Annotated[
        str | None, typer.Option("--out", help="Folder of the certificate; default: the cache folder.")
    ] = None,
    report: ReportOption = None,
    debug: DebugOption = False,
) -> None:
    """Find this machine's fastest backend whose labels are those of fp32, and write its certificate."""
    from dataclasses import asdict
    from pathlib import Path

    from pipelines.optimize import optimize_classifier, print_measured, read_sample
    from pipelines.report import write_json
    from schemas.spec import Classifier
    from schemas.spec_file import load_spec

    console, err = _consoles()
    texts = read_sample(sample, text, rows)
    if what.endswith((".yaml", ".yml")):
        classifiers = [c for c in load_spec(what).classify if c.backend.type != "constant"]
    else:
        classifiers = [Classifier.model_validate({"model": what, "as": _column(what)})]
    certificates = {}
    for classifier in classifiers:
        console.print(f"[bold]{classifier.model}[/]")
        folder = Path(out, classifier.as_) if out and len(classifiers) > 1 else Path(out) if out else None
        result = optimize_classifier(classifier, texts, folder, min_agreement, err)
        print_measured(console, *result)
        certificates[classifier.as_] = asdict(result[0])
    if report:
        write_json(report, certificates)


@_command
def models(*, debug: DebugOption = False) -> None:
    """List the classifiers that come with tagstream."""
    from rich.table import Table

    from models import bundled
    from transforms.model_files import find_model

    out, _ = _consoles()
    table = Table()
    for column in ("model", "labels", "size", "card"):
        table.add_column(column)
    for name, path in bundled().items():
        files = find_model(name)
        size = sum(file.stat().st_size for file in path.iterdir())
        table.add_row(name, ", ".join(files.labels), f"{size / 1e6:.1f} MB", str(path / "README.md"))
    out.print(table)


@_command
def verify(
    *,
    spec: Annotated[str, typer.Argument(metavar="SPEC", help="Job specification with a Kafka source.")],
    set_: SetOption = None,
    seconds: Annotated[float, typer.Option("--seconds", min=1, help="Most time for the live path.")] = 600.0,
    report: ReportOption = None,
    debug: DebugOption = False,
) -> None:
    """Label what is in the topics live and in bulk, and compare every label. Writes to no output."""
    from pipelines.report import write_json
    from pipelines.verify import verify_job

    out, err = _consoles()
    verdict = verify_job(_load(locals()), err, seconds)
    if report:
        write_json(report, verdict.to_dict())
    for example in verdict.examples:
        out.print(example)
    out.print(f"{verdict.rows:,} labels and {verdict.dead:,} dead letters compared, {verdict.different:,} differ")
    if verdict.different:
        raise typer.Exit(1)


@_command
def schema(*, debug: DebugOption = False) -> None:
    """Print the JSON Schema of the specification, for editors."""
    import json

    from schemas.spec import JobSpec

    typer.echo(json.dumps(JobSpec.model_json_schema(), indent=2))


def main() -> NoReturn:
    """Entry point of the `tagstream` command.

    Leaves without the interpreter's teardown: there, daemon threads of native libraries sometimes abort a process whose
    work is done, and a scheduler would see a failure.
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
