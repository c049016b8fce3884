"""Shared by tests of whole Kafka jobs: topics, a specification, and a job that runs while the test looks at it."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import threading

from kafka import KafkaProducer
from rich.console import Console

from tagstream.pipelines.jobs.run import run_job
from tagstream.schemas.spec import JobSpec
from tagstream.transforms.runtime.job_context import JobContext
from tagstream.transforms.stages.read_live import FeedPool
from tests.services.kafka_faults import read_all

numbers = itertools.count()


class Topics:
    """Input, output and dead-letter topic of one test, and the specification of its job."""

    def __init__(self, broker, partitions=2, servers=None, client=None):
        self.broker = broker
        self.servers = servers or broker.servers
        self.client = client or {}
        self.name = f"whole-job-{os.getpid()}-{next(numbers)}"
        self.source = broker.create_topic(f"{self.name}-in", partitions)
        self.target = broker.create_topic(f"{self.name}-out", partitions)
        self.dead = broker.create_topic(f"{self.name}-out-dead", partitions)

    def spec(self, source=None, sink=None, backend=None, **job):
        kafka = {"type": "kafka", "servers": self.servers, "topics": self.source, "client": self.client}
        return JobSpec.model_validate(
            {
                "name": self.name,
                "source": kafka | (source or {}),
                "infer": [{"as": "tag", "backend": {"type": "constant"} | (backend or {})}],
                "sink": sink if sink and "path" in sink else {"type": "kafka", "topic": self.target} | (sink or {}),
                "max_dead": 1,  # most tests send bad messages on purpose
                **job,
            }
        )

    def send(self, values, **kwargs):
        producer = KafkaProducer(bootstrap_servers=self.broker.servers, max_request_size=20 << 20)
        for value in values:
            producer.send(self.source, value, **kwargs)
        producer.flush(30)
        producer.close()

    def labelled(self):
        return sum(map(len, read_all(self.broker.servers, self.target).values()))

    def all(self, topic):
        return [record for records in read_all(self.broker.servers, topic).values() for record in records]


@contextlib.contextmanager
def running(spec, console=None, **kwargs):
    """Run the job during the body, then ask it to stop. Gives a dictionary with the job's context and its report."""
    result = {"context": JobContext(spec.name)}

    def run():
        try:
            result["report"] = run_job(
                spec, console or Console(file=io.StringIO()), context=result["context"], **kwargs
            )
        except BaseException as error:
            result["error"] = error

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield result
    finally:
        result["context"].stop.request()
        thread.join(60)
        assert not thread.is_alive(), "the job does not stop"
        if "error" in result:
            raise result["error"]


def feeds_of(job):
    """The feeds of a job that `running` runs."""
    return job["context"].resource(FeedPool).all()


def headers_of(record):
    return dict(record.headers)


def yaml_of(spec):
    """JSON is YAML."""
    return json.dumps(spec.model_dump(mode="json", by_alias=True))
