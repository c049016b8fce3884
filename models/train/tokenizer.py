"""The students' tokenizer: BERT's WordPiece with a smaller vocabulary and a normaliser that undoes disguises.

All of it is stored in `tokenizer.json`, so that loaders in every language produce the same tokens.
"""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING

from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path


SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
# Words that replace links and numbers: their kind has a meaning, their exact letters and digits have none.
LINK, NUMBER, PHONE = "weblink", "numfive", "numlong"
STAND_INS = {LINK: ["http", "website", "link"], NUMBER: ["number", "code"], PHONE: ["phone", "number"]}

# ruff: noqa: RUF001 - the look-alikes are the point.
# Letters that look like Latin ones, after NFKC and lower-casing (Cyrillic, Greek, Armenian, small capitals).
LOOKALIKES = {
    "a": "аαɑᴀ",
    "b": "Ьвβʙ",
    "c": "сϲᴄ",
    "d": "ԁᴅ",
    "e": "еєҽεᴇ",
    "g": "ɡɢց",
    "h": "һнʜ",
    "i": "іıιɪӏ",
    "j": "јᴊ",
    "k": "кκᴋ",
    "l": "ʟ",
    "m": "мᴍ",
    "n": "ոɴη",
    "o": "оοσօᴏ",
    "p": "рρᴘ",
    "q": "ԛ",
    "r": "гʀᴦ",
    "s": "ѕꜱ",
    "t": "тτᴛ",
    "u": "υսᴜ",
    "v": "ѵνᴠ",
    "w": "ԝωᴡѡ",
    "x": "хχ",
    "y": "уүγʏ",
    "z": "ᴢ",
}
LEET = {"0": "o", "1": "i", "3": "e", "4": "a", "5": "s", "7": "t", "$": "s", "@": "a"}
# Emoji that the pretrained vocabulary has no piece for, and the words that replace them.
EMOJI = {
    "love": "❤♥💕💖💗💙💚💛💜😍🥰😘💘💝",
    "broken heart": "💔",
    "lol": "😂🤣😆",
    ":)": "😊😀😃😄😁🙂☺😉😎😇🤗😋",
    ":(": "😢😞😔🙁☹😟😕😥😓😣😖😩😫🥺",
    "crying": "😭",
    "angry": "😡😠🤬💢",
    "hmm": "🤔🙄😐😑",
    "scared": "😱😨😰",
    "sick": "🤢🤮😷🤒",
    "good": "👍👌💪",
    "bad": "👎",
    "thanks": "🙏",
    "applause": "👏🙌",
    "party": "🎉🎊🥳🎂",
    "fire": "🔥",
    "star": "⭐🌟✨",
    "money": "💰💵💸🤑",
    "gift": "🎁🏆",
}
INVISIBLE = r"[\u115f\u1160\u3164\uffa0\u2800\u180b-\u180e\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff]"
# Single letters with one separator between them, at least four in a row: "f r e e", "w.i.n.n.e.r".
SPACED = (
    r"(?<=\b[a-z])[ .\-_*](?=[a-z][ .\-_*][a-z][ .\-_*][a-z]\b)"
    r"|(?<=\b[a-z][ .\-_*][a-z])[ .\-_*](?=[a-z][ .\-_*][a-z]\b)"
    r"|(?<=\b[a-z][ .\-_*][a-z][ .\-_*][a-z])[ .\-_*](?=[a-z]\b)"
)


def normaliser() -> normalizers.Normalizer:
    steps: list[normalizers.Normalizer] = [normalizers.NFKC(), normalizers.Replace(Regex(INVISIBLE), "")]
    steps.append(
        normalizers.BertNormalizer(clean_text=True, handle_chinese_chars=True, strip_accents=True, lowercase=True)
    )
    steps += [normalizers.Replace(letter, latin) for latin, letters in LOOKALIKES.items() for letter in letters.lower()]
    steps += [normalizers.Replace(sign, f" {word} ") for word, signs in EMOJI.items() for sign in signs]
    steps.append(normalizers.Replace(Regex(r"https?\s?:\s?//\s?\S+|\bwww\.\S+"), f" {LINK} "))
    steps.append(normalizers.Replace(Regex(SPACED), ""))
    for sign, latin in LEET.items():
        literal = "\\" + sign if sign == "$" else sign
        steps.append(
            normalizers.Replace(
                Regex(f"(?<=[a-z]){literal}(?={literal}?[a-z])|(?<=[a-z]{literal}){literal}(?=[a-z])"), latin
            )
        )
    steps.append(normalizers.Replace(Regex(r"\d{7,}"), f" {PHONE} "))
    steps.append(normalizers.Replace(Regex(r"\d{5,6}"), f" {NUMBER} "))
    return normalizers.Sequence(steps)


def full(folder: Path) -> Tokenizer:
    """The pretrained encoder's own vocabulary under our normaliser, without padding or truncation."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    tokenizer.normalizer = normaliser()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer


def choose_vocabulary(base: Tokenizer, texts: Sequence[str], size: int) -> list[str]:
    """The entries to keep, at most `size`: special tokens, single characters in the texts, then the most frequent ones.

    Entries are removed in rounds and counted again after each. A removed word is split into pieces, which are then
    more frequent than before.
    """
    letters = Counter(char for text in texts for char in base.normalizer.normalize_str(text[:2000]))
    single = [char for char, count in letters.items() if count >= 3 or char.isascii()]
    fixed = [*SPECIAL, *STAND_INS]
    known = base.get_vocab()
    fixed += sorted({piece for char in single for piece in (char, f"##{char}") if piece in known})
    kept = fixed + [piece for piece in known if piece not in set(fixed)]
    while len(kept) > size:
        counts = _count(rebuild(base, kept), texts)
        ranked = [piece for piece, _ in counts.most_common() if piece not in set(fixed)]
        target = max(size, int(len(kept) * 0.7)) - len(fixed)
        kept = fixed + ranked[:target]
    return kept


def rebuild(base: Tokenizer, vocabulary: Iterable[str]) -> Tokenizer:
    """`base` with only this vocabulary. Ids follow its order."""
    spec = json.loads(base.to_str())
    ids = {piece: index for index, piece in enumerate(vocabulary)}
    spec["model"]["vocab"] = ids
    for token in spec["added_tokens"]:
        token["id"] = ids[token["content"]]
    for name, special in spec["post_processor"]["special_tokens"].items():
        special["ids"] = [ids[name]]
    return Tokenizer.from_str(json.dumps(spec))


def save(tokenizer: Tokenizer, folder: Path, max_length: int) -> None:
    spec = json.loads(tokenizer.to_str())
    text = json.dumps(spec, ensure_ascii=False, separators=(",", ":"))
    (folder / "tokenizer.json").write_text(text, encoding="utf-8")
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",  # a BERT class would put its own normaliser in place of ours
        "model_max_length": max_length,
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "token_type_ids", "attention_mask"],
        **{f"{token[1:-1].lower()}_token": token for token in SPECIAL},
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def unknown_share(tokenizer: Tokenizer, texts: Sequence[str]) -> float:
    """Share of tokens that are [UNK]."""
    unknown = tokenizer.token_to_id("[UNK]")
    encoded = tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
    total = sum(len(one.ids) for one in encoded)
    return sum(index == unknown for one in encoded for index in one.ids) / max(total, 1)


def _count(tokenizer: Tokenizer, texts: Sequence[str]) -> Counter[str]:
    ids: Counter[int] = Counter()
    for one in tokenizer.encode_batch_fast(list(texts), add_special_tokens=False):
        ids.update(one.ids)
    names = {index: piece for piece, index in tokenizer.get_vocab().items()}
    return Counter({names[index]: count for index, count in ids.items()})
