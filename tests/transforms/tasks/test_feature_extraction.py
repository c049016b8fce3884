"""Vectors equal those of sentence-transformers' own `encode`, row by row."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tagstream import load
from tagstream.schemas.errors import ModelError, SpecError
from tagstream.schemas.spec import InferEntry
from tagstream.transforms.inference.backends.registry import describe, identify
from tests.models import make_model, random_texts

TEXTS = [*random_texts(40, seed=3, longest=30), "!", "Free " * 200, "ÉCOLE 中文 😀 naïve"]
MODES = ["mean", "cls", "max", "lasttoken", "weightedmean", "mean_sqrt_len_tokens"]


def encoder(folder: Path, architecture: str = "bert", **config) -> Path:
    return make_model(folder, architecture, head="AutoModel", **config)


def sentence_model(folder: Path, *, modes=("mean",), dense: int = 0, norm: bool = True, prompts=None, **settings):
    """A folder that sentence-transformers has saved, and that library's model."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers import sentence_transformer as st
    from sentence_transformers.base.modules import Dense, Normalize, Transformer

    plain = encoder(folder.with_name(folder.name + "-plain"), **settings.pop("config", {}))
    transformer = Transformer(str(plain), **settings)
    width = transformer.get_embedding_dimension()
    pooling = st.modules.Pooling(width, pooling_mode=tuple(modes))
    parts = [transformer, pooling]
    torch.manual_seed(1)
    if dense:
        parts.append(Dense(width * len(modes), dense, activation_function=torch.nn.GELU()))
    if norm:
        parts.append(Normalize())
    model = SentenceTransformer(modules=parts, prompts=prompts, device="cpu")
    model.save(str(folder))
    return SentenceTransformer(str(folder), device="cpu", local_files_only=True)


def vectors(folder: Path, texts: list[str] = TEXTS, **settings) -> np.ndarray:
    with load(str(folder), as_="vector", **settings) as model:
        return np.stack(model.predict(texts)["vector"].to_numpy())


@pytest.mark.parametrize(
    "made",
    [
        {},
        {"modes": ["cls"], "norm": False},
        {"modes": ["lasttoken"], "norm": False},
        {"modes": MODES, "norm": False},
        {"dense": 5},
        {"do_lower_case": True, "max_seq_length": 16},
        {"config": {"architecture": "roberta"}},
        {"config": {"architecture": "distilbert"}, "modes": ["max"]},
    ],
    ids=["mean", "cls", "last", "all", "dense", "short", "roberta", "distilbert"],
)
def test_equal_to_sentence_transformers(tmp_path: Path, made: dict) -> None:
    """Every kind of pooling, dense layers, normalisation, a length of its own, lower case: within 1e-5."""
    theirs = sentence_model(tmp_path / "model", **made).encode(TEXTS, batch_size=1)
    ours = vectors(tmp_path / "model")
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, theirs, atol=1e-5, rtol=1e-5)
    assert np.linalg.norm(theirs - theirs.mean(axis=0), axis=1).max() > 0.01, "vectors all alike would show nothing"


def test_prompts_and_shorter_vectors(tmp_path: Path) -> None:
    """The prompt of the folder, one by name, one given; fewer values, made as long as 1; float16."""
    folder = tmp_path / "model"
    model = sentence_model(folder, prompts={"query": "free prize ", "none": ""})
    np.testing.assert_allclose(
        vectors(folder, prompt_name="query"), model.encode(TEXTS, prompt_name="query", batch_size=1), atol=1e-5
    )
    np.testing.assert_allclose(
        vectors(folder, prompt="call now "), model.encode(TEXTS, prompt="call now ", batch_size=1), atol=1e-5
    )
    short = vectors(folder, truncate_dim=7, normalize=True)
    expected = model.encode(TEXTS, truncate_dim=7, normalize_embeddings=True, batch_size=1)
    np.testing.assert_allclose(short, expected, atol=1e-5)
    half = vectors(folder, vector_dtype="float16")
    assert half.dtype == np.float16
    np.testing.assert_array_equal(half, vectors(folder).astype(np.float16))
    shown = json.loads((folder / "config_sentence_transformers.json").read_text())
    (folder / "config_sentence_transformers.json").write_text(json.dumps({**shown, "default_prompt_name": "query"}))
    np.testing.assert_allclose(vectors(folder), model.encode(TEXTS, prompt_name="query", batch_size=1), atol=1e-5)


def test_plain_encoder(tmp_path: Path) -> None:
    """Without a folder of sentence-transformers: the mean over tokens, as that library does it too; or as asked for."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling

    folder = encoder(tmp_path / "model")
    for mode in MODES:
        parts = [Transformer(str(folder)), Pooling(len(vectors(folder, ["a"])[0]), pooling_mode=mode)]
        expected = SentenceTransformer(modules=parts, device="cpu").encode(TEXTS, batch_size=1)
        np.testing.assert_allclose(vectors(folder, pooling=mode), expected, atol=1e-5, rtol=1e-5)
        if mode == "mean":
            np.testing.assert_array_equal(vectors(folder), vectors(folder, pooling="mean"))


def test_chinese(tmp_path: Path) -> None:
    """The vector of [CLS] by a model of bert-base-chinese's kind: a piece for each character."""
    import torch
    from transformers import AutoModel, AutoTokenizer, BertTokenizerFast

    folder = encoder(tmp_path / "model", vocab_size=200)
    characters = list(dict.fromkeys("这家酒店的服务非常好房间干净早餐丰富推荐给大家不错太差了"))
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *characters]))
    (folder / "tokenizer.json").unlink()
    BertTokenizerFast(str(folder / "vocab.txt"), model_max_length=64).save_pretrained(folder)
    texts = ["这家酒店的服务非常好", "房间太差了", "不错"]
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    assert len(tokenizer(texts[0])["input_ids"]) == len(texts[0]) + 2
    with torch.inference_mode():
        expected = [model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0, 0].numpy() for text in texts]
    np.testing.assert_allclose(vectors(folder, texts, pooling="cls"), expected, atol=1e-5)


def test_onnx_gives_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pooling and dense layers are in the exported file, and another pooling has another file."""
    monkeypatch.setenv("TAGSTREAM_CACHE", str(tmp_path / "cache"))
    folder, plain = tmp_path / "model", encoder(tmp_path / "plain")
    sentence_model(folder, dense=5)
    np.testing.assert_allclose(vectors(folder, backend="onnx"), vectors(folder), atol=1e-4)
    for mode in ("cls", "max"):
        np.testing.assert_allclose(
            vectors(plain, backend="onnx", pooling=mode), vectors(plain, pooling=mode), atol=1e-4
        )


def test_windows_of_a_long_text(tmp_path: Path) -> None:
    """`long_text: window`: the mean of the windows' vectors, as long as 1 where the model's vectors are."""
    folder = tmp_path / "model"
    sentence_model(folder)
    long = vectors(folder, ["Free " * 200], long_text="window")
    assert np.linalg.norm(long, axis=1) == pytest.approx([1.0], abs=1e-6)
    with load(str(folder), as_="vector", long_text="window") as model:
        assert model.predict(["free " * 200, "a"])["vector_truncated"].to_pylist() == [False, False]


def test_windows_beside_a_text_without_tokens(tmp_path: Path) -> None:
    """A failed text and one in two windows are as many sequences as texts: the vector is as long as 1 all the same."""
    folder = tmp_path / "model"
    sentence_model(folder, config={"architecture": "roberta", "bytewise": {"pad": "<|pad|>"}})
    long = "abcdefghij " * 9
    with load(str(folder), as_="v", long_text="window") as model:
        alone, beside = model.predict([long])["v"][0].as_py(), model.predict(["", long])["v"][1].as_py()
    assert np.linalg.norm(beside) == pytest.approx(1.0, abs=1e-6)
    np.testing.assert_allclose(beside, alone, atol=1e-6)


def test_dropout_does_nothing(tmp_path: Path) -> None:
    """A module that is for training only, between others that have weights."""
    folder = tmp_path / "model"
    model = sentence_model(folder, dense=5)
    modules = json.loads((folder / "modules.json").read_text())
    (folder / "9_Dropout").mkdir()
    modules.insert(2, {"idx": 9, "name": "9", "path": "9_Dropout", "type": "sentence_transformers.models.Dropout"})
    (folder / "modules.json").write_text(json.dumps(modules))
    np.testing.assert_allclose(vectors(folder), model.encode(TEXTS, batch_size=1), atol=1e-5)


def entry(model: Path, **settings) -> InferEntry:
    return InferEntry.model_validate({"model": str(model), "as": "v", **settings})


def test_columns_and_fingerprint(tmp_path: Path) -> None:
    """A list of fixed size; everything that changes vectors changes the identity; a model's task is found."""
    folder = tmp_path / "model"
    sentence_model(folder, prompts={"query": "free "})
    head, said = describe(entry(folder))
    width = len(vectors(folder, ["a"])[0])
    assert head.fields[0].type == pa.list_(pa.float32(), width)
    assert said["task"] == "feature-extraction"
    settings = [{}, {"prompt": "free "}, {"truncate_dim": 3}, {"normalize": True}, {"vector_dtype": "float16"}]
    identities = [json.dumps(describe(entry(folder, **one))[0].identity, sort_keys=True) for one in settings]
    assert len(set(identities)) == len(settings)
    before = identify(entry(folder))
    weights = next(folder.glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes() + b" ")
    assert identify(entry(folder)) != before
    classifier = make_model(tmp_path / "classifier")
    assert describe(entry(classifier))[0].fields[0].type == pa.string()
    assert describe(entry(classifier, task="feature-extraction"))[1]["task"] == "feature-extraction"
    assert vectors(classifier, ["a"], task="feature-extraction").shape[1] == width


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"pooling": "cls"}, "pooling: the model's folder says how it pools"),
        ({"truncate_dim": 10_000}, r"truncate_dim: the model's vectors have \d+ values only"),
        ({"prompt_name": "nothere"}, "the model has no prompt 'nothere'; there are: .*query"),
        ({"prompt_name": "query", "prompt": "a"}, "prompt and prompt_name are both given"),
        ({"thresholds": {"a": 0.5}}, "thresholds: has no effect on feature-extraction"),
        ({"scores": "all"}, "scores: has no effect on feature-extraction"),
    ],
)
def test_settings_that_do_not_fit(tmp_path: Path, settings: dict, said: str) -> None:
    """Refused when the job is planned, before a model is loaded."""
    folder = tmp_path / "model"
    sentence_model(folder, prompts={"query": "free "})
    with pytest.raises(SpecError, match=said):
        describe(entry(folder, **settings))
    with pytest.raises(SpecError, match="pooling: has no effect on text-classification"):
        describe(entry(make_model(tmp_path / "labels"), pooling="cls"))


def test_folders_that_are_refused(tmp_path: Path) -> None:
    """A module that is not known, weights that are a pickle, a path out of the folder, prompts that are left out."""
    folder = tmp_path / "model"
    sentence_model(folder, dense=4, norm=False, prompts={"query": "free "})
    modules = json.loads((folder / "modules.json").read_text())
    for change, said in (
        ({"type": "sentence_transformers.models.WordWeights"}, "module WordWeights, which is not known"),
        ({"path": "../elsewhere"}, "outside of the model's folder"),
    ):
        (folder / "modules.json").write_text(json.dumps([*modules[:-1], {**modules[-1], **change}]))
        with pytest.raises(ModelError, match=said):
            describe(entry(folder))
    (folder / "modules.json").write_text(json.dumps(modules))
    config = folder / modules[1]["path"] / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "include_prompt": False}))
    with pytest.raises(SpecError, match="leaves the prompt out of the mean"):
        describe(entry(folder, prompt_name="query"))
    weights = folder / modules[-1]["path"] / "model.safetensors"
    weights.rename(weights.with_name("pytorch_model.bin"))
    with pytest.raises(ModelError, match=r"has no model\.safetensors"):
        describe(entry(folder))
