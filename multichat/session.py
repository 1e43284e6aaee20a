"""One client's conversation, over any stream.

Owns a client from its first byte to its last: reads what it asks, has it said or answers it, and
closes so that nothing that was written is thrown away.  One nursery: the reader is the task that
called `run`, the writer is its mailbox's and begins when something has to wait for the first time,
or with the last words.

How it ends, whoever wished it: the member leaves the room (synchronously; the mailbox takes
nothing more), the writer finishes within the grace period, EOF, what still comes is discarded for
a moment, close.
"""

import trio

from multichat import transport
from multichat.errors import LineTooLong
from multichat.framing import LineDecoder, Part
from multichat.mailbox import Mailbox
from multichat.messages import Goodbye, Help, Notice, Ping, Quit, Say, Unknown
from multichat.room import Member, Room
from multichat.voices import HTTP_ANSWER, TEXT, looks_like_http, looks_like_tls

__all__ = ["Session"]

# One read, one batch: enough that a flood costs per batch and not per message, little enough that
# senders take turns, and that lines of 40 bytes and more fit, with their tags, into the 64 KiB that
# the kernel hands on as one piece: what spills over costs every member a second one.
READ_BYTES = 48 * 1024


class _Leave(Exception):
    """The conversation is over; *reason* is for the log, *last_words* for the client."""

    def __init__(self, reason: str = "", last_words: bytes = b"") -> None:
        super().__init__(reason)
        self.reason, self.last_words = reason, last_words


class Session:
    """A client in *room*; constructing it starts nothing and says nothing.

    `run` is called once, by one task.  The stream is closed when it returns or raises.
    """

    __slots__ = (
        "_decoder",
        "_first_line",
        "_grace_seconds",
        "_mailbox",
        "_nursery",
        "_reading",
        "_room",
        "_stream",
        "_writing",
        "member",
    )

    def __init__(
        self,
        stream: trio.abc.Stream,
        room: Room,
        client: int,
        *,
        max_line_bytes: int,
        mailbox_batches: int,
        patience_seconds: float,
        grace_seconds: float,
    ) -> None:
        self._stream = stream
        self._room = room
        self._grace_seconds = grace_seconds
        self._decoder = LineDecoder(max_line_bytes)
        self._reading = trio.CancelScope()
        self._first_line = True
        self._nursery: trio.Nursery
        self._writing = False
        self._mailbox = Mailbox(
            stream,
            max_batches=mailbox_batches,
            patience_seconds=patience_seconds,
            spell_missed=TEXT.spell_missed,
            on_waiting=self._start_writing,
        )
        self.member = Member(
            client=client,
            name=f"Client {client}",
            mailbox=self._mailbox,
            address=transport.peer_address(stream),
            on_leave=self._stop_reading,
        )

    def _stop_reading(self, reason: str) -> None:
        self._start_writing()  # the last words: our own task may be waiting for somebody slow
        self._reading.cancel(reason=reason or "the client left")

    async def run(self) -> None:
        """Hold the conversation until it ends, whichever side ends it.

        Raises nothing on account of the client.  Cancelled, the member has left the room, the
        stream is closed, and what was still queued for it is lost.
        """
        try:
            async with trio.open_nursery() as self._nursery:
                try:
                    self._room.join(self.member)
                    with self._reading:
                        await self._read()
                    if self._mailbox.failure is not None:  # and nothing came after it
                        self._room.leave(self.member, transport.reason_of(self._mailbox.failure))
                finally:  # while the nursery is open: who is in the room may need a writer
                    self._room.leave(self.member, "the server ended the session")
                deadline = trio.current_time() + self._grace_seconds
                self._nursery.cancel_scope.deadline = deadline
            if self._mailbox.drained:
                await transport.hang_up(self._stream)
        finally:
            # They refer to us: what is left of a client is to go with it, not with the collector.
            del self.member, self._mailbox, self._nursery
            await trio.aclose_forcefully(self._stream)

    def _start_writing(self) -> None:
        if not self._writing:
            self._writing = True
            self._nursery.start_soon(self._write)

    async def _write(self) -> None:
        await self._mailbox.run()
        # Where the writing failed, what the client sent before it broke off is still there to be
        # read: it is heard out, but not for longer than we would have waited the other way round.
        self._reading.deadline = trio.current_time() + self._grace_seconds

    async def _read(self) -> None:
        try:
            await self._converse()
        except _Leave as leave:
            self._room.leave(self.member, leave.reason, last_words=leave.last_words)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            self._room.leave(self.member, transport.reason_of(error))
        else:
            self._room.leave(self.member)

    async def _converse(self) -> None:
        receive, feed = self._stream.receive_some, self._decoder.feed
        data = await receive(READ_BYTES)
        if data == b"\x16":  # the first byte of a TLS record, cut off from its second
            data += await receive(READ_BYTES)
        if looks_like_tls(data):
            raise _Leave("it speaks TLS, this port does not")
        while data:
            await self._take(feed(data))
            data = await receive(READ_BYTES)
        await self._take(self._decoder.finish())

    async def _take(self, parts: list[Part]) -> None:
        for part in parts:
            if isinstance(part, LineTooLong):
                await self._answer(TEXT.spell(Notice(str(part))))
                continue
            if self._first_line:
                self._first_line = False
                if looks_like_http(part.partition("\n")[0]):
                    raise _Leave("it speaks HTTP, this is a chat server", HTTP_ANSWER)
            for request in TEXT.parse_requests(part):
                match request:
                    case Say(run):
                        await self._room.say(self.member.name, run, sender=self.member)
                    case Ping(token):
                        await self._answer(TEXT.spell_pong(token))
                    case Help():
                        await self._answer(TEXT.spell_help())
                    case Unknown(command):
                        await self._answer(TEXT.spell_unknown(command))
                    case Quit():
                        raise _Leave(last_words=TEXT.spell(Goodbye("you asked to leave")))

    async def _answer(self, line: bytes) -> None:
        """Tell this client alone, who is not read while its mailbox is full."""
        await self._mailbox.put(line)
