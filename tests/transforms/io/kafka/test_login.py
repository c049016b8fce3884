"""Logins by token and certificates that are too old, against a real broker."""

from __future__ import annotations

import time

import pytest

from tagstream.schemas.errors import SourceError
from tagstream.transforms.io.kafka.client.cluster import Cluster
from tests.pipelines.kafka.kafka_jobs import Topics, running
from tests.services.java import wait_until

pytestmark = pytest.mark.xdist_group("kafka-jobs")


def oauth(provider):
    return {
        "security_protocol": "SASL_PLAINTEXT",
        "sasl_mechanism": "OAUTHBEARER",
        "sasl_oauth_token_provider": provider,
        "bootstrap_timeout_ms": 5000,
    }


def test_a_job_with_tokens(secure_kafka):
    """Source, sink and ledger: each connection asks the provider."""
    topics = Topics(secure_kafka, servers=secure_kafka.oauth_servers, client=oauth("tests.services.tokens:Tagger"))
    topics.send([b"hello"])
    with running(topics.spec()):
        wait_until(topics.labelled, 60, "a label")


def test_a_token_that_is_too_old(secure_kafka):
    cluster = Cluster(secure_kafka.oauth_servers, oauth("tests.services.tokens:Late"))
    with pytest.raises(SourceError, match=r"refuses the credentials|check .*sasl_mechanism"):
        cluster.partitions(("any",))


@pytest.mark.parametrize("provider", ["tests.services.tokens:Nobody", "nowhere:Tagger", "tagger", ""])
def test_a_provider_that_is_not_there(provider):
    with pytest.raises(SourceError, match=r"sasl_oauth_token_provider .* is no module:Class"):
        Cluster("127.0.0.1:1", oauth(provider)).partitions(("any",))


def test_an_expired_certificate(secure_kafka):
    """Named within seconds, whatever the connection time-out."""
    client = {"security_protocol": "SSL", "ssl_cafile": str(secure_kafka.authority.certificate)}
    began = time.monotonic()
    with pytest.raises(SourceError, match=r"certificate .* is not accepted .*expired.*check the ssl_"):
        Cluster(secure_kafka.expired_servers, client).partitions(("any",))
    assert time.monotonic() - began < 30
