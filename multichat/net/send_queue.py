"""A client's send queue: a bounded memory channel of bytes, and the task that writes them.

Owns the order of everything that is written to one stream, the number of bytes that wait, and
whether there is space.  The room, not this module, decides what to do about a slow member.

Invariants:

1. Bytes are written in the order in which they were queued, or not at all.
2. `waiting_bytes` counts what was queued and not yet passed to the stream.  It changes in the same
   step as the decision that depends on it, so nothing can overtake queued bytes.
3. While nothing waits, bytes are written directly to the socket.  Only if the kernel does not take
   them are the channel and the writer task used; a member that keeps up needs neither.
4. No task waits for a closed send queue.
"""

import enum
from collections.abc import Callable, Mapping
from contextlib import suppress
from os import write

import trio

from multichat.net.memory_budget import MemoryBudget
from multichat.net.transport import (
    close,
    describe_error,
    eager_fileno,
    has_ended,
    is_reset,
    send_all,
    unsent_bytes,
)

__all__ = ["SendQueue", "SendResult"]

# The size of one client's send queue; `--memory` limits all of them together.
MAX_WAITING_BYTES = 4 * 1024 * 1024

# Queue size while memory is tight: what a replay may otherwise keep queued.
_TIGHT_WAITING_BYTES = 256 * 1024

# What a replay may keep queued is divided by this while memory is tight.
_TIGHT_DIVISOR = 8

# Large enough to make the cost of the system call negligible, small enough for the joined copy to
# stay in the CPU cache.
_WRITE_BYTES = 256 * 1024


class SendResult(enum.Enum):
    """The result of sending bytes through a send queue."""

    SENT = enum.auto()  # the kernel has taken all bytes
    QUEUED = enum.auto()  # some or all bytes wait
    FULL = enum.auto()  # no space; nothing was queued
    CLOSED = enum.auto()  # the queue is closed; nothing was queued


_SENT, _QUEUED, _FULL, _CLOSED = SendResult


class SendQueue:
    """The send queue of one *stream*.

    Any task may call `try_send`, `put`, `miss` and `close`.  Exactly one task calls `run`, which is
    the only writer to *stream* while bytes wait.  Does not close the stream.

    At most *max_batches* batches and `MAX_WAITING_BYTES` bytes wait; a larger batch is accepted
    when the queue is empty.  *encode_missed* encodes how many messages were missed, by room.
    *budget* is shared by all send queues of a server and counts the bytes that wait.  *on_waiting*
    is called once, synchronously, when bytes have to wait for the first time: it starts the task
    that calls `run`.  *on_empty* is called, synchronously, whenever the queue has become empty.

    `failure` is the reason when a write has failed, else empty.  `was_reset` tells that the peer
    did not close the connection before: the kernel reports that to the first call only, and a
    reader that comes later sees the end of input.
    """

    __slots__ = (
        "_budget",
        "_closed",
        "_encode_missed",
        "_fileno",
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
        "_written_bytes",
        "drained",
        "failure",
        "waiting_bytes",
        "was_reset",
    )

    def __init__(
        self,
        stream: trio.abc.Stream,
        *,
        max_batches: int,
        encode_missed: Callable[[Mapping[str, int]], bytes],
        on_waiting: Callable[[], object] | None = None,
        on_empty: Callable[[], object] | None = None,
        budget: MemoryBudget | None = None,
    ) -> None:
        self.waiting_bytes = 0
        self.drained = False
        self.failure = ""
        self.was_reset = False
        self._budget = budget or MemoryBudget()
        self._stream = stream
        self._fileno = eager_fileno(stream)
        self._encode_missed = encode_missed
        self._on_waiting, self._on_empty = on_waiting, on_empty
        self._max_batches = max_batches
        self._send: trio.MemorySendChannel[bytes | memoryview] | None = None
        self._receive: trio.MemoryReceiveChannel[bytes | memoryview] | None = None
        self._missed: dict[str, int] | None = None  # by room
        self._noted_bytes = 0
        self._closed = False
        self._last_words = b""
        self._torn: memoryview | None = None
        self._written_bytes = 0  # except batches that never had to wait
        self._space_callbacks: list[Callable[[], object]] | None = None

    @property
    def closed(self) -> bool:
        """Whether the queue accepts nothing more; queued bytes may still be written."""
        return self._closed

    @property
    def held_bytes(self) -> int:
        """The memory held for the client, in bytes: the queue, and what `note` has added."""
        return self.waiting_bytes + self._noted_bytes

    def note(self, size: int) -> None:
        """Set how much other memory is held for the client; ignored once this is closed."""
        if size != self._noted_bytes and not self._closed:
            self._budget.add(size - self._noted_bytes)
            self._noted_bytes = size

    def try_send(self, data: bytes) -> SendResult:
        """Write or queue *data* without waiting, if there is space for all of it."""
        if self._closed:
            return _CLOSED
        if self._missed:
            data = self._encode_missed(self._missed) + data
        rest: bytes | memoryview = data
        if not self.waiting_bytes:
            if self._fileno is not None:
                # Inline, and without another object for each member: in a quiet room, where the CPU
                # cache is cold, either would be measurable.
                try:
                    taken = write(self._fileno(), data)
                except BlockingIOError:
                    taken = 0
                except OSError as error:  # the next write by `run` fails, too
                    self._note_failure(error)
                    taken = 0
                if taken == len(data):
                    self._missed = None
                    return _SENT
                rest = memoryview(data)[taken:]
                self._written_bytes += taken
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
        self._missed = None
        return _QUEUED

    def replay_bound(self, size: int) -> int:
        """Return how many bytes of a replay may be queued; *size*, or less if memory is tight."""
        return max(1, size // _TIGHT_DIVISOR) if self._budget.tight else size

    @property
    def _most_bytes(self) -> int:
        return _TIGHT_WAITING_BYTES if self._budget.tight else MAX_WAITING_BYTES

    def _open_channel(self) -> trio.MemorySendChannel[bytes | memoryview]:
        if self._send is None:
            self._send, self._receive = trio.open_memory_channel(self._max_batches)
        return self._send

    async def put(self, data: bytes) -> SendResult:
        """Write or queue *data*, after waiting for space; never returns `SendResult.FULL`.

        On cancellation nothing has been queued.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        if (result := self.try_send(data)) is _FULL:
            self._budget.hold(data)
            try:
                while result is _FULL:
                    await self.wait_for_space()
                    result = self.try_send(data)
            finally:
                self._budget.release(data)
        await trio.lowlevel.cancel_shielded_checkpoint()
        return result

    @property
    def progress(self) -> tuple[int, int]:
        """Return a value that changes whenever the peer takes bytes while some are queued."""
        return self._written_bytes, unsent_bytes(self._stream)

    @property
    def peer_has_ended(self) -> bool:
        """Whether the peer has closed its side of the connection."""
        return has_ended(self._stream)

    def is_half_empty(self) -> bool:
        """Return whether the queue is at most half full."""
        return not self.waiting_bytes or (
            self.waiting_bytes <= self._most_bytes // 2 and self._batches <= self._max_batches // 2
        )

    @property
    def _batches(self) -> int:
        return 0 if self._send is None else self._send.statistics().current_buffer_used

    def has_room(self, size: int) -> bool:
        """Return whether `try_send` of *size* bytes would not return `SendResult.FULL` now."""
        if self._closed or not self.waiting_bytes:
            return True
        if self.waiting_bytes + size > self._most_bytes:
            return False
        return self._batches < self._max_batches

    async def wait_for_space(self) -> None:
        """Wait until there may be space, or the queue is closed."""
        space = trio.Event()
        self.call_when_space(space.set)
        try:
            await space.wait()
        finally:
            if self._space_callbacks is not None and space.set in self._space_callbacks:
                self._space_callbacks.remove(space.set)

    def miss(self, messages: int, room: str) -> None:
        """Record that the client misses that many *messages* of *room*, perhaps none.

        A notice in their place says so.
        """
        if not messages:
            return
        missed = self._missed = self._missed or {}
        missed[room] = missed.get(room, 0) + messages

    def take_missed(self) -> bytes:
        """Return the notice of missed messages, if any, instead of sending it."""
        missed, self._missed = self._missed, None
        return self._encode_missed(missed) if missed else b""

    def call_when_space(self, callback: Callable[[], object]) -> None:
        """Call *callback* once, synchronously, when there may be space or the queue is closed."""
        if self._closed:
            callback()
        elif self._space_callbacks is None:
            self._space_callbacks = [callback]
        else:
            self._space_callbacks.append(callback)

    def forget(self) -> None:
        """Drop what waits, except the rest of a partial write; `close` MUST follow."""
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
        """Close the stream immediately, which releases what waits."""
        await close(self._stream)

    def close(self, last_words: bytes = b"") -> None:
        """Accept nothing more; what waits, and then *last_words*, is still written.  Idempotent."""
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
        """Write queued bytes until the queue is closed and empty, then the last words.

        If it is called after `close`, and nothing ever had to wait, it writes only the last words.

        Sets `drained` when everything was written, or `failure` when the stream broke; in both
        cases the queue is closed.  It is also closed on cancellation: then half a line may have
        been sent, and the stream MUST NOT be written to again.
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
            self._note_failure(error)
        finally:
            self.close()
            self.forget()
            if self._torn is not None:
                self._budget.release(_whole(self._torn))
            if self._receive is not None:
                self._receive.close()
            self.waiting_bytes = 0

    def _note_failure(self, error: BaseException) -> None:
        """Note why the stream broke: the first error says it, after that all writes fail alike."""
        if not self.failure:
            # Not the error itself: its traceback refers to this object, and the reference cycle
            # would keep the queue of a client that left in memory until a garbage collection.
            self.failure = describe_error(error)
            self.was_reset = is_reset(error)

    async def _write_what_comes(
        self, receive: trio.MemoryReceiveChannel[bytes | memoryview]
    ) -> None:
        async for piece in receive:
            joined = self._join_waiting(receive, piece)
            self._notify()  # the channel has free slots
            try:
                await send_all(self._stream, joined)
            finally:
                self._budget.release(_whole(joined))
            self.waiting_bytes -= len(joined)
            self._written_bytes += len(joined)
            self._notify()
            if not self.waiting_bytes:
                if self._missed:  # it may be long until the next message
                    self.try_send(b"")
                if self._on_empty is not None:
                    self._on_empty()

    def _join_waiting(
        self, receive: trio.MemoryReceiveChannel[bytes | memoryview], piece: bytes | memoryview
    ) -> bytes | memoryview:
        """Return *piece* joined with the batches after it, which are held as one from then on.

        While memory is tight, return *piece* alone: a joined copy belongs to this client, but
        queued batches may be shared by all members.
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
    """Return the bytes object that *piece* keeps alive."""
    return piece.obj if isinstance(piece, memoryview) else piece  # type: ignore[return-value]
