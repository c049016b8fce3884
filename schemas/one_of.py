"""One field, several classes, told apart by `type`: ours, and those that entry points add."""

from __future__ import annotations

from typing import Annotated, Any, Union, cast, get_args

from pydantic import BaseModel, Field, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from tagstream.schemas import plugins
from tagstream.schemas.errors import SpecError
from tagstream.schemas.spec_base import Spec


class OneOf:
    """In `Annotated[Base, OneOf(A, B, …)]`: a mapping is validated by the class whose `type` it names.

    group: of entry points, asked when `type` is none of ours. attribute: the class's name in an entry point's module.
    Errors have no tag in their location, unlike those of pydantic's own discriminated unions.
    """

    def __init__(self, *parts: type[Spec], group: str | None = None, attribute: str = "Specification") -> None:
        self.parts = {str(part.model_fields["type"].default): part for part in parts}
        self.group = group
        self.attribute = attribute

    def part(self, kind: object) -> type[Spec] | None:
        """The class for a `type`. Raises SpecError if an installed one can't be used."""
        if not isinstance(kind, str) or kind in self.parts or self.group is None:
            return self.parts.get(kind) if isinstance(kind, str) else None
        found = getattr(plugins.module_of(self.group, kind), self.attribute, None)
        if found is None and kind in plugins.installed(self.group) and self.attribute == "Specification":
            plugins.required(self.group, kind, self.attribute)
        if found is not None and not (isinstance(found, type) and issubclass(found, Spec)):
            raise SpecError(f"{kind!r}: its {self.attribute} does not derive from the classes in schemas.spec_base")
        return found

    def types(self) -> list[str]:
        """Every `type` that there is, ours first."""
        return [*self.parts, *(sorted(plugins.installed(self.group)) if self.group else ())]

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Ours as a discriminated union, for the JSON Schema; validated by `_validate` in its place."""
        union = Annotated[Union[tuple(self.parts.values())], Field(discriminator="type")]  # type: ignore[valid-type]  # noqa: UP007
        return core_schema.no_info_wrap_validator_function(
            lambda value, _: self._validate(value, get_args(source) or (source,)),
            handler.generate_schema(union),
            serialization=core_schema.simple_ser_schema("any"),
        )

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """The union, and what is installed beside it."""
        found: dict[str, Any] = handler(schema)
        found = handler.resolve_ref_schema(found)
        for kind in self.types()[len(self.parts) :]:
            part = self.part(kind)
            if part is not None:
                reference = handler(_named(part))
                found["oneOf"].append(reference)
                found["discriminator"]["mapping"][kind] = reference["$ref"]
        return found

    def _validate(self, value: Any, bases: tuple[type, ...]) -> BaseModel:
        if isinstance(value, Spec) and isinstance(value, bases):
            return value
        if not isinstance(value, dict):
            raise PydanticCustomError("part", "must be a mapping of fields")
        try:
            part = self.part(value.get("type"))
        except SpecError as error:
            raise PydanticCustomError("unusable", "{why}", {"why": f"type {error}"}) from None
        if part is None:
            told = {"types": self.types(), "missing": value.get("type") is None}
            raise PydanticCustomError("part_type", "type must be one of {types}", told)
        return part.model_validate(value)


def _named(part: type[Spec]) -> CoreSchema:
    """The schema of a class with a reference, so that the JSON Schema has it among its definitions."""
    schema: dict[str, Any] = dict(part.__pydantic_core_schema__)
    inside, definitions = (schema["schema"], schema["definitions"]) if schema["type"] == "definitions" else (schema, [])
    reference = f"{part.__module__}.{part.__qualname__}:{id(part)}"  # as pydantic's own look
    return core_schema.definitions_schema(cast("CoreSchema", {"ref": reference, **inside}), definitions)
