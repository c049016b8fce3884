"""The parts of a specification that hold Python objects: a source and a sink in this process's memory."""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Callable
from typing import Annotated, Any, Literal
from weakref import WeakValueDictionary

from pydantic import Field, PlainSerializer, PlainValidator, WithJsonSchema

from tagstream.schemas.errors import SpecError
from tagstream.schemas.spec_base import DeadLettersPart, SinkPart, SourcePart

_OBJECTS: WeakValueDictionary[str, InMemory] = WeakValueDictionary()
_NUMBERS = itertools.count()


class InMemory:
    """An object that a specification refers to. It is pickled by its `key`, so Beam hands on the very same object.

    Keys sort as the objects were made.
    """

    def __init__(self) -> None:
        self.key = f"{next(_NUMBERS):06d}-{uuid.uuid4().hex[:10]}"
        _OBJECTS[self.key] = self

    def __reduce__(self) -> tuple[Callable[[str], InMemory], tuple[str]]:
        return _object_of, (self.key,)


def _object_of(key: str) -> InMemory:
    if (found := _OBJECTS.get(key)) is None:
        raise SpecError("rows in memory can't be read or written by another process: use runner.type local")
    return found


def _checked(value: Any) -> InMemory:
    if isinstance(value, str):
        value = _OBJECTS.get(value)
    if isinstance(value, InMemory):
        return value
    raise ValueError("holds a Python object, which a file can't name: run the job from Python, with tagstream.Memory")


Rows = Annotated[
    Any,
    PlainValidator(_checked),
    PlainSerializer(lambda held: held.key, return_type=str),
    WithJsonSchema({"type": "string", "description": "From Python only: a tagstream.Memory."}),
]


class MemorySource(SourcePart):
    """Rows in this process's memory, for Python only."""

    type: Literal["memory"] = "memory"
    rows: Rows = Field(description="From Python only: a tagstream.Memory that holds the rows.")
    split_rows: int = Field(default=65_536, ge=1, description="Most rows in one split.")


class MemorySink(SinkPart):
    """Labels in this process's memory, for Python only."""

    type: Literal["memory"] = "memory"
    rows: Rows = Field(description="From Python only: the tagstream.Memory that takes the labels.")
    commit_every: float = Field(default=60.0, gt=0, description="Seconds after which rows of a split are committed.")

    def takes(self, dead_letters: DeadLettersPart) -> bool:
        """Dead letters stay in memory too, wherever they were to go."""
        return True
