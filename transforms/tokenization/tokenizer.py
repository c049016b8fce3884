"""Turns texts into token ids with the Rust tokenizer that comes with the model.

Owns the tokenizer and the flat arrays of ids. Knows no model. A text longer than the model's window is never cut
silently: as the specification says, it is cut and marked, split into overlapping windows, or refused.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
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

    `segments`: the segment id of each of `ids`; None for a model that needs none. `places`: where each token comes
    from; None if nobody asked for it.
    """

    ids: Array = None  # type: ignore[assignment]
    starts: Array = None  # type: ignore[assignment]
    segments: Array | None = None
    places: Places | None = None


@dataclass
class Places:
    """Where tokens come from.

    `texts`: the texts; of pairs, the second ones. `part`: int8 [tokens], 0 for a token of the first text, 1 for one of
    the second, -1 for what the tokenizer has added. `start`, `stop`: int32 [tokens], the token's characters in its
    text. `word`: int32 [tokens], the number of the token's word in its text.
    """

    texts: list[str]
    part: Array
    start: Array
    stop: Array
    word: Array


class TextTokenizer:
    """A model's tokenizer with the settings of one entry. They never change, so several threads may call `encode`."""

    def __init__(
        self,
        files: ModelFiles,
        max_length: int | None,
        long_text: str,
        truncation: str = "longest_first",
        *,
        pads_left: bool = False,
        reserve: int = 0,
        src_lang: str | None = None,
    ) -> None:
        """`truncation`: which text of a pair is cut, longest_first, only_first or only_second.

        `pads_left`: padding stands before the tokens. `reserve`: tokens of the window that stay free. `src_lang`: the
        language of the texts, for tokenizers that tell the model.
        """
        tokenizer = self.own = _load(files)
        """The tokenizer of transformers."""
        if src_lang is not None:
            _set_language(files, tokenizer, src_lang)
        given = files.sentence.max_length if files.sentence else None
        self.max_length = window(files, given or tokenizer.model_max_length, max_length) - reserve
        if self.max_length < 1:
            raise ModelError(
                f"{files.name}: max_new_tokens {reserve} leaves no room for a text: the model takes "
                f"{self.max_length + reserve} tokens with those that it writes"
            )
        self.long_text = long_text
        self.padding = padding_of(files, tokenizer)
        if pads_left:
            self.padding = self.padding._replace(left=True)
        self.segments = segments_matter(files, tokenizer)
        self.zero_segments = not self.segments and files.config.get("model_type") in ZEROS_BY_DEFAULT
        """Whether zeros in place of no segment ids change nothing."""
        self.unknown_id: int | None = tokenizer.unk_token_id
        self.rust = _copy(tokenizer.backend_tokenizer)
        """The tokenizer of the `tokenizers` library, which cuts long texts and pads none."""
        if files.sentence and files.sentence.lower:
            self.rust.normalizer = _lower_first(self.rust.normalizer)
        self.rust.no_padding()
        self.overlap = self.max_length // WINDOW_OVERLAP if long_text == "window" else 0
        """Tokens that a window has in common with the one before."""
        side = "right" if self.overlap else tokenizer.truncation_side
        try:
            self.rust.enable_truncation(self.max_length, stride=self.overlap, strategy=truncation, direction=side)
        except ValueError as error:
            raise ModelError(f"{files.name}: max_length {self.max_length} can't be used: {error}") from None

    @functools.cached_property
    def whole(self) -> Any:
        """As `rust`, but cuts nothing."""
        whole = _copy(self.rust)
        whole.no_truncation()
        return whole

    @functools.cached_property
    def piece_lengths(self) -> Array:
        """int32 [vocabulary]: how many characters the piece of each token id has."""
        vocabulary = self.rust.get_vocab(with_added_tokens=True)
        found = np.zeros(max(vocabulary.values(), default=0) + 1, np.int32)
        for piece, number in vocabulary.items():
            found[number] = len(piece)
        return found

    def encode(self, texts: pa.LargeStringArray, *, places: bool = False, special: bool = True) -> EncodedTokens:
        """Token ids of all texts. Each text must be valid UTF-8 and not null. A text without tokens is an error.

        `places`: also say where each token comes from, which takes longer. `special`: add the model's special tokens.
        """
        return self._encode(texts.to_numpy(zero_copy_only=False).tolist(), None, places=places, special=special)

    def encode_pairs(self, firsts: Sequence[str], seconds: Sequence[str], *, places: bool = False) -> EncodedTokens:
        """As `encode`, for pairs of texts. `places` has the second text of each pair."""
        return self._encode(list(firsts), list(seconds), places=places)

    def _encode(
        self, firsts: list[str], seconds: list[str] | None, *, places: bool, special: bool = True
    ) -> EncodedTokens:
        encode = self.rust.encode_batch if places else self.rust.encode_batch_fast
        given = firsts if seconds is None else list(zip(firsts, seconds, strict=True))
        encodings = encode(given, add_special_tokens=special)
        n = len(encodings)
        tokens = np.fromiter((len(e) for e in encodings), np.int32, n)
        truncated = np.zeros(n, bool)
        errors = {int(i): (DeadCode.TOKENISATION_FAILED, NO_TOKENS) for i in np.flatnonzero(tokens == 0)}
        sequences, text = encodings, np.arange(n, dtype=np.int32)
        cut = [(i, parts) for i in np.flatnonzero(tokens >= self.max_length) if (parts := encodings[i].overflowing)]
        owners = text.tolist()
        for i, parts in cut:
            if seconds is None:
                tokens[i] += sum(len(p) - p.special_tokens_mask.count(1) - self.overlap for p in parts)
            else:  # the parts of a pair repeat tokens of the other text
                tokens[i] = len(self.whole.encode(firsts[i], seconds[i]))
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
        found = _places(firsts if seconds is None else seconds, sequences, starts, len(ids)) if places else None
        return EncodedTokens(lengths, text, tokens, truncated, errors, ids, starts, segments, found)

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


def _places(texts: list[str], sequences: Sequence[Any], starts: Array, tokens: int) -> Places:
    part, word, spans = np.empty(tokens, np.int8), np.empty(tokens, np.int32), np.empty((tokens, 2), np.int32)
    for sequence, start in zip(sequences, starts.tolist(), strict=True):
        mine = slice(start, start + len(sequence))
        part[mine] = [-1 if number is None else number for number in sequence.sequence_ids]
        word[mine] = [-1 if number is None else number for number in sequence.word_ids]
        spans[mine] = sequence.offsets
    return Places(texts, part, spans[:, 0], spans[:, 1], word)


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


def _set_language(files: ModelFiles, tokenizer: Any, language: str) -> None:
    if not hasattr(tokenizer, "src_lang"):
        raise ModelError(f"{files.name}: src_lang: its tokenizer knows no languages; remove it")
    language_id(files.name, tokenizer, language, "src_lang")
    tokenizer.src_lang = language


def language_id(name: str, tokenizer: Any, language: str, field: str) -> int:
    """Id of the token that stands for a language. `tokenizer`: of transformers. Raises ModelError."""
    found = tokenizer.convert_tokens_to_ids(language)
    if found is None or found == tokenizer.unk_token_id:
        there = [token for token in getattr(tokenizer, "additional_special_tokens", ()) if len(token) < 16]
        some = f"; there are {', '.join(there[:8])} …" if there else ""
        raise ModelError(f"{name}: {field}: its tokenizer has no language {language!r}{some}")
    return int(found)


def _copy(rust: Any) -> Any:
    return type(rust).from_str(rust.to_str())


def _lower_first(normalizer: Any) -> Any:
    from tokenizers import normalizers

    steps = [normalizers.Lowercase()] if normalizer is None else [normalizers.Lowercase(), normalizer]
    return normalizers.Sequence(steps)


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
