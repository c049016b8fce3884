"""int8 versions of an fp32 ONNX export, in several ways. Needs the extra `onnx`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from schemas.errors import ModelError
from transforms.backends.onnx_export import need, quiet, writing
from transforms.backends.onnx_smooth import Inputs, insert_before, smooth, weight_products


@dataclass(frozen=True)
class Int8:
    """One way to quantise. `static`: the ranges of activations are the sample's, otherwise each micro-batch's own;
    `smooth`: see `onnx_smooth`, all but down-projections, which it makes less exact; `reduce_range`: 7-bit weights,
    which add up without saturation on older CPUs; `keep_down`: projections to fewer columns stay fp32 (their inputs
    have outliers); `keep_last`: so does the last layer.
    """

    static: bool = False
    smooth: bool = False
    reduce_range: bool = False
    keep_down: bool = False
    keep_last: bool = False

    @property
    def name(self) -> str:
        """What the table of `tagstream optimize` calls it."""
        words = {
            "static ranges": self.static,
            "smoothed": self.smooth,
            "7-bit weights": self.reduce_range,
            "fp32 down-projections": self.keep_down,
            "fp32 last layer": self.keep_last,
        }
        return ", ".join(["int8", *(word for word, applies in words.items() if applies)])


DYNAMIC_WAYS = (
    Int8(),
    Int8(reduce_range=True),
    Int8(smooth=True),
    Int8(keep_down=True),
    Int8(keep_down=True, smooth=True),
    Int8(keep_down=True, keep_last=True, smooth=True),
)
STATIC_WAYS = (
    Int8(static=True),
    Int8(static=True, smooth=True),
    Int8(static=True, keep_down=True),
    Int8(static=True, keep_down=True, smooth=True),
    Int8(static=True, keep_down=True, keep_last=True, smooth=True),
)
"""Both from the fastest to the most careful."""


def quantise(fp32: Path, way: Int8, path: Path, rows: Sequence[Inputs] = ()) -> Path:
    """An int8 version of an fp32 export, per channel, products with weights only. Raises ModelError.

    `rows`: inputs of single sequences of the sample, without padding; smoothing and static ranges come from them.
    """
    need("onnx")
    if (way.smooth or way.static) and not rows:
        raise ModelError(f"{way.name}: the sample has no text to take ranges from")
    import onnx
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_dynamic, quantize_static

    with writing(path) as tmp, quiet():
        model = onnx.load(fp32)
        exclude = _kept(model, way)
        if way.smooth:
            smooth(model, rows, {*exclude, *(node.name for node in _down(model))})
        settings: dict[str, Any] = {
            "weight_type": QuantType.QInt8,
            "per_channel": True,
            "reduce_range": way.reduce_range,
            "op_types_to_quantize": ["MatMul"],
        }
        if way.static:
            products = {node.name for node in weight_products(model)}
            attention = [n.name for n in model.graph.node if n.op_type == "MatMul" and n.name not in products]
            _separate(model, exclude)
            quantize_static(
                model,
                tmp,
                _Rows(rows),
                quant_format=QuantFormat.QDQ,
                activation_type=QuantType.QUInt8,
                nodes_to_exclude=[*exclude, *attention],
                # the sums stay as exact as they are
                extra_options={"OpTypesToExcludeOutputQuantization": ["MatMul"]},
                **settings,
            )
        else:
            quantize_dynamic(model, tmp, nodes_to_exclude=exclude, **settings)
    return path


def _down(model: Any) -> list[Any]:
    """Weight products with fewer columns than rows: projections back from the wide part of a layer."""
    shapes = {weight.name: tuple(weight.dims) for weight in model.graph.initializer}
    return [node for node in weight_products(model) if shapes[node.input[1]][0] > shapes[node.input[1]][1]]


def _kept(model: Any, way: Int8) -> list[str]:
    """Names of the weight products that stay fp32."""
    products, down = [node.name for node in weight_products(model)], [node.name for node in _down(model)]
    kept = set(down) if way.keep_down else set()
    if way.keep_last and len(down) > 1:
        kept |= set(products[products.index(down[-2]) + 1 :])
    return sorted(kept)


def _separate(model: Any, exclude: Sequence[str]) -> None:
    """Give the quantised products names of their inputs that nobody else reads: onnxruntime rounds a tensor for all its
    readers, and the residual stream, which is one of them, has to stay exact. Sessions remove the copies.
    """
    from onnx import helper

    copies: dict[str, Any] = {}
    first: dict[str, Any] = {}
    for node in weight_products(model):
        if node.name in exclude:
            continue
        name = node.input[0]
        if name not in copies:
            copies[name] = helper.make_node("Identity", [name], [f"{name}_product"], name=f"{name}_product")
            first[node.name] = copies[name]
        node.input[0] = f"{name}_product"
    insert_before(model, first)


class _Rows:
    """The rows as onnxruntime's CalibrationDataReader; one at a time, so that little is held of what they compute."""

    def __init__(self, rows: Sequence[Inputs]) -> None:
        self._rows = iter(rows)

    def get_next(self) -> Inputs | None:
        return next(self._rows, None)
