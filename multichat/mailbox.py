"""One member's mailbox: a bounded memory channel of bytes, and the task that empties it.

Owns the order of everything that is written to one stream, the count of what waits, and the
answer to "is there room?".  It never decides what becomes of a slow member: that is the room's.

Invariants:

1. Bytes go out in the order in which they were offered, or not at all.
2. `waiting_bytes` counts what was offered and not yet handed to the stream.  It changes in the
   same step as the decision that depends on it, so nothing can overtake what waits.
3. While nothing waits, bytes are offered to the kernel at once; the channel is what happens next.
4. Nobody waits for a closed mailbox.
"""

import enum
import math
from collections.abc import Callable
from contextlib import suppress

import trio

from multichat.limits import Patience
from multichat.transport import eager_write

__all__ = ["Mailbox", "Offer"]

# A thousand members all stalled at once hold 4 GiB at worst, and each gets its patience's worth.
MAX_WAITING_BYTES = 4 * 1024 * 1024

# Large enough that the system call's own cost is lost in the copying, small enough that the
# copy we join stays in the cache.
_WRITE_BYTES = 256 * 1024


class Offer(enum.Enum):
    """What became of bytes that were offered to a mailbox."""

    SENT = enum.auto()  # the kernel has all of them
    QUEUED = enum.auto()  # some or all of them wait
    FULL = enum.auto()  # none of them was taken
    CLOSED = enum.auto()  # nobody is there to take them


_SENT, _QUEUED, _FULL, _CLOSED = Offer


class Mailbox:
    """The way out to one stream.

    Any task may `offer`, `put`, `miss` and `close`; exactly one runs `run`, which alone writes
    to *stream* while anything waits.  The stream is not closed here.

    *max_batches* bounds how many offers wait, `MAX_WAITING_BYTES` how many bytes; a single offer
    above that is taken when nothing else waits.  *patience_seconds* is for a room, which is the one
    to spend it.  *spell_missed* says how the member is told that
    it missed that many messages.
    """

    def __init__(
        self,
        stream: trio.abc.Stream,
        *,
        max_batches: int,
        patience_seconds: float = 0.0,
        spell_missed: Callable[[int], bytes],
    ) -> None:
        self.patience = Patience(patience_seconds)
        self.waiting_bytes = 0
        self.sent_bytes = 0
        self.drained = False
        self.failure: Exception | None = None
        self._stream = stream
        self._write_now = eager_write(stream)
        self._spell_missed = spell_missed
        self._send, self._receive = trio.open_memory_channel[bytes | memoryview](max_batches)
        self._missed = 0
        self._closed = False
        self._last_words = b""
        self._empty_since = -math.inf
        self._space_callbacks: list[Callable[[], object]] = []

    @property
    def closed(self) -> bool:
        """Whether nothing more is taken; what waits may still be on its way."""
        return self._closed

    def offer(self, data: bytes) -> Offer:
        """Take *data* if there is room for all of it, without waiting."""
        if self._closed:
            return _CLOSED
        if self._missed:
            data = self._spell_missed(self._missed) + data
        rest: bytes | memoryview = data
        if not self.waiting_bytes:
            if self._write_now is not None and (taken := self._write_now(data)):
                self.sent_bytes += taken
                if taken == len(data):
                    self._missed = 0
                    return _SENT
                rest = memoryview(data)[taken:]
            now = trio.current_time()
            self.patience.earn(now - self._empty_since)
        elif self.waiting_bytes + len(data) > MAX_WAITING_BYTES:
            return _FULL
        try:
            self._send.send_nowait(rest)
        except trio.WouldBlock:
            return _FULL
        self.waiting_bytes += len(rest)
        self._missed = 0
        return _QUEUED

    async def put(self, data: bytes) -> Offer:
        """Offer *data* and wait as long as it takes until there is room; never `Offer.FULL`.

        Cancelled, it has taken nothing.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        while (offer := self.offer(data)) is _FULL:
            space = trio.Event()
            self.call_when_space(space.set)
            try:
                await space.wait()
            finally:
                with suppress(ValueError):
                    self._space_callbacks.remove(space.set)
        await trio.lowlevel.cancel_shielded_checkpoint()
        return offer

    def miss(self, messages: int) -> None:
        """Note that the member goes without so many *messages*; it is told in their place."""
        self._missed += messages

    def call_when_space(self, callback: Callable[[], object]) -> None:
        """Call *callback* once, synchronously, when there may be room again or nobody is left."""
        if self._closed:
            callback()
        else:
            self._space_callbacks.append(callback)

    def close(self, last_words: bytes = b"") -> None:
        """Take nothing more; what waits, and then *last_words*, is still written.  Idempotent."""
        if self._closed:
            return
        self._closed = True
        if self._missed:
            last_words = self._spell_missed(self._missed) + last_words
        self._last_words = last_words
        self._send.close()
        self._notify()

    async def run(self) -> None:
        """Write what is offered until the mailbox is closed, then what waits and the last words.

        Sets `drained` when all of it was handed to the stream, `failure` when the stream broke;
        either way the mailbox is closed.  So it is after cancellation: then the stream may have
        half a line on it and MUST NOT be written to again.
        """
        try:
            async for piece in self._receive:
                joined = self._join_waiting(piece)
                self._notify()  # there are free slots in the channel
                await self._stream.send_all(joined)
                self.sent_bytes += len(joined)
                self.waiting_bytes -= len(joined)
                if not self.waiting_bytes:
                    self._empty_since = trio.current_time()
                self._notify()
            if self._last_words:
                await self._stream.send_all(self._last_words)
            self.drained = True
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            self.failure = error
        finally:
            self.close()
            self._receive.close()
            self.waiting_bytes = 0

    def _join_waiting(self, piece: bytes | memoryview) -> bytes | memoryview:
        pieces = [piece]
        size = len(piece)
        while size < _WRITE_BYTES:
            try:
                piece = self._receive.receive_nowait()
            except (trio.WouldBlock, trio.EndOfChannel):
                break
            pieces.append(piece)
            size += len(piece)
        return b"".join(pieces) if len(pieces) > 1 else pieces[0]

    def _notify(self) -> None:
        if self._space_callbacks:
            callbacks, self._space_callbacks = self._space_callbacks, []
            for callback in callbacks:
                callback()
