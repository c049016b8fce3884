"""What is wrong with a specification, in the user's words: the field, what it accepts, and an example.

Knows pydantic's kinds of errors and says none of their texts. Never repeats a value that came from the environment.
"""

from __future__ import annotations

import difflib
import types
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from tagstream.schemas.errors import SpecError
from tagstream.schemas.one_of import OneOf
from tagstream.schemas.spec_base import Says

Location = tuple[str | int, ...]

_RENAMED = {"classify": "infer"}
"""Fields of earlier versions, and what they are called now."""
_LIST, _MAPPING, _TEXT, _WHOLE, _NUMBER, _SWITCH = (
    "a list", "a mapping of fields", "text", "a whole number", "a number", "true or false",
)  # fmt: skip
_KINDS = {
    "tuple_type": _LIST, "list_type": _LIST, "set_type": _LIST,
    "dict_type": _MAPPING, "mapping_type": _MAPPING, "model_type": _MAPPING, "model_attributes_type": _MAPPING,
    "part": _MAPPING,
    "string_type": _TEXT, "string_unicode": _TEXT, "string_sub_type": _TEXT,
    "int_type": _WHOLE, "int_parsing": _WHOLE, "int_from_float": _WHOLE, "int_parsing_size": _WHOLE,
    "float_type": _NUMBER, "float_parsing": _NUMBER, "finite_number": _NUMBER,
    "bool_type": _SWITCH, "bool_parsing": _SWITCH,
}  # fmt: skip
"""Pydantic's error types of values of the wrong kind, and the kind that is asked for."""
_BOUNDS = {
    "greater_than_equal": "at least {ge:g}",
    "greater_than": "more than {gt:g}",
    "less_than_equal": "at most {le:g}",
    "less_than": "less than {lt:g}",
}


@dataclass
class _Field:
    """A field as the specification's classes declare it, and the value that it was given.

    at: its location as the user sees it. holder: the class that it belongs to. alternatives: its types. info: None for
    an item of a list or a mapping.
    """

    at: Location
    holder: type[BaseModel]
    alternatives: list[Any]
    marks: list[Any]
    value: Any
    info: FieldInfo | None = None

    @property
    def name(self) -> str:
        return str(self.at[-1]) if self.at else ""

    @property
    def says(self) -> Says | None:
        return next((mark for mark in self.marks if isinstance(mark, Says)), None)

    @property
    def one_of(self) -> OneOf | None:
        return next((mark for mark in self.marks if isinstance(mark, OneOf)), None)

    @property
    def model(self) -> type[BaseModel] | None:
        """The class of a mapping; among several, the one that its `type` names."""
        if self.one_of is not None:
            try:
                return self.one_of.part(self.value.get("type") if isinstance(self.value, dict) else None)
            except SpecError:
                return None
        return next((kind for kind in self.alternatives if _is_model(kind)), None)

    @property
    def example(self) -> Any:
        """As a value; None if there is none worth to show."""
        if self.says is not None and self.says.example is not None:
            return self.says.example
        if self.info is not None and self.info.examples:
            return self.info.examples[0]
        if self.model is not None:
            shown = {i.alias or n: i.examples[0] for n, i in self.model.model_fields.items() if i.examples}
            return {name: shown[name] for name in list(shown)[:2]} or None
        default = self.info.default if self.info is not None else None
        return default if isinstance(default, str | int | float | bool) and default != "" else None

    @property
    def kind(self) -> str | None:
        """What it accepts, in words, where the types say it."""
        words = {str: _TEXT, int: _WHOLE, float: _NUMBER, bool: _SWITCH}
        found = [words[kind] for kind in self.alternatives if kind in words]
        return " or ".join(dict.fromkeys(found)) or None


class Told(NamedTuple):
    """A message. at: the field; stands: the location whose line is to be named."""

    at: Location
    stands: Location
    message: str


def explain(
    error: ValidationError, root: type[BaseModel], data: Any, secret: Collection[Location] = ()
) -> Iterator[Told]:
    """Every message, once. `data`: what was validated; `secret`: locations whose values are never repeated."""
    items = error.errors(include_url=False)
    there = {item["loc"] for item in items}
    said: dict[Location, list[dict[str, Any]]] = {}
    for item in items:
        said.setdefault(_follow(item["loc"], root, data).at, []).append(dict(item))
    for same in said.values():
        field = _follow(same[0]["loc"], root, data)
        first = same[0]
        if first["type"] == "too_short" and any(at[: len(field.at)] == field.at for at in there - {first["loc"]}):
            continue  # the items are there, and wrong: said by the other messages
        if first["type"] == "missing" and any(_RENAMED.get(str(at[-1])) == field.name for at in there if at):
            continue  # it is there, by its old name
        stands = (*field.at, "type") if first["type"] == "part_type" else field.at
        echo = not any(stands[: len(at)] == at for at in secret)
        yield Told(field.at, stands, _sentence(field, same, echo=echo))


def _sentence(field: _Field, items: list[dict[str, Any]], *, echo: bool) -> str:
    first = items[0]
    kind, context = first["type"], first.get("ctx", {})
    if kind in {"value_error", "assertion_error", "unusable"}:
        return str(first["msg"]).removeprefix("Value error, ").removeprefix("Assertion failed, ")
    if first["loc"][-1:] == ("[key]",):
        return "the name must be text; put quotes around it"
    if kind in {"extra_forbidden", "invalid_key"}:
        return _unknown(field)
    if kind == "missing":
        return f"is missing{_for_example(field)}"
    if kind == "part_type":
        return _wrong_type(field, context["types"], echo=echo)
    if kind == "literal_error":
        return _wrong_choice(field, echo=echo)
    if kind in _BOUNDS:
        bound = _BOUNDS[kind].format(**{name: float(value) for name, value in context.items()})
        return f"must be {field.kind or _NUMBER}, {bound}"
    if kind in {"too_short", "string_too_short"}:
        return f"must not be empty{_hint(field, _LIST if kind == 'too_short' else _TEXT)}"
    return _wrong_kind(field, [_KINDS[item["type"]] for item in items if item["type"] in _KINDS])


def _wrong_kind(field: _Field, kinds: list[str]) -> str:
    """Text where a number must be, a mapping where a list must be, and so on; also what breaks a field's pattern."""
    words = field.says.words if field.says is not None else " or ".join(dict.fromkeys(kinds))
    if not field.at:
        return f"must hold fields; for example {_flow(field.example)}"
    empty = "is empty; " if field.value is None else ""
    unquoted = isinstance(field.value, bool | int | float) or hasattr(field.value, "isoformat")
    quoted = "; put quotes around the value" if unquoted and _TEXT in kinds else ""
    return f"{empty}must be {words or 'something else'}{quoted}{_hint(field, kinds[0] if kinds else None)}"


def _wrong_type(field: _Field, known: list[str], *, echo: bool) -> str:
    there, given = ", ".join(map(repr, known)), field.value.get("type")
    if given is None:
        return f"type is missing; it must be one of {there}"
    return f"type must be one of {there}{_not(given, known, echo=echo)}"


def _wrong_choice(field: _Field, *, echo: bool) -> str:
    known = [str(value) for kind in field.alternatives if get_origin(kind) is Literal for value in get_args(kind)]
    return f"must be one of {', '.join(map(repr, known))}{_not(field.value, known, echo=echo)}"


def _not(given: Any, known: list[str], *, echo: bool) -> str:
    if not echo or not isinstance(given, str):
        return ""
    close = difflib.get_close_matches(given, known, 1)
    return f"; not {given!r}" + (f", did you mean {close[0]!r}?" if close else "")


def _unknown(field: _Field) -> str:
    renamed = _RENAMED.get(field.name)
    accepted = [info.alias or name for name, info in field.holder.model_fields.items()]
    if renamed in accepted:
        return f"was renamed: write {renamed}"
    close = difflib.get_close_matches(field.name, accepted, 1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"unknown field; {hint}accepted: {', '.join(accepted)}"


def _hint(field: _Field, kind: str | None) -> str:
    item = _item(field)
    if kind == _LIST and item is not None and item.model is not None:
        return '; begin each entry with "- ", ' + _for_example(field).removeprefix("; ")
    if kind == _LIST and item is not None and field.example is None:
        choices = [value for a in item.alternatives if get_origin(a) is Literal for value in get_args(a)]
        return f"; for example {field.name}: {_flow(choices[:2])}" if choices else ""
    if kind == _MAPPING and field.example is None:
        return "; write name: value, a line each"
    return _for_example(field)


def _for_example(field: _Field) -> str:
    if field.example is None:
        return ""
    name = f"{field.name}: " if isinstance(field.example, dict | list) and field.info is not None else ""
    return f"; for example {name}{_flow(field.example)}"


def _flow(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=1000, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")


def _follow(location: Location, root: type[BaseModel], data: Any) -> _Field:
    """The field at a location of pydantic's, whose last parts may name a type of a union and no field."""
    example = FieldInfo(examples=[{n: i.examples[0] for n, i in root.model_fields.items() if i.examples}])
    field = _Field((), root, [root], [], data, example)
    for part in location:
        model = field.model
        value = field.value.get(part) if isinstance(field.value, dict) else None
        if model is not None:
            by_name = {info.alias or name: info for name, info in model.model_fields.items()}
            info = by_name.get(str(part))
            if info is None:
                return _Field((*field.at, part), model, [], [], value)
            alternatives, marks = _alternatives(info.annotation)
            field = _Field((*field.at, part), model, alternatives, [*info.metadata, *marks], value, info)
            continue
        item = _item(field)
        inside = isinstance(part, int) if isinstance(field.value, list | tuple) else isinstance(field.value, dict)
        if item is None or not inside or part == "[key]":
            break
        held = field.value[part] if isinstance(field.value, list | tuple) and isinstance(part, int) else value
        field = _Field((*field.at, part), field.holder, item.alternatives, item.marks, held)
    return field


def _item(field: _Field) -> _Field | None:
    """An item of a list, or a value of a mapping whose names are free; None if the field is neither."""
    for kind in field.alternatives:
        arguments = [argument for argument in get_args(kind) if argument is not Ellipsis]
        if get_origin(kind) in {dict, tuple, list}:
            alternatives, marks = _alternatives(arguments[-1])
            return _Field((), field.holder, alternatives, marks, None)
    return None


def _alternatives(annotation: Any) -> tuple[list[Any], list[Any]]:
    """Types of an annotation without `Annotated` and unions, and what `Annotated` says of them."""
    found: list[Any] = []
    marks: list[Any] = []
    pending: Iterable[Any] = [annotation]
    while pending:
        kind, *pending = pending
        if get_origin(kind) is Annotated:
            marks += kind.__metadata__
            pending = [kind.__origin__, *pending]
        elif get_origin(kind) in {Union, types.UnionType}:
            pending = [*get_args(kind), *pending]
        elif kind is not type(None):
            found.append(kind)
    return found, marks


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)
