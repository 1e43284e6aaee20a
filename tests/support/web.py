"""Requests to the web port as bytes, over memory streams and sockets."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import msgspec
import trio
import trio.testing

from multichat.testing import MemoryServer

TOKEN = "0123456789abcdef-token"

KEY = "AAECAwQFBgcICQoLDA0ODw=="  # 16 bytes in base64


class Answer(NamedTuple):
    status: int
    fields: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return msgspec.json.decode(self.body)


def http(
    path: str = "/", *fields: str, method: str = "GET", host: str = "localhost", body: bytes = b""
) -> bytes:
    """Return one request; a body has a length unless *fields* say how it is sent."""
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", *fields]
    if body and not any("transfer-encoding" in field.lower() for field in fields):
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + body


def posting(
    body: bytes,
    *fields: str,
    room: str = "lobby",
    token: str = TOKEN,
    json: bool = False,
    host: str = "localhost",
) -> bytes:
    """Return a request that posts a message."""
    given = [f"Authorization: Bearer {token}", *fields]
    kind = "application/json" if json else "application/x-www-form-urlencoded"
    path = f"/rooms/{room}/messages"
    return http(path, *given, f"Content-Type: {kind}", method="POST", host=host, body=body)


def upgrade(*fields: str, host: str = "localhost", path: str = "/ws") -> bytes:
    """Return the handshake of a WebSocket."""
    return http(
        path,
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        f"Sec-WebSocket-Key: {KEY}",
        *fields,
        host=host,
    )


def parse_answer(data: bytes) -> Answer:
    head, _, body = data.partition(b"\r\n\r\n")
    status, *lines = head.decode("ascii").split("\r\n")
    fields = dict(line.split(": ", 1) for line in lines)
    return Answer(int(status.split()[1]), fields, body)


@asynccontextmanager
async def web_connection(
    server: MemoryServer,
) -> AsyncIterator[trio.abc.HalfCloseableStream]:
    """Connect to the web port of *server*."""
    ours, theirs = trio.testing.memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.server.handle_web, theirs)
        yield ours
        await ours.aclose()


async def read_all(stream: trio.abc.ReceiveStream) -> bytes:
    data = b""
    while piece := await stream.receive_some(1 << 16):
        data += piece
    return data


async def ask(server: MemoryServer, *pieces: bytes) -> Answer:
    """Send *pieces* as one request and return the answer."""
    async with web_connection(server) as stream:
        for piece in pieces:
            await stream.send_all(piece)
        return parse_answer(await read_all(stream))


def frame(text: str) -> bytes:
    """Return *text* as a frame of a client, masked with zeros."""
    data = text.encode()
    length = bytes([0x80 | len(data)]) if len(data) < 126 else b"\xfe" + len(data).to_bytes(2)
    return b"\x81" + length + bytes(4) + data


class WebSocketClient:
    """A client of WebSocket without any checks, which sends each text as one frame."""

    def __init__(self, stream: trio.abc.Stream, *, path: str = "/ws") -> None:
        self._stream, self._path = stream, path
        self._data = b""

    async def open(self, *fields: str, host: str = "localhost", early: str = "") -> Answer:
        """Shake hands; *early* is a message that is sent with the request."""
        data = upgrade(*fields, host=host, path=self._path) + (frame(early) if early else b"")
        await self._stream.send_all(data)
        while b"\r\n\r\n" not in self._data:
            await self._read()
        head, _, self._data = self._data.partition(b"\r\n\r\n")
        return parse_answer(head + b"\r\n\r\n")

    async def send(self, text: str) -> None:
        await self._stream.send_all(frame(text))

    async def message(self) -> tuple[int, bytes]:
        """Return the opcode and the payload of the next frame."""
        head = await self._take(2)
        size = head[1] & 0x7F
        if size >= 126:
            size = int.from_bytes(await self._take(2 if size == 126 else 8))
        return head[0] & 0x0F, await self._take(size)

    async def event(self) -> Any:
        """Return the next event of the JSON protocol."""
        kind, data = await self.message()
        assert kind == 1, (kind, data)
        return msgspec.json.decode(data)

    async def _take(self, count: int) -> bytes:
        while len(self._data) < count:
            await self._read()
        data, self._data = self._data[:count], self._data[count:]
        return data

    async def _read(self) -> None:
        piece = await self._stream.receive_some(1 << 16)
        assert piece, "the server has closed the connection"
        self._data += piece
