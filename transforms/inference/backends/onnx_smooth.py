"""SmoothQuant (Xiao et al. 2023) on an ONNX graph. It makes activations with outliers easier to quantise.

Input channel j of a weight product is divided by s_j, and row j of the weight is multiplied by s_j, with
s_j = sqrt(max|X_j| / max|W_j|). Both then have the same range, and the product stays the same. onnxruntime's own
option needs a module that neural-compressor 3 no longer has, and works only with static quantisation.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import numpy as np

from tagstream.transforms.inference.backends.onnx_session import cpu_session

Array = np.ndarray
Inputs = dict[str, Array]


def weight_products(model: Any) -> list[Any]:
    """MatMul nodes whose second operand is a stored matrix, in the graph's order."""
    matrices = {tensor.name for tensor in model.graph.initializer if len(tensor.dims) == 2}
    return [node for node in model.graph.node if node.op_type == "MatMul" and node.input[1] in matrices]


def insert_before(model: Any, nodes: dict[str, Any]) -> None:
    """Insert each of `nodes` into the graph, directly before the node whose name is its key."""
    ordered = [n for node in model.graph.node for n in (nodes.get(node.name), node) if n is not None]
    del model.graph.node[:]
    model.graph.node.extend(ordered)


def largest_inputs(model: Any, tensors: Iterable[str], rows: Iterable[Inputs]) -> dict[str, Array]:
    """The largest |x| in each channel of each of `tensors`, over all `rows`: float32 [channels] by tensor name.

    Rows should hold no padding, because no label depends on the values that a model computes there.
    """
    import onnx

    names = list(tensors)
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    probe.graph.output.extend(onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, None) for n in names)
    session = cpu_session(probe.SerializeToString())
    largest: dict[str, Array] = {}
    for row in rows:
        for name, x in zip(names, session.run(names, row), strict=True):
            found = np.abs(x).reshape(-1, x.shape[-1]).max(axis=0)
            largest[name] = np.maximum(largest.get(name, found), found)
    return largest


def smooth(model: Any, rows: Iterable[Inputs], exclude: Iterable[str] = ()) -> None:
    """Scale the inputs and weights of all weight products, in place. `exclude`: names of nodes to leave out.

    Products with the same input share one scale and one Mul node.
    """
    from onnx import helper, numpy_helper

    excluded = set(exclude)
    products = defaultdict(list)
    for node in weight_products(model):
        if node.name not in excluded:
            products[node.input[0]].append(node)
    largest = largest_inputs(model, products, rows)
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    divide: dict[str, Any] = {}  # by the name of the first node that needs the scaled input
    for name, nodes in products.items():
        matrices = [numpy_helper.to_array(weights[node.input[1]]) for node in nodes]
        scale = _scale(largest[name], np.max([np.abs(matrix).max(axis=1) for matrix in matrices], axis=0))
        model.graph.initializer.append(numpy_helper.from_array(1 / scale, f"{name}_smoothing"))
        divide[nodes[0].name] = helper.make_node(
            "Mul", [name, f"{name}_smoothing"], [f"{name}_smooth"], name=f"{name}_smooth"
        )
        for node, matrix in zip(nodes, matrices, strict=True):
            # under a new name, because another node may use the unscaled matrix
            stored = numpy_helper.from_array(matrix * scale[:, None], f"{node.name}_smooth_weight")
            model.graph.initializer.append(stored)
            node.input[:] = [f"{name}_smooth", stored.name]
    insert_before(model, divide)
    used = {name for node in model.graph.node for name in node.input}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)


def _scale(activations: Array, weights: Array) -> Array:
    """Each channel's s_j, float32. 1 for a channel that is always zero, so that nothing is divided by 0."""
    used = (activations > 0) & (weights > 0)
    ratio = np.divide(activations, weights, out=np.ones_like(activations), where=used)
    scale: Array = np.sqrt(ratio).astype(np.float32)
    return scale
