"""Which token id pads a micro-batch, and on which side, so that a padded row gets the logits of a row alone.

Many models look at the ids themselves: heads of decoders take the last token that is not `pad_token_id`, RoBERTa
numbers its positions by it. They use the id in the model's config, so this id counts, whatever the tokenizer says.
Decoders see no token to the right of their own, and all others get an attention mask, so padding on the right changes
nothing. The side that the tokenizer prefers is meant for text generation.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from tagstream.transforms.model_files import ModelFiles

_LEFT = {"xlnet"}
"""Models that classify by the last token, whatever it is. Their positions are relative, so they may be shifted."""
ZEROS_BY_DEFAULT = {
    "albert", "bert", "big_bird", "camembert", "convbert", "data2vec-text", "deberta", "deberta-v2", "distilbert",
    "electra", "ernie", "fnet", "ibert", "longformer", "megatron-bert", "mobilebert", "mpnet", "mra", "nystromformer",
    "rembert", "roberta", "roberta-prelayernorm", "roformer", "squeezebert", "xlm-roberta", "xlm-roberta-xl", "xmod",
    "yoso",
}  # fmt: skip
"""Models that take missing segment ids for zeros. For others, GPT-2 for example, zeros and none are different."""


class Padding(NamedTuple):
    """`pad_id`: fills up short rows. `left`: on the left. `segment_id`: the segment of padding.

    `chosen`: the model's config has no usable `pad_token_id`, but no text ever holds `pad_id`. A model that looks for
    padding in the ids must be told to look for this one.
    """

    pad_id: int
    left: bool = False
    chosen: bool = False
    segment_id: int = 0


def padding_of(files: ModelFiles, tokenizer: Any) -> Padding:
    """How to pad for a model. `tokenizer`: a fast tokenizer of transformers."""
    left, segment = files.config.get("model_type") in _LEFT, int(tokenizer.pad_token_type_id or 0)
    size = int(files.setting("vocab_size") or 0)
    wanted = files.setting("pad_token_id")
    if isinstance(wanted, int) and wanted >= 0 and (wanted < size or not size):
        return Padding(wanted, left, segment_id=segment)
    used = set(tokenizer.get_vocab().values())
    unused = next((number for number in range(size - 1, -1, -1) if number not in used), None)
    if unused is not None:
        return Padding(unused, left, chosen=True, segment_id=segment)
    return Padding(tokenizer.pad_token_id or 0, left, segment_id=segment)  # right only if the model minds the mask


def segments_matter(files: ModelFiles, tokenizer: Any) -> bool:
    """Whether the model must get the segment ids (token_type_ids) that the tokenizer gives.

    `tokenizer`: a fast tokenizer of transformers. It says by `model_input_names` whether it gives any.
    """
    if "token_type_ids" not in tokenizer.model_input_names:
        return False
    return any(tokenizer("a")["token_type_ids"]) or files.config.get("model_type") not in ZEROS_BY_DEFAULT
