"""One Python worker of a pool: runs Beam's harness, and ends cleanly.

When the worker is told to end, or its runner has gone, it commits the rows that it has read and leaves its consumer
group. Another worker can then take over at once. The worker must not know which program started it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
import time
from pathlib import Path

from apache_beam.runners.worker.sdk_worker import SdkHarness

from tagstream.pipelines.report.logs import quiet
from tagstream.pipelines.report.prometheus import JobCollector, serve_metrics
from tagstream.transforms.runtime.job_context import open_contexts
from tagstream.transforms.runtime.stop import GRACE
from tagstream.transforms.stages.read_live import FeedPool

log = logging.getLogger(__name__)
PORT_SUFFIX = ".port"


def main(control: str, worker_id: str, ports: str) -> None:
    """Run the worker. `control`: the runner's address. `ports`: folder in which to write the port of the metrics.

    The file is named after this process.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(process)d %(name)s %(levelname)s %(message)s")
    quiet(logging.getLogger("kafka"))
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=_leave, name="leave").start())
    port = serve_metrics(0, JobCollector(open_contexts), address="127.0.0.1")
    Path(ports, f"{os.getpid()}{PORT_SUFFIX}").write_text(str(port))
    try:
        SdkHarness(control, worker_id=worker_id, state_cache_size=0, data_buffer_time_limit_ms=0).run()
    except Exception as error:  # noqa: BLE001  the connection has ended, and the job with it
        log.info("the runner is gone: %s", str(error).partition("\n")[0])
    _leave()


def _leave() -> None:
    """Commit the rows in flight, then end this process."""
    feeds = [context.resource(FeedPool) for context in open_contexts()]
    for context in open_contexts():
        context.stop.request()
    ends = time.monotonic() + GRACE
    while any(pool.busy for pool in feeds) and time.monotonic() < ends:
        time.sleep(0.02)
    for pool in feeds:
        with contextlib.suppress(Exception):
            pool.close()
    os._exit(0)  # without waiting for threads of libraries, which may hang


if __name__ == "__main__":
    main(*sys.argv[1:])
