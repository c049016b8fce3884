"""Applies all entries of `infer` to texts, and returns the label columns of every entry.

Jobs use this for blocks, and the Python interface uses it for arrays. Knows no Beam and no I/O.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import Any, cast

import pyarrow as pa
import pyarrow.compute as pc

from tagstream.schemas.errors import DeadCode, SpecError
from tagstream.schemas.infer_spec import PLACE
from tagstream.schemas.spec import InferEntry
from tagstream.transforms.inference.backends.registry import describe
from tagstream.transforms.inference.engine import Engine
from tagstream.transforms.inference.engines import Engines
from tagstream.transforms.inference.predictions import Prediction
from tagstream.transforms.runtime.job_context import JobContext
from tagstream.transforms.tasks.parts import join_parts


class Labelling:
    """See the module. Thread-safe."""

    def __init__(self, entries: Iterable[InferEntry], engines: list[Engine]) -> None:
        """`engines`: one for each entry, in the same order. Entries may share an engine."""
        self.entries, self.engines = tuple(entries), engines
        self._heads = [describe(entry)[0] for entry in self.entries]
        self.fields: list[pa.Field] = [field for head in self._heads for field in head.fields]
        """The columns of all entries, in order."""
        self.on_gpu = all(engine.backend.device.startswith("cuda") for engine in engines)

    @classmethod
    def of(cls, entries: Iterable[InferEntry], context: JobContext) -> Labelling:
        """Use the engines of a job. Loads the models that are not loaded yet. Raises ModelError, SpecError."""
        entries, engines = tuple(entries), context.resource(Engines)
        return cls(entries, [engines.of(entry) for entry in entries])

    def submit(
        self, texts: pa.LargeStringArray, column: Callable[[str], pa.LargeStringArray] | None = None
    ) -> list[Future[Prediction]]:
        """Submit valid UTF-8 texts without nulls to every engine once. Does not wait. Returns one future per entry.

        `column`: gives the texts of a column that an entry names as its `text`, valid and without nulls too.
        """
        asked: dict[Any, Future[Prediction]] = {}
        keys = [(engine, e.text, e.prompt) for e, engine in zip(self.entries, self.engines, strict=True)]
        for key, entry in zip(keys, self.entries, strict=True):
            if key not in asked:
                asked[key] = key[0].submit(_texts_of(entry, texts, column))
        return [asked[key] for key in keys]

    def columns(self, predictions: list[Prediction]) -> list[pa.Array]:
        """One array for each of `fields`, with one value for each text. The value of a text with an error is arbitrary.

        `predictions`: one for each entry, or an empty list if there are no texts.
        """
        if not predictions:
            return [pa.array([], field.type) for field in self.fields]
        pairs = zip(self._heads, predictions, strict=True)
        return [column for head, p in pairs for column in head.columns(p.values, p.tokens, p.truncated)]

    def errors(self, predictions: list[Prediction]) -> dict[int, tuple[DeadCode, str]]:
        """Code and message for each text that has an error, by index. The first entry with an error for it counts."""
        errors: dict[int, tuple[DeadCode, str]] = {}
        for entry, prediction in zip(self.entries, predictions, strict=False):
            for row, (code, message) in prediction.errors.items():
                errors.setdefault(row, (code, f"{entry.as_}: {message}"))
        return errors


def _texts_of(
    entry: InferEntry, texts: pa.LargeStringArray, column: Callable[[str], pa.LargeStringArray] | None
) -> pa.LargeStringArray:
    if entry.texts and column is None:
        raise SpecError(f"{entry.as_}: {', '.join(entry.texts)}: there are no columns beside the texts")
    of = cast("Callable[[str], pa.LargeStringArray]", column)
    if entry.pair is not None:
        return join_parts(*(of(name) for name in entry.pair))
    if entry.text is not None:
        texts = of(str(entry.text))
    if not entry.places:
        return texts
    words = PLACE.split(str(entry.prompt))  # text and names in turn
    parts = [
        pa.scalar(word, pa.large_string()) if at % 2 == 0 else texts if word == "text" else of(word)
        for at, word in enumerate(words)
    ]
    return pc.binary_join_element_wise(*parts, pa.scalar("", pa.large_string()))
