"""What the module of a task must offer: the seam between texts, a model and the columns of the output.

A new task is one module that offers what `TaskModule` says. One of ours has its name in `schemas/infer_spec.py` and a
line in `tasks/registry.py`; a third party's is named by an entry point of the group `tagstream.tasks`, whose name is
the `task` in a specification.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from tagstream.schemas.spec import InferEntry
from tagstream.transforms.tasks.head import Head
from tagstream.transforms.tasks.model import Model


class TaskModule(Protocol):
    """What the module of a task offers.

    ARCHITECTURE: how the names of its models' classes end, for example ForSequenceClassification. KIND: what people
    call such a model, for messages.

    SETTINGS: the fields of an entry that the task uses, beside those that every task has; any other is refused.
    Without SETTINGS the task uses those of text-classification. PAIRS: whether it takes pairs of texts.
    """

    ARCHITECTURE: str
    KIND: str

    def head(self, entry: InferEntry, model: Model) -> Head:
        """What the task makes of the entry and the model. Raises SpecError for settings that do not fit the model."""


@runtime_checkable
class ChoosyModule(TaskModule, Protocol):
    """A task whose models the name of an architecture does not tell from others."""

    def takes(self, model: Model, *, named: bool) -> bool:
        """Whether the task is for the model. `named`: the entry names the task, so its user means it."""
