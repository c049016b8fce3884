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
    def ends(self) -> tuple[int, ...]:
        """Ids of the tokens that end a text, as transformers' `generate` takes them."""

    @property
    def has_chat_template(self) -> bool:
        """Whether its tokenizer knows how a conversation looks."""

    def setting(self, name: str) -> Any:
        """A setting of the config, or the default of its class; None if neither says it."""

    @property
    def config(self) -> dict[str, Any]:
        """The whole `config.json`."""


@dataclass(frozen=True)
class NoModel:
    """Stands for a model where there is none: what a backend without one gives. Fits tasks that label texts."""

    name: str
    labels: list[str]
    activation: str = "softmax"
    architectures: None = None
    sentence: None = None
    config: dict[str, Any] = field(default_factory=dict)
    ends: tuple[int, ...] = ()
    has_chat_template: bool = False

    def setting(self, name: str) -> Any:
        """See `Model`."""
        return self.config.get(name)
