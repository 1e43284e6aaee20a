"""A client's connection: lines out, lines in, and when it is over.

Owns what is known of the other side's taking and giving, so that an end can be told from a pause
and what arrived from what did not.  Knows nothing of what the lines mean: that is
`multichat.client.conversation`.

One task sends and one receives; they do not wait for each other.  What waits to be written is
bounded by a send queue.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import trio

from multichat.client.timeouts import ClientTimeouts
from multichat.errors import ConnectionLost
from multichat.net import transport
from multichat.net.send_queue import SendQueue, SendResult
from multichat.protocol.framing import LineDecoder, Part

__all__ = ["MAX_LINE_BYTES", "MAX_WAIT_SECONDS", "Bell", "Connection", "Standstill"]

# A paste of some thousand lines is taken at once; what waits is joined into few writes anyway.
_OUTBOX_BATCHES = 64

# A server's line is longer than a client's: a tag, and three bytes for every control character.
MAX_LINE_BYTES = 1024 * 1024

_READ_BYTES = 64 * 1024

_WATCH_SECONDS = 0.5

# A server that says that it may stop reading for longer is not believed.
MAX_WAIT_SECONDS = 3600.0


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


class Standstill:
    """For how long something has not changed, in time in which this process ran.

    A process that was stopped, or whose machine slept, has had no chance to see a change.
    """

    def __init__(self) -> None:
        self._value: object = None
        self._seconds = 0.0
        self._looked_at = trio.current_time()

    def watch(self, value: object, *, at_most: float) -> float:
        """Look at *value*; return for how many seconds it has been the same.

        Since the last look no more than *at_most* seconds are counted.
        """
        now = trio.current_time()
        passed, self._looked_at = min(now - self._looked_at, at_most), now
        self._seconds = self._seconds + passed if value == self._value else 0.0
        self._value = value
        return self._seconds


class Connection:
    """Lines over *stream*, which is not closed here.

    Inside of `open` one task runs `send` and one calls `receive` until the connection is *over*;
    any task may do the rest.  *bell* is rung for whatever happens.

    *over* says that nothing more will come, *ended* that this is because the peer has sent its end
    of input.  *heard_at* is when something came last, *listening* says that we wait for more.
    *stuck_seconds* is for how long the server may leave messages of ours unaccepted.
    """

    def __init__(
        self,
        stream: trio.abc.Stream,
        *,
        bell: Bell,
        timeouts: ClientTimeouts,
    ) -> None:
        self.stream = stream
        self.over = self.ended = False
        self.listening = False  # else our own program has still to hear what came
        self.heard_at = trio.current_time()
        self.stuck_seconds = timeouts.stuck
        self._timeouts = timeouts
        self._outbox = SendQueue(
            stream, max_batches=_OUTBOX_BATCHES, encode_missed=_nothing_is_missed
        )
        self._decoder = LineDecoder(MAX_LINE_BYTES)
        self._bell = bell
        self._received_bytes = self._taken_bytes = 0
        self._broken = self._stuck = False
        self._lost = ""  # why the other side is gone
        self._tasks = trio.CancelScope()
        self._tasks_over = trio.Event()

    # --- What has moved, and what has not ---------------------------------------------------------

    @property
    def moved_bytes(self) -> int:
        """A number that changes as the peer takes and gives: twice the same, nothing moves."""
        return self._received_bytes + self.acknowledged_bytes

    @property
    def untaken_bytes(self) -> int:
        """How many bytes were sent that the peer, or its kernel, has not taken."""
        return self._outbox.waiting_bytes + self._unsent_bytes()

    def describe_untaken(self) -> str:
        """Say how many bytes the peer has not taken; nothing if it has all."""
        count = self.untaken_bytes
        reason = f"the server has stopped reading; the last {count} bytes sent were not taken"
        return reason if count else ""

    @property
    def acknowledged_bytes(self) -> int:
        """How many bytes of what was `put` the peer, or its kernel, has taken; pings count less."""
        return self._taken_bytes - self.untaken_bytes

    def _unsent_bytes(self) -> int:
        # Our end of input takes a place in the kernel's count until it is acknowledged.
        return max(0, transport.unsent_bytes(self.stream) - self._outbox.drained)

    def allow_waits(self, seconds: float) -> None:
        """Let the server stop reading for so many *seconds*, as it may for a slow client."""
        seconds = min(max(0.0, seconds), MAX_WAIT_SECONDS)
        self.stuck_seconds = self._timeouts.stuck + seconds
        transport.keep_alive(self.stream, seconds)

    def has_come_since(self, time: float) -> bool:
        """Say whether anything has come from the peer after that *time* of trio's clock."""
        return self.heard_at > time

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

    async def put(self, block: str) -> None:
        """Send a run of lines in one piece; returns when they are on their way.

        Cancelled, they are not.  Raises `ConnectionLost`.
        """
        data = f"{block}\n".encode()
        if await self._outbox.put(data) is SendResult.CLOSED:
            raise self.lost()
        self._taken_bytes += len(data)

    def try_send(self, block: str) -> bool:
        """Send a run of lines if that needs no waiting; say whether."""
        return self._outbox.try_send(f"{block}\n".encode()) in (SendResult.SENT, SendResult.QUEUED)

    def abort(self, reason: str) -> None:
        """Neither send nor read any more; *reason* is why, if nothing else was before."""
        self._lost, self._stuck = self._lost or reason, True
        self._outbox.close()
        self._tasks.cancel(reason=reason)

    def lost(self) -> ConnectionLost:
        """Return the exception that says why the connection is of no use any more."""
        return ConnectionLost(self._outbox.failure or self._lost or "the conversation is over")

    @contextmanager
    def open(self) -> Iterator[None]:
        """Hold the connection while the block runs, which `abort` cancels; it is over then."""
        try:
            with self._tasks:
                yield
        finally:
            self.over = True
            self._tasks_over.set()
            self._bell.ring()

    async def send(self) -> None:
        """Send what is `put`, and after `finish` the end of input."""
        await self._outbox.run()
        if self._outbox.drained and isinstance(self.stream, trio.abc.HalfCloseableStream):
            try:
                await self.stream.send_eof()
            except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
                self._broken, self._lost = True, transport.reason_of(error)

    async def receive(self) -> list[Part]:
        """Return the lines of the next read; the last of them is followed by *over*."""
        self.listening = True
        try:
            data = await self.stream.receive_some(_READ_BYTES)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            self.over = self._broken = True
            self._lost = self._lost or transport.reason_of(error)
            self._outbox.close()  # nobody is left to read what we would say
            return []
        if not data:
            self.over = self.ended = True
            self._lost = self._lost or "the server closed the connection"
            return self._decoder.finish()
        self.listening = False
        self.heard_at = trio.current_time()
        self._received_bytes += len(data)
        return self._decoder.feed(data)

    # --- The end ----------------------------------------------------------------------------------

    async def finish(
        self, is_settled: Callable[[], bool], last_line: str = "", *, end_line: str
    ) -> None:
        """Wait until all *is_settled*, send the end of input, and wait for the peer's.

        Before the end comes *last_line*, if there is one; else, where a stream has no end of input
        of its own, *end_line* asks for it.  Waits while anything moves: at a standstill for
        `stuck_seconds` while something is not settled or not taken, then for `finish` seconds.
        Raises `ConnectionLost` if something that was sent did not arrive, as far as can be known.
        """
        with self._bell.awaiting():
            await self._watch(lambda: is_settled() or self.over, is_settled)
        if not last_line and not isinstance(self.stream, trio.abc.HalfCloseableStream):
            last_line = end_line
        self._outbox.close(f"{last_line}\n".encode() if last_line else b"")
        await self._watch(
            lambda: self._tasks_over.is_set() and not self._unsent_bytes(), is_settled
        )
        if error := transport.pending_error(self.stream):
            self._broken, self._lost = True, transport.reason_of(error)
        arrived = self._outbox.drained and is_settled()
        if self._stuck or not arrived or (self._broken and self._taken_bytes):
            raise self.lost()

    async def _watch(self, is_over: Callable[[], bool], is_settled: Callable[[], bool]) -> None:
        standstill = Standstill()
        while not is_over() and not self._stuck:
            with trio.move_on_after(_WATCH_SECONDS):
                await self._bell.wait()
            if self._tasks_over.is_set() and self._unsent_bytes():
                await trio.sleep(_WATCH_SECONDS / 10)  # the kernel tells nobody when it has sent
            seconds = standstill.watch(
                self.moved_bytes if self.listening else object(), at_most=2 * _WATCH_SECONDS
            )
            unsent = self.untaken_bytes or not is_settled()
            if seconds >= (self.stuck_seconds if unsent else self._timeouts.finish):
                self._stuck = bool(unsent)
                self._lost = (
                    self._lost or self.describe_untaken() or "the server has stopped reading"
                )
                self._tasks.cancel(reason="nothing moves any more")


def _nothing_is_missed(_: int) -> bytes:
    return b""
