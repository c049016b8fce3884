"""Writes the pages of `docs/reference/` from the code: `python -m docs.make_reference`.

The specification comes from its JSON Schema, the commands from the command line's own description, codes and metrics
from the modules that define them. A test compares these pages with what this script would write.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from typer.main import get_command

from docs.specification_page import FOLDER, MADE, Specification, cell
from tagstream.pipelines.cli import main as _commands  # noqa: F401  registers them
from tagstream.pipelines.cli.options import app
from tagstream.pipelines.report.prometheus import JobCollector, PoolCollector
from tagstream.schemas import errors
from tagstream.transforms.runtime.job_context import JobContext

FIRST = ("run", "plan", "replay", "evaluate", "optimize")
"""Commands in the order in which a user needs them; the others follow by name."""
FLAG_TYPES = {"str": "TEXT", "int": "N", "float": "NUMBER", "list[str]": "TEXT"}


def commands_page() -> str:
    """Every command with its arguments and options."""
    commands = get_command(app).commands  # type: ignore[attr-defined]
    order = [*(name for name in FIRST if name in commands), *sorted(commands.keys() - set(FIRST))]
    lines = [MADE, "", "# The commands", "", "| | |", "|---|---|"]
    lines += [f"| [`tagstream {name}`](#tagstream-{name}) | {cell(commands[name].help)} |" for name in order]
    lines += [
        "",
        (
            "`tagstream --help` and `tagstream COMMAND --help` print the same. `python -m tagstream` is the same. "
            "[Exit codes](errors.md#exit-codes) tell a scheduler what happened."
        ),
    ]
    for name in order:
        command = commands[name]
        arguments = [p for p in command.params if p.param_type_name == "argument"]
        options = [p for p in command.params if p.param_type_name != "argument" and not getattr(p, "hidden", False)]
        usage = " ".join(_metavar(p) for p in arguments)
        lines += ["", f"## tagstream {name}", "", "```text", f"tagstream {name} [OPTIONS] {usage}".rstrip(), "```"]
        lines += ["", cell(command.help, table=False), "", "| | default | |", "|---|---|---|"]
        lines += [f"| `{cell(_metavar(p))}` | {_required(p)} | {cell(p.help or '')} |" for p in arguments]
        lines += [f"| `{_flag(p)}` | {_required(p)} | {cell(p.help or '')} |" for p in options]
    return "\n".join(lines) + "\n"


def _metavar(parameter: Any) -> str:
    return str(parameter.metavar or parameter.name.upper())


def _flag(option: Any) -> str:
    names = ", ".join(option.opts)
    if option.is_flag:
        return names
    annotation = getattr(getattr(option, "type_descriptor", None), "annotation", str)
    name = annotation.__name__ if isinstance(annotation, type) and not hasattr(annotation, "__args__") else annotation
    return f"{names} {option.metavar or FLAG_TYPES.get(str(name), 'VALUE')}"


def _required(parameter: Any) -> str:
    if parameter.required:
        return "*required*"
    return "" if parameter.default in (None, False, (), 0) else f"`{parameter.default}`"


def errors_page() -> str:
    """Exit codes and the codes of dead letters."""
    lines = [
        MADE,
        "",
        "# Errors and dead letters",
        "",
        "## Exit codes",
        "",
        (
            "Every error that a user can do something about is printed as one message, which says what to do next, and "
            "ends the command with a code of its own. `--debug` adds the traceback. The classes are in "
            "`schemas/errors.py`."
        ),
        "",
        "| code | error | |",
        "|---|---|---|",
        "| 0 | | done, or stopped on request: Ctrl-C, SIGTERM, `--max-seconds` |",
        "| 1 | | a defect of tagstream, or `tagstream verify` has found labels that differ |",
    ]
    known = sorted(_errors(errors.TagstreamError), key=lambda error: error.exit_code)
    lines += [f"| {e.exit_code} | `{e.__name__}` | {cell((e.__doc__ or '').splitlines()[0])} |" for e in known]
    lines += [
        "| 7 | | rows are left and `--must-finish` was given: a scheduler tries again |",
        "| 130, 143 | | Ctrl-C or SIGTERM a second time: the process ends at once. What was committed stays |",
        "",
        "## Why a row is a dead letter",
        "",
        "| code | |",
        "|---|---|",
        *(f"| `{code.value}` | {cell(reason)} |" for code, reason in errors.REASONS.items()),
    ]
    return "\n".join(lines) + "\n"


def _errors(base: type[errors.TagstreamError]) -> Iterator[type[errors.TagstreamError]]:
    for error in base.__subclasses__():
        yield error
        yield from _errors(error)


def metrics_page() -> str:
    """What `--metrics-port` serves."""
    lines = [
        MADE,
        "",
        "# Metrics",
        "",
        (
            "`tagstream run --metrics-port PORT` serves these for Prometheus at `/metrics`. `tagstream workers "
            "--metrics-port PORT` serves those of all workers of its pool, each with a label `worker`."
        ),
        "",
        "| metric | kind | labels | |",
        "|---|---|---|---|",
    ]
    for family in _families():
        suffix = "_total" if family.type == "counter" else ""
        labels = sorted({name for sample in family.samples for name in sample.labels} - {"le"})
        names = ", ".join(f"`{name}`" for name in labels)
        lines.append(f"| `{family.name}{suffix}` | {family.type} | {names} | {cell(family.documentation)} |")
    return "\n".join(lines) + "\n"


def _families() -> Iterable[Any]:
    """All metrics of a process that has committed a message, and those that only a worker pool has."""
    context = JobContext()
    context.metrics.committed(1, 0, Counter([next(iter(errors.DeadCode)).value]))
    context.metrics.waited([0.1])
    return [*JobCollector(lambda: [context]).collect(), *PoolCollector(dict).collect()]


def pages() -> dict[Path, str]:
    """File and content of every page."""
    return {
        FOLDER / "specification.md": Specification().page(),
        FOLDER / "cli.md": commands_page(),
        FOLDER / "errors.md": errors_page(),
        FOLDER / "metrics.md": metrics_page(),
    }


def main() -> None:
    """Write the pages."""
    for path, content in pages().items():
        path.write_text(content, encoding="utf-8")


if __name__ == "__main__":
    main()
