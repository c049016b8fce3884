"""An object store with S3's interface, in this process: moto's server."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Iterator

import pytest


class Cut:
    """A TCP proxy that breaks each connection after `limit` bytes from the client, while `limit` is set."""

    def __init__(self, upstream: int) -> None:
        self.upstream, self.limit = upstream, None
        self.broken = 0
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._server.accept()
                store = socket.create_connection(("127.0.0.1", self.upstream))
                threading.Thread(target=self._pump, args=(client, store, True), daemon=True).start()
                threading.Thread(target=self._pump, args=(store, client, False), daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket, sent: bool) -> None:
        seen = 0
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                seen += len(data)
                if sent and self.limit is not None and seen > self.limit:
                    self.broken += 1
                    break
                target.sendall(data)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


@pytest.fixture(scope="session")
def s3() -> Iterator[Cut]:
    """The store, behind a proxy. The environment says where it is, and that it has a bucket `bucket`."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    proxy = Cut(server.get_host_and_port()[1])
    there = {
        "AWS_ACCESS_KEY_ID": "tests",
        "AWS_SECRET_ACCESS_KEY": "tests",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_MAX_ATTEMPTS": "1",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{proxy.port}",
    }
    before = {name: os.environ.get(name) for name in there}
    os.environ.update(there)
    from s3fs import S3FileSystem

    tries, S3FileSystem.retries = S3FileSystem.retries, 2
    S3FileSystem().mkdir("bucket")
    yield proxy
    for name, value in before.items():
        os.environ.pop(name) if value is None else os.environ.update({name: value})
    S3FileSystem.retries = tries
    proxy.close()
    server.stop()
