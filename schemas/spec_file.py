"""Reading a specification: YAML with line numbers, `${ENV}` references, `--set` overrides, errors that say what to do.

Messages never repeat a value that came from the environment; they name the field and what it accepts.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from tagstream.schemas.errors import SpecError
from tagstream.schemas.spec import JobSpec
from tagstream.schemas.spec_messages import Location, explain

_ENV = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")


def load_spec(path: str | None, overrides: dict[str, Any] | None = None) -> JobSpec:
    """The specification in the YAML file `path` (None: an empty one), with `overrides` by dotted field path.

    Raises SpecError, with file, line and field.
    """
    data: Any = {}
    lines: dict[Location, int] = {}
    if path is not None:
        data, lines = _read_yaml(path)
    overrides = overrides or {}
    if isinstance(data, dict) and isinstance(runner := data.get("runner"), dict) and "runner.type" in overrides:
        data["runner"] = runner if runner.get("type") == overrides["runner.type"] else {}  # the fields are another's
    for field, value in overrides.items():
        _set(data, field, value)
    filled: set[Location] = set()
    data = _expand(data, (), path, lines, filled)
    if path is not None and isinstance(data, dict):
        data.setdefault("name", re.sub(r"[^A-Za-z0-9._-]+", "-", Path(path).stem).strip("-._") or "job")
    try:
        return JobSpec.model_validate(data)
    except ValidationError as error:
        told = explain(error, JobSpec, data, filled)
        raise SpecError("\n".join(f"{_where(t.at, path, lines, t.stands)}: {t.message}" for t in told)) from None


def parse_override(text: str) -> tuple[str, Any]:
    """`source.path=in/*.parquet` as field path and value; the value is YAML."""
    field, equals, value = text.partition("=")
    if not equals or not field:
        raise SpecError(f"--set {text}: write it as FIELD=VALUE, for example --set source.path=in/")
    try:
        return field.strip(), yaml.safe_load(value) if value else ""
    except (yaml.YAMLError, ValueError):  # ValueError: looks like a date or number, and is none
        return field.strip(), value


def _read_yaml(path: str) -> tuple[Any, dict[Location, int]]:
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise SpecError(
            f"{path}: no such file. `tagstream run examples/sms.yaml` shows one that works; "
            "without a file give --source, --model and --sink"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"{path}: can't be read as text: {error}") from None
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        lines: dict[Location, int] = {}
        _number_lines(node, (), path, lines)
        return (loader.construct_document(node) if node else {}), lines
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 0
        star = "alias" in (error.context or "")
        hint = " (a value that begins with * needs quotes, for example keep: '*')" if star else ""
        raise SpecError(f"{path}:{line}: not valid YAML: {error.problem}{hint}") from None
    except yaml.YAMLError as error:
        raise SpecError(f"{path}: not valid YAML: {error}") from None
    except ValueError as error:
        raise SpecError(
            f"{path}: a value looks like a date or number and is none ({error}); put it in quotes"
        ) from None
    except RecursionError:
        raise SpecError(f"{path}: an alias (*name) refers to itself, or the file is nested too deep") from None


def _number_lines(node: yaml.Node | None, at: Location, path: str, lines: dict[Location, int]) -> None:
    if node is None:
        return
    lines.setdefault(at, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            here = (*at, str(key.value))
            if here in lines:
                raise SpecError(f"{path}:{key.start_mark.line + 1}: {_dotted(here)} is given twice")
            lines[here] = key.start_mark.line + 1
            _number_lines(value, here, path, lines)
    elif isinstance(node, yaml.SequenceNode):
        for number, value in enumerate(node.value):
            _number_lines(value, (*at, number), path, lines)


def _set(data: Any, field: str, value: Any) -> None:
    *parents, last = field.split(".")
    for part in parents:
        if isinstance(data, list):
            data = data[_index(data, part, field)]
        elif isinstance(data, dict):
            data = data.setdefault(part, {})
    if isinstance(data, list):
        data[_index(data, last, field)] = value
    elif isinstance(data, dict):
        data[last] = value
    else:
        raise SpecError(f"--set {field}: {'.'.join(parents)} has no fields")


def _index(data: list[Any], part: str, field: str) -> int:
    if not part.isdigit() or int(part) >= len(data):
        raise SpecError(f"--set {field}: {part!r} is no number from 0 to {len(data) - 1}")
    return int(part)


def _expand(value: Any, at: Location, path: str | None, lines: dict[Location, int], filled: set[Location]) -> Any:
    """`value` with environment variables filled in; their locations join `filled`."""
    if isinstance(value, dict):
        return {key: _expand(item, (*at, key), path, lines, filled) for key, item in value.items()}
    if isinstance(value, list):
        return [_expand(item, (*at, number), path, lines, filled) for number, item in enumerate(value)]
    if not isinstance(value, str):
        return value

    def lookup(match: re.Match[str]) -> str:
        found = os.environ.get(match[1], match[2])
        if found is None:
            raise SpecError(
                f"{_where(at, path, lines)}: environment variable {match[1]} is not set; "
                f"set it, or give a default as ${{{match[1]}:-value}}"
            )
        return found

    expanded = _ENV.sub(lookup, value)
    if expanded != value:
        filled.add(at)
    return expanded


def _where(at: Location, path: str | None, lines: dict[Location, int], stands: Location | None = None) -> str:
    """File, line and field; the line is that of `stands`, or of what surrounds it, and by default that of the field."""
    known: Location = ()
    for part in at if stands is None else stands:
        known = next((at for at in ((*known, part), (*known, str(part))) if at in lines), known)
    file = "specification" if path is None else f"{path}:{lines.get(known, 1)}"
    return f"{file}: {_dotted(at)}" if at else file


def _dotted(location: Location) -> str:
    return ".".join(str(part) for part in location)
