"""The Kafka client's promises, against a real broker: errors, spans, doubt, fencing, rebalances."""

from __future__ import annotations

import contextlib
import itertools
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from kafka import KafkaProducer, errors
from kafka.structs import ConsumerGroupMetadata, OffsetAndMetadata

from tagstream.schemas.errors import ChainMovedError, LedgerError, SinkError, SourceError
from tagstream.schemas.kafka_spec import LIBRARIES
from tagstream.transforms.io.kafka.client.chain import Append, Chain, PartitionLostError, commit_together, forget_ends
from tagstream.transforms.io.kafka.client.cluster import RECORDS, Cluster, Partition
from tagstream.transforms.io.kafka.client.contracts import Record, RecordTooLargeError
from tagstream.transforms.io.kafka.client.factory import make_producer
from tagstream.transforms.io.kafka.client.member import Member
from tagstream.transforms.io.kafka.client.rdkafka import group_bytes, group_of_bytes
from tests.services.java import wait_until
from tests.services.kafka_copy import Chains
from tests.services.kafka_faults import differences, read_all
from tests.services.proxy import FaultyProxy

pytestmark = pytest.mark.xdist_group("kafka")
numbers = itertools.count()
REFUSED = "refuses the credentials.*check the sasl_|check security_protocol, sasl_mechanism, user and password"
QUICK = {"request_timeout_ms": 1500, "delivery_timeout_ms": 3000, "max_block_ms": 5000}


def name(stem):
    return f"{stem}-{os.getpid()}-{next(numbers)}"


def fill(broker, topic, values, **kwargs):
    producer = KafkaProducer(bootstrap_servers=broker.servers)
    for value in values:
        producer.send(topic, value, **kwargs)
    producer.close(10)


def drain(member, chains, target, until):
    while not until():
        polled = member.take(0.2)
        if polled is not None:
            chains.copy(member, target, polled)


def take(member):
    """The next span, settled at once."""
    polled = wait_until(lambda: member.take(0.5, rows=100), 30, "the next span")
    member.settle(polled.partition, polled.stop)
    return polled


@pytest.mark.parametrize("name", ["ssl_cafile", "ssl_certfile", "ssl_keyfile", "ssl_crlfile"])
def test_a_missing_file_of_tls_is_named(name):
    """Before anything is asked of a broker."""
    with pytest.raises(SourceError, match=rf"client\.{name}: there is no file '/nowhere/ca\.pem'"):
        Cluster("localhost:1", {"security_protocol": "SSL", name: "/nowhere/ca.pem"}).consumer()


@pytest.fixture
def topics(kafka):
    return kafka.create_topic(name("in"), 2), kafka.create_topic(name("out"), 2)


@pytest.fixture(params=LIBRARIES)
def library(request):
    return request.param


@contextlib.contextmanager
def job(servers, group, source, client=(), library="kafka-python", **kwargs):
    cluster = Cluster(servers, dict(client))
    chains = Chains(cluster, group, library)
    member = Member(cluster, group, (source,), chains, library=library, **kwargs)
    try:
        yield member, chains
    finally:
        member.close()


# ---- errors


def test_an_unknown_topic_is_named(kafka):
    with pytest.raises(SourceError, match=r"can't read no-such-topic: the topic does not exist"):
        Cluster(kafka.servers).partitions(("no-such-topic",))


def test_an_unreachable_broker_is_named():
    with pytest.raises(SourceError, match=r"no Kafka broker .* at 127.0.0.1:1 .*ECONNREFUSED"):
        Cluster("127.0.0.1:1", {"bootstrap_timeout_ms": 1500}).partitions(("any",))


def test_a_protected_or_unknown_property_is_refused():
    with pytest.raises(SourceError, match="'acks' can't be set"):
        Cluster("127.0.0.1:1", {"acks": 1}).partitions(("any",))
    with pytest.raises(SourceError, match="no client property 'linger'"):
        Cluster("127.0.0.1:1", {"linger": 1}).partitions(("any",))


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256"])
def test_tls_with_sasl_reads_and_writes(secure_kafka, mechanism, library):
    source, target = secure_kafka.create_topic(name("in")), secure_kafka.create_topic(name("out"))
    fill(secure_kafka, source, [b"one", b"two"])
    client = secure_kafka.secure_client(mechanism=mechanism)
    with job(secure_kafka.secure_servers, name("job"), source, client, library) as (member, chains):
        drain(member, chains, target, lambda: chains.commits)
    assert [r.value for r in read_all(secure_kafka.servers, target)[0]] == [b"one", b"two"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sasl_plain_password": "wrong"}, REFUSED),
        (
            {"sasl_mechanism": "PLAIN", "sasl_plain_password": "wrong"},
            REFUSED,
        ),
        ({"ssl_cafile": None}, "the certificate .* is not accepted.*check the ssl_"),
        ({"security_protocol": "SASL_PLAINTEXT"}, "check security_protocol"),
    ],
)
def test_a_refused_login_says_what_to_check(secure_kafka, change, message):
    client = secure_kafka.secure_client() | {"bootstrap_timeout_ms": 5000} | change
    with pytest.raises(SourceError, match=message):
        Cluster(secure_kafka.secure_servers, client).partitions(("any",))


def test_a_missing_permission_says_so(secure_kafka, library):
    topic = secure_kafka.create_topic(name("in"))
    stranger = Cluster(secure_kafka.secure_servers, secure_kafka.secure_client("stranger"))
    with pytest.raises(SourceError, match="no permission for this topic"):
        stranger.partitions((topic,))
    where = Partition(topic, 0)
    chain = Chain(stranger, name("job"), where, metadata=lambda: "group", committed=lambda: None, library=library)
    with pytest.raises(SinkError, match="no permission for this job's transactional ids"):
        chain.open()


# ---- records and spans


def test_records_keep_key_value_headers_timestamp_and_offset(kafka, library):
    topic = kafka.create_topic(name("in"))
    producer = KafkaProducer(bootstrap_servers=kafka.servers)
    producer.send(topic, b"\xff\x00", key=None, headers=[("a", b"1"), ("a", b"")], timestamp_ms=1234)
    producer.send(topic, None, key=b"tombstone", timestamp_ms=1235)
    producer.close()
    with job(kafka.servers, name("job"), topic, library=library) as (member, _):
        polled = take(member)
    assert polled.records.schema == RECORDS
    rows = polled.records.to_pylist()
    assert [r["value"] for r in rows] == [b"\xff\x00", None]
    assert [r["key"] for r in rows] == [None, b"tombstone"]
    assert rows[0]["headers"] == [{"key": "a", "value": b"1"}, {"key": "a", "value": b""}]
    assert polled.records.column("timestamp").cast("int64").to_pylist() == [1234, 1235]
    assert (polled.start, polled.stop) == (0, 2)


def test_spans_cover_markers_and_aborted_records_without_showing_them(kafka, library):
    topic = kafka.create_topic(name("in"))
    producer = KafkaProducer(bootstrap_servers=kafka.servers, transactional_id=name("t"))
    producer.init_transactions()
    for value, end in (("a", "commit"), ("lost", "abort"), ("b", "commit"), ("lost", "abort")):
        producer.begin_transaction()
        producer.send(topic, value.encode())
        producer.flush()
        getattr(producer, f"{end}_transaction")()
    producer.close()
    seen, at = [], 0
    with job(kafka.servers, name("job"), topic, library=library) as (member, _):
        while at < 8:
            polled = take(member)
            assert polled.start == at
            seen += polled.records.column("value").to_pylist()
            at = polled.stop
    assert (seen, at) == ([b"a", b"b"], 8)


def test_the_queue_is_bounded_and_everything_still_arrives_in_order(kafka, library):
    topic = kafka.create_topic(name("in"))
    values = [b"%06d" % i + b"x" * 1000 for i in range(3000)]
    fill(kafka, topic, values)
    cluster = Cluster(kafka.servers)
    chains = Chains(cluster, name("job"))
    member = Member(cluster, chains.group, (topic,), chains, queue_bytes=200_000, poll_rows=50, library=library)
    try:
        wait_until(lambda: member._paused, 20, "the queue is full")
        assert member._queues.nbytes < 400_000
        seen = []
        while len(seen) < len(values):
            seen += take(member).records.column("value").to_pylist()
    finally:
        member.close()
    assert seen == values


def test_partitions_added_later_are_read(kafka, library, monkeypatch):
    """Also when polls end inside the rebalance, as short ones do: each lost all partitions by chance."""
    monkeypatch.setattr("tagstream.transforms.io.kafka.client.member.POLL_MS", 2)
    from kafka.admin import NewPartitions

    topic = kafka.create_topic(name("in"))
    client, last = {"metadata_max_age_ms": 200}, 20 if library == "kafka-python" else 3
    with job(kafka.servers, name("job"), topic, client, library) as (member, _), kafka.admin() as admin:
        for number in range(1, last + 1):
            wait_until(lambda n=number: len(member.assignment) == n, 20, f"partition {number}")
            admin.create_partitions({topic: NewPartitions(total_count=number + 1)})
        wait_until(lambda: len(member.assignment) == last + 1, 20, "the last partition")
        fill(kafka, topic, [b"new"], partition=last)
        assert take(member).partition == Partition(topic, last)


# ---- the chain


def chain_of(kafka, topic, group, library="kafka-python", note="", client=(), servers=None, number=0):
    """A chain outside of a group, as a bulk job has it."""
    cluster = Cluster(servers or kafka.servers, dict(client))
    consumer = cluster.consumer(group_id=group)
    at = lambda: consumer.committed(_tp(topic, number), metadata=True)  # noqa: E731
    return Chain(
        cluster,
        f"{group}/{topic}/{number}",
        Partition(topic, number),
        metadata=lambda: ConsumerGroupMetadata(group),
        committed=lambda: (at().offset, at().metadata) if at() else None,
        note=note,
        library=library,
    )


def _tp(topic, number=0):
    from tagstream.transforms.io.kafka.client.cluster import topic_partition

    return topic_partition(Partition(topic, number))


def record(topic, value):
    return Record(topic, 0, None, value, [], None)


def test_an_append_moves_the_end_and_a_second_one_from_the_same_place_is_refused(kafka, topics, library):
    source, target = topics
    chain = chain_of(kafka, source, name("job"), library)
    assert chain.open() is None
    chain.commit([record(target, b"a")], 0, 5)
    with pytest.raises(ChainMovedError) as moved:
        chain.commit([record(target, b"twice")], 0, 7)
    assert moved.value.position == 5
    chain.commit([record(target, b"b")], 5, 6)
    assert [r.value for r in read_all(kafka.servers, target)[0]] == [b"a", b"b"]


def test_a_zombie_loses_and_the_new_owner_goes_on(kafka, topics, library):
    source, target = topics
    group = name("job")
    old, new = (chain_of(kafka, source, group, library) for _ in range(2))
    old.open()
    old.commit([record(target, b"a")], 0, 1)
    assert new.open() == 1
    new.commit([record(target, b"b")], 1, 2)
    with pytest.raises(ChainMovedError):
        old.commit([record(target, b"zombie")], 1, 2)
    assert old.doubts == 1
    new.commit([record(target, b"c")], 2, 3)
    with pytest.raises(ChainMovedError):
        old.commit([record(target, b"zombie")], 2, 4)
    assert [r.value for r in read_all(kafka.servers, target)[0]] == [b"a", b"b", b"c"]


def test_what_an_owner_left_open_is_aborted_by_the_next(kafka, topics, library):
    source, target = topics
    group = name("job")
    old = chain_of(kafka, source, group, library)
    old.open()
    client = old._producer._producer
    client.begin_transaction()
    getattr(client, "produce" if library == "confluent-kafka" else "send")(target, b"never seen", partition=0)
    client.flush()
    old.close()
    new = chain_of(kafka, source, group, library)
    assert new.open() is None
    new.commit([record(target, b"a")], 0, 1)
    assert [r.value for r in read_all(kafka.servers, target)[0]] == [b"a"]


def test_a_closed_chain_takes_nothing(kafka, topics, library):
    source, target = topics
    chain = chain_of(kafka, source, name("job"), library)
    chain.open()
    chain.close()
    with pytest.raises(PartitionLostError):
        chain.commit([record(target, b"late")], 0, 1)


def test_another_jobs_group_is_refused(kafka, topics, library):
    source, target = topics
    group = name("job")
    mine = chain_of(kafka, source, group, library, note="model-a")
    mine.open()
    mine.commit([record(target, b"a")], 0, 1)
    with pytest.raises(LedgerError, match="another job: its fingerprint is model-a, this one is model-b"):
        chain_of(kafka, source, group, library, note="model-b").open()


def reset(kafka, topic, group, offset, note=""):
    with kafka.admin() as admin:
        admin.alter_group_offsets(group, {_tp(topic): OffsetAndMetadata(offset, note, -1)})


def forgotten(kafka, topics, library):
    """A group whose committed offset is 60 where 100 was acknowledged."""
    source, target = topics
    group = name("job")
    chain = chain_of(kafka, source, group, library)
    chain.open()
    chain.commit([record(target, b"a")], 0, 100)
    chain.close()
    reset(kafka, source, group, 60)
    return group


def test_an_offset_behind_an_acknowledged_one_is_not_taken(kafka, topics, library, monkeypatch):
    """As a broker gives after it has forgotten commits: what lies between would be labelled twice."""
    source, _ = topics
    group = forgotten(kafka, topics, library)
    monkeypatch.setattr("tagstream.transforms.io.kafka.client.chain.FORGETFUL_SECONDS", 1.5)
    with pytest.raises(LedgerError, match="acknowledged position 100 to this process, and now says 60"):
        chain_of(kafka, source, group, library).open()
    monkeypatch.setattr("tagstream.transforms.io.kafka.client.chain.FORGETFUL_SECONDS", 30)
    timer = threading.Timer(1.5, reset, (kafka, source, group, 100))
    timer.start()
    assert chain_of(kafka, source, group, library).open() == 100
    timer.join()
    forget_ends(Cluster(kafka.servers), f"{group}/")
    reset(kafka, source, group, 60)
    assert chain_of(kafka, source, group, library).open() == 60


@pytest.mark.parametrize("why", ["lost", "stopped"])
def test_a_partition_lost_while_its_position_is_in_doubt_is_lost(kafka, topics, library, why):
    """To another member, or because the job is to end: nobody waits for the broker then."""
    group = forgotten(kafka, topics, library)
    again = chain_of(kafka, topics[0], group, library)
    if why == "lost":
        again._owned = lambda: False
    else:
        again._stop.request()
        again._stop._deadline = 0.0
    with pytest.raises(PartitionLostError):
        again.open()


@pytest.mark.parametrize("fault", ["drop", "swallow", "cut"])
def test_a_producer_whose_start_gets_no_answer_starts_again(kafka, topics, library, fault):
    source, target = topics
    with FaultyProxy(kafka.proxy_port, kafka.proxied_port) as proxy:
        chain = chain_of(kafka, source, name("job"), library, client=QUICK.items(), servers=kafka.proxied_servers)
        proxy.fault("InitProducerId", fault)
        assert chain.open() is None
        assert proxy.dropped[fault] == 1
        chain.commit([record(target, b"a")], 0, 1)
    assert [r.value for r in read_all(kafka.servers, target)[0]] == [b"a"]


def test_a_record_that_the_topic_does_not_take_is_named_and_nothing_is_committed(kafka, topics, library):
    source, _ = topics
    small = kafka.create_topic(name("small"), **{"max.message.bytes": "10000"})
    chain = chain_of(kafka, source, name("job"), library)
    chain.open()
    with pytest.raises(RecordTooLargeError) as refused:
        chain.commit([record(small, b"a"), record(small, b"x" * 50_000), record(small, b"b")], 0, 3)
    assert refused.value.index == 1
    chain.commit([record(small, b"a"), record(small, b"b")], 0, 3)
    assert [r.value for r in read_all(kafka.servers, small)[0]] == [b"a", b"b"]


def test_a_record_that_is_refused_while_others_are_still_sent_is_named(kafka, topics, library):
    """The client then fails the next `send`, before anybody has looked at the futures."""
    source, target = topics
    small = kafka.create_topic(name("small"), **{"max.message.bytes": "10000"})
    chain = chain_of(kafka, source, name("job"), library)
    chain.open()
    with pytest.raises(RecordTooLargeError) as refused:
        chain.commit([record(small, b"x" * 50_000), *(record(target, b"%d" % i) for i in range(5000))], 0, 5001)
    assert refused.value.index == 0
    sent_one_by_one = chain.doubts
    assert sent_one_by_one == (library == "confluent-kafka")
    with pytest.raises(RecordTooLargeError) as refused:
        chain.commit([record(small, b"a"), record(target, b"x" * (65 << 20))], 0, 2)
    assert (refused.value.index, chain.doubts) == (1, sent_one_by_one)
    chain.commit([record(small, b"a")], 0, 1)
    assert [r.value for r in read_all(kafka.servers, small)[0]] == [b"a"]


def test_both_libraries_write_the_same(kafka):
    """Partition by the hash of the key, key, value, headers and timestamp, null or not."""
    source, group = kafka.create_topic(name("in")), name("job")
    found = []
    for library in LIBRARIES:
        target = kafka.create_topic(name("out"), 7)
        numbered = [b"%d" % i for i in range(50)]
        records = [Record(target, None, n, n, [("n", n), ("", b"")], 1 + int(n)) for n in numbered]
        records += [Record(target, 3, None, b"", [], 1), Record(target, 2, b"", None, [], 1)]
        chain = chain_of(kafka, source, group, library)
        at = chain.open() or 0
        chain.commit(records, at, at + 1)
        chain.close()
        messages = read_all(kafka.servers, target)
        found.append({p: [(r.key, r.value, r.headers, r.timestamp) for r in rs] for p, rs in messages.items()})
    assert found[0] == found[1]
    assert sum(map(len, found[0].values())) == 52
    assert len(found[0]) == 7


def test_a_client_that_cannot_be_is_refused_at_once(kafka, monkeypatch):
    with pytest.raises(SinkError, match="'socks5_proxy' is not for producer: confluent-kafka"):
        make_producer("confluent-kafka", Cluster("any", {"socks5_proxy": "x"}), "id", None)
    with (
        pytest.raises(SourceError, match="'selector' is not for consumer: confluent-kafka"),
        job("any", "g", "t", {"selector": "x"}, "confluent-kafka"),
    ):
        pass
    monkeypatch.setitem(sys.modules, "confluent_kafka", None)
    with pytest.raises(SinkError, match=r"not installed: pip install 'tagstream\[confluent\]'"):
        make_producer("confluent-kafka", Cluster("any"), "id", None)
    with pytest.raises(SourceError, match="not installed"), job("any", "g", "t", library="confluent-kafka"):
        pass


@pytest.mark.parametrize("instance", [None, "a", "0"])
def test_the_groups_identity_is_read_and_written_as_librdkafka_does(instance):
    import confluent_kafka

    static = {} if instance is None else {"group.instance.id": instance}
    consumer = confluent_kafka.Consumer({"bootstrap.servers": "127.0.0.1:1", "group.id": "g", "log_level": 0} | static)
    written = consumer.consumer_group_metadata()
    consumer.close()
    assert group_of_bytes(written) == ConsumerGroupMetadata("g", -1, "", instance)
    for group in (ConsumerGroupMetadata("g", -1, "", instance), ConsumerGroupMetadata("é x", 7, "m-1", instance)):
        assert group_of_bytes(group_bytes(group)) == group
    assert group_bytes(group_of_bytes(written)) == written


def test_a_committed_offset_is_waited_for_while_a_transaction_on_it_is_undecided(kafka, topics, library):
    source, target = topics
    with job(kafka.servers, name("job"), source, library=library) as (member, chains):
        where = Partition(source, 0)
        wait_until(lambda: where in member.assignment, 30, "its partition")
        assert member.committed(where) is None
        chains.chains[where].commit([record(target, b"a")], 0, 1)
        producer = KafkaProducer(bootstrap_servers=kafka.servers, transactional_id=name("t"))
        producer.init_transactions()
        producer.begin_transaction()
        producer.send_offsets_to_transaction({_tp(source): OffsetAndMetadata(7, "seven", -1)}, member.metadata())
        with ThreadPoolExecutor() as pool:
            waiting = pool.submit(member.committed, where)
            with pytest.raises(TimeoutError):
                waiting.result(1.5)
            producer.commit_transaction()
            assert waiting.result(30) == (7, "seven")
        producer.close()


REQUESTS = ["Produce", "AddPartitionsToTxn", "AddOffsetsToTxn", "TxnOffsetCommit", "EndTxn"]


@pytest.mark.crash
@pytest.mark.parametrize("fault", ["drop", "swallow", "cut"])
@pytest.mark.parametrize(("api", "partitions"), [*((api, 2) for api in REQUESTS), ("EndTxn", 1)])
def test_a_lost_request_or_reply_never_loses_or_doubles(kafka, topics, api, fault, library, partitions, long):
    """Rule 8: whatever the client makes of it, success or doubt, the output is exact; also of two together."""
    if not long and fault != "swallow" and api != "EndTxn":  # the reply of a request that the broker has obeyed
        pytest.skip("only with --crash-long")
    source, target = topics
    for number in range(partitions):
        fill(kafka, source, [b"%d" % i for i in range(40)], partition=number)
    with FaultyProxy(kafka.proxy_port, kafka.proxied_port) as proxy:
        with job(kafka.proxied_servers, name("job"), source, QUICK, library, poll_rows=10) as (member, chains):
            for step in range(4):
                blocks = []
                while len(blocks) < partitions:
                    without = [polled.partition for polled in blocks]
                    blocks.append(
                        wait_until(lambda w=without: member.take(0.5, rows=10, without=w), 30, "records arrive")
                    )
                if step == 1:
                    proxy.fault(api, fault)
                chains.copy(member, target, *blocks)
            drain(
                member,
                chains,
                target,
                lambda: not sum(member.lag().values()) and not member._queues.in_flight(member.assignment),
            )
        assert sum(proxy.dropped.values()) >= 1
    assert (chains.together >= 2) == (partitions == 2)
    count = 40 * partitions
    found = differences(kafka.servers, source, target)
    assert found == {"in": count, "out": count, "lost": 0, "doubled": 0, "foreign": 0, "disordered": 0}


def test_a_zombie_cannot_append_together_to_what_another_member_has_now(kafka, topics, library):
    """Its own transactional id is good, the generation is not: each partition is then refused or taken alone."""
    source, target = topics
    fill(kafka, source, [b"a"], partition=0)
    fill(kafka, source, [b"b"], partition=1)
    with job(kafka.servers, name("job"), source, library=library) as (member, chains):
        blocks = [wait_until(lambda: member.take(0.5), 30, "records arrive")]
        taken = blocks[0].partition
        blocks.append(wait_until(lambda: member.take(0.5, without=[taken]), 30, "records arrive"))
        carrier, other = (chains.chains[polled.partition] for polled in blocks)
        old = member.metadata()
        stale = old._replace(generation_id=old.generation_id - 1)
        carrier._metadata = lambda: stale
        zombie = [record(target, b"zombie")]
        appends = [Append(c, zombie, p.start, p.stop) for c, p in zip((carrier, other), blocks, strict=True)]
        assert not commit_together(appends)
        carrier._metadata = member.metadata
        chains.copy(member, target, *blocks)
        assert chains.together == 0  # both were in doubt: each has asked the broker first
    found = differences(kafka.servers, source, target)
    assert found == {"in": 2, "out": 2, "lost": 0, "doubled": 0, "foreign": 0, "disordered": 0}


def test_a_member_without_a_generation_commits_nothing(kafka, topics, library, monkeypatch):
    """As after its session: brokers would take such a commit from anybody."""
    source, target = topics
    fill(kafka, source, [b"a"], partition=0)
    with job(kafka.servers, name("job"), source, library=library) as (member, chains):
        polled = wait_until(lambda: member.take(0.5), 30, "records arrive")
        nobody = member.metadata()._replace(generation_id=-1, member_id="")
        with monkeypatch.context() as lost:
            lost.setattr(member._consumer, "metadata", lambda: nobody)
            chains.copy(member, target, polled)
        assert read_all(kafka.servers, target).get(0, []) == []
        chains.copy(member, target, polled)
    assert [r.value for r in read_all(kafka.servers, target)[0]] == [b"a"]


def test_partitions_that_shared_a_transaction_go_to_two_others(kafka, topics, library):
    """Who is given the first one aborts what a dead member left open, who is given the other waits for that."""
    source, target = topics
    group = name("job")
    old = [chain_of(kafka, source, group, library, number=number) for number in range(2)]
    for chain in old:
        chain.open()

    def dies(*_):
        old[0]._owned = lambda: False  # or it would abort the transaction itself
        raise OSError("dead")

    old[0]._producer._producer = WithoutCommit(old[0]._producer._producer, dies)
    assert not commit_together([Append(chain, [record(target, b"never seen")], 0, 5) for chain in old])
    first, second = (chain_of(kafka, source, group, library, number=number) for number in range(2))
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(second.open)
        with pytest.raises(TimeoutError):
            waiting.result(1.5)
        assert first.open() is None
        assert waiting.result(30) is None
    assert commit_together([Append(chain, [record(target, b"a")], 0, 5) for chain in (first, second)])
    assert [r.value for r in read_all(kafka.servers, target)[0]] == [b"a", b"a"]
    assert chain_of(kafka, source, group, library).open() == 5


class WithoutCommit:
    """A producer of either library that dies before its commit."""

    def __init__(self, producer, dies):
        self.producer, self.commit_transaction = producer, dies

    def __getattr__(self, name):
        return getattr(self.producer, name)


# ---- rebalances


def test_members_share_the_partitions_and_hand_over_without_loss_or_repetition(kafka, library):
    """Also members of both libraries."""
    source, target = kafka.create_topic(name("in"), 4), kafka.create_topic(name("out"), 4)
    group = name("job")
    stop = threading.Event()
    producer = KafkaProducer(bootstrap_servers=kafka.servers)

    def send():
        for i in itertools.count():
            if stop.wait(0.002):
                break
            producer.send(source, b"%d" % i, partition=i % 4)
        producer.close(10)

    sender = threading.Thread(target=send)
    sender.start()
    ending = threading.Event()
    with job(kafka.servers, group, source, library=library) as (first, chains):
        worker = threading.Thread(target=drain, args=(first, chains, target, ending.is_set))
        worker.start()
        wait_until(lambda: len(first.assignment) == 4, 20, "one member has all")
        for another in LIBRARIES:
            with job(kafka.servers, group, source, library=another) as (second, others):
                wait_until(lambda m=second: len(m.assignment) == 2 == len(first.assignment), 30, "two members share")
                done = others.commits
                drain(second, others, target, lambda o=others, d=done: o.commits > d + 20)
                drain(second, others, target, lambda m=second: not m._queues.in_flight(m.assignment))
            wait_until(lambda: len(first.assignment) == 4, 30, "one member has all again")
        stop.set()
        sender.join()
        copied = lambda: (found := differences(kafka.servers, source, target))["out"] >= found["in"]  # noqa: E731
        wait_until(copied, 30, "all is copied", 0.5)  # lag says nothing yet of a partition that has just come back
        wait_until(lambda: not sum(first.lag().values()), 30, "all is read")
        wait_until(lambda: not first._queues.in_flight(first.assignment), 30, "all is committed")
        ending.set()
        worker.join()
    found = differences(kafka.servers, source, target)
    assert found["in"] == found["out"] > 100
    assert not any(found[k] for k in ("lost", "doubled", "foreign", "disordered"))


def test_closing_ends_a_rebalance_that_waits_for_work_in_flight(kafka, library):
    """Who closes a member will settle nothing any more: the group is not to wait for its patience."""
    source = kafka.create_topic(name("in"), 2)
    fill(kafka, source, [b"%d" % i for i in range(10)])
    group = name("job")
    with job(kafka.servers, group, source, library=library, patience=600) as (first, _):
        wait_until(lambda: first.take(0.5), 30, "records, never settled")
        with job(kafka.servers, group, source) as (second, _):
            wait_until(lambda: first.leaving, 30, "a rebalance that waits for the first")
            first.close(20)
            wait_until(lambda: len(second.assignment) == 2, 30, "the second has all")


def test_an_error_while_partitions_are_taken_over_ends_the_member(kafka, library):
    """Also one that may be tried again: whoever runs the member starts another. Its partitions are not left unread."""
    source = kafka.create_topic(name("in"))
    cluster = Cluster(kafka.servers)
    chains = Chains(cluster, name("job"))
    chains.assigned = lambda *_: (_ for _ in ()).throw(errors.KafkaTimeoutError("no leader"))
    member = Member(cluster, chains.group, (source,), chains, library=library)
    try:
        with pytest.raises(SourceError, match=r"does not answer in time .*no leader") as raised:
            wait_until(lambda: member.take(0.5), 30, "an error")
        assert raised.value.transient
    finally:
        member.close()


def test_messages_that_were_deleted_before_they_were_read_are_told_of(kafka, library):
    source = kafka.create_topic(name("in"))
    fill(kafka, source, [b"%d" % i for i in range(10)])
    with kafka.admin() as admin:
        admin.delete_records({_tp(source): 5})
    message = r"deleted messages before they were read.*raise the topic's retention"
    with (
        job(kafka.servers, name("job"), source, library=library) as (member, _),
        pytest.raises(SourceError, match=message),
    ):
        wait_until(lambda: member.take(0.5), 30, "an error")


def test_a_static_member_whose_name_another_takes_is_told_so(kafka, library):
    """It ends: the partitions are the other's, and no chain is taken back from it."""
    source = kafka.create_topic(name("in"))
    group = name("job")
    with job(kafka.servers, group, source, library=library, instance_id="a") as (first, _):
        wait_until(lambda: first.assignment, 30, "its partition")
        with job(kafka.servers, group, source, library=library, instance_id="a") as (second, _):
            with pytest.raises(SourceError, match=r"another process has come under the same name.*source\.instance_id"):
                wait_until(lambda: first.take(0.5), 40, "an error")
            wait_until(lambda: second.assignment, 30, "its partition")
