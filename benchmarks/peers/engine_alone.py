"""tagstream's engine without a pipeline. All blocks are submitted at once; nothing is read or written meanwhile.

`seconds`: from the first submit to the last answer. The difference to a pipeline's time is the pipeline's overhead.

    python -m benchmarks.peers.engine_alone MODEL INPUT.parquet BACKEND

BACKEND: as in a specification, JSON.
"""

import json
import sys
import time

import pyarrow as pa
import pyarrow.parquet as pq

from tagstream.schemas.spec import Blocks, InferEntry
from tagstream.transforms.inference.engines import Engines
from tagstream.transforms.runtime.job_context import JobContext


def main(model, source, backend):
    started = time.perf_counter()
    entry = InferEntry.model_validate({"model": model, "backend": json.loads(backend)})
    engine = JobContext().resource(Engines).of(entry)
    loaded = time.perf_counter()
    texts = pq.read_table(source, columns=["text"])["text"].cast(pa.large_string()).combine_chunks()
    begun = time.perf_counter()
    step = Blocks().rows
    futures = [engine.submit(texts.slice(at, step)) for at in range(0, len(texts), step)]
    for future in futures:
        future.result()
    print(json.dumps({"seconds": time.perf_counter() - begun, "load_seconds": loaded - started}))


if __name__ == "__main__":
    main(*sys.argv[1:])
