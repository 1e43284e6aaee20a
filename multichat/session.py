"""One client's conversation, over any stream.

Owns a client from its first byte to its last: reads what it asks, has it said or answers it, and
closes so that nothing that was written is thrown away.  One nursery: the reader is the task that
called `run`, the writer is its mailbox's and begins when something has to wait for the first time,
or with the last words.

How it ends, whoever wished it: the member leaves the room (synchronously; the mailbox takes
nothing more), the writer finishes within the grace period, EOF, what still comes is discarded for
a moment, close.
"""

from functools import cache
from importlib.metadata import version

import trio

from multichat import transport
from multichat.config import ServerConfig
from multichat.directory import Directory
from multichat.errors import LineTooLong, NobodyThere, RemoteProtocolError
from multichat.framing import LineDecoder, Part
from multichat.mailbox import Mailbox
from multichat.messages import (
    PROTOCOL,
    Accepted,
    Act,
    Direct,
    Error,
    Event,
    Goodbye,
    Hello,
    Help,
    Invalid,
    Join,
    Joined,
    Limits,
    MemberName,
    Members,
    Missed,
    Nonce,
    Ping,
    Pong,
    Quit,
    Rename,
    Renamed,
    Request,
    RoomList,
    Rooms,
    RoomSize,
    SayRun,
    Welcome,
    Who,
)
from multichat.names import MAX_NAME_CHARACTERS, default_name
from multichat.room import Member, Receipt
from multichat.voices import HTTP_ANSWER, JSON, help_notices, looks_like_http, looks_like_tls

__all__ = ["Session"]

# One read, one batch: enough that a flood costs per batch and not per message, little enough that
# senders take turns, and that lines of 40 bytes and more fit, with their tags, into the 64 KiB that
# the kernel hands on as one piece: what spills over costs every member a second one.
READ_BYTES = 48 * 1024

# More than any answer is that goes with a change of what its client hears.
_ANSWER_BYTES = 4096


@cache
def _program() -> str:
    return f"multichat {version('multichat')}"


class _Leave(Exception):
    """The conversation is over; *reason* is for the log, *last_words* for the client."""

    def __init__(self, reason: str = "", last_words: bytes = b"") -> None:
        super().__init__(reason)
        self.reason, self.last_words = reason, last_words


class Session:
    """A client in *directory*; constructing it starts nothing and says nothing.

    `run` is called once, by one task.  The stream is closed when it returns or raises.
    """

    __slots__ = (
        "_config",
        "_decoder",
        "_directory",
        "_first_line",
        "_mailbox",
        "_nursery",
        "_reading",
        "_stream",
        "_writing",
        "member",
    )

    def __init__(
        self,
        stream: trio.abc.Stream,
        directory: Directory,
        client: int,
        config: ServerConfig,
    ) -> None:
        self._stream = stream
        self._directory = directory
        self._config = config
        self._decoder = LineDecoder(config.max_line_bytes)
        self._reading = trio.CancelScope()
        self._first_line = True
        self._nursery: trio.Nursery
        self._writing = False
        self._mailbox = Mailbox(
            stream,
            max_batches=config.mailbox_batches,
            patience_seconds=config.patience_seconds,
            spell_missed=self._spell_missed,
            on_waiting=self._start_writing,
        )
        self.member = Member(
            client=client,
            name=default_name(client),
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
                    self._directory.enter(self.member)
                    with self._reading:
                        await self._read()
                    if self._mailbox.failure is not None:  # and nothing came after it
                        self._directory.leave(
                            self.member, transport.reason_of(self._mailbox.failure)
                        )
                finally:  # while the nursery is open: who is in the room may need a writer
                    self._directory.leave(self.member, "the server ended the session")
                deadline = trio.current_time() + self._config.grace_seconds
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
        self._reading.deadline = trio.current_time() + self._config.grace_seconds

    async def _read(self) -> None:
        try:
            await self._converse()
        except _Leave as leave:
            self._directory.leave(self.member, leave.reason, last_words=leave.last_words)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            self._directory.leave(self.member, transport.reason_of(error))
        else:
            self._directory.leave(self.member)

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
                await self._answer(Invalid.because(part).error)
                continue
            if self._first_line:
                self._first_line = False
                if looks_like_http(part.partition("\n")[0]):
                    raise _Leave("it speaks HTTP, this is a chat server", HTTP_ANSWER)
            for request in self.member.voice.parse_requests(part):
                if type(request) is SayRun:  # mostly
                    receipt = await self.member.room.say(self.member, request.run)
                    if request.nonces and receipt.epoch:
                        await self._accept(request.nonces, receipt)
                    continue
                try:
                    await self._do(request)
                except RemoteProtocolError as error:
                    nonce = getattr(request, "nonce", None)
                    await self._answer(Invalid.because(error, nonce).error)

    async def _do(self, request: Request) -> None:
        """Do what is asked, and answer; raises `RemoteProtocolError` where it cannot be done."""
        me, directory = self.member, self._directory
        match request:
            case Act(text=text, nonce=nonce):
                receipt = await me.room.say(me, text, act=True)
                if nonce is not None and receipt.epoch:
                    await self._accept((nonce,), receipt)
            case Direct(to=to, text=text, nonce=nonce):
                recipient = directory.find(to)
                if recipient is None:
                    raise NobodyThere(to)
                await directory.direct(me, recipient, text)
                if nonce is not None:
                    await self._answer(Accepted(nonce=nonce))
            case Rename(name=name, nonce=nonce):
                old = directory.rename(me, name)
                await self._answer(Renamed(me.client, old, me.name, nonce=nonce))
            case Join(room=room, nonce=nonce):
                await self._wait_for_room()
                directory.move(me, room)
                await self._answer(
                    Joined(me.client, me.name, me.room.name, len(me.room), nonce=nonce)
                )
            case Who(nonce=nonce):
                names = [MemberName(member.client, member.name) for member in me.room.members]
                await self._answer(Members(me.room.name, names, nonce=nonce))
            case Rooms(nonce=nonce):
                sizes = [RoomSize(room.name, len(room)) for room in directory.rooms]
                await self._answer(RoomList(sizes, nonce=nonce))
            case Ping(token=token, nonce=nonce):
                await self._answer(Pong(token, nonce=nonce))
            case Help(nonce=nonce):
                await self._answer(*help_notices(nonce))
            case Hello():
                await self._greet(request)
            case Invalid(error):
                await self._answer(error)
            case Quit(nonce=nonce):
                goodbye = Goodbye("you asked to leave", nonce=nonce)
                raise _Leave(last_words=me.voice.spell(goodbye))

    async def _greet(self, hello: Hello) -> None:
        """Change to the JSON voice, in one step with the welcome, which is its first line."""
        me, directory = self.member, self._directory
        await self._wait_for_room()
        refused: list[Error] = []
        for wish, grant in ((hello.room, directory.move), (hello.name, directory.rename)):
            if wish is not None:
                try:
                    grant(me, wish)
                except RemoteProtocolError as error:
                    refused.append(Invalid.because(error).error)
        self._mailbox.tell_missed()  # in the voice in which it was
        me.room.speak(me, JSON)
        await self._answer(
            Welcome(
                PROTOCOL,
                me.client,
                me.name,
                me.room.name,
                len(me.room),
                Limits(self._config.max_line_bytes, MAX_NAME_CHARACTERS),
                me.room.last_id,
                _program(),
                resumed=False,
            ),
            *refused,
        )

    async def _accept(self, nonces: tuple[Nonce | None, ...], receipt: Receipt) -> None:
        await self._answer(
            *(
                Accepted(nonce=nonce, id=receipt.id_of(i))
                for i, nonce in enumerate(nonces)
                if nonce is not None
            )
        )

    async def _wait_for_room(self) -> None:
        """Wait until an answer is taken at once: what it goes with happens in the same step."""
        while not self._mailbox.has_room(_ANSWER_BYTES):
            await self._mailbox.wait_for_space()

    async def _answer(self, *events: Event) -> None:
        """Tell this client alone, who is not read while its mailbox is full."""
        await self._mailbox.put(b"".join(map(self.member.voice.spell, events)))

    def _spell_missed(self, count: int) -> bytes:
        return self.member.voice.spell(Missed(count))
