"""A real Apache Kafka broker, one KRaft process, for tests and benchmarks.

PLAINTEXT is the usual listener. PROXIED advertises a port on which a proxy between client and broker can listen
(`tests.services.proxy`). With `secure=True` ACLs are on and there are three more listeners: SECURE has TLS with a
certificate of our own authority and SASL users, EXPIRED has TLS with a certificate that expired last week, and OAUTH
takes unsigned tokens.
"""

from __future__ import annotations

import base64
import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import uuid
from pathlib import Path

import pytest

from tagstream.transforms.io.kafka.client.python_private import finish_joining
from tests.services.certificates import Authority
from tests.services.java import ROOT, free_ports, jars, java, tail, wait_until

USERS = {"admin": "admin-secret", "tagger": "tagger-secret", "stranger": "stranger-secret"}
LOG4J = """
rootLogger.level = INFO
rootLogger.appenderRef.out.ref = out
appender.out.type = Console
appender.out.name = out
appender.out.layout.type = PatternLayout
appender.out.layout.pattern = %d %p %c{1} %m%n
"""


class KafkaBroker:
    """One broker with its own data folder and ports, which survive `restart`.

    `lasting`: see `java`. `more`: properties, with _ for each dot.
    """

    def __init__(
        self, folder: Path | None = None, *, secure: bool = False, lasting: bool = False, **more: str | int
    ) -> None:
        self.libs, self.lasting = jars("kafka"), lasting
        self.folder = Path(folder or tempfile.mkdtemp(prefix="kafka-"))
        self.log = self.folder / "server.log"
        self.port, self._controller, self.proxied_port, self.proxy_port = free_ports(4)
        self.secure_port, self.expired_port, self.oauth_port = free_ports(3)
        self.servers = f"127.0.0.1:{self.port}"
        self.proxied_servers = f"127.0.0.1:{self.proxy_port}"
        self.secure_servers = f"localhost:{self.secure_port}"
        self.expired_servers = f"localhost:{self.expired_port}"
        self.oauth_servers = f"127.0.0.1:{self.oauth_port}"
        self.secure, self.more = secure, {name.replace("_", "."): value for name, value in more.items()}
        self.authority = Authority(self.folder / "tls") if secure else None
        self.process: subprocess.Popen | None = None

    def start(self, deadline: float = 90.0) -> KafkaBroker:
        """Return once the broker answers. If it does not in time, raise AssertionError with the end of its log."""
        properties = self.folder / "server.properties"
        if not properties.exists():
            properties.write_text("\n".join(f"{k}={v}" for k, v in self._properties().items()))
            (self.folder / "log4j2.properties").write_text(LOG4J)
            scram = [f"SCRAM-SHA-256=[name={user},password={word}]" for user, word in USERS.items()]
            identity = (
                b"k" + uuid.uuid4().bytes[1:]
            )  # begins with k, so its Base64 does not begin with a dash like an option
            cluster = base64.urlsafe_b64encode(identity).decode().rstrip("=")
            command = ["kafka.tools.StorageTool", "format", "--standalone", "-t", cluster, "-c", str(properties)]
            self.tool(*command, *(x for s in scram if self.secure for x in ("--add-scram", s)))
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self._java("-Xmx512m", "kafka.Kafka", str(properties)), stdout=log, stderr=log, start_new_session=True
            )
        try:
            wait_until(self._answers, deadline, "the broker answers")
        except AssertionError as error:
            self.kill()
            raise AssertionError(f"{error}; the end of {self.log}:\n{tail(self.log)}") from None
        return self

    def stop(self) -> None:
        """Stop the broker with SIGTERM, and with SIGKILL after 30 s."""
        if self.process:
            self.process.terminate()
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.kill()
            self.process = None

    def kill(self) -> None:
        """Send SIGKILL. Data that is not yet on disk stays in the page cache, because only the process dies."""
        if self.process:
            self.process.kill()
            self.process.wait()
            self.process = None

    def restart(self) -> None:
        """Start again on the same data folder and ports, after a stop, after a kill, or while the broker still runs."""
        self.stop()
        self.start()

    def freeze(self) -> None:
        """Send SIGSTOP. Connections stay open, but the broker does not answer."""
        os.kill(self.process.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        os.kill(self.process.pid, signal.SIGCONT)

    def admin(self):
        """A context manager that gives kafka-python's admin client for this broker."""
        from kafka.admin import KafkaAdminClient

        return contextlib.closing(KafkaAdminClient(bootstrap_servers=self.servers))

    def create_topic(self, name: str, partitions: int = 1, **config: str) -> str:
        """Create the topic, wait until it has leaders, and return its name."""
        from kafka.admin import NewTopic

        with self.admin() as admin:
            topic = NewTopic(name=name, num_partitions=partitions, replication_factor=1, topic_configs=config)
            admin.create_topics([topic])
            wait_until(
                lambda: any(len(t["partitions"]) == partitions for t in admin.describe_topics([name])),
                30,
                f"topic {name} has {partitions} partitions",
            )
        return name

    def tool(self, *arguments: str, **kwargs) -> str:
        """Run one of the command-line classes in the jars. Returns its standard output."""
        done = subprocess.run(
            self._java("-Xmx256m", *arguments), capture_output=True, text=True, check=False, timeout=120, **kwargs
        )
        assert done.returncode == 0, f"{arguments}: {done.stdout[-1000:]}{done.stderr[-3000:]}"
        return done.stdout

    def secure_client(self, user: str = "tagger", mechanism: str = "SCRAM-SHA-256") -> dict:
        """Client settings for the SECURE listener."""
        return {
            "security_protocol": "SASL_SSL",
            "ssl_cafile": str(self.authority.certificate),
            "sasl_mechanism": mechanism,
            "sasl_plain_username": user,
            "sasl_plain_password": USERS[user],
        }

    def close(self) -> None:
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _java(self, *arguments: str) -> list[str]:
        log = f"-Dlog4j2.configurationFile={self.folder}/log4j2.properties"
        return java(log, "-cp", f"{self.libs}/*", *arguments, lasting=self.lasting)

    def _answers(self) -> bool:
        from kafka.admin import KafkaAdminClient
        from kafka.errors import KafkaError

        if self.process.poll() is not None:
            raise AssertionError(f"the broker ended with {self.process.returncode}")
        try:
            admin = KafkaAdminClient(bootstrap_servers=self.servers, bootstrap_timeout_ms=1000)
        except KafkaError:
            return False
        with contextlib.closing(admin):
            return bool(admin.describe_cluster()["brokers"])

    def _properties(self) -> dict[str, str | int]:
        listen = {
            "PLAINTEXT": (self.port, self.port),
            "PROXIED": (self.proxied_port, self.proxy_port),
            "CONTROLLER": (self._controller, None),
        }
        properties: dict[str, str | int] = {
            "process.roles": "broker,controller",
            "node.id": 1,
            "controller.quorum.bootstrap.servers": f"127.0.0.1:{self._controller}",
            "controller.listener.names": "CONTROLLER",
            "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,PROXIED:PLAINTEXT,"
            "SECURE:SASL_SSL,EXPIRED:SSL,OAUTH:SASL_PLAINTEXT",
            "log.dirs": f"{self.folder}/data",
            "offsets.topic.replication.factor": 1,
            "offsets.topic.num.partitions": 4,
            # Kafka 4.1.1 alone on a machine elects itself twice when it starts. If it still reads the groups' offsets
            # by then, it may serve old ones afterwards and wait for members that are gone: seen with 150,000 records,
            # whose 18 MB took 1.3 s. Small segments are compacted, and read at once.
            "offsets.topic.segment.bytes": 1 << 20,
            "log.cleaner.backoff.ms": 2000,
            "transaction.state.log.replication.factor": 1,
            "transaction.state.log.min.isr": 1,
            "transaction.state.log.num.partitions": 4,
            "group.initial.rebalance.delay.ms": 0,
            "group.min.session.timeout.ms": 1000,
            "auto.create.topics.enable": "false",
            "broker.session.timeout.ms": 1500,  # a killed broker may register again after this time only
            "broker.heartbeat.interval.ms": 300,
            "num.network.threads": 2,
            "num.io.threads": 4,
            "log.segment.bytes": 64 << 20,
            "log.retention.ms": -1,  # tests send messages of 1970, which would be deleted after half a minute
            "transaction.max.timeout.ms": 900000,
        }
        if not self.lasting:  # a controller that writes nothing while idle: 0.1 of a core for each broker, not 0.3
            properties["metadata.max.idle.interval.ms"] = 0
        if self.authority:
            listen |= {
                "SECURE": (self.secure_port, self.secure_port),
                "EXPIRED": (self.expired_port, self.expired_port),
                "OAUTH": (self.oauth_port, self.oauth_port),
            }
            users = " ".join(f'user_{user}="{word}"' for user, word in USERS.items())
            module = "org.apache.kafka.common.security"
            properties |= {
                "ssl.keystore.type": "PEM",
                "ssl.keystore.location": str(self.authority.issue("localhost")),
                "ssl.truststore.type": "PEM",
                "ssl.truststore.location": str(self.authority.certificate),
                "sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-256",
                "listener.name.secure.plain.sasl.jaas.config": f"{module}.plain.PlainLoginModule required {users};",
                "listener.name.secure.scram-sha-256.sasl.jaas.config": f"{module}.scram.ScramLoginModule required;",
                "listener.name.expired.ssl.keystore.location": str(self.authority.issue("localhost", days=-7)),
                "listener.name.oauth.sasl.enabled.mechanisms": "OAUTHBEARER",
                "listener.name.oauth.oauthbearer.sasl.jaas.config": f"{module}.oauthbearer.OAuthBearerLoginModule "
                'required unsecuredLoginStringClaim_sub="admin";',
                "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
                "super.users": "User:ANONYMOUS;User:admin;User:tagger",
            }
        host = {"SECURE": "localhost", "EXPIRED": "localhost"}
        properties["listeners"] = ",".join(f"{n}://{host.get(n, '127.0.0.1')}:{p}" for n, (p, _) in listen.items())
        properties["advertised.listeners"] = ",".join(
            f"{n}://{host.get(n, '127.0.0.1')}:{p}" for n, (_, p) in listen.items() if p
        )
        return properties | self.more


def partitions_of(consumer, topic: str, deadline: float = 30.0) -> list[int]:
    """The partitions of a topic, once a client of kafka-python knows them."""
    wait_until(lambda: consumer.partitions_for_topic(topic), deadline, f"the client knows topic {topic}")
    return sorted(consumer.partitions_for_topic(topic))


def join(consumer, deadline: float = 60.0) -> None:
    """Let a subscribed consumer of kafka-python join its group. Returns once it has partitions.

    A consumer that joins before it knows a new topic's metadata gets no partitions until the next rebalance, which
    may never come. The same happens if a poll ends in the middle of a join, as on a busy machine. See `finish_joining`.
    """
    for topic in consumer.subscription():
        partitions_of(consumer, topic, deadline)

    def joined():
        finish_joining(consumer)
        return consumer.poll(1000) or consumer.assignment()

    wait_until(joined, deadline, "the consumer has partitions")


@pytest.fixture(scope="session")
def kafka():
    """The broker that all tests of one worker share. A test uses topics and groups of its own."""
    broker = KafkaBroker()
    try:
        yield broker.start()
    finally:
        broker.close()


@pytest.fixture(scope="session")
def secure_kafka():
    """A broker with TLS, SASL and ACLs. `tagger` may do everything, `stranger` nothing."""
    broker = KafkaBroker(secure=True)
    try:
        yield broker.start()
    finally:
        broker.close()


@pytest.fixture
def mortal_kafka(tmp_path):
    """A broker for one test alone, which may kill it. The broker's log stays in the test's folder."""
    broker = KafkaBroker(tmp_path / "kafka")
    broker.folder.mkdir()
    try:
        yield broker.start()
    finally:
        broker.kill()
        shutil.rmtree(broker.folder / "data", ignore_errors=True)


def main() -> None:
    """Run a broker on port 9092 with some messages to try a job on, until Ctrl-C: `python -m tests.services.kafka`."""
    import pyarrow.parquet as pq
    from kafka import KafkaProducer

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    broker = KafkaBroker(lasting=True)
    broker.port, broker.servers = 9092, "127.0.0.1:9092"
    try:
        broker.start()
        for topic in ("messages", "labels", "labels-dead"):
            broker.create_topic(topic, 4)
        texts = pq.read_table(ROOT / "examples" / "sms.parquet").column("text").to_pylist()
        with contextlib.closing(KafkaProducer(bootstrap_servers=broker.servers)) as producer:
            for number, text in enumerate(texts):
                producer.send("messages", text.encode(), key=b"%d" % number)
        print(
            f"{broker.servers}: {len(texts):,} messages in topic 'messages'; Ctrl-C ends the broker and its data",
            flush=True,
        )
        broker.process.wait()
    except KeyboardInterrupt:
        pass
    finally:
        broker.close()


if __name__ == "__main__":
    main()
