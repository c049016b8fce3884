"""A TCP proxy that understands Kafka's frames just enough to lose replies of a given kind."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections import Counter

API = {"Produce": 0, "AddPartitionsToTxn": 24, "AddOffsetsToTxn": 25, "EndTxn": 26, "TxnOffsetCommit": 28}


class FaultyProxy:
    """Stands on the advertised port of the broker's PROXIED listener.

    `drop(api, n)`: the broker gets and obeys the next `n` such requests; their replies never reach the client.
    `swallow(api, n)`: the next `n` such requests never reach the broker.
    `dropped` counts what was lost, by kind.
    """

    def __init__(self, port: int, upstream: int) -> None:
        self.upstream = upstream
        self.dropped: Counter = Counter()
        self._drop: Counter = Counter()
        self._swallow: Counter = Counter()
        self._sockets: list[socket.socket] = []
        self._server = socket.create_server(("127.0.0.1", port))
        threading.Thread(target=self._accept, daemon=True).start()

    def drop(self, api: str, count: int = 1) -> None:
        self._drop[API[api]] += count

    def swallow(self, api: str, count: int = 1) -> None:
        self._swallow[API[api]] += count

    def cut(self) -> None:
        """Closes every connection; new ones are welcome."""
        for s in self._sockets:
            with contextlib.suppress(OSError):
                s.shutdown(socket.SHUT_RDWR)
        self._sockets.clear()

    def close(self) -> None:
        self._server.close()
        self.cut()

    def __enter__(self) -> FaultyProxy:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._server.accept()
                try:
                    broker = socket.create_connection(("127.0.0.1", self.upstream))
                except OSError:
                    client.close()
                    continue
                self._sockets += [client, broker]
                lost: set[int] = set()
                for pump in ((client, broker, self._request), (broker, client, self._reply)):
                    threading.Thread(target=self._pump, args=(*pump, lost), daemon=True).start()

    def _pump(self, source, target, keep, lost) -> None:
        with contextlib.suppress(OSError, EOFError):
            reader = source.makefile("rb")
            while True:
                size = reader.read(4)
                frame = reader.read(struct.unpack(">i", size)[0]) if len(size) == 4 else b""
                if not frame:
                    break
                if keep(frame, lost):
                    target.sendall(size + frame)
        for s in (source, target):
            with contextlib.suppress(OSError):
                s.shutdown(socket.SHUT_RDWR)

    def _request(self, frame: bytes, lost: set[int]) -> bool:
        api, _, correlation = struct.unpack(">hhi", frame[:8])
        if self._swallow[api] > 0:
            self._swallow[api] -= 1
            self.dropped[api] += 1
            return False
        if self._drop[api] > 0:
            self._drop[api] -= 1
            lost.add(correlation)
        return True

    def _reply(self, frame: bytes, lost: set[int]) -> bool:
        correlation = struct.unpack(">i", frame[:4])[0]
        if correlation in lost:
            lost.discard(correlation)
            self.dropped["reply"] += 1
            return False
        return True
