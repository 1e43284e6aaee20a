"""A WebSocket peer on `websockets`' sans-I/O protocol, which shares no code with the server."""

from functools import partial
from itertools import cycle

import trio
import trio.testing
from websockets.client import ClientProtocol
from websockets.frames import Close, Frame, Opcode
from websockets.protocol import OPEN
from websockets.uri import parse_uri

from multichat.net import transport
from multichat.net.turns import Meter, current_meter
from multichat.server.origin import Origin
from multichat.server.server import Server
from multichat.testing import MemoryServer

__all__ = ["WebSocketClient", "frame", "join_websocket", "open_peer", "serve_websocket"]

_READ_BYTES = 64 * 1024

# The one in the examples of RFC 6455.
_MASK = b"\x37\xfa\x21\x3d"

# A test fails instead of waiting forever; more than any timeout of the server.
_PATIENCE_SECONDS = 900.0


def frame(opcode: int, data: bytes = b"", *, fin: bool = True) -> bytes:
    """Return a frame as a client sends it, masked, but always with the same mask."""
    plain = Frame(Opcode(opcode), data, fin).serialize(mask=False)
    header = plain[: len(plain) - len(data)]
    masked = bytes(byte ^ mask for byte, mask in zip(data, cycle(_MASK), strict=False))
    return b"".join((header[:1], bytes((header[1] | 0x80,)), header[2:], _MASK, masked))


def open_peer(max_bytes: int | None = None) -> ClientProtocol:
    """Return the client's side of a connection whose handshake is done."""
    return ClientProtocol(parse_uri("ws://chat.example/"), state=OPEN, max_size=max_bytes)


class WebSocketClient:
    """The client's end of a WebSocket on *stream*, controlled by a test; reads when asked.

    A message of several lines counts as these lines; *messages* counts messages.
    """

    def __init__(self, stream: trio.abc.HalfCloseableStream) -> None:
        self.stream = stream
        self.peer = open_peer()
        self.messages = 0
        self.pongs: list[bytes] = []
        self.ended = False
        self.events: list[Frame] = []  # all frames, for a test to look at
        self._lines: list[str] = []

    async def send(self, *lines: str) -> None:
        """Send each of *lines* as a message, all in one call of `send_all`."""
        for line in lines:
            self.peer.send_text(line.encode())
        await self.flush()

    async def flush(self) -> None:
        """Send what the peer has to send."""
        await self.stream.send_all(b"".join(self.peer.data_to_send()))

    async def line(self) -> str:
        """Return the next line; raises `EOFError` when there is none."""
        while not self._lines:
            if self.ended:
                raise EOFError("the server closed the connection")
            await self._receive()
        return self._lines.pop(0)

    async def lines(self, count: int) -> list[str]:
        """Return the next *count* lines."""
        return [await self.line() for _ in range(count)]

    async def rest(self) -> list[str]:
        """Return all lines until the server closes."""
        while not self.ended:
            await self._receive()
        lines, self._lines = self._lines, []
        return lines

    async def pong(self) -> bytes:
        """Return the data of the next pong."""
        while not self.pongs:
            await self._receive()
        return self.pongs.pop(0)

    async def event(self) -> Frame:
        """Return the next frame, whatever it is, and count it as looked at."""
        while not self.events:
            if self.ended:
                raise EOFError("the server closed the connection")
            await self._receive()
        return self.events.pop(0)

    @property
    def close(self) -> Close | None:
        """The close frame that the server has sent, if it has."""
        return self.peer.close_rcvd

    async def _receive(self) -> None:
        with trio.fail_after(_PATIENCE_SECONDS):
            data = await self.stream.receive_some(_READ_BYTES)
        if data:
            self.peer.receive_data(bytes(data))
        else:
            self.peer.receive_eof()
            self.ended = True
        assert self.peer.parser_exc is None or self.ended, self.peer.parser_exc
        for event in self.peer.events_received():
            assert isinstance(event, Frame)
            self.events.append(event)
            if event.opcode is Opcode.PONG:
                self.pongs.append(bytes(event.data))
            elif event.opcode is not Opcode.CLOSE:
                assert (event.opcode, event.fin) == (Opcode.TEXT, True), "as the server frames"
                self.messages += 1
                self._lines += bytes(event.data).decode().split("\n")


async def serve_websocket(
    server: Server,
    stream: trio.abc.Stream,
    *,
    address: str = "",
    lines: bool = False,
    early: bytes = b"",
    secure: bool = True,
    encrypted: bool = False,
    meter: Meter | None = None,
) -> None:
    """Serve *stream*, whose upgrade was answered, as the web port does."""
    origin = Origin.of(address)
    meter = meter or Meter(server._turns, origin and origin.address)
    current_meter.set(meter)
    served = server._connections.handle_websocket(
        stream,
        origin,
        meter,
        address=address,
        lines=lines,
        early=early,
        secure=secure,
        encrypted=encrypted,
    )
    server._admission.add_connection(origin)
    try:
        await meter.measure(served)
    finally:
        server._admission.remove_connection(origin)
        await transport.close(stream)


async def join_websocket(
    network: MemoryServer,
    *,
    lockstep: bool = False,
    address: str = "",
    lines: bool = False,
    early: bytes = b"",
    secure: bool = True,
    encrypted: bool = False,
    meter: Meter | None = None,
) -> WebSocketClient:
    """Connect a client to *network*, over memory streams; return it once it is admitted.

    See `MemoryServer.join`.
    """
    pair = trio.testing.lockstep_stream_pair if lockstep else trio.testing.memory_stream_pair
    ours, theirs = pair()
    network._nursery.start_soon(
        partial(
            serve_websocket,
            network.server,
            ours,
            address=address,
            lines=lines,
            early=early,
            secure=secure,
            encrypted=encrypted,
            meter=meter,
        )
    )
    await trio.testing.wait_all_tasks_blocked()
    return WebSocketClient(theirs)
