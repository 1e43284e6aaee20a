"""Simulates TCP in memory: two bounded pipes that can fill up, end, and break within a line.

Bytes arrive in order, as many at once as there is space for; after a reset, a part of the bytes in
flight still arrives, and then the connection cannot be used.  Everything that was ever written is
recorded for the checks.

Invariants: what was read is a prefix of what was written; a write waits while its pipe is full;
closing with unread input resets the connection, as kernels do.
"""

import errno
import operator
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from random import Random

import trio

__all__ = ["Connection", "End", "Kernel"]

_READ_BYTES = 64 * 1024


class _Pipe:
    """One direction: at most *capacity_bytes* are in flight; above that, writes wait.

    *written* is everything that was written, *read_bytes* how much of it was read.  After a reset
    its first *arriving_bytes* can still be read.
    """

    def __init__(self, capacity_bytes: int) -> None:
        self.capacity_bytes = capacity_bytes
        self.written = bytearray()
        self.read_bytes = 0
        self.arriving_bytes: int | None = None
        self.ended = False  # the writer has sent EOF
        self.abandoned = False  # the reader has closed before EOF
        self.changed = trio.lowlevel.ParkingLot()
        self.takes: list[float] = []  # the times of reads

    @property
    def waiting_bytes(self) -> int:
        arriving = len(self.written) if self.arriving_bytes is None else self.arriving_bytes
        return arriving - self.read_bytes

    @property
    def full(self) -> bool:
        return self.waiting_bytes >= self.capacity_bytes

    @property
    def broken(self) -> bool:
        return self.arriving_bytes is not None

    def put(self, data: bytes | memoryview) -> int:
        """Write as much as fits; return how much."""
        taken = min(len(data), self.capacity_bytes - self.waiting_bytes)
        if taken:
            self.written += data[:taken]
            self.changed.unpark_all()
        return taken

    def take(self, max_bytes: int) -> bytes:
        data = bytes(self.written[self.read_bytes : self.read_bytes + max_bytes])
        data = data[: self.waiting_bytes]
        self.read_bytes += len(data)
        self.takes.append(trio.current_time())
        self.changed.unpark_all()
        return data

    def break_off(self, arriving_bytes: int) -> None:
        if not self.broken:
            self.arriving_bytes = self.read_bytes + arriving_bytes
        self.changed.unpark_all()


class Connection:
    """A connection with an end for the server and an end for the client.

    *to_server_bytes* and *to_client_bytes* are the sizes of the buffers; *rng* decides how many
    bytes in flight survive a reset.
    """

    def __init__(self, *, to_server_bytes: int, to_client_bytes: int, rng: Random) -> None:
        self.to_server = _Pipe(to_server_bytes)
        self.to_client = _Pipe(to_client_bytes)
        self.server = End(self, reads=self.to_server, writes=self.to_client)
        self.client = End(self, reads=self.to_client, writes=self.to_server)
        self.reset_by: End | None = None
        self._rng = rng

    def reset(self, by: "End") -> None:
        """Break both directions; a part of what *by* has written still arrives."""
        if self.reset_by is None:
            self.reset_by = by
        for pipe in (self.to_server, self.to_client):
            theirs = by.wrote(pipe)
            pipe.break_off(self._rng.randint(0, pipe.waiting_bytes) if theirs else 0)


class End(trio.abc.HalfCloseableStream):
    """One end of a `Connection`.

    *cut_off_at* is when a partial write was cancelled.  While the process at this end is frozen
    (`freeze`), nothing is read or written here.
    """

    def __init__(self, connection: Connection, *, reads: _Pipe, writes: _Pipe) -> None:
        self.closed = False
        self.cut_off_at: float | None = None
        self.number = -1
        self._is_frozen = False
        self._connection = connection
        self._reads = reads
        self._writes = writes
        self._sending = False
        self._receiving = False

    def wrote(self, pipe: _Pipe) -> bool:
        """Return whether this end writes to *pipe*."""
        return pipe is self._writes

    @property
    def unsent_bytes(self) -> int:
        """The number of unread bytes minus the number of read ones: it falls with each read."""
        return len(self._writes.written) - 2 * self._writes.read_bytes

    @property
    def taken_at(self) -> float:
        """The time of the other end's last read."""
        return self._writes.takes[-1] if self._writes.takes else 0.0

    def fileno(self) -> int:
        """Return this end's descriptor in its `Kernel`; -1 once it is closed, like a socket."""
        return -1 if self.closed else self.number

    def write_nowait(self, data: bytes | memoryview) -> int:
        """Write as much as fits, like `os.write` on a non-blocking socket."""
        if self.closed or self._writes.ended:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        if self._writes.broken:
            raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
        if self._writes.abandoned and data:
            # The peer has closed; the next write reports it.
            self._connection.reset(self._peer())
            return len(data)
        taken = 0 if self._is_frozen else self._writes.put(data)
        if data and not taken:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return taken

    def freeze(self, *, frozen: bool) -> None:
        """Stop reading and writing at this end, or continue."""
        self._is_frozen = frozen
        for pipe in (self._reads, self._writes):
            pipe.changed.unpark_all()

    def _peer(self) -> "End":
        connection = self._connection
        return connection.client if self is connection.server else connection.server

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Write all of *data*, waiting for space."""
        with self._alone("_sending"):
            rest = memoryview(data).toreadonly()
            try:
                await trio.lowlevel.checkpoint()
                self._write(b"")
                while rest:
                    try:
                        rest = rest[self._write(rest) :]
                    except BlockingIOError:
                        await self._writes.changed.park()
            except trio.Cancelled:
                self.cut_off_at = trio.current_time()
                raise

    @contextmanager
    def _alone(self, flag: str) -> Iterator[None]:
        if getattr(self, flag):
            raise trio.BusyResourceError("another task is at it")
        setattr(self, flag, True)
        try:
            yield
        finally:
            setattr(self, flag, False)

    def _write(self, data: bytes | memoryview) -> int:
        try:
            return self.write_nowait(data)
        except BlockingIOError:
            raise
        except BrokenPipeError as error:
            raise trio.BrokenResourceError("the connection was reset") from error
        except OSError as error:
            raise trio.ClosedResourceError("this end was closed") from error

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until there is space, or the reader has closed."""
        with self._alone("_sending"):
            await trio.lowlevel.checkpoint()
            self._write(b"")
            while (self._writes.full or self._is_frozen) and not (
                self.closed or self._writes.broken
            ):
                await self._writes.changed.park()
            self._write(b"")

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Return the bytes that have arrived, at most *max_bytes*; empty at EOF."""
        if max_bytes is not None and operator.index(max_bytes) < 1:
            raise ValueError("max_bytes must be at least 1")
        with self._alone("_receiving"):
            await trio.lowlevel.checkpoint()
            while True:
                if self.closed:
                    raise trio.ClosedResourceError("this end was closed")
                if self._is_frozen:
                    await self._reads.changed.park()
                    continue
                if self._reads.waiting_bytes:
                    return self._reads.take(max_bytes or _READ_BYTES)
                if self._reads.broken:
                    error = ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
                    raise trio.BrokenResourceError("the connection was reset") from error
                if self._reads.ended:
                    return b""
                await self._reads.changed.park()

    async def send_eof(self) -> None:
        """Half-close: the other end reads the bytes in flight and then EOF."""
        with self._alone("_sending"):
            await trio.lowlevel.checkpoint()
            if self.closed:
                raise trio.ClosedResourceError("this end was closed")
            self._end_writing()

    def _end_writing(self) -> None:
        self._writes.ended = True
        self._writes.changed.unpark_all()

    def close(self) -> None:
        """Close, with a reset if there is unread input; idempotent."""
        if self.closed:
            return
        self.closed = True
        if self._reads.waiting_bytes:
            self._connection.reset(self)
        else:
            self._end_writing()
            self._reads.abandoned = not self._reads.ended
            self._reads.changed.unpark_all()

    def abort(self) -> None:
        """Reset the connection, whatever is in flight."""
        self.closed = True
        self._connection.reset(self)

    async def aclose(self) -> None:
        """Close, even if cancelled."""
        self.close()
        await trio.lowlevel.checkpoint()


class Kernel:
    """Maps descriptors to ends, so that a send queue can write to them directly, as to sockets."""

    def __init__(self) -> None:
        self._ends: list[End] = []

    def register(self, end: End) -> None:
        """Give *end* a descriptor."""
        end.number = len(self._ends)
        self._ends.append(end)

    def eager_fileno(self, stream: trio.abc.Stream) -> Callable[[], int] | None:
        """Replace `multichat.net.transport.eager_fileno`."""
        return stream.fileno if isinstance(stream, End) and stream.number >= 0 else None

    def unsent_bytes(self, stream: trio.abc.Stream) -> int:
        """Replace `multichat.net.transport.unsent_bytes`."""
        return stream.unsent_bytes if isinstance(stream, End) else 0

    def write(self, number: int, data: bytes | memoryview) -> int:
        """Replace `os.write`."""
        if number < 0:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        return self._ends[number].write_nowait(data)
