"""Turns texts into token ids with the Rust tokenizer that comes with the model.

Owns the tokenizer and the flat arrays of ids. Knows no model. A text longer than the model's window is never cut
silently: as the specification says, it is cut and marked, split into overlapping windows, or refused.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from tagstream.schemas.errors import DeadCode, ModelError
from tagstream.transforms.model_files import ModelFiles
from tagstream.transforms.tokenization.encoded import Encoded
from tagstream.transforms.tokenization.padding import ZEROS_BY_DEFAULT, padding_of, segments_matter

Array = np.ndarray
WINDOW_OVERLAP = 4
"""Windows of a long text overlap by max_length // WINDOW_OVERLAP tokens, that is, by a quarter."""
NO_TOKENS = "the tokenizer makes no token of this text, and the model can't label nothing"


@dataclass
class EncodedTokens(Encoded):
    """`ids`: int32, the token ids of all sequences. Sequence i is ids[starts[i] : starts[i] + lengths[i]].

    `segments`: the segment id of each of `ids`; None for a model that needs none.
    """

    ids: Array = None  # type: ignore[assignment]
    starts: Array = None  # type: ignore[assignment]
    segments: Array | None = None


class TextTokenizer:
    """A model's tokenizer with the settings of one entry. They never change, so several threads may call `encode`."""

    def __init__(self, files: ModelFiles, max_length: int | None, long_text: str) -> None:
        tokenizer = _load(files)
        self.max_length = window(files, tokenizer.model_max_length, max_length)
        self.long_text = long_text
        self.padding = padding_of(files, tokenizer)
        self.segments = segments_matter(files, tokenizer)
        self.zero_segments = not self.segments and files.config.get("model_type") in ZEROS_BY_DEFAULT
        """Whether zeros in place of no segment ids change nothing."""
        self._tokenizer = type(tokenizer.backend_tokenizer).from_str(tokenizer.backend_tokenizer.to_str())
        self._tokenizer.no_padding()
        stride = self.max_length // WINDOW_OVERLAP if long_text == "window" else 0
        try:
            self._tokenizer.enable_truncation(self.max_length, stride=stride, direction=tokenizer.truncation_side)
        except ValueError as error:
            raise ModelError(f"{files.name}: max_length {self.max_length} can't be used: {error}") from None

    def encode(self, texts: pa.LargeStringArray) -> EncodedTokens:
        """Token ids of all texts. Each text must be valid UTF-8 and not null. A text without tokens is an error."""
        encodings = self._tokenizer.encode_batch_fast(texts.to_numpy(zero_copy_only=False).tolist())
        n = len(encodings)
        tokens = np.fromiter((len(e) for e in encodings), np.int32, n)
        truncated = np.zeros(n, bool)
        errors = {int(i): (DeadCode.TOKENISATION_FAILED, NO_TOKENS) for i in np.flatnonzero(tokens == 0)}
        sequences, text = encodings, np.arange(n, dtype=np.int32)
        cut = [(i, parts) for i in np.flatnonzero(tokens >= self.max_length) if (parts := encodings[i].overflowing)]
        owners = text.tolist()
        overlap = self.max_length // WINDOW_OVERLAP if self.long_text == "window" else 0
        for i, parts in cut:
            tokens[i] += sum(len(p) - p.special_tokens_mask.count(1) - overlap for p in parts)
            if self.long_text == "truncate":
                truncated[i] = True
            elif self.long_text == "window":
                sequences = [*sequences, *parts]
                owners.extend([int(i)] * len(parts))
            else:
                errors[int(i)] = (DeadCode.TOO_LONG, f"{tokens[i]} tokens, but the model takes {self.max_length}")
        if cut or errors:
            order = np.argsort(owners, kind="stable")
            order = order[~np.isin(np.asarray(owners)[order], list(errors))]
            sequences = [sequences[i] for i in order]
            text = np.asarray(owners, np.int32)[order]
        lengths = np.fromiter((len(e) for e in sequences), np.int32, len(sequences))
        ids = np.empty(int(lengths.sum()), np.int32)
        segments = np.empty_like(ids) if self.segments else None
        starts = (
            np.concatenate([[0], np.cumsum(lengths[:-1], dtype=np.int64)]) if len(lengths) else np.empty(0, np.int64)
        )
        for sequence, start, length in zip(sequences, starts.tolist(), lengths.tolist(), strict=True):
            ids[start : start + length] = sequence.ids
            if segments is not None:
                segments[start : start + length] = sequence.type_ids
        return EncodedTokens(lengths, text, tokens, truncated, errors, ids, starts, segments)

    def inputs(self, parts: list[tuple[EncodedTokens, Array]], buckets: tuple[int, ...] = ()) -> dict[str, Array]:
        """The model's inputs for the sequences in `parts`, in order: each int64 [sequences, length], padded.

        They are input_ids, attention_mask and, if the tokenizer gives segments that matter, token_type_ids. `buckets`:
        ascending lengths. The sequences are padded to the first bucket that fits the longest one; without buckets, to
        the longest one.
        """
        longest = max(int(e.lengths[rows].max(initial=1)) for e, rows in parts)
        longest = next((length for length in buckets if length >= longest), longest)
        columns = np.arange(longest)
        ids, masks, segments = [], [], []
        for encoded, rows in parts:
            lengths, starts = encoded.lengths[rows][:, None], encoded.starts[rows][:, None]
            shift = longest - lengths if self.padding.left else 0
            mask = (columns >= shift) & (columns < shift + lengths)
            at = np.where(mask, starts + columns - shift, 0)
            ids.append(np.where(mask, encoded.ids[at] if len(encoded.ids) else 0, self.padding.pad_id))
            masks.append(mask)
            if encoded.segments is not None:
                segments.append(np.where(mask, encoded.segments[at], self.padding.segment_id))
        arrays = {"input_ids": ids, "attention_mask": masks, "token_type_ids": segments}
        return {name: np.concatenate(found).astype(np.int64) for name, found in arrays.items() if found}


def window(files: ModelFiles, tokenizer_length: int, wanted: int | None) -> int:
    """How many tokens the model takes at once: the least of the limits in its config, tokenizer and specification."""
    config = files.config
    limits = [tokenizer_length]
    positions = config.get("max_position_embeddings") or config.get("n_positions")
    if positions and config.get("model_type") not in _RELATIVE:
        # models like RoBERTa number their positions from pad_token_id + 1
        offset = int(files.setting("pad_token_id") or 0) + 1 if config.get("model_type") in _OFFSET else 0
        limits.append(int(positions) - offset)
    most = min(limits)
    if wanted is not None and wanted > most:
        raise ModelError(f"{files.name}: max_length is {wanted}, but the model takes at most {most} tokens")
    return min(wanted or most, most, 1 << 20)


_OFFSET = {"roberta", "xlm-roberta", "camembert", "xlm-roberta-xl", "longformer", "mpnet", "roberta-prelayernorm"}
_RELATIVE = {"xlnet", "t5", "mt5", "umt5"}


def _load(files: ModelFiles) -> Any:
    from transformers.utils import logging

    logging.set_verbosity_error()
    try:
        tokenizer = _class_of(files).from_pretrained(files.tokenizer, trust_remote_code=False, local_files_only=True)
    except Exception as error:
        raise ModelError(f"{files.name}: the tokenizer in {files.tokenizer} can't be loaded: {error}") from error
    if not getattr(tokenizer, "is_fast", False):
        raise ModelError(
            f"{files.name}: {type(tokenizer).__name__} has no fast (Rust) version; save one as tokenizer.json"
        )
    return tokenizer


_ENCODERS = {
    "albert", "bert", "camembert", "deberta", "deberta-v2", "distilbert", "electra", "mpnet", "roberta", "xlm-roberta",
}  # fmt: skip
_GENERIC = {"PreTrainedTokenizerFast", "TokenizersBackend"}
_OWN = {"BertTokenizer", "DistilBertTokenizer", "ElectraTokenizer", "RobertaTokenizer", "XLMRobertaTokenizer"}


def _class_of(files: ModelFiles) -> Any:
    """The class that AutoTokenizer would load: the declared one for encoders that declare a usual one.

    AutoTokenizer imports PyTorch where that is installed, for the sake of its configs' rotary embeddings. That takes
    4 s and 500 MB, and ONNX Runtime needs no PyTorch.
    """
    import transformers

    try:
        config = json.loads((files.tokenizer / "tokenizer_config.json").read_text(encoding="utf-8"))
        declared, remote = str(config.get("tokenizer_class")), "auto_map" in config
    except (OSError, ValueError, AttributeError):  # AutoTokenizer says what is wrong, or goes on without
        return transformers.AutoTokenizer
    own = declared.removesuffix("Fast")
    if files.config.get("model_type") in _ENCODERS and not remote and (files.tokenizer / "tokenizer.json").is_file():
        if declared in _GENERIC:
            return transformers.PreTrainedTokenizerFast
        if own in _OWN:
            return getattr(transformers, own)
    return transformers.AutoTokenizer
