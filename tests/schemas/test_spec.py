"""The specification as Python values: frozen, strict, the same after a round trip."""

from __future__ import annotations

import pickle

import pytest
from pydantic import ValidationError

from tagstream.schemas.spec import InferEntry, JobSpec

GOOD = {
    "source": {"type": "parquet", "path": "in", "id": "id", "keep": ["a", "id", "b", "a"]},
    "infer": [{"model": "m", "as": "x"}, {"as": "y", "backend": {"type": "constant"}}],
    "sink": {"type": "parquet", "path": "out"},
}


def test_is_frozen() -> None:
    """A specification can't change under a running job."""
    spec = JobSpec.model_validate(GOOD)
    with pytest.raises(ValidationError, match="frozen"):
        spec.name = "other"
    with pytest.raises(ValidationError, match="frozen"):
        spec.infer[0].as_ = "other"


def test_kept_columns_once_and_in_order() -> None:
    """Id first, then the kept ones, none twice."""
    assert JobSpec.model_validate(GOOD).source.kept == ("id", "a", "b")


def test_survives_json() -> None:
    """What one process writes another reads: workers get specifications."""
    spec = JobSpec.model_validate(GOOD)
    assert JobSpec.model_validate_json(spec.model_dump_json(by_alias=True)) == spec
    assert JobSpec.model_validate_json(spec.model_dump_json()) == spec


def test_parts_as_objects() -> None:
    """A part may be given as what it is validated to, and only where it belongs; a dump has all its fields."""
    spec = JobSpec.model_validate(GOOD)
    assert JobSpec.model_validate({**GOOD, "source": spec.source}) == spec
    assert JobSpec.model_validate(spec.model_dump()) == spec
    assert spec.model_dump()["source"]["path"] == "in"
    with pytest.raises(ValidationError, match="must be a mapping of fields"):
        JobSpec.model_validate({**GOOD, "source": spec.sink})


def test_columns_that_all_stands_for() -> None:
    """Known once the source is open, in its order; they travel with the specification to other processes."""
    spec = JobSpec.model_validate({**GOOD, "source": {**GOOD["source"], "keep": "*"}})
    assert (spec.source.kept, spec.source.knows_columns) == (("id",), False)
    found = spec.with_columns(["a", "id", "b"])
    assert pickle.loads(pickle.dumps(found)).source.kept == ("a", "id", "b")
    assert JobSpec.model_validate(GOOD).with_columns(["z"]).source.kept == ("id", "a", "b")


def test_model_may_be_missing_for_constant_only() -> None:
    """The constant backend needs no model, every other does."""
    assert InferEntry.model_validate({"backend": {"type": "constant"}}).model is None
    with pytest.raises(ValidationError, match="model is missing"):
        InferEntry()


@pytest.mark.parametrize("device", ["auto", "cpu", "mps", "cuda", "cuda:3"])
def test_devices(device: str) -> None:
    """Names that PyTorch knows."""
    assert InferEntry.model_validate({"model": "m", "backend": {"type": "pytorch", "device": device}})


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:x", "cpu:0", ""])
def test_wrong_devices(device: str) -> None:
    """Other names are refused when the specification is read, not when the job runs."""
    with pytest.raises(ValidationError, match="device"):
        InferEntry.model_validate({"model": "m", "backend": {"type": "pytorch", "device": device}})


def test_schema_names_every_union() -> None:
    """The JSON Schema tells an editor which types there are and that unknown fields are wrong."""
    schema = JobSpec.model_json_schema()
    assert schema["additionalProperties"] is False
    assert set(schema["properties"]["source"]["discriminator"]["mapping"]) >= {"parquet", "memory"}
    assert set(schema["properties"]["sink"]["discriminator"]["mapping"]) >= {"parquet", "memory"}
    assert "as" in schema["$defs"]["InferEntry"]["properties"]
