"""Token providers for the OAUTH listener of the test broker, which believes whatever a token says."""

from __future__ import annotations

import base64
import json
import time

from kafka.net.sasl.oauth import AbstractTokenProvider


class Tagger(AbstractTokenProvider):
    """Tokens of the user `tagger`, each good for an hour."""

    seconds = 3600

    def token(self) -> str:
        now = time.time()
        claims = {"sub": "tagger", "iat": now - 7200, "exp": now + self.seconds}
        return (
            ".".join(
                base64.urlsafe_b64encode(json.dumps(p).encode()).rstrip(b"=").decode()
                for p in ({"alg": "none"}, claims)
            )
            + "."
        )


class Late(Tagger):
    """Tokens that were good until an hour ago."""

    seconds = -3600
