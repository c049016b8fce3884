"""Reading a specification: YAML with line numbers, `${ENV}` references, `--set` overrides, errors that say what to do.

Values that came from the environment are never echoed: messages name the field and what it accepts.
"""

from __future__ import annotations

import difflib
import os
import re
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from tagstream.schemas.errors import SpecError
from tagstream.schemas.spec import JobSpec

_ENV = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")
Location = tuple[str | int, ...]
_RENAMED = {"classify": "infer"}
"""Fields of earlier versions, and what they are called now."""


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
    data = _expand(data, (), path, lines)
    if path is not None and isinstance(data, dict):
        data.setdefault("name", re.sub(r"[^A-Za-z0-9._-]+", "-", Path(path).stem).strip("-._") or "job")
    try:
        return JobSpec.model_validate(data)
    except ValidationError as error:
        raise SpecError(_explain(error, path, lines)) from None


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
        raise SpecError(f"{path}:{line}: not valid YAML: {error.problem}") from None
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


def _expand(value: Any, at: Location, path: str | None, lines: dict[Location, int]) -> Any:
    if isinstance(value, dict):
        return {key: _expand(item, (*at, key), path, lines) for key, item in value.items()}
    if isinstance(value, list):
        return [_expand(item, (*at, number), path, lines) for number, item in enumerate(value)]
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

    return _ENV.sub(lookup, value)


def _explain(error: ValidationError, path: str | None, lines: dict[Location, int]) -> str:
    messages = []
    items = error.errors(include_url=False, include_input=False)
    for item in items:
        location: Location = item["loc"]
        kind = item["type"]
        if kind == "too_short" and any(other["loc"][:-1][: len(location)] == location for other in items):
            continue  # the items are there, and wrong: said by the other messages
        message = item["msg"].removeprefix("Value error, ")
        if kind == "extra_forbidden":
            accepted = _fields_beside(location)
            renamed = _RENAMED.get(str(location[-1]))
            close = [renamed] if renamed in accepted else difflib.get_close_matches(str(location[-1]), accepted, 1)
            message = f"unknown field; {f'did you mean {close[0]!r}? ' if close else ''}accepted: {', '.join(accepted)}"
        elif kind == "missing":
            message = "is missing"
        elif kind in {"union_tag_invalid", "union_tag_not_found"}:
            context = item.get("ctx", {})
            message = f"type must be one of {context.get('expected_tags', _tags(location))}"
        messages.append(f"{_where(location, path, lines)}: {message}")
    return "\n".join(messages)


def _where(location: Location, path: str | None, lines: dict[Location, int]) -> str:
    known: Location = ()
    for part in location:
        known = (*known, part) if (*known, part) in lines else known
    field = _dotted(tuple(p for i, p in enumerate(location) if not _is_tag(location, i)))
    file = "specification" if path is None else f"{path}:{lines.get(known, 1)}"
    return f"{file}: {field}" if field else file


def _is_tag(location: Location, index: int) -> bool:
    """Pydantic puts the tag of a discriminated union into the location: source.parquet.path."""
    return index > 0 and (location[index - 1] in {"source", "sink", "backend"}) and location[index] != "type"


def _dotted(location: Location) -> str:
    return ".".join(str(part) for part in location)


def _holder(location: Location) -> type[BaseModel] | None:
    """The model to which the field at `location` belongs, or would belong."""
    model: Any = JobSpec
    for index, part in enumerate(location[:-1]):
        if isinstance(part, int) or not isinstance(model, type) or not issubclass(model, BaseModel):
            continue
        if not _is_tag(location, index):
            by_alias = {info.alias or name: info for name, info in model.model_fields.items()}
            annotation = by_alias[str(part)].annotation if str(part) in by_alias else None
            model = _model_in(annotation, location[index + 1] if index + 2 < len(location) else None)
    return model if isinstance(model, type) and issubclass(model, BaseModel) else None


def _fields_beside(location: Location) -> list[str]:
    model = _holder(location)
    return [info.alias or name for name, info in model.model_fields.items()] if model else []


def _model_in(annotation: Any, tag: str | int | None) -> Any:
    """The model that an annotation holds; in a union the one whose `type` is `tag`."""
    models = []
    pending = [annotation]
    while pending:
        current = pending.pop()
        if isinstance(current, type) and issubclass(current, BaseModel):
            models.append(current)
        else:
            pending.extend(getattr(current, "__args__", ()))
    for model in models:
        if "type" in model.model_fields and model.model_fields["type"].default == tag:
            return model
    return models[0] if models else None


def _tags(location: Location) -> str:
    """What the `type` of the part at `location` may be."""
    model = _holder(location)
    field = model.model_fields.get(str(location[-1])) if model else None
    models = getattr(field.annotation, "__args__", ()) if field else ()
    return ", ".join(repr(m.model_fields["type"].default) for m in models if hasattr(m, "model_fields"))
