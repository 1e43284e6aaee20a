"""Hostile clients in a process of their own: `python hostile.py PORT KIND ROOM`, until killed.

`KINDS` describes each kind.  Prints `flooding` when the attack has begun.

Uses only the standard library, to start quickly, and a low priority: the measurement is about these
clients' share of the server, not of the processor.
"""

import json
import os
import random
import selectors
import socket
import ssl
import sys
import time
from contextlib import suppress
from typing import NamedTuple

_NICE = 5

_CHUNK_BYTES = 64 * 1024

# Below the server's largest read, and below its limit of a line.
_PIECE_BYTES = 8100
_LONG_LINE_BYTES = 63 * 1024

# More than the server's send queue and the kernel's buffers can hold for one client.
_OVERFLOW_LINES = 160

# The kernel's minimum is somewhat larger.
_SMALL_BUFFER_BYTES = 4096

# A trickling client is as fast as a slow modem.
_TRICKLE_SECONDS = 0.5
_TRICKLE_BYTES = 2048

# Resumed in turn; resuming the session of a connected client replaces its connection.
_SESSIONS = 4


class Kind(NamedTuple):
    """The behaviour of one kind of attacker.

    Each client sends *hello*, in which `{number}` and `{previous}` are numbers of connections, and
    then *payload*, repeatedly with *repeats*; if there is an *answer*, it waits for that each time.
    It disconnects and reconnects immediately (*leaves* is `sent`), after the answer or, without
    one, any byte (`answered`), or when the server closes the connection.

    With *every_seconds*, a new client connects at that interval, and none reconnects.
    """

    payload: bytes = b""
    hello: str = ""
    clients: int = 10
    answer: bytes = b""
    repeats: bool = True
    leaves: str = ""
    reads: bool = True
    trickles: bool = False  # reads a few bytes at intervals
    every_seconds: float = 0.0
    addresses: int = 1  # how many addresses from 127.0.0.1 on
    joins: bool = True
    replays: bool = False  # requests a replay of all messages, in JSON
    resumes: bool = False  # the same, resuming one of a few sessions
    is_ready_when_answered: bool = False


def _client_hello() -> bytes:
    outgoing = ssl.MemoryBIO()
    with suppress(ssl.SSLWantReadError):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="localhost").do_handshake()
    return outgoing.read()


_NOISE = random.Random(1).randbytes(_CHUNK_BYTES)
_NOISE_PIECE = _NOISE[:_PIECE_BYTES].replace(b"\r", b"").rpartition(b"\n")[0] + b"\n"
_HELP = b"/help\n" * 1000
_JSON_HELP = b'{"type":"help"}\n' * 1000
_LONG_LINE = "x" * _LONG_LINE_BYTES + "\n"

_PONG = b"pong\n"
_LOGIN = b"/login mallory %s\n/ping\n"

# Masks of zeros leave the payload as it is.
_MASK = bytes(4)
_PINGS = (b"\x89\x84" + _MASK + b"ping") * 1000
_FRAGMENTS = b"\x01\x80" + _MASK + (b"\x00\x80" + _MASK) * 1000 + b"\x80\x80" + _MASK
_MESSAGES = (b"\x81\x81" + _MASK + b"a") * 1000
_HUGE_FRAME = b"\x81\xff" + (1 << 40).to_bytes(8, "big") + _MASK + b"x" * _CHUNK_BYTES

_GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
_POST = (
    b"POST /rooms/lobby/messages HTTP/1.1\r\nHost: localhost\r\n"
    b"Authorization: Bearer wrong-wrong-wrong-wrong\r\nContent-Length: 1\r\n\r\nx"
)
_UPGRADE = (
    "GET /ws HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAECAwQFBgcICQoLDA0ODw==\r\n\r\n"
)

KINDS = {
    # They send messages or noise in one room.
    "noise": Kind(_NOISE),
    "long-lines": Kind(b"x" * (3 * _CHUNK_BYTES) + b"\n"),
    "churn": Kind(b"hello\n", leaves="sent"),
    "noise-pieces": Kind(_NOISE_PIECE + b"/ping\n", answer=_PONG),
    "short-lines": Kind(b"a\n" * (_PIECE_BYTES // 2) + b"/ping\n", answer=_PONG),
    "ping": Kind(b"/ping\n", answer=_PONG),
    # They are never admitted.
    "come-and-go": Kind(clients=800, leaves="sent", joins=False),
    "line-feeds": Kind(b"\n" * _CHUNK_BYTES, joins=False),
    "endless-line": Kind(b"x" * _CHUNK_BYTES, joins=False),
    "guesses": Kind(b"/auth wrong\n" * 3, leaves="answered", joins=False),
    "tls-hellos": Kind(_client_hello(), leaves="answered", repeats=False, joins=False),
    "http": Kind(b"x" * _CHUNK_BYTES, hello="GET / HTTP/1.0\r\n\r\n", joins=False),
    # On the web port.
    "web-requests": Kind(_GET, leaves="answered", repeats=False, joins=False),
    "web-slow-heads": Kind(b"GET / HTTP/1.1\r\nX: x", clients=800, repeats=False, joins=False),
    "web-endless-heads": Kind(b"x" * _CHUNK_BYTES, hello="GET / HTTP/1.1\r\nX: ", joins=False),
    "web-handshakes": Kind(_UPGRADE.encode(), leaves="answered", repeats=False, joins=False),
    "web-pings": Kind(_PINGS, hello=_UPGRADE, joins=False),
    "web-fragments": Kind(_FRAGMENTS, hello=_UPGRADE, joins=False),
    "web-messages": Kind(_MESSAGES, hello=_UPGRADE, joins=False),
    "web-huge-frames": Kind(_HUGE_FRAME, hello=_UPGRADE, joins=False),
    "web-guesses": Kind(_POST, leaves="answered", repeats=False, joins=False),
    # They make expensive requests, one at a time.
    "history": Kind(b"/history 100\n/ping\n", answer=_PONG),
    "one-history": Kind(b"/history 100\n/ping\n", answer=_PONG, clients=1),
    "200-history": Kind(b"/history 100\n/ping\n", answer=_PONG, clients=200),
    "who": Kind(b"/who\n/ping\n", answer=_PONG),
    "rooms": Kind(b"/rooms\n/ping\n", answer=_PONG),
    "resume": Kind(
        b'{"type":"ping"}\n', resumes=True, clients=1, answer=b'"pong"', leaves="answered"
    ),
    "resume-storm": Kind(
        b'{"type":"ping"}\n',
        replays=True,
        clients=500,
        addresses=8,
        answer=b'"pong"',
        leaves="answered",
    ),
    # They guess at a passphrase, or know one and take the name from each other.
    "logins": Kind(_LOGIN % b"wrong guess", clients=200, addresses=10, answer=_PONG),
    "200-logins-a-second": Kind(
        _LOGIN % b"wrong guess", clients=1000, addresses=10, answer=_PONG, every_seconds=0.005
    ),
    "right-logins": Kind(
        _LOGIN % b"correct horse",
        hello="/name mallory\n/register correct horse\n",
        clients=200,
        addresses=10,
        answer=_PONG,
    ),
    "hello-logins": Kind(
        b'/json {"login":{"name":"mallory","passphrase":"wrong guess"}}\n',
        leaves="answered",
        clients=200,
        addresses=10,
        joins=False,
    ),
    "registrations": Kind(
        b"/register correct horse\n/ping\n",
        hello="/name mallory-{number}\n",
        answer=_PONG,
        leaves="answered",
        clients=200,
        addresses=10,
    ),
    # They do not read; the first also sends endless `/help` requests.
    "slow": Kind(_HELP, reads=False, clients=60, every_seconds=1.5),
    "slow-addresses": Kind(_HELP, reads=False, clients=600, every_seconds=0.15, addresses=200),
    "slow-trickle": Kind(_HELP, reads=False, trickles=True, clients=60, every_seconds=1.5),
    "slow-resume": Kind(_JSON_HELP, reads=False, clients=60, every_seconds=1.5, resumes=True),
    "slow-talk": Kind(
        hello=_LONG_LINE * _OVERFLOW_LINES, reads=False, clients=60, every_seconds=1.5
    ),
    "slow-direct": Kind(
        hello="/name slow-{number}\n"
        + f"/msg slow-{{previous}} {_LONG_LINE[1000:]}" * _OVERFLOW_LINES,
        reads=False,
        clients=60,
        every_seconds=1.5,
    ),
    # Many idle clients.
    "800-members": Kind(
        b"/ping\n", clients=800, answer=_PONG, repeats=False, is_ready_when_answered=True
    ),
    "800-rooms": Kind(
        b"/ping\n",
        hello="/join room-{number}\n",
        clients=800,
        answer=_PONG,
        repeats=False,
        is_ready_when_answered=True,
    ),
    # Private messages to a slow client; see `victims`.
    "private": Kind(f"/msg victim {_LONG_LINE[1000:]}".encode(), clients=1),
}


class _Client:
    """A sequence of connections; `step` does what is possible without waiting."""

    def __init__(self, port: int, kind: Kind, number: int, hello: bytes) -> None:
        self._port, self._kind, self._number, self._hello = port, kind, number, hello
        self.answered = False
        self.connect()

    def connect(self) -> None:
        self.socket = socket.socket()
        if self._kind.addresses > 1:
            self.socket.bind((f"127.0.0.{1 + self._number % self._kind.addresses}", 0))
        if not self._kind.reads:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SMALL_BUFFER_BYTES)
        self.socket.setblocking(False)  # from here on, so that the others can read meanwhile
        with suppress(BlockingIOError):
            self.socket.connect(("127.0.0.1", self._port))
        self._rest = memoryview(self._hello + self._kind.payload)
        self._is_connected = False
        self._tail = b""

    @property
    def events(self) -> int:
        """The events to poll for."""
        reads = selectors.EVENT_READ if self._kind.reads else 0
        writes = self._rest or not self._is_connected
        return reads | (selectors.EVENT_WRITE if writes else 0)

    def trickle(self) -> None:
        with suppress(OSError):
            self.socket.recv(_TRICKLE_BYTES)

    def step(self) -> bool:
        """Make progress; return whether it is still connected."""
        received = False
        try:
            if self._kind.reads:
                with suppress(BlockingIOError):
                    data = self.socket.recv(1 << 20)
                    if not data:
                        return False
                    received = True
                    self._tail = self._tail[-len(_PONG) - 1 :] + data
            with suppress(BlockingIOError):
                self._rest = self._rest[self.socket.send(self._rest) :]
                self._is_connected = True
        except OSError:
            return False
        if self._rest:
            return True
        if self._kind.leaves == "sent":
            return False
        if not self._kind.answer:
            answered = received
        elif answered := self._kind.answer in self._tail:
            self._tail = b""
        self.answered = self.answered or answered
        if answered and self._kind.leaves == "answered":
            return False
        if self._kind.repeats and (answered or not self._kind.answer):
            self._rest = memoryview(self._kind.payload)
        return True


def _replay_hellos(port: int, room: str, kind: Kind) -> list[bytes]:
    """Return hellos that request every message of *room*, after creating the sessions to resume."""
    hellos = []
    for _ in range(_SESSIONS if kind.resumes else kind.replays):
        with socket.create_connection(("127.0.0.1", port)) as stream:
            stream.sendall(b'/json {"room":"%s"}\n' % room.encode())
            with stream.makefile("rb") as lines:
                welcome = next(each for each in map(json.loads, lines) if "session" in each)
        hello = {"room": room, "since": welcome["last"].rpartition("-")[0] + "-1000000000"}
        if kind.resumes:
            hello["session"] = welcome["session"]
        hellos.append(f"/json {json.dumps(hello)}\n".encode())
    return hellos


def main(port: int, name: str, room: str) -> None:
    """Attack *port* until killed."""
    os.nice(_NICE)
    kind = KINDS[name]
    hellos = _replay_hellos(port, room, kind)

    def hello(number: int) -> bytes:
        if hellos:
            return hellos[number % len(hellos)]
        join = f"/join {room}\n" if room and kind.joins else ""
        text = kind.hello.replace("{number}", str(number))
        return (join + text.replace("{previous}", str(number - 1))).encode()

    started = time.monotonic()
    to_come = [(started + number * kind.every_seconds, number) for number in range(kind.clients)]
    to_come.reverse()
    clients: list[_Client] = []
    announced = False
    trickled = started
    with selectors.DefaultSelector() as selector:

        def watch(client: _Client) -> None:
            if client.events:
                selector.register(client.socket, client.events, client)

        while True:
            while to_come and to_come[-1][0] <= time.monotonic():
                number = to_come.pop()[1]
                clients.append(_Client(port, kind, number, hello(number)))
                watch(clients[-1])
            if not announced and (
                all(each.answered for each in clients)
                if kind.is_ready_when_answered
                else kind.every_seconds or not to_come
            ):
                os.write(1, b"flooding\n")
                announced = True
            timeout = max(0, to_come[-1][0] - time.monotonic()) if to_come else None
            if kind.trickles:
                timeout = _TRICKLE_SECONDS if timeout is None else min(timeout, _TRICKLE_SECONDS)
                if time.monotonic() - trickled > _TRICKLE_SECONDS:
                    trickled = time.monotonic()
                    for client in clients:
                        client.trickle()
            for key, _ in selector.select(timeout):
                client = key.data
                is_connected = client.step()
                if is_connected and client.events == key.events:
                    continue
                selector.unregister(client.socket)
                if not is_connected:
                    client.socket.close()
                    if kind.every_seconds:
                        continue
                    client.connect()
                watch(client)


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        main(int(sys.argv[1]), sys.argv[2], sys.argv[3])
