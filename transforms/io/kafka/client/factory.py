"""Makes the consumer and the producer of the library that a specification names."""

from __future__ import annotations

from typing import Any

from tagstream.transforms.io.kafka.client.cluster import Cluster
from tagstream.transforms.io.kafka.client.contracts import GroupConsumer, Rebalance, TransactionalProducer


def make_group_consumer(
    library: str, cluster: Cluster, topics: tuple[str, ...], rebalance: Rebalance, **ours: Any
) -> GroupConsumer:
    """By `library`, kafka-python or confluent-kafka; `ours` by kafka-python's names. Raises SourceError."""
    if library == "kafka-python":
        from tagstream.transforms.io.kafka.client.python_consumer import PythonConsumer

        return PythonConsumer(cluster, topics, rebalance, **ours)
    from tagstream.transforms.io.kafka.client.rdkafka_consumer import LibrdkafkaConsumer

    return LibrdkafkaConsumer(cluster, topics, rebalance, **ours)


def make_producer(
    library: str, cluster: Cluster, transactional_id: str, compression: str | None
) -> TransactionalProducer:
    """By `library`, kafka-python or confluent-kafka; not started. Raises SinkError if it is not there, or can't be."""
    if library == "kafka-python":
        from tagstream.transforms.io.kafka.client.python_producer import PythonProducer

        return PythonProducer(cluster, transactional_id, compression)
    from tagstream.transforms.io.kafka.client.rdkafka_producer import LibrdkafkaProducer

    return LibrdkafkaProducer(cluster, transactional_id, compression)
