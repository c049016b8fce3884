"""Makes the consumer and the producer of the library that a specification names.

Owns the choice: no other module knows that there is more than one library.
"""

from __future__ import annotations

from typing import Any

from tagstream.transforms.io.kafka.client.cluster import Cluster
from tagstream.transforms.io.kafka.client.contracts import GroupConsumer, Rebalance, TransactionalProducer


def make_group_consumer(
    library: str, cluster: Cluster, topics: tuple[str, ...], rebalance: Rebalance, **ours: Any
) -> GroupConsumer:
    """`library`: kafka-python or confluent-kafka. `ours`: settings by kafka-python's names. Raises SourceError."""
    if library == "kafka-python":
        from tagstream.transforms.io.kafka.client.python_consumer import PythonConsumer

        return PythonConsumer(cluster, topics, rebalance, **ours)
    from tagstream.transforms.io.kafka.client.rdkafka_consumer import LibrdkafkaConsumer

    return LibrdkafkaConsumer(cluster, topics, rebalance, **ours)


def make_producer(
    library: str, cluster: Cluster, transactional_id: str, compression: str | None
) -> TransactionalProducer:
    """`library`: kafka-python or confluent-kafka. Not started yet. Raises SinkError if it is not installed, or can't be
    used with the cluster's settings.
    """
    if library == "kafka-python":
        from tagstream.transforms.io.kafka.client.python_producer import PythonProducer

        return PythonProducer(cluster, transactional_id, compression)
    from tagstream.transforms.io.kafka.client.rdkafka_producer import LibrdkafkaProducer

    return LibrdkafkaProducer(cluster, transactional_id, compression)
