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
    body: bytes, *fields: str, room: str = "lobby", token: str = TOKEN, json: bool = False
) -> bytes:
    """Return a request that posts a message."""
    given = [f"Authorization: Bearer {token}", *fields]
    kind = "application/json" if json else "application/x-www-form-urlencoded"
    path = f"/rooms/{room}/messages"
    return http(path, *given, f"Content-Type: {kind}", method="POST", body=body)


def upgrade(*fields: str, host: str = "localhost") -> bytes:
    """Return the handshake of a WebSocket."""
    return http(
        "/ws",
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
