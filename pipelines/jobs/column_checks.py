"""What can be wrong with the columns of a job when its source and its models are known. Said before the first row."""

from __future__ import annotations

import pyarrow as pa

from tagstream.schemas.errors import SpecError
from tagstream.schemas.spec import JobSpec
from tagstream.transforms.inference.backends.registry import describe
from tagstream.transforms.tokenization.text_checks import is_text


def check_redacted(spec: JobSpec) -> None:
    """Raises SpecError if an entry redacts the text, and another writes words of it."""
    redacting = next((entry for entry in spec.infer if entry.redact is not None), None)
    copying = [entry for entry in spec.infer if redacting and describe(entry)[0].copies_text]
    if redacting and copying:
        raise SpecError(
            f"{copying[0].as_} would write words of the text that {redacting.as_} redacts; do it in a job of its own"
        )


def check_distinct(columns: pa.Schema) -> None:
    """Raises SpecError if two columns have one name: which columns a task writes, the specification may not say."""
    if twice := next((name for name in columns.names if columns.names.count(name) > 1), None):
        raise SpecError(f"column {twice!r} would be written twice; rename the column of the source, or the entry (as)")


def check_text_columns(spec: JobSpec, kept: pa.Schema) -> None:
    """Raises SpecError if an entry's `text` is no column of text."""
    for entry in spec.infer:
        for name in entry.texts:
            if name == spec.source.text:
                continue
            if name not in kept.names:
                raise SpecError(f"{entry.as_}: text: no column {name!r}; there are {', '.join(kept.names)}")
            if not is_text(kept.field(name).type):
                raise SpecError(f"{entry.as_}: text: column {name!r} is {kept.field(name).type}, not text")
