"""A model's name stands for one model only, and a part of a download is not taken for a model."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tagstream.schemas.errors import ModelError
from tagstream.schemas.spec import InferEntry
from tagstream.transforms.inference.engines import Engines
from tagstream.transforms.model_download import missing_weights
from tagstream.transforms.model_files import find_model
from tagstream.transforms.runtime.job_context import JobContext
from tests.models import make_model

COMMIT = "0" * 40


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("original"))


def offline(cache: Path, code: str, cwd: Path) -> str:
    """What Python prints in a process without a network, whose Hugging Face cache is in `cache`."""
    imports = "from tagstream.schemas.errors import ModelError\nfrom tagstream.transforms.model_files import find_model"
    done = subprocess.run(
        [sys.executable, "-c", f"{imports}\ntry:\n    {code}\nexcept ModelError as error:\n    print(error)"],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(cache)},
        capture_output=True,
        text=True,
        check=True,
        cwd=cwd,
    )
    return done.stdout.strip()


def in_cache(cache: Path, original: Path, *left_out: str) -> Path:
    """The model acme/topics as huggingface_hub stores it, without the files `left_out`."""
    repository = cache / "hub" / "models--acme--topics"
    snapshot = repository / "snapshots" / COMMIT
    shutil.copytree(original, snapshot)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    for name in left_out:
        (snapshot / name).unlink()
    return snapshot


def test_folder_that_is_called_like_a_bundled_model(
    tmp_path: Path, original: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is never silently one of them. ./ names the folder."""
    monkeypatch.chdir(tmp_path)
    for name in ("tagstream/spam", "tagstream/mine"):
        shutil.copytree(original, tmp_path / name)
        with pytest.raises(ModelError, match=f"^{name}: the name of a bundled model, and there is a folder {tmp_path}"):
            find_model(name)
        assert find_model(f"./{name}").path == Path(name)


def test_name_is_looked_up_anew_where_the_process_goes_on(
    tmp_path: Path, original: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A notebook changes its folder, and writes a model over the one before."""
    folders = [tmp_path / "first" / "mine", tmp_path / "second" / "mine"]
    labels = [["ham", "spam"], ["no", "yes"]]
    for folder, names in zip(folders, labels, strict=True):
        shutil.copytree(original, folder)
        config = json.loads((folder / "config.json").read_text())
        config["id2label"] = dict(enumerate(names))
        (folder / "config.json").write_text(json.dumps(config))
    for folder, names in zip(folders, labels, strict=True):
        monkeypatch.chdir(folder.parent)
        assert find_model("./mine").labels == names
    shutil.copy(folders[0] / "config.json", folders[1] / "config.json")
    assert find_model("./mine").labels == labels[0]
    monkeypatch.chdir(tmp_path)
    assert find_model("tagstream/spam").path.is_dir()
    (tmp_path / "tagstream" / "spam").mkdir(parents=True)
    with pytest.raises(ModelError, match="and there is a folder"):
        find_model("tagstream/spam")


def test_folder_that_may_be_an_id_is_said(tmp_path: Path, original: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A note names the folder. With ./ there is nothing to say."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(original, tmp_path / "acme" / "mine")
    context = JobContext()
    engines = Engines(context)
    engines.of(InferEntry(model="./acme/mine"))
    assert not context.metrics.snapshot().notes
    engines.of(InferEntry(model="acme/mine"))
    engines.close()
    expected = (
        f"acme/mine: the folder {tmp_path}/acme/mine, not a model of that name on Hugging Face; ./acme/mine says so"
    )
    assert context.metrics.snapshot().notes == [expected]


def test_folder_and_cached_model_of_one_name(tmp_path: Path, original: Path) -> None:
    """Refused, because either may be meant."""
    in_cache(tmp_path / "cache", original)
    shutil.copytree(original, tmp_path / "acme" / "topics")
    said = offline(tmp_path / "cache", "find_model('acme/topics')", tmp_path)
    assert said.startswith(f"acme/topics: a folder here ({tmp_path}/acme/topics) and a model in the local Hugging Face")
    assert offline(tmp_path / "cache", "print(find_model('./acme/topics').path)", tmp_path) == "acme/topics"
    (tmp_path / "acme").rename(tmp_path / "elsewhere")
    assert COMMIT in offline(tmp_path / "cache", "print(find_model('acme/topics').path)", tmp_path)


@pytest.mark.parametrize("name", ["tagstream/spam", "FOLDER"])
def test_revision_of_what_has_none(name: str, original: Path) -> None:
    """Only a Hugging Face id has revisions."""
    name = str(original) if name == "FOLDER" else name
    with pytest.raises(ModelError, match=f"^{re.escape(name)}: revision is for a Hugging Face id"):
        find_model(name, "main")


@pytest.mark.parametrize(
    ("left_out", "lacks"),
    [
        (["model.safetensors"], r"the weights \(\*\.safetensors\)"),
        (["config.json"], "config.json"),
        (["model.safetensors", "tokenizer.json"], r"the weights \(\*\.safetensors\)"),
    ],
)
def test_part_of_a_download(tmp_path: Path, original: Path, left_out: list[str], lacks: str) -> None:
    """The message says that it is incomplete, what is missing, and how to finish it."""
    snapshot = in_cache(tmp_path, original, *left_out)
    said = offline(tmp_path, "find_model('acme/topics')", tmp_path)
    assert re.fullmatch(
        f"acme/topics: the download to {snapshot} is incomplete, without {lacks}, and it can't be finished now "
        r"\(\w+\)\. Where there is a network: hf download acme/topics",
        said,
    ), said


def test_interrupted_shards(tmp_path: Path, original: Path) -> None:
    """One of two files of weights is there: the other one is named, in the cache and in a folder."""
    snapshot = in_cache(tmp_path, original)
    (snapshot / "model.safetensors").rename(snapshot / "model-00001-of-00002.safetensors")
    said = offline(tmp_path, "find_model('acme/topics')", tmp_path)
    assert "is incomplete, without model-00002-of-00002.safetensors, and" in said
    with pytest.raises(ModelError, match=r"are incomplete: model-00002-of-00002\.safetensors is missing; copy"):
        find_model(str(snapshot))


def test_cached_pickle_is_no_interrupted_download(tmp_path: Path, original: Path) -> None:
    """The format is the reason, and the message says so."""
    snapshot = in_cache(tmp_path, original)
    (snapshot / "model.safetensors").rename(snapshot / "pytorch_model.bin")
    said = offline(tmp_path, "find_model('acme/topics')", tmp_path)
    assert "pytorch_model.bin is a pickle, which is never loaded. Convert the model once" in said


def test_missing_weights(tmp_path: Path) -> None:
    """As the index says, as the names' numbers say, and where a link leads nowhere."""
    index = tmp_path / "model.safetensors.index.json"
    names = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    index.write_text('{"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "odd.safetensors"}}')
    assert missing_weights(tmp_path) == [names[0], "odd.safetensors"]
    (tmp_path / "odd.safetensors").touch()
    (tmp_path / names[0]).touch()
    assert missing_weights(tmp_path) == [names[1]]
    (tmp_path / names[1]).symlink_to(tmp_path / "nowhere")
    assert missing_weights(tmp_path) == [names[1]]
    (tmp_path / names[1]).unlink()
    (tmp_path / names[1]).touch()
    assert not missing_weights(tmp_path)
    index.write_text("{")
    assert missing_weights(tmp_path) == [index.name]
