"""Ten hostile clients in a process of their own: `python hostile.py PORT KIND ROOM`, until killed.

KIND is `noise` (every byte value), `long` (lines above the limit), `churn` (come, say a word and
go) or `all` of these at once; or `paced-noise` or `paced-lines`: pieces below 8 KiB, each of them
when what was asked at the end of the last one is answered, so that no read is a large one; or
`doors`: hundreds at once who come and hang up without a word.

They read what they are sent, so that nobody has to wait for them: that is another attack.  Nothing
but the standard library, so that it starts at once, and a low priority: the test is about the share
of the server that they get, and not of the processor.
"""

import os
import random
import selectors
import socket
import sys
from contextlib import suppress
from itertools import cycle

CLIENTS = 10
_AT_THE_DOORS = 800
KINDS = ("noise", "long", "churn")

_CHUNK_BYTES = 64 * 1024
_NICE = 19

_PIECE_BYTES = 8100
_ASK, _ANSWER = b"/ping\n", b"pong\n"


def _payloads() -> dict[str, bytes]:
    noise = random.Random(1).randbytes(_CHUNK_BYTES)
    piece = noise[:_PIECE_BYTES].replace(b"\r", b"").rpartition(b"\n")[0] + b"\n"
    return {
        "noise": noise,
        "long": b"x" * (3 * _CHUNK_BYTES) + b"\n",
        "churn": b"hello\n",
        "doors": b"",
        "paced-noise": piece + _ASK,
        "paced-lines": b"a\n" * (_PIECE_BYTES // 2) + _ASK,
    }


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
        self._tail = b""

    @property
    def events(self) -> int:
        """What it waits for."""
        waits = not self._rest and self._kind != "doors"  # else until it is connected
        return selectors.EVENT_READ | (0 if waits else selectors.EVENT_WRITE)

    def step(self) -> bool:
        """Return whether it is still connected."""
        try:
            with suppress(BlockingIOError):
                data = self.socket.recv(1 << 20)
                if not data:
                    return False
                self._tail = self._tail[-len(_ANSWER) :] + data
            with suppress(BlockingIOError):
                self._rest = self._rest[self.socket.send(self._rest) :]
        except OSError:
            return False
        if not self._rest:
            if self._kind in ("churn", "doors"):
                return False
            if not self._kind.startswith("paced"):
                self._rest = memoryview(self._payload)
            elif _ANSWER in self._tail:
                self._tail = b""
                self._rest = memoryview(self._payload)
        return True


def main(port: int, kind: str, room: str) -> None:
    """Flood until killed."""
    os.nice(_NICE)
    payloads = _payloads()
    kinds = cycle(KINDS if kind == "all" else (kind,))
    with selectors.DefaultSelector() as selector:

        def watch(client: _Client) -> None:
            selector.register(client.socket, client.events, client)

        clients = _AT_THE_DOORS if kind == "doors" else CLIENTS
        for each, _ in zip(kinds, range(clients), strict=False):
            watch(_Client(port, each, room, payloads[each]))
        os.write(1, b"flooding\n")
        while True:
            for key, _ in selector.select():
                client: _Client = key.data
                if client.step():
                    if client.events != key.events:
                        selector.modify(client.socket, client.events, client)
                else:
                    selector.unregister(client.socket)
                    client.socket.close()
                    client.connect()
                    watch(client)


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        main(int(sys.argv[1]), sys.argv[2], sys.argv[3])
