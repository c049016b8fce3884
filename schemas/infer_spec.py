"""The `infer` part of a specification: which models, what they write, and what runs them."""

from __future__ import annotations

import difflib
import re
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, GetCoreSchemaHandler, GetJsonSchemaHandler, field_validator, model_validator
from pydantic_core import CoreSchema, core_schema

from tagstream.schemas import plugins
from tagstream.schemas.one_of import OneOf
from tagstream.schemas.spec_base import BackendPart, Says, Spec

Name = Annotated[
    str,
    Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", description="Column name: letters, digits, _."),
    Says("letters, digits and _ only, and no digit first", "spam_label"),
]
PLACE = re.compile(r"\{([A-Za-z_~][\w.~-]*)\}")
"""A column's place in a prompt. Other braces, as of JSON, stay as they are."""
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]


class PyTorchBackend(BackendPart):
    """PyTorch: any Hugging Face sequence classifier with safetensors weights."""

    type: Literal["pytorch"] = "pytorch"
    device: Annotated[str, Says("auto, cpu, mps, cuda or cuda and a number", "cuda:1")] = Field(
        default="auto",
        pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$",
        description="auto: all GPUs, else CPU; cuda: all GPUs; cuda:1: that one.",
    )
    precision: Literal["fp32", "bf16"] = Field(
        default="fp32", description="bf16 may change labels; `tagstream optimize` measures how many, for backend auto."
    )
    token_budget: int | None = Field(
        default=None, ge=1, description="Most tokens, padding included, in one micro-batch; default by device."
    )
    compile: bool = Field(
        default=False,
        description="torch.compile, before the first row: on a CPU a graph for each of about ten padded lengths, which "
        "takes minutes; on a GPU the repeated block, for any length. Needs a C++ compiler, on a GPU a C compiler.",
    )

    generates: ClassVar[bool] = True


class ConstantBackend(BackendPart):
    """No model: every row gets the same label. For tests, dry runs and measuring what the pipeline itself costs."""

    type: Literal["constant"] = "constant"
    label: str = "constant"
    ms_per_row: float = Field(default=0.0, ge=0.0, description="Milliseconds of pretended model time a row.")
    fail_on: str | None = Field(default=None, description="RE2 pattern: a matching text fails as a poison row would.")
    memory_tokens: int | None = Field(
        default=None, ge=1, description="A micro-batch of more bytes than this runs out of memory, as on a device."
    )
    token_budget: int | None = Field(default=None, ge=1, description="Most bytes in one micro-batch.")

    needs_model: ClassVar[bool] = False


class OnnxBackend(BackendPart):
    """ONNX Runtime. fp32 is exported from the model at the first use; int8 comes from `tagstream optimize` only."""

    type: Literal["onnx"] = "onnx"
    file: str | None = Field(default=None, description="The exported model; default: made once, in the cache folder.")
    device: Annotated[str, Says("auto, cpu, cuda or cuda and a number", "cuda:1")] = Field(
        default="auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="auto: first GPU, else CPU."
    )
    token_budget: int | None = Field(default=None, ge=1, description="Most tokens in one micro-batch.")


class AutoBackend(BackendPart):
    """The fastest backend that `tagstream optimize` has certified for this model; without a certificate fp32."""

    type: Literal["auto"] = "auto"
    certificate: str | None = Field(default=None, description="Folder of the certificate; default: the cache folder.")
    min_agreement: Fraction = Field(default=0.995, description="Least share of labels equal to those of fp32.")

    generates: ClassVar[bool] = True


Backend = Annotated[
    BackendPart, OneOf(PyTorchBackend, OnnxBackend, AutoBackend, ConstantBackend, group=plugins.BACKENDS)
]
Provenance = Literal["tokens", "truncated", "model"]

CERTIFIED_SETTINGS = ("max_length", "long_text", "thresholds", "function_to_apply")
"""What a certificate names of an entry beside its model."""


TASKS = (
    "text-classification", "token-classification", "question-answering", "zero-shot-classification",
    "feature-extraction", "text-generation", "text2text-generation", "translation", "summarization",
)  # fmt: skip
"""Those of ours, by Hugging Face's names; `transforms.tasks.registry` has a module for each."""


OF_TASKS = {
    "text", "labels", "thresholds", "abstain", "scores", "function_to_apply", "pooling", "normalize", "prompt",
    "prompt_name", "truncate_dim", "vector_dtype", "aggregation_strategy", "redact", "template", "multi_label",
    "system", "max_new_tokens", "stop", "src_lang", "tgt_lang", "question", "questions", "max_answer_len",
    "handle_impossible_answer",
}  # fmt: skip
"""Fields of an entry that only some tasks use; each task's module says which."""


GENERATING = ("text-generation", "text2text-generation", "translation", "summarization")
"""Tasks whose answers are new texts."""


class _Tasks:
    """Lists the tasks that there are in the JSON Schema."""

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {**handler(schema), "enum": [*TASKS, *sorted(plugins.installed(plugins.TASKS))]}


Task = Annotated[str, _Tasks()]


class _Labels:
    """A list of labels is also accepted, in the JSON Schema too: each then has its own name."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_before_validator_function(_named, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        found = handler(schema)
        kept: dict[str, Any] = {
            name: found.pop(name) for name in ("title", "description", "examples", "default") if name in found
        }
        return {**kept, "anyOf": [found, {"type": "array", "items": {"type": "string"}}]}


def _named(labels: Any) -> Any:
    if not isinstance(labels, list | tuple) or not all(isinstance(label, str) for label in labels):
        return labels
    if twice := sorted({label for label in labels if labels.count(label) > 1}):
        raise ValueError(f"the label {twice[0]!r} is there twice")
    return dict(zip(labels, labels, strict=True))


class Redact(Spec):
    """What takes the place of the spans of a text."""

    with_: str = Field(default="[{label}]", alias="with", description="In place of a span; {label} is its label.")
    keep: tuple[str, ...] = Field(default=(), description="Labels of spans that stay as they are.")


class InferEntry(Spec):
    """One entry of `infer`: a model and the columns that it writes."""

    model: str | None = Field(
        default=None,
        description="Bundled name (tagstream/spam), local folder or Hugging Face id.",
        examples=["tagstream/spam"],
    )
    revision: str | None = Field(default=None, description="Branch, tag or commit of a Hugging Face id.")
    task: Task | None = Field(
        default=None,
        description="What the model is to do, by Hugging Face's name; default: what its config says.",
        examples=["text-classification"],
    )
    text: str | tuple[str, str] | None = Field(
        default=None,
        description="Text of this entry; default: that of the source. Two columns give pairs: [question, answer]. Each "
        "is source.text, or a column of source.keep.",
        examples=[["question", "answer"]],
    )
    as_: Name = Field(default="label", alias="as", description="Prefix of the columns that this entry writes.")
    scores: Literal["top", "all", "none"] = Field(
        default="top", description="top: <as>_score; all: also <as>_scores, one field a label."
    )
    provenance: tuple[Provenance, ...] = Field(
        default=("truncated",), description="Further columns: <as>_tokens, <as>_truncated, <as>_model."
    )
    function_to_apply: Literal["sigmoid", "softmax", "none"] | None = Field(
        default=None,
        description="What makes scores of the model's values, as in transformers' pipeline; default: what the model's "
        "config says. sigmoid: a row may have several labels, unless the model has one only. none: the values as they "
        "are, as of a regression model.",
    )
    labels: Annotated[dict[str, str], _Labels()] = Field(
        default_factory=dict,
        description="Label map: name in the model's config to yours. For zero-shot-classification the labels: a list, "
        "or each with a description.",
        examples=[{"LABEL_1": "spam"}],
    )
    template: str | None = Field(
        default=None,
        description="Sentence of a label for zero-shot-classification, with {} in its place; default: 'This example is "
        "{}.'",
        examples=["This message is about {}."],
    )
    multi_label: bool = Field(
        default=False, description="A text may have several labels of zero-shot-classification, or none."
    )
    thresholds: dict[str, Fraction] = Field(
        default_factory=dict, description="Least score by label (your names): below it the row gets `abstain`."
    )
    abstain: str | None = Field(default=None, description="Label of rows below their threshold; null if not given.")
    question: str | None = Field(
        default=None, description="What is asked of each text.", examples=["Who is the sender?"]
    )
    questions: dict[Name, str] = Field(
        default_factory=dict,
        description="Several questions of each text: a name, which follows <as>_ in the columns, and the question.",
        examples=[{"sender": "Who is the sender?", "amount": "How much money is asked for?"}],
    )
    max_answer_len: int = Field(default=15, ge=1, description="Most tokens of an answer.")
    handle_impossible_answer: bool = Field(
        default=False, description="Give no answer where the model says that the text holds none."
    )
    aggregation_strategy: Literal["none", "simple", "first", "average", "max"] | None = Field(
        default=None,
        description="How labels of tokens become spans, as in transformers' pipeline; default: simple. first, average "
        "and max give whole words. none: each token is a span.",
    )
    redact: Redact | None = Field(
        default=None,
        description="Also write the text with its spans replaced, as <as>_text.",
        examples=[{"with": "[{label}]", "keep": ["DATE"]}],
    )
    pooling: Literal["mean", "cls", "max", "lasttoken", "weightedmean", "mean_sqrt_len_tokens"] | None = Field(
        default=None,
        description="How the vectors of a text's tokens become one. Default: as the folder of the model says, or mean.",
    )
    normalize: bool = Field(default=False, description="Make vectors as long as 1, whatever the model does.")
    prompt: str | None = Field(
        default=None,
        description="Put before each text. For tasks that generate text, {text} is the text's place, and {NAME} that "
        "of a column of source.keep.",
        examples=["query: "],
    )
    system: str | None = Field(default=None, description="What a chat model is told before the first message.")
    max_new_tokens: int = Field(default=256, ge=1, description="Most tokens of a generated text.")
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        default=(), description="A generated text ends before any of these."
    )
    src_lang: str | None = Field(default=None, description="Language of the texts, by the tokenizer's code for it.")
    tgt_lang: str | None = Field(default=None, description="Language to translate to.", examples=["deu_Latn"])
    prompt_name: str | None = Field(
        default=None,
        description="The prompt of this name in the model's folder; default: the one that the folder says.",
        examples=["query"],
    )
    truncate_dim: int | None = Field(default=None, ge=1, description="Keep the first values of each vector.")
    vector_dtype: Literal["float32", "float16"] = Field(default="float32", description="Type of a vector's values.")
    long_text: Literal["truncate", "window", "dead_letter"] | None = Field(
        default=None,
        description="Text longer than max_length: cut and marked, or read in overlapping windows (of logits and "
        "vectors the mean counts), or a dead letter. Default: truncate; question-answering: window.",
    )
    max_length: int | None = Field(
        default=None, ge=4, description="Tokens, special ones included; default and upper bound: the model's window."
    )
    memory_bytes: int = Field(
        default=0,
        ge=0,
        description="Answers to remember, so that a text is not inferred again in a later block; about 215 bytes "
        "a text. Equal texts of one block always are.",
    )
    backend: Backend = Field(default_factory=PyTorchBackend)

    @property
    def pair(self) -> tuple[str, str] | None:
        """The two columns of a pair of texts; None if the entry has one text."""
        return self.text if isinstance(self.text, tuple) else None

    @property
    def texts(self) -> tuple[str, ...]:
        """The columns that `text` and `prompt` name."""
        named = self.text if isinstance(self.text, tuple) else (self.text,) if self.text else ()
        return tuple(dict.fromkeys([*named, *(name for name in self.places if name != "text")]))

    @property
    def places(self) -> tuple[str, ...]:
        """What `{...}` in the prompt names: columns, or `text` for the text itself."""
        return tuple(dict.fromkeys(PLACE.findall(self.prompt or "")))

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of all columns that it may write."""
        suffixes = ["score", "scores", "tokens", "truncated", "model"]
        if self.redact is not None:
            suffixes.append("text")
        if self.task in GENERATING:
            suffixes.append("finish")
        if self.question is not None or self.task == "question-answering":
            suffixes += ["start", "end"]
        for name in self.questions:
            suffixes += [name, *(f"{name}_{suffix}" for suffix in ("score", "start", "end"))]
        return (self.as_, *dict.fromkeys(f"{self.as_}_{suffix}" for suffix in suffixes))

    @field_validator("task")
    @classmethod
    def _known_task(cls, task: str | None) -> str | None:
        if task is not None and task not in TASKS:
            there = [*TASKS, *sorted(plugins.installed(plugins.TASKS))]
            if task not in there:
                close = difflib.get_close_matches(task, there, 1)
                hint = f"; did you mean {close[0]!r}?" if close else ""
                raise ValueError(f"no such task; there are: {', '.join(there)}{hint}")
        return task

    @model_validator(mode="after")
    def _needs_model(self) -> Self:
        if self.model is None and self.backend.needs_model:
            raise ValueError("model is missing: give a bundled name (tagstream/spam), a folder or a Hugging Face id")
        return self


def default_of(name: str) -> Any:
    """The default of a field of an entry."""
    return InferEntry.model_fields[name].get_default(call_default_factory=True)
