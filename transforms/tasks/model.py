"""What a task sees of a model: what its config says. `model_files.ModelFiles` is one."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol


class Model(Protocol):
    """What a model's config says. architectures: names of transformers' classes; None for what is no such model."""

    @property
    def name(self) -> str:
        """As in the specification."""

    @property
    def architectures(self) -> list[str] | None:
        """See above."""

    @property
    def labels(self) -> list[str]:
        """Names of the logits, by index."""

    @property
    def activation(self) -> str:
        """softmax, sigmoid or identity."""

    @property
    def sentence(self) -> Any:
        """Modules of a sentence-transformers folder, see `sentence_files.SentenceFiles`; None for another model."""

    @property
    def config(self) -> dict[str, Any]:
        """The whole `config.json`."""


@dataclass(frozen=True)
class NoModel:
    """Stands for a model where there is none: what a backend without one gives. Fits every task."""

    name: str
    labels: list[str]
    activation: str = "softmax"
    architectures: None = None
    sentence: None = None
    config: dict[str, Any] = field(default_factory=dict)
