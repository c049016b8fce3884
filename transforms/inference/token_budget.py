"""The token budget: how many tokens a micro-batch may hold. It is given, or a busy engine searches for the fastest.

The search compares the budget with a budget twice as large: it runs some passes of each in turn, and counts them only
while more is pending than one micro-batch holds. If the larger budget is faster, the search continues from there. The
result is kept in the model's cache folder, for this machine. Running out of memory halves the budget for a while and
ends the search.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

from tagstream.schemas.spec import InferEntry
from tagstream.transforms.inference.backends.contracts import Backend
from tagstream.transforms.inference.backends.huggingface import files_of

log = logging.getLogger(__name__)

GROW_PASSES = 256
"""A halved budget is doubled again after this many passes that did not run out of memory."""
FIRST_PASSES = 128
"""Busy passes before the search begins. A short job ends before that, because a search would only cost it padding."""
RUN_PASSES = 24
"""Smallest number of passes in one run, that is, in a row with the same budget; six times `parallel` if that is more.
The clock cuts the first and the last pass of a run in two, which must not count for much. The clock is set only after
all passes of the previous run have ended."""
MOST_TIMES = 8
"""The search does not go beyond the first budget times this."""
TURNS = (1, 2, 2, 1) * 2
"""Factor of the budget in each run. The order favours neither budget when texts get shorter towards a block's end."""
WORTHWHILE = 1.05
"""The larger budget must be faster by this factor, because it brings more padding and lets a stream's row wait longer.
"""
FILE = "token-budgets.json"


class TokenBudget:
    """`tokens`: how many tokens the next micro-batch may hold. Thread-safe.

    `seek`: search for a faster budget, and call `found` with the result. `parallel`: how many passes run at once.
    """

    def __init__(
        self, tokens: int, *, seek: bool = False, found: Callable[[int], None] | None = None, parallel: int = 1
    ) -> None:
        self.tokens = self._most = tokens
        self._limit = MOST_TIMES * tokens
        self._seeks, self._found = seek, found
        self._kept = False
        """Whether `found` has been called, so that later processes know the best budget."""
        self._before = FIRST_PASSES
        self._skipped = 2 * parallel
        self._run_passes = -(-max(RUN_PASSES, 6 * parallel) // parallel) * parallel
        self._fitting = 0
        self._rates: list[float] = []
        self._passes, self._since, self._done = 0, 0.0, 0
        self._lock = threading.Lock()

    def passed(self, budget: int, tokens: int, at: float, *, busy: bool) -> None:
        """Report a finished micro-batch.

        `budget`: the budget when the micro-batch was taken. `tokens`: the tokens in the micro-batch. `at`: when it
        finished, in seconds of a monotonic clock. `busy`: whether more was pending when it was taken. Passes of an
        idle engine are not counted, because they say nothing about speed.
        """
        with self._lock:
            sought = self._seeks
            if not sought and self.tokens < self._most:
                self._grow()
            elif sought and budget == self.tokens:
                self._count(tokens, at, busy)
            settled = sought and not self._seeks
            self._kept = self._kept or settled
        if settled and self._found:
            self._found(self._most)

    def short_of_memory(self, tried: int) -> None:
        """Report that a micro-batch of `tried` tokens, padding included, ran out of memory."""
        with self._lock:
            settled, self._seeks = self._seeks, False
            self._fitting = 0
            self.tokens = max(1, min(self._most, self.tokens, tried // 2))
            too_much = tried <= self._most  # even the best budget is too large: the halved one takes its place
            self._kept = self._kept or (settled and not too_much)
        if self._found and self._kept:
            self._found(self.tokens if too_much else self._most)

    def _count(self, tokens: int, at: float, busy: bool) -> None:
        if not busy:
            self._passes = 0
            return
        if self._before:
            self._before -= 1
            return
        self._passes += 1
        if self._passes <= self._skipped + 1:
            self._since, self._done = at, 0
            return
        self._done += tokens
        if self._passes > self._skipped + self._run_passes and at > self._since:
            self._rates.append(self._done / (at - self._since))
            self._passes = 0
            self._next_run()

    def _next_run(self) -> None:
        if len(self._rates) < len(TURNS):
            self.tokens = self._most * TURNS[len(self._rates)]
            return
        pairs = zip(self._rates[::2], self._rates[1::2], strict=True)
        gain = median(b / a if n % 2 == 0 else a / b for n, (a, b) in enumerate(pairs))
        log.info("token budget %d is %.2f times as fast as %d", 2 * self._most, gain, self._most)
        self._rates.clear()
        if gain >= WORTHWHILE:
            self._most *= 2
        self.tokens = self._most
        self._seeks = gain >= WORTHWHILE and self._most < self._limit

    def _grow(self) -> None:
        """Double a halved budget after `GROW_PASSES`: another program may have used the memory, and may have ended."""
        self._fitting += 1
        if self._fitting >= GROW_PASSES:
            self._fitting = 0
            self.tokens = min(2 * self.tokens, self._most)


def budget_of(backend: Backend, entry: InferEntry) -> TokenBudget:
    """The token budget for a backend.

    A backend without `speed_key` has a fixed budget. For another one, this is the budget that an earlier search found
    on such a machine; if there was none, a new search starts from the backend's own budget.
    """
    if not (key := backend.speed_key):
        return TokenBudget(backend.token_budget)
    folder = files_of(entry).cache_folder()
    if known := _read(folder).get(key):
        return TokenBudget(known)
    found = partial(_remember, folder, key)
    return TokenBudget(backend.token_budget, seek=True, found=found, parallel=backend.parallel)


def _remember(folder: Path, key: str, tokens: int) -> None:
    """Store the budget for later processes. If the folder can't be written to, they will search again."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / f".{FILE}-{os.getpid()}-{threading.get_ident()}"
        temporary.write_text(json.dumps({**_read(folder), key: tokens}, indent=2) + "\n", encoding="utf-8")
        temporary.replace(folder / FILE)
    except OSError as error:
        log.info("%s: can't store the token budget: %s", folder / FILE, error)


def _read(folder: Path) -> dict[str, int]:
    try:
        found = json.loads((folder / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {key: n for key, n in found.items() if type(n) is int and n > 0} if isinstance(found, dict) else {}
