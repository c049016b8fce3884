"""What every part of a specification is made of; the parts are in `spec` and `kafka_spec`."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class Spec(BaseModel):
    """Base of every part of a specification: frozen, unknown fields refused, defaults checked."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, populate_by_name=True)


class TextColumns(Spec):
    """Which columns of the input matter."""

    text: str = Field(default="text", description="Column that holds the text.")
    id: str | None = Field(default=None, description="Column that identifies a row; passed through unchanged.")
    keep: tuple[str, ...] = Field(default=(), description="Further columns that pass through unchanged.")

    @property
    def kept(self) -> tuple[str, ...]:
        """Id and kept columns, in output order, each once."""
        return tuple(dict.fromkeys([*([self.id] if self.id else []), *self.keep]))
