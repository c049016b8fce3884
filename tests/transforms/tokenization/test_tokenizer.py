"""Which class loads a model's tokenizer: AutoTokenizer's choice, without AutoTokenizer where that is certain."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoTokenizer, BertTokenizer, RobertaTokenizer, XLMRobertaTokenizer

from tagstream.models import bundled
from tagstream.transforms.model_files import ModelFiles, find_model
from tagstream.transforms.tokenization.tokenizer import _class_of, _load
from tests.models import LETTERS, make_tokenizer, random_texts

ENCODERS = ["albert", "bert", "camembert", "deberta", "deberta-v2", "distilbert", "electra", "mpnet", "roberta"]
KEPT = ("model_max_length", "pad_token_id", "padding_side", "truncation_side", "is_fast")


def files_of(folder: Path, model_type: str) -> ModelFiles:
    config = {"model_type": model_type}
    (folder / "config.json").write_text(json.dumps(config))
    return ModelFiles(str(folder), folder, config)


def declare(folder: Path, name: str) -> None:
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"tokenizer_class": name}))


def same_as_auto(files: ModelFiles) -> None:
    assert _class_of(files) is not AutoTokenizer
    ours, theirs = _load(files), AutoTokenizer.from_pretrained(files.path)
    assert type(ours) is type(theirs)
    assert ours.backend_tokenizer.to_str() == theirs.backend_tokenizer.to_str()
    assert [getattr(ours, name) for name in KEPT] == [getattr(theirs, name) for name in KEPT]
    texts = random_texts(20)
    assert ours(texts)["input_ids"] == theirs(texts)["input_ids"]


@pytest.mark.parametrize("model_type", ENCODERS)
@pytest.mark.parametrize("declared", ["PreTrainedTokenizerFast", "TokenizersBackend"])
def test_a_generic_class_is_what_autotokenizer_takes(tmp_path, model_type, declared):
    make_tokenizer(tmp_path)
    declare(tmp_path, declared)
    same_as_auto(files_of(tmp_path, model_type))


@pytest.mark.parametrize("model_type", ["bert", "distilbert", "electra", "mpnet"])
@pytest.mark.parametrize("declared", ["BertTokenizer", "BertTokenizerFast", "DistilBertTokenizer", "ElectraTokenizer"])
def test_berts_class_is_what_autotokenizer_takes(tmp_path, model_type, declared):
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "free", "prize", *LETTERS, *(f"##{x}" for x in LETTERS)]
    BertTokenizer({word: i for i, word in enumerate(vocabulary)}, do_lower_case=False).save_pretrained(tmp_path)
    declare(tmp_path, declared)
    same_as_auto(files_of(tmp_path, model_type))


def test_robertas_classes_are_what_autotokenizer_takes(tmp_path):
    words = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *LETTERS, "Ġ"]
    RobertaTokenizer({word: i for i, word in enumerate(words)}, []).save_pretrained(tmp_path)
    same_as_auto(files_of(tmp_path, "roberta"))


def test_xlm_robertas_class_is_what_autotokenizer_takes(tmp_path):
    words = ["<s>", "<pad>", "</s>", "<unk>", *LETTERS, "▁", "<mask>"]
    XLMRobertaTokenizer([(word, -float(i)) for i, word in enumerate(words)]).save_pretrained(tmp_path)
    same_as_auto(files_of(tmp_path, "xlm-roberta"))


@pytest.mark.parametrize("name", sorted(bundled()))
def test_bundled_models_need_no_autotokenizer(name):
    same_as_auto(find_model(name))


@pytest.mark.parametrize(
    ("model_type", "change"),
    [
        ("qwen2", {"tokenizer_class": "PreTrainedTokenizerFast"}),  # AutoTokenizer knows better than what it declares
        ("bert", {"tokenizer_class": "BertJapaneseTokenizer"}),
        ("bert", {"auto_map": {"AutoTokenizer": ["code.Mine", None]}}),
        ("bert", {"tokenizer_class": None}),
    ],
)
def test_autotokenizer_decides_what_is_not_certain(tmp_path, model_type, change):
    make_tokenizer(tmp_path)
    file = tmp_path / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    assert _class_of(files_of(tmp_path, model_type)) is AutoTokenizer


def test_a_usual_tokenizer_is_loaded_without_pytorch():
    code = (
        "import sys\n"
        "from tagstream.transforms.model_files import find_model\n"
        "from tagstream.transforms.tokenization.tokenizer import TextTokenizer\n"
        "TextTokenizer(find_model('tagstream/spam'), None, 'truncate')\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
