"""Deadlines for calls that can hang inside a library. The watchdog ends a process that misses one.

No restart policy notices a process that hangs, but every policy notices one that has ended. Ending the process is safe,
because every sink is its own ledger: rows that were not committed are read again.
"""

from __future__ import annotations

import contextlib
import faulthandler
import itertools
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator

from tagstream.transforms.runtime.job_context import open_contexts

EXIT_CODE = 70
"""Exit code of a process that the watchdog has ended: EX_SOFTWARE of sysexits.h."""


class Watchdog:
    """Checks all deadlines of this process four times a second, in one daemon thread.

    end: called with a message when a deadline is missed; `end_process` if None.
    """

    def __init__(self, end: Callable[[str], None] | None = None) -> None:
        self.end = end or end_process
        self._deadlines: dict[int, tuple[float, float, str]] = {}
        self._keys = itertools.count()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def deadline(self, seconds: float, what: str) -> Iterator[None]:
        """End the process if the body takes longer than `seconds`. what: the call, as the message should name it."""
        self._ensure_thread()
        key = next(self._keys)
        self._deadlines[key] = (time.monotonic() + seconds, seconds, what)
        try:
            yield
        finally:
            self._deadlines.pop(key, None)

    def _ensure_thread(self) -> None:
        with self._lock:
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
                self._thread.start()

    def _watch(self) -> None:
        last = time.monotonic()
        while True:
            time.sleep(0.25)
            now = time.monotonic()
            stopped = now - last - 0.25  # a suspended process gets back the time in which it did not run
            last = now
            for key, (at, seconds, what) in list(self._deadlines.items()):
                if stopped > 1 and key in self._deadlines:
                    self._deadlines[key] = (at + stopped, seconds, what)
                elif now > at:
                    self._deadlines.pop(key, None)
                    self.end(f"{what} took longer than {seconds:g} s")


def end_process(message: str) -> None:
    """Print the message and every thread's stack, and exit at once: a clean-up could hang as well."""
    sys.stderr.write(f"tagstream: watchdog: {message}; this process ends now, nothing is lost\n")
    faulthandler.dump_traceback(all_threads=True)
    sys.stderr.flush()
    os._exit(EXIT_CODE)


DONE: set[str] = set()
"""Options of the command line that must not take effect again after a restart. Example: `--overwrite`."""


def restart_process(message: str) -> None:
    """Like `end_process`, but start the same command line again in this process. For jobs that nothing else restarts.

    The options in `DONE` are left out. If a job here was asked to stop, the process ends instead.
    """
    if any(context.stop.is_set() for context in open_contexts()):
        end_process(message)
    sys.stderr.write(f"tagstream: watchdog: {message}; starting again, nothing is lost\n")
    faulthandler.dump_traceback(all_threads=True)
    sys.stderr.flush()
    os.execv(sys.executable, [option for option in sys.orig_argv if option not in DONE])  # noqa: S606  threads that hang end with the old image


WATCHDOG = Watchdog()
deadline = WATCHDOG.deadline
