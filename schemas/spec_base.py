"""What the parts of a specification have in common: the base classes of sources, sinks, dead letters and backends.

A third party's source or sink derives its `Specification` from these. The job asks a part only for what is declared
here, never for its `type`: so a new part needs no change anywhere else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Protocol, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PrivateAttr, field_validator

EVERYTHING = "*"
"""As `keep`: every column of the input but the text."""


@dataclass(frozen=True, eq=False)
class Says:
    """In `Annotated`: what a field accepts, in words for messages, where its type does not say it. An example too."""

    words: str
    example: Any = None


Names = Annotated[
    tuple[str, ...],
    BeforeValidator(
        lambda value: (value,) if isinstance(value, str) else value, json_schema_input_type=str | tuple[str, ...]
    ),
    Says("a name, or a list of names", ["a", "b"]),
]


class Spec(BaseModel):
    """Base of every part of a specification: frozen, unknown fields refused, defaults checked."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, populate_by_name=True)


class SourcePart(Spec):
    """Base of every source's part: which columns of the input matter. Derived classes set `type`."""

    text: str = Field(default="text", description="Column that holds the text.", examples=["text"])
    id: str | None = Field(
        default=None, description="Column that identifies a row; passed through unchanged.", examples=["id"]
    )
    keep: Names = Field(
        default=(),
        description="Further columns that pass through unchanged: one, a list, or '*' for all but the text, which "
        "then pass in the order of the input.",
        examples=[["label"]],
    )
    type: str = ""
    _found: tuple[str, ...] | None = PrivateAttr(default=None)

    @field_validator("keep")
    @classmethod
    def _all_or_some(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if EVERYTHING in names and len(names) > 1:
            raise ValueError("'*' keeps every column already; write it alone: keep: '*'")
        return names

    @property
    def keeps_all(self) -> bool:
        """`keep` is '*': the columns are known when the source has been opened."""
        return self.keep == (EVERYTHING,)

    @property
    def key(self) -> tuple[str, ...]:
        """The columns that identify a row."""
        return (self.id,) if self.id else ()

    @property
    def by_state(self) -> bool:
        """Whether a run labels the rows that the sink has no label for, wherever in the input they are."""
        return False

    @property
    def kept(self) -> tuple[str, ...]:
        """Key and kept columns, in output order, each once; with `keep: '*'` only the key until `with_columns`."""
        if self._found is not None:
            return self._found
        return tuple(dict.fromkeys([*self.key, *(() if self.keeps_all else self.keep)]))

    @property
    def knows_columns(self) -> bool:
        """What `keep` stands for is known."""
        return self._found is not None or not self.keeps_all

    def with_columns(self, names: Sequence[str]) -> Self:
        """The same with the columns that `keep: '*'` stands for, in output order."""
        copy = self.model_copy()
        copy._found = tuple(names)  # noqa: SLF001  of this class
        return copy

    @property
    def live(self) -> bool:
        """The source has no end."""
        return False

    @property
    def reads(self) -> tuple[str, ...]:
        """Folders, files or globs that are read: no output may lie inside."""
        return ()

    def both_ways(self, group: str) -> tuple[Self, Self] | None:
        """The same rows up to now, and without an end, as members of `group`; None where there is no such choice.

        Raises SpecError if the two could not be compared.
        """
        return None

    def check_beside(self, job: Parts) -> None:
        """Raises ValueError if the source can't work with the other parts of the job."""


class DeadLettersPart(Spec):
    """Base of what says where dead letters go. Derived classes set `type`, which is that of their sink."""

    type: str = ""


class SinkPart(Spec):
    """Base of every sink's part. Derived classes set `type`."""

    type: str = ""

    wants_messages: ClassVar[bool] = False
    """A source of messages also gives the message itself: key, value, headers, timestamp."""
    commits_offsets: ClassVar[bool] = False
    """A commit moves the offsets of the source's group, so that nobody else needs to."""

    @property
    def where(self) -> str:
        """Where the labels go, for people: a folder, a file, a topic, a table."""
        names = (getattr(self, field, None) for field in ("path", "topic", "table"))
        return str(next((name for name in names if name), self.type))

    @property
    def passes_text_on(self) -> bool:
        """The output has the text itself, whatever the models write."""
        return False

    @property
    def adds(self) -> tuple[str, ...]:
        """Columns that the sink writes beside those of the source and of the models."""
        return ()

    def writes(self, path: str) -> bool:
        """Whether the output is in this local file."""
        return False

    def takes(self, dead_letters: DeadLettersPart) -> bool:
        """Whether it can commit them together with the labels."""
        return self.type == dead_letters.type

    def check_beside(self, job: Parts) -> None:
        """Raises ValueError if the sink can't work with the other parts of the job."""


class BackendPart(Spec):
    """Base of every backend's part. Derived classes set `type`."""

    type: str = ""

    needs_model: ClassVar[bool] = True
    """An entry must name a model."""
    generates: ClassVar[bool] = False
    """It can run models that write new texts."""


class Parts(Protocol):
    """What a part may see of the job: the other parts."""

    @property
    def source(self) -> SourcePart:
        """Where the text comes from."""

    @property
    def sink(self) -> SinkPart:
        """Where the labels go."""
