"""The scaling page shows the numbers that its script computes, and the model behaves as the page says."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.scaling import DAY, TARGETS, Figures, plan, plans, stages, table, useful
from tests.deploy.files import DEPLOY


def test_page_has_the_computed_table() -> None:
    """The page has the computed table. After a change, put the output of `python -m benchmarks.scaling` into it."""
    assert "\n".join(table(plans(Figures()))) in (DEPLOY / "SCALING.md").read_text()


@pytest.mark.parametrize("worker", ["cpu", "gpu"])
@pytest.mark.parametrize("source", ["topic", "files"])
def test_plan_is_enough_and_not_more(worker: str, source: str) -> None:
    """The planned workers do the target in a day, and one fewer would not. A topic has a partition for each worker."""
    f = Figures()
    for rows in TARGETS:
        found = plan(f, rows, worker, source)
        rate = min(stages(f, worker, source).values())
        assert found.workers * rate * useful(f, found.workers, rows, source) >= rows / DAY
        fewer = found.workers - 1
        assert fewer * rate * useful(f, max(1, fewer), rows, source) < rows / DAY
        assert source != "topic" or found.units >= found.workers


def test_slowest_stage_bounds() -> None:
    """With a faster GPU, the Kafka client becomes the bound; with files as the source, the tokenizer does."""
    fast = replace(Figures(), gpu_flops=1e15)
    assert plan(fast, 10**10, "gpu", "topic").bound == "kafka"
    assert plan(fast, 10**10, "gpu", "files").bound == "tokenise"
