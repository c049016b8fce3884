"""The exceptions of tagstream, and the reasons for which a row becomes a dead letter.

Every error that a user can cause is a `TagstreamError`. Its message says what to do next, and the command line returns
its `exit_code`. Any other exception is a defect of tagstream and keeps its traceback.
"""

from __future__ import annotations

from enum import StrEnum


class TagstreamError(Exception):
    """Base of all errors that a user can do something about."""

    exit_code = 1
    transient = False
    """Whether the failure may pass, because another system can't be reached at the moment. Live jobs then try again."""


class SpecError(TagstreamError):
    """The specification is wrong. The message names file, line and field, and what the field accepts."""

    exit_code = 2


class SourceError(TagstreamError):
    """The input can't be found, read or understood."""

    exit_code = 3


class DeadLetterLimitError(SourceError):
    """Too many rows in a row became dead letters: the input is not what the specification says."""

    exit_code = 8


class ModelError(TagstreamError):
    """A model can't be found, is of the wrong kind, or can't be loaded safely."""

    exit_code = 4


class SinkError(TagstreamError):
    """The output can't be written."""

    exit_code = 5


class LedgerError(SinkError):
    """The output belongs to another job, or its chain is broken."""


class RunnerError(TagstreamError):
    """The cluster that should run the job can't be reached, refuses the job, or can't run it."""

    exit_code = 6


class ChainMovedError(Exception):
    """Another writer has appended to the chain first. `position`: the chain's new end.

    Internal: the writer that came second drops its rows.
    """

    def __init__(self, position: int) -> None:
        super().__init__(f"the chain ends at {position} now")
        self.position = position


class OutOfMemoryError(Exception):
    """The device has too little memory for a micro-batch. Internal: the engine tries again with smaller ones."""


class DeadCode(StrEnum):
    """Why a row has no label. `REASONS` has a sentence for each."""

    NULL_TEXT = "null_text"
    BAD_ENCODING = "bad_encoding"
    BAD_VALUE = "bad_value"
    BAD_PAYLOAD = "bad_payload"
    BAD_SCHEMA = "bad_schema"
    BAD_FILE = "bad_file"
    TOO_LONG = "too_long"
    TOKENISATION_FAILED = "tokenisation_failed"
    INFERENCE_FAILED = "inference_failed"
    OUT_OF_MEMORY = "out_of_memory"
    TOO_LARGE = "too_large"
    REFUSED = "refused"
    NO_SUCH_KEY = "no_such_key"


REASONS: dict[DeadCode, str] = {
    DeadCode.NULL_TEXT: "the text is null",
    DeadCode.BAD_ENCODING: "the text is not valid UTF-8",
    DeadCode.BAD_VALUE: "the id, a kept column or a header is not valid UTF-8, or the timestamp is no date",
    DeadCode.BAD_PAYLOAD: "the message can't be decoded",
    DeadCode.BAD_SCHEMA: "the field that should hold the text is missing or is not text",
    DeadCode.BAD_FILE: "the file, or this part of it, can't be read",
    DeadCode.TOO_LONG: "the text has more tokens than the model takes, and the job says long_text: dead_letter",
    DeadCode.TOKENISATION_FAILED: "the tokenizer failed on this text",
    DeadCode.INFERENCE_FAILED: "the model failed on this text",
    DeadCode.OUT_OF_MEMORY: "this text alone needs more memory than the device has",
    DeadCode.TOO_LARGE: "the labelled message is larger than the output topic allows",
    DeadCode.REFUSED: "the output can't store a value of this row",
    DeadCode.NO_SUCH_KEY: "the table has no row with this key, or does not show it",
}
