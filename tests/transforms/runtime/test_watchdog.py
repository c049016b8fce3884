"""A call that hangs ends its process; one that is in time does not."""

from __future__ import annotations

import subprocess
import sys
import threading

from tagstream.transforms.runtime.watchdog import EXIT_CODE, Watchdog

HANG = """
import threading
from tagstream.transforms.runtime.watchdog import deadline
with deadline(0.3, "the call"):
    threading.Event().wait()
"""
AGAIN = """
import os, threading
from tagstream.transforms.runtime.watchdog import WATCHDOG, restart_process
if os.environ.get("SECOND"):
    print("again")
    os._exit(0)
os.environ["SECOND"] = "1"
WATCHDOG.end = restart_process
with WATCHDOG.deadline(0.3, "the call"):
    threading.Event().wait()
"""


ONCE = """
import os, sys, threading
from tagstream.transforms.runtime.job_context import JobContext
from tagstream.transforms.runtime.watchdog import DONE, WATCHDOG, restart_process
if os.environ.get("SECOND"):
    print(sys.argv[1:])
    os._exit(0)
os.environ["SECOND"] = "1"
WATCHDOG.end = restart_process
DONE.add("--overwrite")
if "--stopped" in sys.argv:
    context = JobContext()
    context.stop.request()
with WATCHDOG.deadline(0.3, "the call"):
    threading.Event().wait()
"""


def test_a_restart_does_not_overwrite_again_and_a_stopped_run_ends():
    command = [sys.executable, "-c", ONCE, "job.yaml", "--overwrite"]
    again = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (again.returncode, again.stdout.strip()) == (0, "['job.yaml']")
    stopped = subprocess.run([*command, "--stopped"], capture_output=True, text=True, timeout=60)
    assert (stopped.returncode, stopped.stdout) == (EXIT_CODE, "")


def test_a_hang_ends_the_process_with_a_reason_and_stacks():
    done = subprocess.run([sys.executable, "-c", HANG], capture_output=True, text=True, timeout=60)
    assert done.returncode == EXIT_CODE
    assert "the call took longer than 0.3 s" in done.stderr
    assert "most recent call first" in done.stderr


def test_a_run_that_nobody_restarts_begins_again():
    done = subprocess.run([sys.executable, "-c", AGAIN], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.strip()) == (0, "again")


def test_what_is_in_time_goes_on():
    ended = threading.Event()
    watchdog = Watchdog(lambda _: ended.set())
    for _ in range(100):
        with watchdog.deadline(60, "quick"):
            pass
    assert not watchdog._deadlines
    assert not ended.is_set()
    with watchdog.deadline(0.1, "slow"):
        assert ended.wait(30)
