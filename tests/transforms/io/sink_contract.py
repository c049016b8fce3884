"""What every sink promises. A new sink is done when its subclass of `SinkContract` passes."""

from __future__ import annotations

import pickle
import threading
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tagstream.schemas.block import POSITION, Block, Span, Split
from tagstream.schemas.dead_letters import dead_schema
from tagstream.schemas.errors import ChainMovedError, DeadCode, LedgerError
from tagstream.schemas.fingerprint import Fingerprint
from tagstream.schemas.spec import JobSpec
from tagstream.transforms.io.contracts import Commit, Progress, Sink, Writer

KEPT = pa.schema([("id", pa.string())])
SPLIT = Split("file-0123456789ab", 0, 1_000)
OTHER = Split("other-0123456789ab", 100, 200)
JOB = Fingerprint({"model": "a"})


def is_dead(position: int) -> bool:
    return position % 10 == 3


def block(start: int, stop: int, split: Split = SPLIT) -> Block:
    """Rows `start` to `stop`, labelled. Every tenth row is a dead letter, for two reasons in turn."""
    alive = [p for p in range(start, stop) if not is_dead(p)]
    dead = [p for p in range(start, stop) if is_dead(p)]
    batch = pa.record_batch(
        {
            "id": pa.array([f"{split.id}/{p}" for p in alive], pa.string()),
            POSITION: pa.array(alive, pa.int64()),
            "tag": pa.array([f"label{p % 3}" for p in alive], pa.string()),
            "tag_score": pa.array([p / 7 for p in alive], pa.float32()),
        }
    )
    codes = [DeadCode.NULL_TEXT if p % 20 == 3 else DeadCode.INFERENCE_FAILED for p in dead]
    letters = pa.RecordBatch.from_arrays(
        [
            pa.array([split.id] * len(dead), pa.string()),
            pa.array(dead, pa.int64()),
            pa.array([code.value for code in codes], pa.string()),
            pa.array([f"message {p}" for p in dead], pa.string()),
            pa.array([b"\xff%d" % p for p in dead], pa.binary()),
            pa.array([split.id] * len(dead), pa.string()),
            pa.array(dead, pa.int64()),
            pa.array([{"id": f"{split.id}/{p}"} for p in dead], pa.struct(list(KEPT))),
        ],
        schema=dead_schema(KEPT),
    )
    return Block(Span(split.id, start, stop), batch, letters)


class SinkContract:
    """A subclass implements the first three methods. Opening a sink again simulates another process."""

    def open_sink(self, folder: Path, **settings: Any) -> Sink:
        """A sink for the output that belongs to `folder`."""
        raise NotImplementedError

    def labels(self, folder: Path) -> pa.Table:
        """All that an outside reader finds in the output; no columns if there is nothing."""
        raise NotImplementedError

    def dead(self, folder: Path) -> pa.Table:
        """All that an outside reader finds among the dead letters; no columns if there is nothing."""
        raise NotImplementedError

    @staticmethod
    def job(sink: dict[str, Any], dead_letters: str | None = None) -> JobSpec:
        return JobSpec.model_validate(
            {
                "source": {"type": "parquet", "path": "unused"},
                "infer": [{"as": "tag", "backend": {"type": "constant"}}],
                "sink": sink,
                "dead_letters": dead_letters and {"type": "parquet", "path": dead_letters},
            }
        )

    def ready(self, folder: Path, job: Fingerprint = JOB, *, overwrite: bool = False, **settings: Any) -> Sink:
        """A sink after `prepare`."""
        sink = self.open_sink(folder, **settings)
        sink.prepare(job, overwrite=overwrite)
        return sink

    def ids(self, folder: Path) -> list[int]:
        """Positions of the labelled rows of SPLIT, sorted; duplicates stay."""
        table = self.labels(folder)
        ids = table["id"].to_pylist() if table.num_columns else []
        return sorted(int(id_.rpartition("/")[2]) for id_ in ids if id_.startswith(SPLIT.id))

    def dead_positions(self, folder: Path) -> list[int]:
        """Positions of the dead letters of SPLIT, sorted; duplicates stay."""
        table = self.dead(folder)
        rows = table.select(["split", "position"]).to_pylist() if table.num_columns else []
        return sorted(row["position"] for row in rows if row["split"] == SPLIT.id)

    def check(self, folder: Path, stop: int, start: int = 0) -> None:
        """Exactly the rows from `start` to `stop` are there, each labelled or dead, and the ledger says so."""
        assert self.ids(folder) == [p for p in range(start, stop) if not is_dead(p)]
        assert self.dead_positions(folder) == [p for p in range(start, stop) if is_dead(p)]
        progress = self.open_sink(folder).progress()
        assert progress.get(SPLIT.id, Progress(start)).stop == stop

    def test_commits_labels_and_dead_letters(self, tmp_path: Path) -> None:
        """Every column of labels and dead letters arrives unchanged. The commit holds the span and all counts."""
        writer = self.ready(tmp_path).open(SPLIT)
        writer.write(block(0, 30))
        writer.write(block(30, 50))
        commit = writer.commit()
        assert commit == Commit(Span(SPLIT.id, 0, 50), 50, 45, {"null_text": 3, "inference_failed": 2})
        assert commit.rows_in == commit.rows_out + commit.dead.total()
        expected = pa.Table.from_batches([block(0, 50).batch]).drop_columns([POSITION])
        assert self.labels(tmp_path).sort_by("tag_score").select(expected.column_names).equals(expected)
        dead = pa.Table.from_batches([block(0, 50).dead])
        assert self.dead(tmp_path).sort_by("position").select(dead.column_names).equals(dead)
        self.check(tmp_path, 50)

    def test_nothing_is_visible_before_the_commit(self, tmp_path: Path) -> None:
        """Neither rows, nor dead letters, nor progress."""
        writer = self.ready(tmp_path).open(SPLIT)
        writer.write(block(0, 50))
        self.check(tmp_path, 0)
        writer.close()
        self.check(tmp_path, 0)

    def test_commit_of_nothing(self, tmp_path: Path) -> None:
        """Without a block there is no commit, also right after a commit."""
        writer = self.ready(tmp_path).open(SPLIT)
        assert writer.commit() is None
        writer.write(block(0, 5))
        assert writer.commit() is not None
        assert writer.commit() is None
        self.check(tmp_path, 5)

    def test_closed_writer_gives_up(self, tmp_path: Path) -> None:
        """Uncommitted rows are gone, and the next writer starts where the chain ends."""
        sink = self.ready(tmp_path)
        writer = sink.open(SPLIT)
        writer.write(block(0, 20))
        writer.commit()
        writer.write(block(20, 40))
        writer.close()
        assert sink.open(SPLIT).position == 20
        self.check(tmp_path, 20)

    def test_drops_rows_below_its_position(self, tmp_path: Path) -> None:
        """Of a repeated or overlapping block, only new rows are added. `write` returns the rows that it took."""
        writer = self.ready(tmp_path).open(SPLIT)
        writer.write(block(0, 20))
        again = writer.write(block(5, 15))
        assert again.num_rows == 0
        taken = writer.write(block(10, 30))
        assert (taken.span, taken.num_rows) == (Span(SPLIT.id, 20, 30), 10)
        writer.commit()
        assert writer.write(block(0, 30)).num_rows == 0
        assert writer.commit() is None
        self.check(tmp_path, 30)

    def test_refuses_a_gap(self, tmp_path: Path) -> None:
        """A gap raises an error and changes nothing: rows are never skipped silently."""
        writer = self.ready(tmp_path).open(SPLIT)
        writer.write(block(0, 20))
        with pytest.raises(LedgerError, match="rows 20 to 21 are missing"):
            writer.write(block(21, 30))
        writer.write(block(20, 30))
        writer.commit()
        self.check(tmp_path, 30)

    def test_one_of_two_writers_wins(self, tmp_path: Path) -> None:
        """Both start at the same position. The first commit wins; the second writer drops its rows and continues."""
        first, second = (self.ready(tmp_path).open(SPLIT) for _ in range(2))
        first.write(block(0, 30))
        second.write(block(0, 50))
        first.commit()
        with pytest.raises(ChainMovedError) as lost:
            second.commit()
        assert lost.value.position == second.position == 30
        self.check(tmp_path, 30)
        assert second.write(block(0, 60)).span == Span(SPLIT.id, 30, 60)
        assert second.commit().span == Span(SPLIT.id, 30, 60)
        self.check(tmp_path, 60)

    def test_loser_stands_at_the_end_of_the_chain(self, tmp_path: Path) -> None:
        """After a lost race a writer continues from the chain's end, however many commits it has missed."""
        winner, loser = (self.ready(tmp_path).open(SPLIT) for _ in range(2))
        loser.write(block(0, 12))
        for start, stop in [(0, 7), (7, 23), (23, 24)]:
            winner.write(block(start, stop))
            winner.commit()
        with pytest.raises(ChainMovedError):
            loser.commit()
        assert loser.position == 24
        self.check(tmp_path, 24)

    def test_shorter_and_longer_spans_can_not_both_stand(self, tmp_path: Path) -> None:
        """Two spans with the same start conflict, wherever they stop."""
        first, second = (self.ready(tmp_path).open(SPLIT) for _ in range(2))
        first.write(block(0, 90))
        second.write(block(0, 1))
        second.commit()
        with pytest.raises(ChainMovedError):
            first.commit()
        self.check(tmp_path, 1)

    def test_resumes_where_the_chain_ends(self, tmp_path: Path) -> None:
        """A new process finds the chain's end, with or without a known position that the chain has reached."""
        writer = self.ready(tmp_path).open(SPLIT)
        for start in range(0, 50, 10):
            writer.write(block(start, start + 10))
            writer.commit()
        sink = self.ready(tmp_path)
        assert sink.progress()[SPLIT.id].stop == 50
        assert [sink.open(SPLIT, known).position for known in (None, 0, 10, 40, 50)] == [50] * 5
        writer = sink.open(SPLIT, 50)
        writer.write(block(40, 70))
        writer.commit()
        self.check(tmp_path, 70)

    def test_splits_are_independent(self, tmp_path: Path) -> None:
        """A commit moves only the chain of its split. A split may start at any position."""
        sink = self.ready(tmp_path)
        one, two = sink.open(SPLIT), sink.open(OTHER)
        assert (one.position, two.position) == (0, 100)
        one.write(block(0, 20))
        two.write(block(100, 130, OTHER))
        two.commit()
        assert {split: p.stop for split, p in sink.progress().items()} == {OTHER.id: 130}
        one.commit()
        assert {split: p.stop for split, p in sink.progress().items()} == {OTHER.id: 130, SPLIT.id: 20}
        self.check(tmp_path, 20)

    def test_no_output_no_progress(self, tmp_path: Path) -> None:
        """There is no progress before `prepare`, and none right after it."""
        assert self.open_sink(tmp_path).progress() == {}
        assert self.ready(tmp_path).progress() == {}

    @pytest.mark.parametrize("alive", [True, False])
    def test_all_alive_or_all_dead(self, tmp_path: Path, alive: bool) -> None:
        """A commit without dead letters, and one without labels."""
        start = 0 if alive else 3
        split = Split(SPLIT.id, start, 1_000)
        writer = self.ready(tmp_path).open(split)
        writer.write(block(start, start + (3 if alive else 1)))
        commit = writer.commit()
        assert (commit.rows_out, commit.dead.total()) == ((3, 0) if alive else (0, 1))
        self.check(tmp_path, 3 if alive else 4, start)

    def test_output_of_another_job_is_refused(self, tmp_path: Path) -> None:
        """The other job's output is not changed, and that job can continue."""
        writer = self.ready(tmp_path).open(SPLIT)
        writer.write(block(0, 20))
        writer.commit()
        with pytest.raises(LedgerError, match="another job"):
            self.ready(tmp_path, Fingerprint({"model": "b"}))
        self.check(tmp_path, 20)
        assert self.ready(tmp_path).open(SPLIT).position == 20

    def test_overwrite_starts_anew(self, tmp_path: Path) -> None:
        """Overwriting replaces another job's labels and dead letters. The output then belongs to the new job."""
        writer = self.ready(tmp_path).open(SPLIT)
        writer.write(block(0, 40))
        writer.commit()
        other = Fingerprint({"model": "b"})
        sink = self.ready(tmp_path, other, overwrite=True)
        assert sink.progress() == {}
        self.check(tmp_path, 0)
        writer = sink.open(SPLIT)
        writer.write(block(0, 25))
        writer.commit()
        self.check(tmp_path, 25)
        with pytest.raises(LedgerError, match="another job"):
            self.ready(tmp_path)
        assert self.ready(tmp_path, other).progress()[SPLIT.id].stop == 25

    def test_due_by_time(self, tmp_path: Path) -> None:
        """A writer is due after `commit_every`, if it has rows; not earlier."""
        writer = self.ready(tmp_path, commit_every=1e-9).open(SPLIT)
        assert not writer.due
        writer.write(block(0, 5))
        assert writer.due
        writer.commit()
        assert not writer.due
        patient = self.ready(tmp_path, commit_every=3600.0).open(SPLIT)
        patient.write(block(5, 10))
        assert not patient.due

    def test_travels_to_workers(self, tmp_path: Path) -> None:
        """A prepared sink is pickled; the copy writes to the same output."""
        sink = pickle.loads(pickle.dumps(self.ready(tmp_path)))
        writer = sink.open(SPLIT)
        writer.write(block(0, 20))
        writer.commit()
        self.check(tmp_path, 20)

    def test_many_writers_at_once(self, tmp_path: Path) -> None:
        """Many threads append to one chain, and each row arrives exactly once."""
        sinks = [self.ready(tmp_path) for _ in range(4)]
        failures: list[BaseException] = []
        lost = []
        barrier = threading.Barrier(len(sinks))

        def work(sink: Sink) -> None:
            try:
                writer = sink.open(SPLIT)
                barrier.wait(30)
                while writer.position < 300:
                    writer.write(block(writer.position, min(300, writer.position + 20)))
                    try:
                        writer.commit()
                    except ChainMovedError:
                        lost.append(1)
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=work, args=(sink,)) for sink in sinks]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert failures == []
        assert lost, "four writers that never meet would show nothing"
        self.check(tmp_path, 300)

    @settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.differing_executors])
    @given(
        st.lists(
            st.tuples(st.integers(0, 2), st.sampled_from(["write", "write", "commit", "reopen"]), st.integers(1, 30)),
            max_size=25,
        )
    )
    def test_any_order_of_things(self, tmp_path_factory: pytest.TempPathFactory, steps: list) -> None:
        """Three writers write, commit, give up and restart in any order. The chain never has a gap or a duplicate."""
        folder = tmp_path_factory.mktemp("any")
        writers: list[Writer] = [self.ready(folder).open(SPLIT) for _ in range(3)]
        starts, end = [0, 0, 0], 0
        for number, step, size in steps:
            writer = writers[number]
            if step == "write":
                start = max(0, writer.position - size // 2)
                writer.write(block(start, start + size))
                continue
            if step == "commit" and writer.position == starts[number]:
                assert writer.commit() is None
                continue
            if step == "commit" and starts[number] != end:
                with pytest.raises(ChainMovedError):
                    writer.commit()
            elif step == "commit":
                commit = writer.commit()
                assert commit.span == Span(SPLIT.id, end, writer.position)
                end = writer.position
            else:
                writer.close()
                writers[number] = self.ready(folder).open(SPLIT)
            starts[number] = end
            assert writers[number].position == end
        self.check(folder, end)
