"""One member's send queue: a bounded memory channel of bytes, and the task that empties it.

Owns the order of everything that is written to one stream, the count of what waits, and the
answer to "is there room?".  It never decides what becomes of a slow member: that is the room's.

Invariants:

1. Bytes go out in the order in which they were offered, or not at all.
2. `waiting_bytes` counts what was offered and not yet handed to the stream.  It changes in the
   same step as the decision that depends on it, so nothing can overtake what waits.
3. While nothing waits, bytes are offered to the kernel at once; the channel, and the task that
   empties it, are what happens next: a member who keeps up never needs either.
4. Nobody waits for a closed send queue.
"""

import enum
from collections.abc import Callable
from contextlib import suppress
from os import write

import trio

from multichat.net.memory_budget import MemoryBudget
from multichat.net.transport import close, eager_fileno, reason_of, send_all, unsent_bytes

__all__ = ["SendQueue", "SendResult"]

# What one client may have waiting; all of them together are bounded by `--memory`.
MAX_WAITING_BYTES = 4 * 1024 * 1024

# The same while memory is tight: what a lagging member has at other times.  It gets less then.
_TIGHT_WAITING_BYTES = 256 * 1024
_TIGHT_DIVISOR = 8

# Large enough that the system call's own cost is lost in the copying, small enough that the
# copy we join stays in the cache.
_WRITE_BYTES = 256 * 1024


class SendResult(enum.Enum):
    """What became of bytes that were offered to a send queue."""

    SENT = enum.auto()  # the kernel has all of them
    QUEUED = enum.auto()  # some or all of them wait
    FULL = enum.auto()  # none of them was taken
    CLOSED = enum.auto()  # nobody is there to take them


_SENT, _QUEUED, _FULL, _CLOSED = SendResult


class SendQueue:
    """The way out to one stream.

    Any task may `try_send`, `put`, `miss` and `close`; exactly one runs `run`, which alone writes
    to *stream* while anything waits.  The stream is not closed here.

    *max_batches* bounds how many offers wait, `MAX_WAITING_BYTES` how many bytes; a single offer
    above that is taken when nothing else waits.  *encode_missed* says how the member is told that
    it missed that many messages.  *budget* is what all send queues of a server share; what waits
    here counts in it.  *on_waiting* is called once, synchronously, when something has to wait and
    nobody runs `run` yet: it has a task do so.  *on_empty* is called, synchronously, whenever
    nothing waits any more.
    """

    __slots__ = (
        "_budget",
        "_closed",
        "_encode_missed",
        "_fileno",
        "_handed_bytes",
        "_last_words",
        "_max_batches",
        "_missed",
        "_noted_bytes",
        "_on_empty",
        "_on_waiting",
        "_receive",
        "_send",
        "_space_callbacks",
        "_stream",
        "_torn",
        "drained",
        "failure",
        "waiting_bytes",
    )

    def __init__(
        self,
        stream: trio.abc.Stream,
        *,
        max_batches: int,
        encode_missed: Callable[[int], bytes],
        on_waiting: Callable[[], object] | None = None,
        on_empty: Callable[[], object] | None = None,
        budget: MemoryBudget | None = None,
    ) -> None:
        self.waiting_bytes = 0
        self.drained = False
        self.failure = ""
        self._budget = budget or MemoryBudget()
        self._stream = stream
        self._fileno = eager_fileno(stream)
        self._encode_missed = encode_missed
        self._on_waiting, self._on_empty = on_waiting, on_empty
        self._max_batches = max_batches
        self._send: trio.MemorySendChannel[bytes | memoryview] | None = None
        self._receive: trio.MemoryReceiveChannel[bytes | memoryview] | None = None
        self._missed = 0
        self._noted_bytes = 0
        self._closed = False
        self._last_words = b""
        self._torn: memoryview | None = None
        self._handed_bytes = 0  # to the stream, but for what never had to wait
        self._space_callbacks: list[Callable[[], object]] | None = None

    @property
    def closed(self) -> bool:
        """Whether nothing more is taken; what waits may still be on its way."""
        return self._closed

    @property
    def held_bytes(self) -> int:
        """How much memory is held for the client: what waits, and what was noted."""
        return self.waiting_bytes + self._noted_bytes

    def note(self, size: int) -> None:
        """Note how much memory is held for the client besides; nothing once this is closed."""
        if size != self._noted_bytes and not self._closed:
            self._budget.add(size - self._noted_bytes)
            self._noted_bytes = size

    def try_send(self, data: bytes) -> SendResult:
        """Take *data* if there is room for all of it, without waiting."""
        if self._closed:
            return _CLOSED
        if self._missed:
            data = self._encode_missed(self._missed) + data
        rest: bytes | memoryview = data
        if not self.waiting_bytes:
            if self._fileno is not None:
                # A function of its own here, or one object more for each member, is what one would
                # measure in a quiet room: it is the cache that is cold then.
                try:
                    taken = write(self._fileno(), data)
                except OSError:  # full, or broken: then the next ordinary write says why
                    taken = 0
                if taken == len(data):
                    self._missed = 0
                    return _SENT
                rest = memoryview(data)[taken:]
                self._handed_bytes += taken
        elif self.waiting_bytes + len(data) > self._most_bytes:
            return _FULL
        if self._send is None and self._on_waiting is not None:
            self._on_waiting()
        try:
            self._open_channel().send_nowait(rest)
        except trio.WouldBlock:
            return _FULL
        self.waiting_bytes += len(rest)
        self._budget.hold(_whole(rest))
        self._missed = 0
        return _QUEUED

    def fit(self, size: int) -> int:
        """Return how many bytes may be queued here of what is replayed, mostly *size*."""
        return max(1, size // _TIGHT_DIVISOR) if self._budget.tight else size

    @property
    def _most_bytes(self) -> int:
        return _TIGHT_WAITING_BYTES if self._budget.tight else MAX_WAITING_BYTES

    def _open_channel(self) -> trio.MemorySendChannel[bytes | memoryview]:
        if self._send is None:
            self._send, self._receive = trio.open_memory_channel(self._max_batches)
        return self._send

    async def put(self, data: bytes) -> SendResult:
        """Offer *data* and wait as long as it takes until there is room; never `SendResult.FULL`.

        Cancelled, it has taken nothing.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        if (try_send := self.try_send(data)) is _FULL:
            self._budget.hold(data)
            try:
                while try_send is _FULL:
                    await self.wait_for_space()
                    try_send = self.try_send(data)
            finally:
                self._budget.release(data)
        await trio.lowlevel.cancel_shielded_checkpoint()
        return try_send

    @property
    def progress(self) -> tuple[int, int]:
        """A value that changes when the peer takes bytes, while something waits."""
        return self._handed_bytes, unsent_bytes(self._stream)

    def is_half_empty(self) -> bool:
        """Return whether at most half of what may wait does."""
        return not self.waiting_bytes or (
            self.waiting_bytes <= self._most_bytes // 2 and self._batches <= self._max_batches // 2
        )

    @property
    def _batches(self) -> int:
        return 0 if self._send is None else self._send.statistics().current_buffer_used

    def has_room(self, size: int) -> bool:
        """Say whether an offer of that *size*, in bytes, would be taken now, or never again."""
        if self._closed or not self.waiting_bytes:
            return True
        if self.waiting_bytes + size > self._most_bytes:
            return False
        return self._batches < self._max_batches

    async def wait_for_space(self) -> None:
        """Wait until there may be room again, or nobody is left."""
        space = trio.Event()
        self.call_when_space(space.set)
        try:
            await space.wait()
        finally:
            if self._space_callbacks is not None and space.set in self._space_callbacks:
                self._space_callbacks.remove(space.set)

    def miss(self, messages: int) -> None:
        """Note that the member goes without so many *messages*; it is told in their place."""
        self._missed += messages

    def take_missed(self) -> bytes:
        """Return the notice of what was missed, if anything was; it is not sent by itself then."""
        missed, self._missed = self._missed, 0
        return self._encode_missed(missed) if missed else b""

    def call_when_space(self, callback: Callable[[], object]) -> None:
        """Call *callback* once, synchronously, when there may be room again or nobody is left."""
        if self._closed:
            callback()
        elif self._space_callbacks is None:
            self._space_callbacks = [callback]
        else:
            self._space_callbacks.append(callback)

    def forget(self) -> None:
        """Drop what waits, but for the rest of what is half written; `close` MUST follow."""
        if self._receive is not None:
            with suppress(trio.WouldBlock, trio.EndOfChannel, trio.ClosedResourceError):
                while True:
                    piece = self._receive.receive_nowait()
                    if isinstance(piece, memoryview):
                        self._torn = piece
                    else:
                        self.waiting_bytes -= len(piece)
                        self._budget.release(piece)

    async def abort(self) -> None:
        """Close the stream at once, so that nothing of what waits is held any longer."""
        await close(self._stream)

    def close(self, last_words: bytes = b"") -> None:
        """Take nothing more; what waits, and then *last_words*, is still written.  Idempotent."""
        if self._closed:
            return
        self.note(0)
        self._closed = True
        if self._missed:
            last_words = self._encode_missed(self._missed) + last_words
        self._last_words = last_words
        if self._send is not None:
            self._send.close()
        self._notify()

    async def run(self) -> None:
        """Write what is offered until the send queue is closed, then what waits and the last words.

        Called after `close`, where nothing ever had to wait, it writes the last words alone.

        Sets `drained` when all of it was handed to the stream, `failure` to the reason when the
        stream broke; either way the send queue is closed.  So it is after cancellation: then the
        stream may have half a line on it and MUST NOT be written to again.
        """
        try:
            if not self._closed:
                self._open_channel()
            if self._receive is not None:
                await self._write_what_comes(self._receive)
            if self._torn is not None:
                await send_all(self._stream, self._torn)
            if self._last_words:
                await send_all(self._stream, self._last_words)
            self.drained = True
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            # Not the error itself: its traceback refers to us, so that whoever left, with all that
            # it was sent last, would wait for the collector.
            self.failure = reason_of(error)
        finally:
            self.close()
            self.forget()
            if self._torn is not None:
                self._budget.release(_whole(self._torn))
            if self._receive is not None:
                self._receive.close()
            self.waiting_bytes = 0

    async def _write_what_comes(
        self, receive: trio.MemoryReceiveChannel[bytes | memoryview]
    ) -> None:
        async for piece in receive:
            joined = self._join_waiting(receive, piece)
            self._notify()  # there are free slots in the channel
            try:
                await send_all(self._stream, joined)
            finally:
                self._budget.release(_whole(joined))
            self.waiting_bytes -= len(joined)
            self._handed_bytes += len(joined)
            self._notify()
            if not self.waiting_bytes:
                if self._missed:  # perhaps nothing follows for long
                    self.try_send(b"")
                if self._on_empty is not None:
                    self._on_empty()

    def _join_waiting(
        self, receive: trio.MemoryReceiveChannel[bytes | memoryview], piece: bytes | memoryview
    ) -> bytes | memoryview:
        """Return *piece* and what waits behind it, in one; it is held as that.

        Not while memory is tight: a copy is this client's alone, what waits may be shared by all.
        """
        pieces = [piece]
        size = len(piece)
        while size < _WRITE_BYTES and not self._budget.tight:
            try:
                piece = receive.receive_nowait()
            except (trio.WouldBlock, trio.EndOfChannel):
                break
            pieces.append(piece)
            size += len(piece)
        if len(pieces) == 1:
            return piece
        joined = b"".join(pieces)
        for each in pieces:
            self._budget.release(_whole(each))
        self._budget.hold(joined)
        return joined

    def _notify(self) -> None:
        if self._space_callbacks:
            callbacks, self._space_callbacks = self._space_callbacks, None
            for callback in callbacks:
                callback()


def _whole(piece: bytes | memoryview) -> bytes:
    """Return what is kept alive by a piece."""
    return piece.obj if isinstance(piece, memoryview) else piece  # type: ignore[return-value]
