"""An Iceberg or Delta table as a sink. Works for every format that has a `LakeTable`.

One commit of the label table holds the rows and the ledger's numbers. It succeeds only if the chain ends where the
span starts: the writer loads the table, compares the chain's end, and commits. If another commit came first, the
writer loads and compares again. The numbers are:

    job                   token of the output, drawn when the output was begun; a new token resets all chains. It also
                          names the file that holds the fingerprint
    <job>/plan            token of the plan's last part, which names a file. That file names the part before it
    <job>/split/<split>   where the chain ends. …/by: token of the last commit. …/dead: its stop, if it has dead letters

Dead letters have a table of their own, and no commit spans two tables. So they first wait in a file named by the
token of their commit. Right after that commit they move into their table, and the same step stores the stop of their
span there, so that repeating the move changes nothing. A span is committed only after the dead letters of the span
before have moved. A commit can be interrupted at three points:

1. Before the label table's commit: nothing is committed. Files that no table knows may be left over.
2. Between the label table's commit and the dead letters' commit: the next writer of the chain, or the next start of
   the job, moves the dead letters in first.
3. After both: only the file remains to be deleted.
"""

from __future__ import annotations

from collections.abc import Callable

import pyarrow as pa

from tagstream.schemas.block import Split
from tagstream.schemas.dead_letters import dead_schema
from tagstream.schemas.errors import LedgerError
from tagstream.schemas.fingerprint import Fingerprint
from tagstream.transforms.io.common.dead_letter_source import TableLetterSource
from tagstream.transforms.io.common.plan_text import splits_from, splits_to
from tagstream.transforms.io.contracts import Progress
from tagstream.transforms.io.lake.ledger import LakeLedger, table_of_text
from tagstream.transforms.io.lake.table import (
    FOLDER,
    LetterFilter,
    State,
    lake_schema,
    new_token,
)
from tagstream.transforms.io.lake.writer import LakeWriter


class LakeSink(LakeLedger):
    """See `io.contracts.Sink`."""

    def prepare(self, fingerprint: Fingerprint, *, overwrite: bool) -> None:
        self._fingerprint = fingerprint
        schema = None if fingerprint.schema is None else lake_schema(fingerprint.schema)
        self.retried(lambda: self._claim(schema, overwrite=overwrite))
        self.settle_letters()

    def progress(self) -> dict[str, Progress]:
        state = self.retried(self.labels.load)
        if state is None:
            return {}
        state.check()
        prefix, known = f"{state.get('job')}/split/", state.seconds()
        ends = {n.removeprefix(prefix): end for n, end in state.all().items() if n.startswith(prefix)}
        return {split: Progress(end, *known.get(split, ())) for split, end in ends.items() if "/" not in split}

    def plan(self) -> list[Split]:
        """See `io.contracts.PlanKeeper`."""
        return self.retried(lambda: self._plan(self.labels.load()))

    def extend_plan(self, planned: int, more: list[Split]) -> list[Split]:
        """See `io.contracts.PlanKeeper`."""

        def work() -> None:
            state = self.owned()
            if len(self._plan(state)) == planned:
                token, before = new_token(), state.get(f"{self.token}/plan") or 0
                self.labels.put(f"plan-{token}", table_of_text(splits_to(more)), {"before": str(before)})
                self.labels.append(state, None, {f"{self.token}/plan": token}, self.note(token), None)

        self.retried(work)
        return self.plan()

    def open(self, split: Split, known: int | None = None) -> LakeWriter:
        if self.token is None:
            self.retried(lambda: self._claim(None, overwrite=False))
        self.settle_letters(split.id)
        state = self.retried(self.labels.load)
        end = None if state is None else state.get(self.chain(split.id))
        return LakeWriter(self, split, split.start if end is None else end, self.sink.commit_every)

    def sample(self, count: int) -> pa.Table:
        """See `io.contracts.ReadableSink`."""
        return self.labels.rows([], None, count)

    def dead_letters(self, kept: Callable[[], pa.Schema]) -> TableLetterSource:
        """See `io.contracts.ReplayingSink`."""
        state = self.retried(self.labels.load)
        self.token = state.get("job") if state else None
        self.settle_letters()
        names = [field.name for field in dead_schema(pa.schema([("any", pa.string())]))]
        rows = self.dead.rows(["split", "position"], LetterFilter(self.spec.name, None, 0), None)
        groups = []
        if rows.num_rows:
            found = rows.group_by("split").aggregate([("position", "max"), ("position", "count")])
            groups = [(r["split"], r["position_max"] + 1, r["position_count"]) for r in found.to_pylist()]

        def fetch(split: str, stop: int) -> pa.Table:
            return self.dead.rows(names, LetterFilter(self.spec.name, split, stop), None)

        return TableLetterSource(self.dead.where, kept(), self.spec.blocks, groups, fetch)

    def _plan(self, state: State | None) -> list[Split]:
        token = state.get(f"{state.get('job')}/plan") if state else None
        parts: list[list[Split]] = []
        while token:
            if (found := self.labels.take(f"plan-{token}")) is None:
                raise LedgerError(f"{self.labels.where}: plan-{token} is missing in its folder {FOLDER}; --overwrite")
            parts.insert(0, splits_from(found[0]["text"][0].as_py()))
            token = int(found[1]["before"])
        return [split for part in parts for split in part]
