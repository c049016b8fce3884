"""The fingerprint of a job: everything that decides its output, and a hash of that. Every commit stores the hash."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

_SHOWN = 6
"""How many differences a message lists."""


@dataclass(frozen=True)
class Fingerprint:
    """Everything that decides how a labelled row looks, as plain JSON values in `parts`.

    `schema`: the columns, for sinks that create them before the first row. `kept`: those of them that come from the
    source. Both are None in a fingerprint read from an output.
    """

    parts: dict[str, Any]
    schema: pa.Schema | None = field(default=None, compare=False)
    kept: pa.Schema | None = field(default=None, compare=False)

    @property
    def hash(self) -> str:
        """The first 16 hexadecimal digits of the SHA-256 of the parts as canonical JSON."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:16]

    def to_json(self) -> str:
        return json.dumps(self.parts, sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Fingerprint:
        return cls(json.loads(text))

    def differences(self, other: Fingerprint, here: str = "here", there: str = "there") -> list[str]:
        """One line for each part that differs: its dotted name, the value `here`, the value `there`."""
        mine, theirs = _flat(self.parts), _flat(other.parts)
        return [
            f"{_shown(name)}: {mine.get(name)!r} {here}, {theirs.get(name)!r} {there}"
            for name in sorted(mine.keys() | theirs.keys())
            if mine.get(name) != theirs.get(name)
        ]


def not_ours(where: str, held: Fingerprint | None, mine: Fingerprint, whose: str = "another job") -> str:
    """The message for an output at `where` that another job made. `held`: that job's fingerprint, if known."""
    lines = held.differences(mine, "in the output", "in this job")[:_SHOWN] if held else []
    return (
        f"{where} holds the output of {whose}: its fingerprint is {held.hash if held else 'unknown'}, this job's is "
        f"{mine.hash}." + "".join(f"\n  {line}" for line in lines)
    )


def _shown(name: str) -> str:
    """The part's name in today's specifications. `infer` was `classify` when the first fingerprints were made."""
    return f"infer.{rest}" if (rest := name.removeprefix("classify.")) != name else name


def _flat(value: Any, at: str = "") -> dict[str, Any]:
    if isinstance(value, dict):
        items = {f"{at}.{key}" if at else str(key): item for key, item in value.items()}
    elif isinstance(value, list | tuple):
        items = {f"{at}.{number}": item for number, item in enumerate(value)}
    else:
        return {at: value}
    return {name: leaf for key, item in items.items() for name, leaf in _flat(item, key).items()}
