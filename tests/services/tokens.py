"""Token providers for the OAUTH listener of the test broker, which believes every token."""

from __future__ import annotations

import base64
import json
import time

from kafka.net.sasl.oauth import AbstractTokenProvider


class Tagger(AbstractTokenProvider):
    """Gives tokens of the user `tagger`. Each is valid for an hour."""

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
    """Gives tokens that expired an hour ago."""

    seconds = -3600
