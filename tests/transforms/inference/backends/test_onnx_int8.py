"""int8: smoothing keeps the logits, ranges come from the sample, and every file runs on any shape."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime import InferenceSession

from tagstream.schemas.errors import ModelError
from tagstream.transforms.inference.backends.onnx_int8 import DYNAMIC_WAYS, STATIC_WAYS, Int8, by_sensitivity, quantise
from tagstream.transforms.inference.backends.onnx_session import _PRODUCT, cpu_session, products_saturate
from tagstream.transforms.inference.backends.onnx_smooth import largest_inputs, smooth, weight_products

WIDTH = 8
OUTLIER = 3
WAYS = [*DYNAMIC_WAYS, *STATIC_WAYS]
PRODUCTS = ["product_up", "product_down", "product_v", "product_q", "product_k"]


def attention(path: Path) -> onnx.ModelProto:
    """A block with attention over x [batch, length, 8], whose channel 3 is large, a wide product and a narrow one."""
    draw = np.random.default_rng(0)
    shapes = {"wq": (8, 8), "wk": (8, 8), "wv": (8, 8), "up": (8, 32), "down": (32, 8)}
    weights = {name: draw.normal(0, 0.3, shape).astype(np.float32) for name, shape in shapes.items()}
    weights["wq"][:, OUTLIER] = 0
    node = helper.make_node
    nodes = [
        *(node("MatMul", ["x", f"w{n}"], [n], name=f"product_{n}") for n in "qkv"),
        node("Transpose", ["k"], ["kt"], perm=[0, 2, 1]),
        node("MatMul", ["q", "kt"], ["similar"], name="attention_0"),
        node("Softmax", ["similar"], ["share"], axis=-1),
        node("MatMul", ["share", "v"], ["mixed"], name="attention_1"),
        node("Add", ["mixed", "x"], ["stream"]),
        node("MatMul", ["stream", "up"], ["wide"], name="product_up"),
        node("Relu", ["wide"], ["active"]),
        node("MatMul", ["active", "down"], ["narrow"], name="product_down"),
        node("Add", ["narrow", "stream"], ["logits"]),
    ]
    x, logits = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["b", "l", WIDTH]) for n in ("x", "logits"))
    initial = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, "block", [x], [logits], initial)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return model


def sample(count: int = 20) -> list[dict[str, np.ndarray]]:
    draw = np.random.default_rng(1)
    rows = [draw.normal(0, 1, (1, 2 + n, WIDTH)).astype(np.float32) for n in range(count)]
    for x in rows:
        x[..., OUTLIER] *= 60
        x[..., 5] = 0
    return [{"x": x} for x in rows]


def run(model: onnx.ModelProto | Path, row: dict[str, np.ndarray]) -> np.ndarray:
    source = model if isinstance(model, Path) else model.SerializeToString()
    return cpu_session(source).run(["logits"], row)[0]


def nodes_of(path: Path, kind: str) -> list[onnx.NodeProto]:
    return [node for node in onnx.load(path).graph.node if node.op_type == kind]


def test_ranges_are_the_samples(tmp_path: Path) -> None:
    """Per channel, over all rows."""
    found = largest_inputs(attention(tmp_path / "m.onnx"), ["x"], sample())
    expected = np.max([np.abs(row["x"]).max(axis=(0, 1)) for row in sample()], axis=0)
    np.testing.assert_array_equal(found["x"], expected)
    few = largest_inputs(attention(tmp_path / "m.onnx"), ["x"], sample(3))
    assert few["x"][OUTLIER] < found["x"][OUTLIER]


def test_smoothing_alone_changes_no_logits(tmp_path: Path) -> None:
    """Q, K and V share one Mul. Attention's own products, excluded products and unused channels do not change."""
    model = attention(tmp_path / "m.onnx")
    smoothed = onnx.ModelProto()
    smoothed.CopyFrom(model)
    smooth(smoothed, sample(), exclude=["product_down"])
    onnx.checker.check_model(smoothed)
    for row in sample():
        np.testing.assert_allclose(run(smoothed, row), run(model, row), atol=1e-3, rtol=1e-5)
    muls = [node for node in smoothed.graph.node if node.op_type == "Mul"]
    assert [node.input[0] for node in muls] == ["x", "stream"]
    products = {node.name: node for node in smoothed.graph.node if node.op_type == "MatMul"}
    assert {products[f"product_{n}"].input[0] for n in "qkv"} == {muls[0].output[0]}
    assert list(products["product_down"].input) == ["active", "down"]
    assert list(products["attention_0"].input) == ["q", "kt"]
    scaled = {tensor.name: numpy_helper.to_array(tensor) for tensor in smoothed.graph.initializer}
    largest = largest_inputs(smoothed, [muls[0].output[0]], sample())[muls[0].output[0]]
    rows = np.max([np.abs(scaled[products[f"product_{n}"].input[1]]).max(axis=1) for n in "qkv"], axis=0)
    used = largest > 0
    assert used.sum() == WIDTH - 1
    np.testing.assert_allclose(largest[used], rows[used], rtol=1e-4)
    assert "wq" not in scaled, "the unscaled matrix is still in the file"


def test_smoothing_makes_int8_exacter_where_a_channel_is_large(tmp_path: Path) -> None:
    """Smoothing makes int8 more exact if one channel is much larger than the others."""
    model = attention(tmp_path / "m.onnx")
    for static in (False, True):
        errors = []
        for smoothed in (False, True):
            path = quantise(tmp_path / "m.onnx", Int8(static=static, smooth=smoothed), tmp_path / "q.onnx", sample())
            errors.append(np.mean([np.abs(run(path, row) - run(model, row)).mean() for row in sample()]))
        assert errors[1] < errors[0] / 2


def test_static_ranges_are_the_samples(tmp_path: Path) -> None:
    """Scale and zero point of x cover its range. Neither attention nor the residual stream is rounded."""
    attention(tmp_path / "m.onnx")
    path = quantise(tmp_path / "m.onnx", Int8(static=True), tmp_path / "q.onnx", sample())
    model = onnx.load(path)
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    rounded = {node.input[0]: node for node in nodes_of(path, "QuantizeLinear")}
    assert set(rounded) == {"x_product", "stream_product", "active_product"}
    scale, zero = (values[name] for name in rounded["x_product"].input[1:])
    every = np.concatenate([row["x"].ravel() for row in sample()])
    np.testing.assert_allclose(scale, (every.max() - every.min()) / 255, rtol=1e-3)
    np.testing.assert_allclose(zero, -every.min() / scale, atol=1)
    weights = [node for node in nodes_of(path, "DequantizeLinear") if values.get(node.input[0], zero).ndim == 2]
    assert len(weights) == 5
    assert all(values[node.input[0]].dtype == np.int8 and values[node.input[1]].ndim == 1 for node in weights)
    inputs = {name for kind in ("Add", "Softmax", "Transpose") for node in nodes_of(path, kind) for name in node.input}
    assert {"x", "stream", "k", "similar"} <= inputs
    assert {"q", "kt"} <= {name for node in nodes_of(path, "MatMul") for name in node.input}


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.name)
def test_every_way_runs_on_any_shape(tmp_path: Path, way: Int8) -> None:
    """Every way runs on batch 1, length 2 and others. Logits are near fp32's, but not equal."""
    model = attention(tmp_path / "m.onnx")
    path = quantise(tmp_path / "m.onnx", way, tmp_path / "q.onnx", sample(), PRODUCTS)
    assert not list(tmp_path.glob(".*"))
    for batch, length in ((1, 2), (1, 9), (4, 2), (3, 7)):
        row = {"x": np.random.default_rng(batch).normal(0, 1, (batch, length, WIDTH)).astype(np.float32)}
        found, expected = run(path, row), run(model, row)
        assert found.shape == expected.shape
        assert np.abs(found - expected).max() > 0
    for row in sample():
        expected = run(model, row)
        assert np.abs(run(path, row) - expected).mean() < 0.05 * np.abs(expected).max()
    kept = {node.name for node in weight_products(onnx.load(path))}
    assert kept == set(PRODUCTS[: round(5 * way.keep + 0.4)])
    assert [node.input[0] for node in nodes_of(path, "Mul") if node.name.endswith("_smooth")] == (
        ["x", "stream"][: 2 - ("product_up" in kept)] if way.smooth else []
    )


def test_the_most_sensitive_product_comes_first(tmp_path: Path) -> None:
    """Keeping the first product in fp32 helps more than keeping the last. The ranking leaves no file behind."""
    model = attention(tmp_path / "m.onnx")
    ranked = by_sensitivity(tmp_path / "m.onnx", sample())
    assert sorted(ranked) == sorted(PRODUCTS)
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]
    errors = []
    for order in (ranked, ranked[::-1]):
        path = quantise(tmp_path / "m.onnx", Int8(smooth=True, keep=0.2), tmp_path / "q.onnx", sample(), order)
        errors.append(np.mean([np.square(run(path, row) - run(model, row)).mean() for row in sample()]))
    assert errors[0] < 0.8 * errors[1]


def test_ranges_need_a_sample(tmp_path: Path) -> None:
    """Without a sample there is an error, and no file."""
    attention(tmp_path / "m.onnx")
    for way in (Int8(static=True), Int8(smooth=True)):
        with pytest.raises(ModelError, match="no text from which ranges can be measured"):
            quantise(tmp_path / "m.onnx", way, tmp_path / "q.onnx")
    assert not (tmp_path / "q.onnx").exists()


def test_ways_have_names_of_their_own() -> None:
    assert len({way.name for way in WAYS}) == len(set(WAYS)) == len(WAYS)
    assert Int8(static=True, keep=0.05).name == "int8, static ranges, 5% fp32"


def test_products_do_not_saturate(tmp_path: Path) -> None:
    """64 of the largest uint8 times the largest int8 are more than 16 bits hold: CPUs without VNNI would cut them."""
    weight = np.full((64, 16), 127.0, np.float32)
    node = helper.make_node("MatMul", ["x", "w"], ["logits"], name="product")
    x, logits = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["b", c]) for n, c in (("x", 64), ("logits", 16)))
    graph = helper.make_graph([node], "product", [x], [logits], [numpy_helper.from_array(weight, "w")])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), tmp_path / "m.onnx")
    path = quantise(tmp_path / "m.onnx", Int8(), tmp_path / "q.onnx")
    row = {"x": np.full((16, 64), 255, np.float32)}
    exact = pytest.approx(np.full((16, 16), 64 * 255 * 127), rel=0.01)
    assert run(path, row) == exact
    plain = InferenceSession(path, providers=["CPUExecutionProvider"]).run(["logits"], row)[0]
    assert (plain != exact) == products_saturate(), "the option is set where it is needed, and nowhere else"


def test_the_probe_is_what_it_says() -> None:
    """The probe's bytes are the model that the docstring describes."""
    info = helper.make_tensor_value_info
    inputs = [info("a", TensorProto.UINT8, None), info("b", TensorProto.INT8, None)]
    node = helper.make_node("MatMulInteger", ["a", "b"], ["y"])
    graph = helper.make_graph([node], "g", inputs, [info("y", TensorProto.INT32, None)])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    assert onnx.load_from_string(_PRODUCT) == made
