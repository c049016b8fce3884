"""What libraries may log, and where."""

from __future__ import annotations

import logging


def set_logs(*, debug: bool) -> None:
    """Beam and its friends log what we say better ourselves; `debug` lets them. Before they are imported."""
    logging.basicConfig(level=logging.INFO if debug else logging.CRITICAL)
    if not debug:
        for name in ("apache_beam", "transformers", "huggingface_hub"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        logging.getLogger("tagstream.transforms.io.kafka.client.chain").setLevel(logging.WARNING)
        quiet(logging.getLogger("kafka"))


def quiet(logger: logging.Logger) -> None:
    """Shows nothing of it, but lets `Cluster.explained` see why a connection failed: the client only logs that."""
    logger.setLevel(logging.WARNING)
    logger.propagate = False
    logger.addHandler(logging.NullHandler())
