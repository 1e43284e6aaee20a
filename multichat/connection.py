"""A client's connection: lines out, lines in, and when it is over.

Owns what is known of the other side's taking and giving, so that an end can be told from a pause
and what arrived from what did not.  Knows nothing of what the lines mean: that is `Chat`.

Its two tasks do not wait for each other; what waits to be written is bounded by a mailbox, what
was read and not yet heard by *may_read*.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import trio

from multichat import transport
from multichat.errors import ConnectionLost
from multichat.framing import LineDecoder, Part
from multichat.mailbox import Mailbox, Offer

__all__ = ["FINISH_SECONDS", "MAX_LINE_BYTES", "STUCK_SECONDS", "Bell", "Connection"]

# A paste of some thousand lines is taken at once; what waits is joined into few writes anyway.
_OUTBOX_BATCHES = 64

# A server's line is longer than a client's: a tag, and three bytes for every control character.
MAX_LINE_BYTES = 1024 * 1024

_READ_BYTES = 64 * 1024

# How long the other side may be silent after our end of input before we take it that there is
# nothing more to come; a server of ours closes as soon as it has said everything.
FINISH_SECONDS = 2.0

# The same while there is something of ours that it has not taken: a room may wait for slow
# members and not read us meanwhile.
STUCK_SECONDS = 30.0

_WATCH_SECONDS = 0.5


class Bell:
    """Rung whenever anything may have changed, for all who wait until something is so.

    *awaited* is how many of them wait for something that has to be read first.
    """

    def __init__(self) -> None:
        self.awaited = 0
        self._rung = trio.Event()

    def ring(self) -> None:
        """Have all who wait look again at what they wait for."""
        self._rung.set()
        self._rung = trio.Event()

    async def wait(self) -> None:
        """Wait until it rings."""
        await self._rung.wait()

    @contextmanager
    def awaiting(self) -> Iterator[None]:
        """Count among *awaited* while the block runs."""
        self.awaited += 1
        self.ring()
        try:
            yield
        finally:
            self.awaited -= 1

    async def wait_until(self, condition: Callable[[], object]) -> None:
        """Wait until *condition* holds, counted among *awaited*."""
        await trio.lowlevel.checkpoint_if_cancelled()
        with self.awaiting():
            while not condition():
                await self._rung.wait()


class Connection:
    """Lines over *stream*, which is not closed here.

    One task calls `run`, once; any may do the rest.  *hear* is called with what each read brought
    and MUST NOT raise; the next read waits until *may_read*, which is told whether somebody waits
    for an answer: that may stand behind much that nobody hears.  *bell* is rung for whatever
    happens.

    *ended* says that the peer has sent its end of input, and that *hear* is called with what stands
    before that and is no line; *over* that nothing more will come.
    """

    def __init__(
        self,
        stream: trio.abc.Stream,
        *,
        hear: Callable[[list[Part]], None],
        may_read: Callable[[bool], bool],
        bell: Bell,
    ) -> None:
        self.over = self.ended = False
        self.nursery: trio.Nursery  # of our tasks, for others that end with them
        self._stream = stream
        self._hear = hear
        self._may_read = may_read
        self._outbox = Mailbox(stream, max_batches=_OUTBOX_BATCHES, spell_missed=_nothing_is_missed)
        self._decoder = LineDecoder(MAX_LINE_BYTES)
        self._bell = bell
        self._received_bytes = self._taken_bytes = 0
        self._listening = False  # waiting for the peer, and not for our own program to hear
        self._broken = self._stuck = False
        self._lost = ""  # why the other side is gone
        self._tasks = trio.CancelScope()
        self._tasks_over = trio.Event()

    # --- What has moved, and what has not ---------------------------------------------------------

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
        """Whether what is sent may still arrive: nothing has failed and `finish` was not called."""
        return not self._outbox.closed

    async def wait_until(self, condition: Callable[[], object]) -> None:
        """Wait until *condition* holds or the connection is over; meanwhile reading goes on."""
        await self._bell.wait_until(lambda: self.over or condition())

    # --- Lines ------------------------------------------------------------------------------------

    async def put(self, run: str) -> None:
        """Send a run of lines in one piece; returns when they are on their way.

        Cancelled, they are not.  Raises `ConnectionLost`.
        """
        data = f"{run}\n".encode()
        if await self._outbox.put(data) is Offer.CLOSED:
            raise self.lost()
        self._taken_bytes += len(data)

    def offer(self, run: str) -> bool:
        """Send a run of lines if that needs no waiting; say whether."""
        return self._outbox.offer(f"{run}\n".encode()) in (Offer.SENT, Offer.QUEUED)

    def abort(self, reason: str) -> None:
        """Neither send nor read any more; *reason* is why, if nothing else was before."""
        self._lost = self._lost or reason
        self._tasks.cancel(reason=reason)

    def lost(self) -> ConnectionLost:
        """Return the exception that says why the connection is of no use any more."""
        return ConnectionLost(self._outbox.failure or self._lost or "the conversation is over")

    async def run(self) -> None:
        """Send and receive until both are over, or cancelled."""
        try:
            with self._tasks:
                async with trio.open_nursery() as self.nursery:
                    self.nursery.start_soon(self._send_all)
                    await self._receive_all()
        finally:
            self.over = True
            self._tasks_over.set()
            self._bell.ring()

    async def _send_all(self) -> None:
        await self._outbox.run()
        if self._outbox.drained and isinstance(self._stream, trio.abc.HalfCloseableStream):
            try:
                await self._stream.send_eof()
            except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
                self._broken, self._lost = True, transport.reason_of(error)

    async def _receive_all(self) -> None:
        try:
            while data := await self._receive_some():
                self._received_bytes += len(data)
                self._hear(self._decoder.feed(data))
                self._bell.ring()
                while not self._may_read(self._bell.awaited > 0):
                    await self._bell.wait()
            self.ended = True
            self._hear(self._decoder.finish())
            self._lost = "the server closed the connection"
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            self._broken = True
            self._lost = transport.reason_of(error)
            self._outbox.close()  # nobody is left to read what we would say
        finally:
            self.over = True
            self._bell.ring()

    async def _receive_some(self) -> bytes | bytearray:
        self._listening = True
        data = await self._stream.receive_some(_READ_BYTES)
        self._listening = bool(not data)  # after its end we wait for nothing but the peer
        return data

    # --- The end ----------------------------------------------------------------------------------

    async def finish(
        self, is_settled: Callable[[], bool], last_line: str = "", *, end_line: str
    ) -> None:
        """Wait until all *is_settled*, send the end of input, and wait for the peer's.

        Before the end comes *last_line*, if there is one; else, where a stream has no end of input
        of its own, *end_line* asks for it.  Waits while anything moves: at a standstill for
        `STUCK_SECONDS` while something is not settled or not taken, then for `FINISH_SECONDS`.
        Raises `ConnectionLost` if something that was sent did not arrive, as far as can be known.
        """
        with self._bell.awaiting():
            await self._watch(lambda: is_settled() or self.over, is_settled)
        if not last_line and not isinstance(self._stream, trio.abc.HalfCloseableStream):
            last_line = end_line
        self._outbox.close(f"{last_line}\n".encode() if last_line else b"")
        await self._watch(
            lambda: self._tasks_over.is_set() and not self._unsent_bytes(), is_settled
        )
        if error := transport.pending_error(self._stream):
            self._broken, self._lost = True, transport.reason_of(error)
        arrived = self._outbox.drained and is_settled()
        if self._stuck or not arrived or (self._broken and self._taken_bytes):
            raise self.lost()

    async def _watch(self, is_over: Callable[[], bool], is_settled: Callable[[], bool]) -> None:
        moved, since = self.moved_bytes, trio.current_time()
        while not is_over() and not self._stuck:
            with trio.move_on_after(_WATCH_SECONDS):
                await self._bell.wait()
            if self._tasks_over.is_set() and self._unsent_bytes():
                await trio.sleep(_WATCH_SECONDS / 10)  # the kernel tells nobody when it has sent
            now = trio.current_time()
            if self.moved_bytes != moved or not self._listening:
                moved, since = self.moved_bytes, now
            unsent = self._outbox.waiting_bytes or self._unsent_bytes() or not is_settled()
            if now - since >= (STUCK_SECONDS if unsent else FINISH_SECONDS):
                self._stuck = bool(unsent)
                self._lost = self._lost or "the server has stopped reading"
                self._tasks.cancel(reason="nothing moves any more")


def _nothing_is_missed(_: int) -> bytes:
    return b""
