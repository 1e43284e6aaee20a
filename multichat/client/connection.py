"""One connection of a client: lines out, lines in, and when it is over.

Owns what is known of the peer's progress, to distinguish an end from a pause, and what arrived from
what did not.  Does not interpret the lines: that is `multichat.client.session`.

One task writes and one receives; they do not wait for each other.  What waits to be written is
bounded by a send queue.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import trio

from multichat.client.event_queue import Condition
from multichat.client.timeouts import ClientTimeouts
from multichat.errors import ConnectionLost
from multichat.net import transport
from multichat.net.send_queue import SendQueue, SendResult
from multichat.protocol.framing import LineDecoder, Part

__all__ = ["MAX_LINE_BYTES", "MAX_WAIT_SECONDS", "Connection", "Standstill"]

# A paste of some thousand lines is queued at once; what waits is joined into few writes anyway.
_MAX_BATCHES = 64

# A server's line is longer than a client's: a tag, and three bytes for every control character.
MAX_LINE_BYTES = 1024 * 1024

_READ_BYTES = 64 * 1024

_WATCH_SECONDS = 0.5

# The longest time for which a server may announce that it stops reading.
MAX_WAIT_SECONDS = 3600.0


class Standstill:
    """Measures how long a value has stayed the same, while this process was running.

    A process that was stopped, or whose machine slept, has had no chance to see a change.
    """

    def __init__(self) -> None:
        self._value: object = None
        self._seconds = 0.0
        self._watched_at = trio.current_time()

    def watch(self, value: object, *, at_most: float) -> float:
        """Look at *value*; return for how many seconds it has been the same.

        Since the last look no more than *at_most* seconds are counted.
        """
        now = trio.current_time()
        passed, self._watched_at = min(now - self._watched_at, at_most), now
        self._seconds = self._seconds + passed if value == self._value else 0.0
        self._value = value
        return self._seconds


class Connection:
    """Lines over *stream*, which is not closed here.

    Inside of `open` one task runs `write_queued` and one calls `receive` until the connection is
    *over*; any task may call the rest.  *changed* is notified of whatever happens.

    *over* says that nothing more will be received, *ended* that this is because the peer has sent
    its end of input.  *received_at* is the time of the last input, *receiving* says that we wait
    for more.  *stuck_seconds* is how long the server may leave messages of ours unacknowledged.
    *finishing* says that `finish` was called.
    """

    def __init__(
        self, stream: trio.abc.Stream, *, changed: Condition, timeouts: ClientTimeouts
    ) -> None:
        self.stream = stream
        self.over = self.ended = self.finishing = False
        self.receiving = False  # else our own program has not taken the last input
        self.received_at = trio.current_time()
        self.stuck_seconds = timeouts.stuck
        self._timeouts = timeouts
        self._queue = SendQueue(stream, max_batches=_MAX_BATCHES, encode_missed=lambda _: b"")
        self._decoder = LineDecoder(MAX_LINE_BYTES)
        self._changed = changed
        self._received_bytes = self._queued_bytes = 0
        self._broken = self._stuck = False
        self._lost = ""  # why the connection is lost
        self._tasks = trio.CancelScope()
        self._tasks_over = trio.Event()

    # --- Progress ---------------------------------------------------------------------------------

    @property
    def moved_bytes(self) -> int:
        """A number that changes whenever the peer receives or sends something."""
        return self._received_bytes + self.delivered_bytes

    @property
    def undelivered_bytes(self) -> int:
        """How many bytes were sent that the peer, or its kernel, has not received."""
        return self._queue.waiting_bytes + self._unsent_bytes()

    @property
    def delivered_bytes(self) -> int:
        """How many bytes the peer, or its kernel, has received; pings count less."""
        return self._queued_bytes - self.undelivered_bytes

    def describe_undelivered(self) -> str:
        """Say how many bytes the peer has not received; empty if it has received all."""
        count = self.undelivered_bytes
        last = "the last byte sent was" if count == 1 else f"the last {count} bytes sent were"
        return f"the server has stopped reading; {last} not received" if count else ""

    def _unsent_bytes(self) -> int:
        # Our end of input takes a place in the kernel's count until it is acknowledged.
        return max(0, transport.unsent_bytes(self.stream) - self._queue.drained)

    def allow_waits(self, seconds: float) -> None:
        """Let the server stop reading for up to *seconds*, as it may for a slow client."""
        seconds = min(max(0.0, seconds), MAX_WAIT_SECONDS)
        self.stuck_seconds = self._timeouts.stuck + seconds
        transport.keep_alive(self.stream, seconds)

    @property
    def waiting_bytes(self) -> int:
        """How many bytes were sent and not yet handed to the system."""
        return self._queue.waiting_bytes

    @property
    def can_send(self) -> bool:
        """Whether what is sent may still arrive: nothing has failed and `finish` was not called."""
        return not self._queue.closed

    async def wait_for(self, predicate: Callable[[], object]) -> None:
        """Wait until *predicate* holds or the connection is over; events are read meanwhile."""
        await self._changed.wait_for(lambda: self.over or predicate())

    # --- Lines ------------------------------------------------------------------------------------

    async def send(self, block: str) -> None:
        """Send a block of lines; returns when they are handed to the system, or queued.

        On cancellation nothing has been sent or queued.  Raises `ConnectionLost`.
        """
        data = f"{block}\n".encode()
        if await self._queue.put(data) is SendResult.CLOSED:
            raise self.lost()
        self._queued_bytes += len(data)

    def try_send(self, block: str) -> None:
        """Send a block of lines if that needs no waiting."""
        self._queue.try_send(f"{block}\n".encode())

    def abort(self, reason: str) -> None:
        """Stop sending and receiving; *reason* is why, unless an earlier reason is known."""
        self._lost, self._stuck = self._lost or reason, True
        self._queue.close()
        self._tasks.cancel(reason=reason)

    def lost(self) -> ConnectionLost:
        """Return the exception that says why the connection cannot be used any more."""
        return ConnectionLost(self._queue.failure or self._lost or "the chat has ended")

    @contextmanager
    def open(self) -> Iterator[None]:
        """Run the block, which `abort` cancels; the connection is over at its end."""
        try:
            with self._tasks:
                yield
        finally:
            self.over = True
            self._tasks_over.set()
            self._changed.notify()

    async def write_queued(self) -> None:
        """Write what is sent, and after `finish` the end of input."""
        await self._queue.run()
        if self._queue.drained and isinstance(self.stream, trio.abc.HalfCloseableStream):
            try:
                await self.stream.send_eof()
            except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
                self._broken, self._lost = True, transport.describe_error(error)

    async def receive(self) -> list[Part]:
        """Return the lines of the next read; after the last of them the connection is *over*."""
        self.receiving = True
        try:
            data = await self.stream.receive_some(_READ_BYTES)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            self.over = self._broken = True
            self._lost = self._lost or transport.describe_error(error)
            self._queue.close()  # the peer will not read what we would send
            return []
        if not data:
            self.over = self.ended = True
            self._lost = self._lost or "the server closed the connection"
            return self._decoder.finish()
        self.receiving = False
        self.received_at = trio.current_time()
        self._received_bytes += len(data)
        return self._decoder.feed(data)

    # --- The end ----------------------------------------------------------------------------------

    async def finish(
        self, is_settled: Callable[[], bool], last_line: str = "", *, end_line: str
    ) -> None:
        """Wait until all *is_settled*, send the end of input, and wait for the peer's.

        *last_line* is sent before the end, if it is not empty; otherwise *end_line* asks the peer
        to end, if the stream cannot be half-closed.  Waits as long as there is progress; without
        it, for `stuck_seconds` while something is not settled or delivered, else for `finish`.
        Raises `ConnectionLost` if something that was sent did not arrive, as far as can be known.
        """
        self.finishing = True
        with self._changed.waiting():
            await self._watch(lambda: is_settled() or self.over, is_settled)
        if not last_line and not isinstance(self.stream, trio.abc.HalfCloseableStream):
            last_line = end_line
        self._queue.close(f"{last_line}\n".encode() if last_line else b"")
        await self._watch(
            lambda: self._tasks_over.is_set() and not self._unsent_bytes(), is_settled
        )
        if error := transport.pending_error(self.stream):
            self._broken, self._lost = True, transport.describe_error(error)
        arrived = self._queue.drained and is_settled()
        if self._stuck or not arrived or (self._broken and self._queued_bytes):
            raise self.lost()

    async def _watch(self, is_over: Callable[[], bool], is_settled: Callable[[], bool]) -> None:
        standstill = Standstill()
        while not is_over() and not self._stuck:
            with trio.move_on_after(_WATCH_SECONDS):
                await self._changed.wait()
            if self._tasks_over.is_set() and self._unsent_bytes():
                await trio.sleep(_WATCH_SECONDS / 10)  # no event says that the kernel has sent
            seconds = standstill.watch(
                self.moved_bytes if self.receiving else object(), at_most=2 * _WATCH_SECONDS
            )
            unsent = self.undelivered_bytes or not is_settled()
            if seconds >= (self.stuck_seconds if unsent else self._timeouts.finish):
                self._stuck = bool(unsent)
                self._lost = (
                    self._lost or self.describe_undelivered() or "the server has stopped reading"
                )
                self._tasks.cancel(reason="there is no more progress")
