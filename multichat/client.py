"""The client: one conversation with any line-based server, over any stream.

Separate send and receive tasks in one nursery: what we say goes through the same kind of mailbox
that the server gives its members, what we are told through a bounded channel of events.  Neither
waits for the other, so that a server which holds us back because we do not read, and a program
which does not read because it is saying something, cannot lock each other up.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress

import trio

from multichat import transport
from multichat.errors import (
    ConnectFailed,
    ConnectionLost,
    LineTooLong,
    LocalProtocolError,
    lone_exception,
)
from multichat.framing import LineDecoder, Part, clean
from multichat.mailbox import Mailbox, Offer
from multichat.messages import Event, Goodbye, Notice
from multichat.voices import TEXT

__all__ = ["Chat", "connect", "open_chat"]

# A server's line is longer than a client's: a tag, and three bytes for every control character.
MAX_LINE_BYTES = 1024 * 1024

# How many reads' events wait for a program that is busy: 16 MiB of text, after which we stop
# reading and the server's patience begins.
_EVENT_BATCHES = 256
_READ_BYTES = 64 * 1024

# How long the other side may be silent after our end of input before we take it that there is
# nothing more to come; a server of ours closes as soon as it has said everything.
FINISH_SECONDS = 2.0

# The same while the kernel still holds something of ours: a room may wait for a slow member and
# not read us meanwhile.
STUCK_SECONDS = 30.0

_CONNECT_SECONDS = 30.0


class Chat:
    """A conversation; made by `connect` or `open_chat`.

    Any number of tasks may `say`, one at a time iterates.  Iteration gives typed events in the
    order of the wire and ends when the server has said goodbye or, after `finish`, has closed; it
    raises `ConnectionLost` when the conversation ended otherwise.
    """

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.goodbye: str | None = None
        self._stream = stream
        self._outbox = Mailbox(stream, spell_missed=TEXT.spell_missed)
        self._arriving, self._arrived = trio.open_memory_channel[list[Event]](_EVENT_BATCHES)
        self._events: list[Event] = []  # of one read, the next one last
        self._received_bytes = 0
        self._finished = self._reset = self._told_lost = self._discarding = False
        self._lost = ""
        self._sending_over = trio.Event()
        self._receiving_over = trio.Event()
        self._sending = trio.CancelScope()
        self._receiving = trio.CancelScope()

    @property
    def moved_bytes(self) -> int:
        """A number that changes whenever the peer has taken or given something."""
        return self._received_bytes + self._outbox.sent_bytes - transport.unsent_bytes(self._stream)

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
        await self.send([TEXT.spell_say(text)])

    async def send(self, lines: Sequence[str]) -> None:
        """Send *lines* as if they had been typed, commands and all, in one piece.

        They MUST be clean and not empty, as `multichat.framing` returns them.  For the rest see
        `say`.
        """
        if await self._outbox.put(("\n".join(lines) + "\n").encode()) is Offer.CLOSED:
            raise self._connection_lost()

    async def receive(self) -> list[Event]:
        """Wait for the events of one read; an empty list when the conversation is over.

        Raises `ConnectionLost` when it ended without a goodbye and `finish` was not called.
        """
        if self._events:
            await trio.lowlevel.checkpoint()
            events, self._events = self._events[::-1], []
            return events
        try:
            return await self._arrived.receive()
        except trio.EndOfChannel:
            if self.goodbye is None and not self._finished:
                raise self._connection_lost() from None
            return []

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
        something to send, then for `FINISH_SECONDS`.  Events go on arriving and may be iterated
        meanwhile.  Raises `ConnectionLost` if something that was said could not be sent.
        """
        self._finished = True
        self._outbox.close()
        await self._wait_while_moving(self._sending_over, self._sending)
        if self._outbox.drained:
            await self._wait_while_moving(self._receiving_over, self._receiving)
        if not self._outbox.drained or (self._reset and self._outbox.sent_bytes):
            raise self._connection_lost()

    async def _wait_while_moving(self, over: trio.Event, task: trio.CancelScope) -> None:
        while not over.is_set():
            moved = self.moved_bytes
            all_sent = self._sending_over.is_set() and not transport.unsent_bytes(self._stream)
            with trio.move_on_after(FINISH_SECONDS if all_sent else STUCK_SECONDS):
                await over.wait()
            if self.moved_bytes == moved and not over.is_set():
                self._lost = self._lost or "the server has stopped reading"
                task.cancel(reason="nothing moves any more")
                await over.wait()

    def _connection_lost(self) -> ConnectionLost:
        self._told_lost = True
        if self._outbox.failure is not None:
            return ConnectionLost(transport.reason_of(self._outbox.failure))
        return ConnectionLost(self._lost or "the conversation is over")

    async def _send_all(self) -> None:
        with self._sending:
            await self._outbox.run()
        if self._outbox.drained and isinstance(self._stream, trio.abc.HalfCloseableStream):
            with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                await self._stream.send_eof()
        self._sending_over.set()

    async def _receive_all(self) -> None:
        decoder = LineDecoder(MAX_LINE_BYTES)
        with self._arriving, self._receiving:
            try:
                while data := await self._stream.receive_some(_READ_BYTES):
                    self._received_bytes += len(data)
                    await self._arrive(decoder.feed(data))
                await self._arrive(decoder.finish())
                self._lost = "the server closed the connection"
            except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
                self._reset = True
                self._lost = transport.reason_of(error)
                self._outbox.close()  # nobody is left to read what we would say
        self._receiving_over.set()

    async def _arrive(self, parts: list[Part]) -> None:
        events: list[Event] = []
        for part in parts:
            if isinstance(part, LineTooLong):
                events.append(Notice(str(part)))
            else:
                events += map(TEXT.parse_event, part)
        for event in events:
            if isinstance(event, Goodbye):
                self.goodbye = event.reason
        if events and not self._discarding:
            await self._arriving.send(events)

    async def _leave(self) -> None:
        """Finish on behalf of a program that has stopped listening."""
        self._discarding = True
        with suppress(trio.WouldBlock, trio.EndOfChannel):  # for a receiver that waits for room
            while True:
                self._arrived.receive_nowait()
        if self.goodbye is None and not self._told_lost:  # else nobody listens to us any more
            await self.finish()


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
                nursery.start_soon(chat._send_all)  # noqa: SLF001 - the tasks are the chat's own
                nursery.start_soon(chat._receive_all)  # noqa: SLF001
                yield chat
                await chat._leave()  # noqa: SLF001
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
