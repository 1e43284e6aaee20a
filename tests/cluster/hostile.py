"""An engine of the tests with arbitrary answers, which a node must survive.

Speaks enough of RESP3 to let a node join, with an empty directory; each answer can be replaced.
"""

from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeAlias

import msgspec
import trio
from trio.testing import memory_stream_pair

from multichat.cluster.address import ClusterAddress
from multichat.cluster.backend import ClusterConfig
from multichat.cluster.connection import ConnectionConfig
from multichat.cluster.errors import EngineRefused
from multichat.cluster.library import library_text
from multichat.cluster.resp import Push

__all__ = ["URL", "HostileEngine", "changes_of", "encode", "info"]

URL = "valkey://engine.example:6379"

Words: TypeAlias = list[bytes]

Answer: TypeAlias = bytes | Callable[[Words], bytes]
"""Bytes to send unchanged; none means no answer."""

INFO = {
    "valkey_version": "9.0.0",
    "run_id": "run",
    "role": "master",
    "master_replid": "one",
    "aof_enabled": "1",
    "maxmemory": "0",
    "maxmemory_policy": "noeviction",
}


def encode(value: Any) -> bytes:
    """Return *value* as a reply in RESP3."""
    match value:
        case None:
            return b"_\r\n"
        case bool():
            return b"#t\r\n" if value else b"#f\r\n"
        case int():
            return b":%d\r\n" % value
        case float():
            return b",%b\r\n" % repr(value).encode()
        case bytes():
            return b"$%d\r\n%b\r\n" % (len(value), value)
        case list():
            return b"*%d\r\n%b" % (len(value), b"".join(map(encode, value)))
        case dict():
            pairs = b"".join(encode(each) for pair in value.items() for each in pair)
            return b"%%%d\r\n%b" % (len(value), pairs)
        case Push():
            items = [value.kind, *value.items]
            return b">%d\r\n%b" % (len(items), b"".join(map(encode, items)))
        case EngineRefused():
            return f"-{value.code} {value.text}\r\n".encode()
    raise TypeError(value)


def info(**fields: str) -> bytes:
    """Return what INFO answers with these *fields* in place of the usual ones."""
    return encode("".join(f"{key}:{value}\r\n" for key, value in (INFO | fields).items()).encode())


def _subscribed(words: Words) -> bytes:
    return b"".join(
        b">3\r\n" + encode(words[0].lower()) + encode(channel) + encode(1) for channel in words[1:]
    )


def _changed(words: Words) -> bytes:
    results = [["ok", 1] if kind == "numbers" else ["ok"] for kind, *_ in changes_of(words)]
    return encode([0, msgspec.msgpack.encode(results)])


def changes_of(words: Words) -> list[list[Any]]:
    """Return the changes in a call of `multichat_change`."""
    return msgspec.msgpack.decode(words[-1], type=list[list[Any]])


def _version(_: Words) -> bytes:
    digest = library_text().partition("DIGEST = '")[2].partition("'")[0]
    return encode([1, digest.encode()])


_GOOD: dict[str, Answer] = {
    "HELLO": encode({b"server": b"valkey", b"mode": b"standalone"}),
    "INFO": info(),
    "PING": encode(b"PONG"),
    "SUBSCRIBE": _subscribed,
    "UNSUBSCRIBE": _subscribed,
    "HLEN": encode(1),
    "HKEYS": encode([]),
    "EXISTS": encode(0),
    "HMGET": lambda words: encode([None] * (len(words) - 2)),
    "FUNCTION": encode(b"multichat"),
    "multichat_version": _version,
    "multichat_begin_era": encode(1),
    "multichat_join": encode(0),
    "multichat_snapshot": encode([0, [], [], [], []]),
    "multichat_events": encode([]),
    "multichat_change": _changed,
    "multichat_renew": encode([0, 0]),
    "multichat_tails": lambda words: encode([[0, 0, b"", []]] * ((len(words) - 3) // 2)),
    "multichat_end_node": encode(0),
}


class HostileEngine:
    """Answers the commands and functions in *answers* as these say, others as an empty engine does.

    *every* replaces all answers but those.  *asked* counts the requests by command or function,
    *streams* are the open connections.
    """

    def __init__(
        self, answers: Mapping[str, Answer] | None = None, *, every: Answer | None = None
    ) -> None:
        self.answers: dict[str, Answer] = dict(answers or {})
        self.every = every
        self.asked: dict[str, int] = {}
        self.streams: set[trio.abc.Stream] = set()
        self._nursery: trio.Nursery | None = None

    def answer(self, words: Words) -> bytes:
        """Return what to send for a request."""
        name = words[0].decode().upper()
        if name.startswith("FCALL"):
            name = words[1].decode()
        self.asked[name] = self.asked.get(name, 0) + 1
        found = self.answers.get(name, self.every)
        if found is None:
            found = _GOOD.get(name, b"-ERR unknown command\r\n")
        return found if isinstance(found, bytes) else found(words)

    async def dial(self, *_: object) -> trio.abc.Stream:
        """Connect to this engine; only while `serve` runs."""
        ours, stream = memory_stream_pair()
        assert self._nursery is not None
        self._nursery.start_soon(self.handle, stream)
        return ours

    @asynccontextmanager
    async def serve(self) -> AsyncGenerator[ClusterConfig]:
        """Serve connections that `dial` makes; yields the configuration of a node that does."""
        async with trio.open_nursery() as self._nursery:
            yield ClusterConfig(
                connection=ConnectionConfig(address=ClusterAddress.parse(URL), dial=self.dial),
                node="a",
            )
            self._nursery.cancel_scope.cancel(reason="the test has ended")

    async def handle(self, stream: trio.abc.Stream) -> None:
        """Serve one connection until it ends."""
        buffer = bytearray()
        self.streams.add(stream)
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            async with stream:
                while data := await stream.receive_some(65536):
                    buffer += data
                    for words in _requests(buffer):
                        await stream.send_all(self.answer(words))
        self.streams.discard(stream)


def _requests(buffer: bytearray) -> Iterator[Words]:
    """Yield the requests that are complete in *buffer*, and remove them from it."""
    while buffer:
        words: Words = []
        try:
            end = buffer.index(b"\r\n")
            at = end + 2
            for _ in range(int(buffer[1:end])):
                end = buffer.index(b"\r\n", at)
                start = end + 2
                at = start + int(buffer[at + 1 : end]) + 2
                if at > len(buffer):
                    return
                words.append(bytes(buffer[start : at - 2]))
        except ValueError:
            return  # the rest follows
        del buffer[:at]
        yield words
