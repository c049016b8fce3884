"""Decides what libraries may log."""

from __future__ import annotations

import logging


def set_logs(*, debug: bool) -> None:
    """Silence Beam and other libraries unless `debug`, because tagstream reports the same things more clearly.

    Call this before the libraries are imported.
    """
    logging.basicConfig(level=logging.INFO if debug else logging.CRITICAL)
    if not debug:
        for name in ("apache_beam", "transformers", "huggingface_hub"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        logging.getLogger("tagstream.transforms.io.kafka.client.chain").setLevel(logging.WARNING)
        quiet(logging.getLogger("kafka"))


def quiet(logger: logging.Logger) -> None:
    """Hide a logger's messages from the user, but keep its warnings for handlers.

    The Kafka client only logs why a connection failed, and `Cluster.explained` reads that.
    """
    logger.setLevel(logging.WARNING)
    logger.propagate = False
    logger.addHandler(logging.NullHandler())
