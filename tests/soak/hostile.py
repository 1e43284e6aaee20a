"""Ten hostile clients in a process of their own: `python hostile.py PORT KIND ROOM`, until killed.

KIND is `noise` (every byte value), `long` (lines above the limit), `churn` (come, say a word and
go) or `all` of them at once.  They read what they are sent, so that nobody has to wait for them:
that is another attack.  Nothing but the standard library, so that it starts at once, and a low
priority: the test is about the share of the server that they get, and not of the processor.
"""

import os
import random
import selectors
import socket
import sys
from contextlib import suppress
from itertools import cycle

CLIENTS = 10
KINDS = ("noise", "long", "churn")

_CHUNK_BYTES = 64 * 1024
_NICE = 19


def _payloads() -> dict[str, bytes]:
    noise = random.Random(1).randbytes(_CHUNK_BYTES)
    return {"noise": noise, "long": b"x" * (3 * _CHUNK_BYTES) + b"\n", "churn": b"hello\n"}


class _Client:
    """One of them; `step` does what can be done without waiting."""

    def __init__(self, port: int, kind: str, room: str, payload: bytes) -> None:
        self._address = ("127.0.0.1", port)
        self._first = f"/join {room}\n".encode() if room else b""
        self._kind = kind
        self._payload = payload
        self.connect()

    def connect(self) -> None:
        self.socket = socket.socket()
        self.socket.setblocking(False)  # from here on: the others go on reading meanwhile
        with suppress(BlockingIOError):
            self.socket.connect(self._address)
        self._rest = memoryview(self._first + self._payload)

    def step(self) -> bool:
        """Return whether it is still connected."""
        try:
            with suppress(BlockingIOError):
                if not self.socket.recv(1 << 20):
                    return False
            with suppress(BlockingIOError):
                self._rest = self._rest[self.socket.send(self._rest) :]
        except OSError:
            return False
        if not self._rest:
            if self._kind == "churn":
                return False
            self._rest = memoryview(self._payload)
        return True


def main(port: int, kind: str, room: str) -> None:
    """Flood until killed."""
    os.nice(_NICE)
    payloads = _payloads()
    kinds = cycle(KINDS if kind == "all" else (kind,))
    with selectors.DefaultSelector() as selector:

        def watch(client: _Client) -> None:
            selector.register(client.socket, selectors.EVENT_READ | selectors.EVENT_WRITE, client)

        for each, _ in zip(kinds, range(CLIENTS), strict=False):
            watch(_Client(port, each, room, payloads[each]))
        os.write(1, b"flooding\n")
        while True:
            for key, _ in selector.select():
                client: _Client = key.data
                if not client.step():
                    selector.unregister(client.socket)
                    client.socket.close()
                    client.connect()
                    watch(client)


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        main(int(sys.argv[1]), sys.argv[2], sys.argv[3])
