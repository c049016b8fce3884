"""How many blocks are in flight."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from tagstream.schemas.spec import JobSpec
from tagstream.transforms.inference.labelling import Labelling
from tagstream.transforms.stages.infer import BlockInference


@pytest.mark.parametrize(
    ("devices", "given", "expected"),
    [
        (["cpu"], None, 4),
        (["cuda:0"], None, 16),
        (["cuda:0,cuda:1", "cuda:0"], None, 16),
        (["cuda:0", "cpu"], None, 4),  # the CPU bounds the job, and more would only wait for it
        (["cuda:0"], 3, 3),
        (["cpu"], 9, 9),
    ],
)
def test_blocks_in_flight(devices: list[str], given: int | None, expected: int) -> None:
    spec = JobSpec.model_validate(
        {
            "source": {"type": "parquet", "path": "in.parquet", "text": "text"},
            "infer": [{"as": f"c{number}", "backend": {"type": "constant"}} for number in range(len(devices))],
            "sink": {"type": "parquet", "path": "out"},
            "blocks": {"in_flight": given},
        }
    )
    engines = [SimpleNamespace(backend=SimpleNamespace(device=device)) for device in devices]
    assert BlockInference(spec, Labelling(spec.infer, engines)).in_flight == expected
