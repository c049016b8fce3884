"""An unsafe or unsuitable model folder is refused, before weights load, with a message that says what to do."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tagstream.schemas.errors import ModelError
from tagstream.schemas.spec import InferEntry
from tagstream.transforms.inference.backends.registry import describe, identify
from tagstream.transforms.model_files import find_model
from tests.models import make_model


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("original"))


@pytest.fixture
def folder(tmp_path: Path, original: Path) -> Path:
    """A valid model folder."""
    return Path(shutil.copytree(original, tmp_path / "model"))


def change(folder: Path, **config: Any) -> None:
    """Set fields of the config; None removes one."""
    file = folder / "config.json"
    merged = {**json.loads(file.read_text()), **config}
    file.write_text(json.dumps({key: value for key, value in merged.items() if value is not None}))


def refused(folder: object, revision: str | None = None) -> str:
    """The error's message. Asserts that it names the model."""
    with pytest.raises(ModelError) as caught:
        describe(InferEntry.model_validate({"model": str(folder), "revision": revision}))
    assert caught.value.exit_code == 4
    assert str(caught.value).startswith(str(folder))
    return str(caught.value)


def test_good_folder(folder: Path) -> None:
    """Labels and activation come from the config."""
    files = find_model(str(folder))
    assert (files.labels, files.activation, files.path) == (["ham", "spam"], "softmax", folder)


def test_pickle_only(folder: Path) -> None:
    """Pickle weights are never loaded. The message says how to convert them."""
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    message = refused(folder)
    assert "pytorch_model.bin is a pickle, which is never loaded" in message
    assert "save_pretrained" in message


def test_no_weights(folder: Path) -> None:
    """A folder without weights is refused."""
    (folder / "model.safetensors").unlink()
    assert "no safetensors weights" in refused(folder)


def test_no_tokenizer(folder: Path) -> None:
    """The message names the files that were looked for, and how to save a tokenizer."""
    for file in folder.glob("tokenizer*"):
        file.unlink()
    message = refused(folder)
    assert "no tokenizer in" in message
    assert "AutoTokenizer" in message


def test_generative_model(folder: Path) -> None:
    """A language model must know how a conversation looks."""
    change(folder, architectures=["LlamaForCausalLM"])
    assert "has no chat template; choose a model that was trained to follow instructions" in refused(folder)


@pytest.mark.parametrize("architectures", [None, [], ["BertForMaskedLM", "BertForPreTraining"]])
def test_other_architectures(folder: Path, architectures: list[str] | None) -> None:
    """A model of no task that is here, or nothing said."""
    change(folder, architectures=architectures)
    assert "ForSequenceClassification" in refused(folder)


def test_code_from_the_repository(folder: Path) -> None:
    """It is never run."""
    change(folder, auto_map={"AutoModelForSequenceClassification": "evil.Model"})
    assert "auto_map), which is never run" in refused(folder)


@pytest.mark.parametrize("content", [b"{", b"[1]", b"null", b'"x"', b"\xff\xfe", b""])
def test_config_that_is_none(folder: Path, content: bytes) -> None:
    """Not JSON, not an object, not text."""
    (folder / "config.json").write_bytes(content)
    assert "config.json is not readable JSON" in refused(folder)


def test_no_config(folder: Path) -> None:
    """Names what is missing."""
    (folder / "config.json").unlink()
    assert "has no config.json" in refused(folder)


def test_config_is_a_folder(folder: Path) -> None:
    """If config.json is a folder, the error is still a clear message."""
    (folder / "config.json").unlink()
    (folder / "config.json").mkdir()
    assert "has no config.json" in refused(folder)


@pytest.mark.parametrize(
    "id2label", [{"ham": 0, "spam": 1}, {"0": "a", "2": "b"}, ["ham", "spam"], {"0": "a", "1": "a"}]
)
def test_labels_that_make_no_sense(folder: Path, id2label: Any) -> None:
    """id2label must map 0, 1, … to different names. Anything else is an error; nothing is guessed."""
    change(folder, id2label=id2label)
    assert "id2label" in refused(folder)


def test_broken_tokenizer_and_weights_are_found_when_loaded(folder: Path) -> None:
    """The message names the folder; no traceback of a library."""
    from tagstream.transforms.inference.backends.registry import load_backend

    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match=r"the tokenizer in .*model can't be loaded"):
        load_backend(InferEntry(model=str(folder)))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tagstream/nonsense", r"no such bundled model. The bundled models are "),
        ("./nowhere", "not a folder"),
        ("/nowhere/at/all", "not a folder"),
        ("~/nowhere-at-all", "not a folder"),
        ("a/b/c", "not a folder"),
        ("not an id!", "neither a folder nor a Hugging Face id"),
        ("-x/y", "neither a folder nor a Hugging Face id"),
    ],
)
def test_names_that_can_not_be(name: str, message: str) -> None:
    """Impossible names are refused without asking any network."""
    assert message in refused(name)


def test_a_file_is_no_folder(folder: Path) -> None:
    """The path of the weights' file, instead of its folder, is refused."""
    assert "not a folder" in refused(folder / "model.safetensors")


@pytest.mark.parametrize("name", ["nobody/nothing", "nothing"])
def test_unknown_id_offline(name: str, tmp_path: Path) -> None:
    """Without a network and with an empty cache, the message says what to do."""
    code = (
        "from tagstream.schemas.errors import ModelError\n"
        "from tagstream.transforms.model_files import find_model\n"
        f"try:\n    find_model({name!r})\nexcept ModelError as error:\n    print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parent.parent.parent,
    )
    expected = f"{name}: no such folder here, not in the local Hugging Face cache, and the download failed"
    assert done.stdout.startswith(expected)


def test_labels_default_to_transformers_names(folder: Path) -> None:
    """Without id2label: as many as the config says, named as transformers does."""
    change(folder, id2label=None, num_labels=3)
    assert find_model(str(folder)).labels == ["LABEL_0", "LABEL_1", "LABEL_2"]


def test_labels_are_in_order_of_index(folder: Path) -> None:
    """Ten comes after nine."""
    change(folder, id2label={str(i): f"l{i}" for i in reversed(range(12))})
    assert find_model(str(folder)).labels == [f"l{i}" for i in range(12)]


@pytest.mark.parametrize(
    ("config", "activation"),
    [
        ({}, "softmax"),
        ({"problem_type": "single_label_classification"}, "softmax"),
        ({"problem_type": "multi_label_classification"}, "sigmoid"),
        ({"problem_type": "regression"}, "identity"),
        ({"id2label": {"0": "value"}}, "sigmoid"),
        ({"id2label": {"0": "value"}, "problem_type": "regression"}, "identity"),
        ({"id2label": {"0": "value"}, "problem_type": "multi_label_classification"}, "sigmoid"),
    ],
)
def test_activation(folder: Path, config: dict, activation: str) -> None:
    """As transformers' text-classification pipeline chooses it."""
    change(folder, **config)
    assert find_model(str(folder)).activation == activation


def test_identity_changes_with_what_matters(folder: Path, tmp_path: Path) -> None:
    """The identity depends on weights, tokenizer and precision. `describe` reads none of them."""
    entry = InferEntry(model=str(folder))
    first = identify(entry)
    assert describe(entry)[1].items() <= first.items()
    weights = folder / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    second = identify(entry)
    assert {key for key in first if first[key] != second[key]} == {"weights"}
    tokenizer = folder / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text() + " ")
    assert {key for key in first if second[key] != identify(entry)[key]} == {"tokenizer"}


def test_plan_needs_no_weights(folder: Path) -> None:
    """Head and identity come from the config, so the weights may be anything."""
    (folder / "model.safetensors").write_bytes(b"not loaded")
    head, identity = describe(InferEntry(model=str(folder)))
    assert head.names == ("ham", "spam")
    assert identity["model"] == str(folder)
