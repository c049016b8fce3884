"""Small random sequence classifiers of many architectures, made through their configs: real folders, no download."""

from __future__ import annotations

from pathlib import Path
from typing import Any

WORDS = (  # noqa: SIM905  a list of fifty lines reads worse
    "the a free win prize call now money love hate good bad great awful movie film phone text urgent claim "
    "meeting tomorrow lunch see you later thanks sorry happy sad news market game team cloud data stream "
    "über naïve привет שלום 你 好 😀 ! ? . , ' - 0 1 2 3 4 5 6 7 8 9"
).split()
LETTERS = [chr(c) for c in range(ord("a"), ord("z") + 1)]

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "bert": {**SMALL, "max_position_embeddings": 64},
    "roberta": {**SMALL, "max_position_embeddings": 66, "pad_token_id": 1},
    "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64, "max_position_embeddings": 64},
    "deberta-v2": {
        **SMALL,
        "max_position_embeddings": 64,
        "relative_attention": True,
        "position_buckets": 16,
        "pos_att_type": ["p2c", "c2p"],
        "type_vocab_size": 0,
    },
    "xlm-roberta": {**SMALL, "max_position_embeddings": 66, "pad_token_id": 1},
    "electra": {**SMALL, "embedding_size": 32, "max_position_embeddings": 64},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_inner": 64, "n_positions": 64},
    "albert": {**SMALL, "embedding_size": 16, "max_position_embeddings": 64},
}

LLAMA = {**SMALL, "num_key_value_heads": 2, "max_position_embeddings": 64}
DECODERS: dict[str, dict[str, Any]] = {
    "gpt2": ARCHITECTURES["gpt2"],
    "llama": LLAMA,
    "qwen2": LLAMA,
    "mistral": LLAMA,
    "openai-gpt": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
    "opt": {**SMALL, "ffn_dim": 64, "word_embed_proj_dim": 32, "max_position_embeddings": 64},
}
"""Their heads take the logits of the last token that is not the config's `pad_token_id`."""
OTHERS: dict[str, dict[str, Any]] = {
    "xlnet": {"d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 64},
    "fnet": {"hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 64, "max_position_embeddings": 64},
    "t5": {
        "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "eos_token_id": 0,
        "decoder_start_token_id": 1,
    },
    "bart": {
        "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "eos_token_id": 0,
        "decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "max_position_embeddings": 66,
    },
}  # fmt: skip
"""FNet has no attention mask, so padding changes its answers. XLNet, T5 and BART pool in ways of their own. T5 and BART
need `make_byte_tokenizer` with `end`, because they pool by the end of the text."""


def make_byte_tokenizer(
    folder: Path, *, pad: str | None = None, side: str = "right", end: bool = False, segment: int = 0, **settings: Any
) -> int:
    """A tokenizer of bytes, as GPT-2's without its merges: an empty text has no token. Returns the vocabulary's size.

    Id 0 is <|end|>; `end` adds it to every text, in segment `segment`. `pad`: the padding token, if it has one.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {word: i for i, word in enumerate(["<|end|>", "<|pad|>", *letters])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if end:
        single = f"$A:0 <|end|>:{segment}"
        tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=[("<|end|>", 0)])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|end|>",
        pad_token=pad,
        padding_side=side,
        model_max_length=64,
        **settings,
    ).save_pretrained(folder)
    return len(vocabulary)


def make_tokenizer(folder: Path, max_length: int = 64) -> int:
    """A lower-casing WordPiece tokenizer with BERT's special tokens. Returns the size of its vocabulary."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    # id 1 is padding as well as id 0, so that RoBERTa's pad_token_id 1 fits too: it is told by config, not by name
    specials = ["[UNK]", "[PAD]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = list(dict.fromkeys([*specials, *WORDS, *LETTERS, *(f"##{letter}" for letter in LETTERS)]))
    tokenizer = Tokenizer(models.WordPiece({word: i for i, word in enumerate(vocabulary)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True, strip_accents=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=max_length,
    ).save_pretrained(folder)
    return len(vocabulary)


def make_model(
    folder: Path,
    architecture: str = "bert",
    *,
    labels: tuple[str, ...] = ("ham", "spam"),
    problem_type: str | None = None,
    seed: int = 0,
    bytewise: dict[str, Any] | None = None,
    head: str = "AutoModelForSequenceClassification",
    **config: Any,
) -> Path:
    """A random model of `architecture` with its tokenizer in `folder`; returns the folder.

    `head`: the class of transformers that makes it. `bytewise`: settings of `make_byte_tokenizer`, for that one in
    place of `make_tokenizer`.
    """
    import torch
    import transformers

    folder.mkdir(parents=True, exist_ok=True)
    size = make_tokenizer(folder) if bytewise is None else make_byte_tokenizer(folder, **bytewise)
    settings = {
        "vocab_size": size,
        "pad_token_id": 1,
        "id2label": dict(enumerate(labels)),
        "label2id": {label: i for i, label in enumerate(labels)},
        "problem_type": problem_type,
        "initializer_range": 0.3,
        **{**ARCHITECTURES, **DECODERS, **OTHERS}[architecture],
        **config,
    }
    torch.manual_seed(seed)
    model = getattr(transformers, head).from_config(transformers.AutoConfig.for_model(architecture, **settings))
    model.eval().save_pretrained(folder)
    return folder


def random_texts(count: int, seed: int = 0, longest: int = 40) -> list[str]:
    """Texts of 0 to `longest` words."""
    import random

    chooser = random.Random(seed)
    return [" ".join(chooser.choices(WORDS, k=chooser.randint(0, longest))) for _ in range(count)]
