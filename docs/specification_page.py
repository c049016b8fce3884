"""The page of the specification: every field of every part, from the JSON Schema of `JobSpec`.

The YAML examples are written by hand, in `docs/reference/examples.yaml`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from tagstream.schemas.spec import JobSpec

FOLDER = Path(__file__).parent / "reference"
COMMAND = "python -m docs.make_reference"
MADE = f"<!-- Made by `{COMMAND}`. Change the code that this page describes, not this page. -->"
EXAMPLES: dict[str, dict[str, str]] = yaml.safe_load((FOLDER / "examples.yaml").read_text(encoding="utf-8"))
"""YAML by field of the job and by `type`."""

Schema = dict[str, Any]


class Specification:
    """The page of the fields. Every part of the schema becomes a section, in the order in which the job names it."""

    def __init__(self) -> None:
        self.schema = JobSpec.model_json_schema()
        self.parts: dict[str, Schema] = self.schema.get("$defs", {})
        self.classes = {model.__name__: model for model in _models(BaseModel)}
        self.titles: dict[str, str] = {}
        self.sections: list[tuple[str, list[str]]] = []
        for field, content in self.schema["properties"].items():
            self._find(field, content)

    def _find(self, field: str, content: Schema) -> None:
        """Give every part that `content` names a title, and after it the parts that this part names."""
        found = list(_tagged(content))
        group = [name for _, name in found if name not in self.titles]
        self.titles.update({name: f"{field}: {tag}" for tag, name in found if name in group})
        plain = [name for name in _references(content) if name not in self.titles]
        self.titles.update(dict.fromkeys(plain, field))
        if group or plain:
            self.sections.append((field, [*group, *plain]))
        for name in [*group, *plain]:
            for inner, below in self.parts[name].get("properties", {}).items():
                self._find(inner, below)

    def page(self) -> str:
        lines = [
            MADE,
            "",
            "# The specification",
            "",
            (
                "A job is one YAML file. `tagstream schema` prints the JSON Schema that this page comes from; editors "
                "complete and check a file by it. `--set FIELD=VALUE` on the command line replaces any field, by its "
                "dotted path: `--set infer.0.scores=all`. `${NAME}` is the environment variable NAME, `${NAME:-value}` "
                "has a default. A field that does not exist is an error."
            ),
            "",
            "## The job",
            "",
            *self._table("JobSpec", self.schema),
        ]
        for field, names in self.sections:
            tagged = [name for name in names if self.titles[name] != field]
            if tagged:
                kinds = ", ".join(f"[`{_tag(self.titles[n])}`](#{slug(self.titles[n])})" for n in tagged)
                lines += ["", f"## {field}", "", f"`type` is one of {kinds}."]
            for name in names:
                lines += ["", f"{'###' if tagged else '##'} {self.titles[name]}", "", *self._part(name)]
        return "\n".join(lines) + "\n"

    def _part(self, name: str) -> Iterator[str]:
        part = self.parts[name]
        if text := part.get("description"):
            yield cell(" ".join(text.split()), table=False)
            yield ""
        field, _, tag = self.titles[name].partition(": ")
        if example := EXAMPLES.get(field, {}).get(tag):
            yield "```yaml"
            yield example.strip()
            yield "```"
            yield ""
        yield from self._table(name, part)

    def _table(self, name: str, part: Schema) -> Iterator[str]:
        yield "| field | type | default | |"
        yield "|---|---|---|---|"
        for field, content in part.get("properties", {}).items():
            if "const" in content and field == "type":
                continue
            default = "*required*" if field in part.get("required", ()) else self._default(name, field, content)
            told = content.get("description") or self._told(content)
            yield f"| `{field}` | {self._type(content)} | {default} | {cell(told)} |"

    def _told(self, content: Schema) -> str:
        """What a field without a description of its own holds: the first sentence of its part."""
        names = list(_references(content))
        return str(self.parts[names[0]].get("description", "")).split("\n\n")[0] if len(names) == 1 else ""

    def _default(self, name: str, field: str, content: Schema) -> str:
        value = content.get("default")
        if "default" not in content and name in self.classes:
            fields = {info.alias or key: info for key, info in self.classes[name].model_fields.items()}
            value = fields[field].get_default(call_default_factory=True) if field in fields else None
        if isinstance(value, BaseModel):
            kind = getattr(value, "type", None)
            return f"`{{type: {kind}}}`" if kind else ""
        return "" if value is None else f"`{cell(json.dumps(value, ensure_ascii=False))}`"

    def _type(self, content: Schema) -> str:
        if "$ref" in content:
            name = content["$ref"].rpartition("/")[2]
            return f"[{_tag(self.titles[name])}](#{slug(self.titles[name])})"
        if tagged := list(_tagged(content)):
            return ", ".join(f"[{tag}](#{slug(self.titles[name])})" for tag, name in tagged)
        if options := content.get("anyOf") or content.get("oneOf"):
            return " or ".join(dict.fromkeys(self._type(o) for o in options if o.get("type") != "null"))
        if "enum" in content or "const" in content:
            return ", ".join(f"`{value}`" for value in content.get("enum", [content.get("const")]))
        kind = content.get("type", "any")
        if kind == "array":
            return f"list of {self._type(content.get('items', {}))}"
        if kind == "object":
            inner = content.get("additionalProperties")
            return f"name: {self._type(inner)}" if isinstance(inner, dict) else "name: any"
        return ("text" if kind == "string" else str(kind)) + _range(content)


def _range(content: Schema) -> str:
    if "minimum" in content and "maximum" in content:
        return f" from {content['minimum']:g} to {content['maximum']:g}"
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    return "".join(f" {sign} {content[name]:g}" for name, sign in signs.items() if name in content)


def _tag(title: str) -> str:
    return title.rpartition(": ")[2]


def _tagged(content: Schema) -> Iterator[tuple[str, str]]:
    """`type` and part of each member of a union that is told apart by `type`, in the order of the union."""
    for option in [content, *content.get("anyOf", ())]:
        tags = {reference: tag for tag, reference in option.get("discriminator", {}).get("mapping", {}).items()}
        for member in option.get("oneOf", ()) if tags else ():
            yield tags[member["$ref"]], member["$ref"].rpartition("/")[2]


def _references(content: Any) -> Iterator[str]:
    if isinstance(content, dict):
        if "$ref" in content:
            yield content["$ref"].rpartition("/")[2]
        for value in content.values():
            yield from _references(value)
    elif isinstance(content, list):
        for value in content:
            yield from _references(value)


def _models(base: type[BaseModel]) -> Iterator[type[BaseModel]]:
    for model in base.__subclasses__():
        yield model
        yield from _models(model)


def slug(heading: str) -> str:
    """The anchor that MkDocs gives a heading."""
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower())


def cell(text: str, *, table: bool = True) -> str:
    """Plain text as Markdown, in one line of a table."""
    text = " ".join(str(text).split()).replace("<", "&lt;").replace("*", "\\*")
    return text.replace("|", "\\|") if table else text
