"""What all commands share: options, errors as messages and exit codes, the specification from file and flags."""

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

    from tagstream.schemas.spec import JobSpec

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
    list[str] | None,
    typer.Option("--keep", help="Column to pass through; repeatable; '*' for all.", rich_help_panel=_INPUT),
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
RunnerOption = Annotated[
    str | None,
    typer.Option("--runner", help="Where to run, instead of what the SPEC says: local, flink, dataflow or beam."),
]
LimitOption = Annotated[int | None, typer.Option("--limit", min=1, help="Only the first N rows of the input.")]
ReportOption = Annotated[str | None, typer.Option("--report", help="Write the result as JSON.", metavar="FILE.json")]
DebugOption = Annotated[bool, typer.Option("--debug", help="Full logs and tracebacks.")]


def command(function: Callable[..., None]) -> Callable[..., None]:
    """Errors of ours become a message and an exit code; a defect shows its traceback with --debug only."""

    @functools.wraps(function)
    def run(**options: Any) -> None:
        debug = options.get("debug", False)
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
        from tagstream.pipelines.report.logs import set_logs
        from tagstream.schemas.errors import TagstreamError

        set_logs(debug=debug)
        try:
            function(**options)
        except typer.Exit:
            raise
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


def _fail(message: str, code: int) -> NoReturn:
    from rich.console import Console

    Console(stderr=True).print(f"[bold red]error:[/] {_escape(message)}", highlight=False, soft_wrap=True)
    raise typer.Exit(code)


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def load(options: dict[str, Any], *, sink: bool = True) -> JobSpec:
    """The specification from file, flags and --set, in this order of precedence from low to high."""
    from tagstream.schemas.errors import SpecError
    from tagstream.schemas.spec_file import load_spec, parse_override

    overrides: dict[str, Any] = {}
    if options.get("source"):
        overrides |= {"source.type": "parquet", "source.path": options["source"]}
    for flag in ("text", "id", "keep"):
        if options.get(flag):
            overrides[f"source.{flag}"] = options[flag]
    if options.get("model"):
        overrides["infer"] = [{"model": name, "as": column_name(name)} for name in options["model"]]
    if options.get("sink"):
        overrides |= {"sink.type": "parquet", "sink.path": options["sink"]}
    if options.get("dead_letters"):
        overrides["dead_letters"] = {"type": "parquet", "path": options["dead_letters"]}
    if not sink:
        from tagstream.transforms.io.memory import Memory

        overrides["sink"] = {"type": "memory", "rows": Memory()}
        overrides["dead_letters"] = None
    if options.get("runner"):
        overrides["runner.type"] = options["runner"]
    overrides |= dict(parse_override(text) for text in options.get("set_") or [])
    if options.get("spec") is None:
        needed = {"--source": "source", "--model": "model"} | ({"--sink": "sink"} if sink else {})
        given = {*overrides, *(field.split(".")[0] for field in overrides)}
        names = {"source": "source", "model": "infer", "sink": "sink"}
        if missing := [flag for flag, name in needed.items() if names[name] not in given]:
            raise SpecError(f"give a SPEC file, or {', '.join(missing)} as well")
    return load_spec(options.get("spec"), overrides)


def column_name(model: str) -> str:
    """A column name from a model's name: its last part."""
    name = re.sub(r"[^A-Za-z0-9]+", "_", model.rstrip("/").rpartition("/")[2]).strip("_").lower()
    return name if re.match(r"[a-z]", name) else f"label_{name}" if name else "label"


def consoles() -> tuple[Console, Console]:
    """For results, and for what goes on meanwhile."""
    from rich.console import Console

    return Console(), Console(stderr=True)
