"""The client: one conversation with any line-based server, over any stream.

Separate send and receive tasks in one nursery: what we say goes through the same kind of mailbox
that the server gives its members, what we are told through a bounded channel of events.  Neither
waits for the other, so that a server which holds us back because we do not read, and a program
which does not read because it is saying something, cannot lock each other up.
"""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager

import trio

from multichat import transport
from multichat.errors import (
    ConnectFailed,
    ConnectionLost,
    LineTooLong,
    LocalProtocolError,
    lone_exception,
)
from multichat.framing import LineDecoder, clean
from multichat.mailbox import Mailbox, Offer
from multichat.messages import Event, Goodbye, Notice
from multichat.voices import TEXT

__all__ = ["Chat", "connect", "open_chat"]

# A paste of some thousand lines is taken at once; what waits is joined into few writes anyway.
_OUTBOX_BATCHES = 64

# A server's line is longer than a client's: a tag, and three bytes for every control character.
MAX_LINE_BYTES = 1024 * 1024

# How many reads wait for a program that is busy: 16 MiB as they came on the wire, after which we
# stop reading and the server's patience begins.
_WAITING_READS = 256
_READ_BYTES = 64 * 1024

# How long the other side may be silent after our end of input before we take it that there is
# nothing more to come; a server of ours closes as soon as it has said everything.
FINISH_SECONDS = 2.0

# The same while there is something of ours that it has not taken: a room may wait for slow
# members and not read us meanwhile.
STUCK_SECONDS = 30.0

_WATCH_SECONDS = 0.5

_CONNECT_SECONDS = 30.0


class Chat:
    """A conversation; made by `connect` or `open_chat`.

    Any number of tasks may `say`, one at a time iterates.  Iteration gives typed events in the
    order of the wire and ends when the server has said goodbye or, after `finish`, has closed; it
    raises `ConnectionLost` when the conversation ended otherwise.
    """

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.goodbye: str | None = None  # the reason, if that was the last thing we were told
        self._stream = stream
        self._outbox = Mailbox(stream, max_batches=_OUTBOX_BATCHES, spell_missed=TEXT.spell_missed)
        self._arriving, self._arrived = trio.open_memory_channel[bytes | bytearray](_WAITING_READS)
        self._decoder = LineDecoder(MAX_LINE_BYTES)
        self._events: list[Event] = []  # of one read, the next one last
        self._received_bytes = self._taken_bytes = 0
        self._listening = False  # waiting for the peer, and not for our own program to hear
        self._finished = self._broken = self._stuck = self._told_lost = False
        self._lost = ""  # why the other side is gone
        self._tasks = trio.CancelScope()
        self._tasks_over = trio.Event()

    @property
    def moved_bytes(self) -> int:
        """A number that changes as the peer takes and gives: twice the same, nothing moves."""
        sent = self._taken_bytes - self._outbox.waiting_bytes
        return self._received_bytes + sent - self._unsent_bytes()

    def _unsent_bytes(self) -> int:
        # Our end of input takes a place in the kernel's count until it is acknowledged.
        return max(0, transport.unsent_bytes(self._stream) - self._outbox.drained)

    @property
    def waiting_bytes(self) -> int:
        """How much was said and not yet handed to the system."""
        return self._outbox.waiting_bytes

    @property
    def can_send(self) -> bool:
        """Whether what is said may still arrive: nothing has failed and `finish` was not called."""
        return not self._outbox.closed

    async def say(self, text: str) -> None:
        """Say *text*, as one message, whatever it holds; control characters become pictures.

        Returns when it is on its way: handed to the system, or to the task that does so next.
        Waits while the server does not take more.  Cancelled, it has not been said.  Raises
        `LocalProtocolError` if *text* is empty, `ConnectionLost` if nobody is there any more.
        """
        text = clean(text)
        if not text:
            raise LocalProtocolError("an empty message cannot be said")
        await self.send(TEXT.spell_say(text))

    async def send(self, run: str) -> None:
        """Send a run of lines as if they had been typed, commands and all, in one piece.

        They MUST be clean and not empty, as `multichat.framing` returns them.  For the rest see
        `say`.
        """
        data = f"{run}\n".encode()
        if await self._outbox.put(data) is Offer.CLOSED:
            raise self._connection_lost()
        self._taken_bytes += len(data)

    async def receive(self) -> list[Event]:
        """Wait for the events of one read; an empty list when the conversation is over.

        Raises `ConnectionLost` when it ended without a goodbye and `finish` was not called.
        """
        events, self._events = self._events[::-1], []
        if events:
            await trio.lowlevel.checkpoint()
            return events
        while not events:
            try:
                parts = self._decoder.feed(await self._arrived.receive())
            except trio.EndOfChannel:
                parts = self._decoder.finish()
                if not parts:
                    break
            for part in parts:
                if isinstance(part, LineTooLong):
                    events.append(Notice(str(part)))
                else:
                    events += map(TEXT.parse_event, part.split("\n"))
        if events:
            last = events[-1]
            self.goodbye = last.reason if isinstance(last, Goodbye) else None
        elif self.goodbye is None and not self._finished:
            raise self._connection_lost()
        return events

    def __aiter__(self) -> AsyncIterator[Event]:
        """Iterate over the events as they come."""
        return self

    async def __anext__(self) -> Event:
        """Return the next event; several that came in one read do not checkpoint in between."""
        if not self._events:
            self._events = (await self.receive())[::-1]
        if not self._events:
            raise StopAsyncIteration
        return self._events.pop()

    async def finish(self) -> None:
        """Have what was said sent, then the end of input, and wait for the server to close.

        Waits until the server closes or nothing moves any more: for `STUCK_SECONDS` while there is
        something to send, then for `FINISH_SECONDS`.  Events go on arriving and MUST be iterated
        meanwhile by some task: time in which the program does not hear does not count as silence.
        Raises `ConnectionLost` if something that was said did not arrive, as far as can be known.
        """
        self._finished = True
        self._outbox.close()
        moved, since = self.moved_bytes, trio.current_time()
        while not (self._tasks_over.is_set() and not self._unsent_bytes()) and not self._stuck:
            with trio.move_on_after(_WATCH_SECONDS):
                await self._tasks_over.wait()
            if self._tasks_over.is_set() and self._unsent_bytes():
                await trio.sleep(_WATCH_SECONDS / 10)  # the kernel tells nobody when it has sent
            now = trio.current_time()
            if self.moved_bytes != moved or not self._listening:
                moved, since = self.moved_bytes, now
            unsent = self._outbox.waiting_bytes or self._unsent_bytes()
            if now - since >= (STUCK_SECONDS if unsent else FINISH_SECONDS):
                self._stuck = unsent > 0
                self._lost = self._lost or "the server has stopped reading"
                self._tasks.cancel(reason="nothing moves any more")
        if error := transport.pending_error(self._stream):
            self._broken, self._lost = True, transport.reason_of(error)
        if self._stuck or not self._outbox.drained or (self._broken and self._taken_bytes):
            raise self._connection_lost()

    def _connection_lost(self) -> ConnectionLost:
        self._told_lost = True
        if self._outbox.failure is not None:
            return ConnectionLost(transport.reason_of(self._outbox.failure))
        return ConnectionLost(self._lost or "the conversation is over")

    async def _run(self) -> None:
        with self._tasks:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._send_all)
                nursery.start_soon(self._receive_all)
        self._tasks_over.set()

    async def _send_all(self) -> None:
        await self._outbox.run()
        if self._outbox.drained and isinstance(self._stream, trio.abc.HalfCloseableStream):
            try:
                await self._stream.send_eof()
            except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
                self._broken, self._lost = True, transport.reason_of(error)

    async def _receive_all(self) -> None:
        with self._arriving:
            try:
                while data := await self._receive_some():
                    self._received_bytes += len(data)
                    await self._arriving.send(data)
                self._lost = "the server closed the connection"
            except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
                self._broken = True
                self._lost = transport.reason_of(error)
                self._outbox.close()  # nobody is left to read what we would say

    async def _receive_some(self) -> bytes | bytearray:
        self._listening = True
        data = await self._stream.receive_some(_READ_BYTES)
        self._listening = bool(not data)  # after its end we wait for nothing but the peer
        return data

    async def _leave(self, nursery: trio.Nursery) -> None:
        """Finish on behalf of a program that has stopped listening."""
        nursery.start_soon(self._hear_out)
        nobody_listens = self.goodbye is not None or (self._told_lost and not self.can_send)
        if not nobody_listens:
            await self.finish()

    async def _hear_out(self) -> None:
        async for _ in self._arrived:
            pass


@asynccontextmanager
async def open_chat(stream: trio.abc.Stream) -> AsyncGenerator[Chat]:
    """Hold a conversation over *stream*, which is closed in the end.

    Leaving the block sends what was said and the end of input, and waits for the server to have
    seen them as `Chat.finish` does; leaving it by an exception or cancellation closes at once.
    """
    chat = Chat(stream)
    try:
        with lone_exception():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(chat._run)  # noqa: SLF001 - the tasks are the chat's own
                yield chat
                await chat._leave(nursery)  # noqa: SLF001
                nursery.cancel_scope.cancel(reason="the chat was closed")
    finally:
        await trio.aclose_forcefully(stream)


@asynccontextmanager
async def connect(host: str, port: int) -> AsyncGenerator[Chat]:
    """Connect to the server on *host* and *port* and hold a conversation; see `open_chat`.

    Raises `ConnectFailed` if nobody can be reached within 30 s.
    """
    stream = None
    try:
        with trio.move_on_after(_CONNECT_SECONDS):
            stream = await trio.open_tcp_stream(host, port)
    except (OSError, ValueError) as error:  # a host that cannot be encoded is a ValueError
        raise ConnectFailed(host, port, transport.reason_of(error)) from error
    if stream is None:
        raise ConnectFailed(host, port, f"no answer in {_CONNECT_SECONDS:.0f} s")
    transport.keep_alive(stream)
    async with open_chat(stream) as chat:
        yield chat
