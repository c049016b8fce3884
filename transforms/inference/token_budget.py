"""How many tokens a micro-batch may hold: a number that is given, or the one that a busy engine finds to be fastest.

The search compares the budget with twice as much, some passes of each in turn, while more is pending than one
micro-batch takes; twice as much is kept if it is faster, and compared with four times as much. What is found is kept in
the model's cache folder, for this machine. A shortage of memory halves the budget for a while and ends the search.
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
"""Passes without a shortage of memory after which a budget that was halved is doubled again."""
FIRST_PASSES = 128
"""Busy passes before the search begins: a short job is over by then, and would only have more padding from it."""
RUN_PASSES = 24
"""Least passes in a row with the same budget, and six for each that runs at once: among a few, those that the clock's
begin and end cut in two would count for much. Passes of the run before are over when the clock is set."""
MOST_TIMES = 8
"""The search ends there."""
TURNS = (1, 2, 2, 1) * 2
"""By how much the budget is multiplied in each run: as texts get shorter towards a block's end, neither is favoured."""
WORTHWHILE = 1.05
"""A budget twice as large is kept if it is faster by this: it has more padding, and a stream's row waits longer."""
FILE = "token-budgets.json"


class TokenBudget:
    """`tokens`: what the next micro-batch may hold. Thread-safe.

    `seek`: look for a faster one, and call `found` with it. `parallel`: passes that run at once.
    """

    def __init__(
        self, tokens: int, *, seek: bool = False, found: Callable[[int], None] | None = None, parallel: int = 1
    ) -> None:
        self.tokens = self._most = tokens
        self._limit = MOST_TIMES * tokens
        self._seeks, self._found = seek, found
        self._kept = False
        """The best is known to whom a process after this one asks."""
        self._before = FIRST_PASSES
        self._skipped = 2 * parallel
        self._run_passes = -(-max(RUN_PASSES, 6 * parallel) // parallel) * parallel
        self._fitting = 0
        self._rates: list[float] = []
        self._passes, self._since, self._done = 0, 0.0, 0
        self._lock = threading.Lock()

    def passed(self, budget: int, tokens: int, at: float, *, busy: bool) -> None:
        """A micro-batch that was taken with `budget` and held `tokens` is done at `at`, in seconds of a steady clock.

        `busy`: more was pending when it was taken; what an idle engine does says nothing of speed.
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
        """So many tokens, padding included, were too much."""
        with self._lock:
            settled, self._seeks = self._seeks, False
            self._fitting = 0
            self.tokens = max(1, min(self._most, self.tokens, tried // 2))
            too_much = tried <= self._most  # what was the best itself: then it is what is left of it
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
        """After a while without a shortage of memory: it may have been another program's."""
        self._fitting += 1
        if self._fitting >= GROW_PASSES:
            self._fitting = 0
            self.tokens = min(2 * self.tokens, self._most)


def budget_of(backend: Backend, entry: InferEntry) -> TokenBudget:
    """The backend's own, or what was found on such a machine; if nothing was, a search that starts from its own."""
    if not (key := backend.speed_key):
        return TokenBudget(backend.token_budget)
    folder = files_of(entry).cache_folder()
    if known := _read(folder).get(key):
        return TokenBudget(known)
    found = partial(_remember, folder, key)
    return TokenBudget(backend.token_budget, seek=True, found=found, parallel=backend.parallel)


def _remember(folder: Path, key: str, tokens: int) -> None:
    """For the next process; where the folder can't be written to, that one looks again."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / f".{FILE}-{os.getpid()}-{threading.get_ident()}"
        temporary.write_text(json.dumps({**_read(folder), key: tokens}, indent=2) + "\n", encoding="utf-8")
        temporary.replace(folder / FILE)
    except OSError as error:
        log.info("%s: the token budget is not kept: %s", folder / FILE, error)


def _read(folder: Path) -> dict[str, int]:
    try:
        found = json.loads((folder / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {key: n for key, n in found.items() if type(n) is int and n > 0} if isinstance(found, dict) else {}
