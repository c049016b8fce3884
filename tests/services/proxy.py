"""A TCP proxy that understands Kafka's frames just enough to lose replies of a given kind."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections import Counter
from typing import Self

API = {
    "Produce": 0, "InitProducerId": 22, "AddPartitionsToTxn": 24, "AddOffsetsToTxn": 25, "EndTxn": 26,
    "TxnOffsetCommit": 28,
}  # fmt: skip


class FaultyProxy:
    """Listens on the advertised port of the broker's PROXIED listener.

    `fault(api, kind)` sets a fault for the next request of that API. With `drop`, the broker obeys the request and the
    reply is lost. With `swallow`, the request never reaches the broker. With `cut`, the broker obeys the request and
    the connection breaks before the reply. `dropped` counts the faults by kind.
    """

    def __init__(self, port: int, upstream: int) -> None:
        self.upstream = upstream
        self.dropped: Counter = Counter()
        self._faults: dict[int, str] = {}
        self._sockets: list[socket.socket] = []
        self._server = socket.create_server(("127.0.0.1", port))
        threading.Thread(target=self._accept, daemon=True).start()

    def fault(self, api: str, kind: str) -> None:
        self._faults[API[api]] = kind

    def cut(self) -> None:
        """Closes every connection. New ones are accepted."""
        for s in self._sockets:
            with contextlib.suppress(OSError):
                s.shutdown(socket.SHUT_RDWR)
        self._sockets.clear()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)  # wakes the thread in accept()
        self._server.close()
        self.cut()

    def __enter__(self) -> Self:
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
                lost: dict[int, str] = {}
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

    def _request(self, frame: bytes, lost: dict[int, str]) -> bool:
        api, _, correlation = struct.unpack(">hhi", frame[:8])
        kind = self._faults.pop(api, None)
        if kind == "swallow":
            self.dropped[kind] += 1
        elif kind:
            lost[correlation] = kind
        return kind != "swallow"

    def _reply(self, frame: bytes, lost: dict[int, str]) -> bool:
        kind = lost.pop(struct.unpack(">i", frame[:4])[0], None)
        if kind:
            self.dropped[kind] += 1
        if kind == "cut":
            raise EOFError
        return kind is None
