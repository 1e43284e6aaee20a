"""TCP in memory: two bounded pipes that can fill up, end, and break in the middle of a line.

Owns what a network does to bytes: they arrive in order, as many at once as there is room for;
after a reset a part of what was on its way still arrives, and then nobody can use the connection.
It remembers all that was ever written, for those who check afterwards.

Invariants: what was read is a prefix of what was written; a write waits while its pipe is full;
closing over unread input resets the connection, as a kernel does it.
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
    """One direction: at most *capacity_bytes* are on their way, then whoever writes waits.

    *written* is all that ever went in, *read_bytes* how much of it came out.  After a reset the
    first *arriving_bytes* of it still come out.
    """

    def __init__(self, capacity_bytes: int) -> None:
        self.capacity_bytes = capacity_bytes
        self.written = bytearray()
        self.read_bytes = 0
        self.arriving_bytes: int | None = None
        self.ended = False  # by its writer, which has nothing more to say
        self.abandoned = False  # by its reader, which has gone before the end
        self.changed = trio.lowlevel.ParkingLot()
        self.takes: list[float] = []  # when its reader took something

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
        """Take what there is room for; return how much."""
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
    """A connection with an end for the server and one for its client.

    *to_server_bytes* and *to_client_bytes* are what the buffers between them hold; *rng* decides
    how much of what was on its way survives a reset.
    """

    def __init__(self, *, to_server_bytes: int, to_client_bytes: int, rng: Random) -> None:
        self.to_server = _Pipe(to_server_bytes)
        self.to_client = _Pipe(to_client_bytes)
        self.server = End(self, reads=self.to_server, writes=self.to_client)
        self.client = End(self, reads=self.to_client, writes=self.to_server)
        self.reset_by: End | None = None
        self._rng = rng

    def reset(self, by: "End") -> None:
        """Break both directions; of what *by* had written a part still arrives."""
        if self.reset_by is None:
            self.reset_by = by
        for pipe in (self.to_server, self.to_client):
            theirs = by.wrote(pipe)
            pipe.break_off(self._rng.randint(0, pipe.waiting_bytes) if theirs else 0)


class End(trio.abc.HalfCloseableStream):
    """One end of a `Connection`.

    *cut_off_at* is when a write of its was cancelled that had not been taken whole.
    """

    def __init__(self, connection: Connection, *, reads: _Pipe, writes: _Pipe) -> None:
        self.closed = False
        self.cut_off_at: float | None = None
        self.number = -1
        self._connection = connection
        self._reads = reads
        self._writes = writes
        self._sending = False
        self._receiving = False

    def wrote(self, pipe: _Pipe) -> bool:
        """Say whether *pipe* is the one that this end writes."""
        return pipe is self._writes

    @property
    def unsent_bytes(self) -> int:
        """How much the other end has not taken, less all that it has: it falls with each read."""
        return len(self._writes.written) - 2 * self._writes.read_bytes

    @property
    def taken_at(self) -> float:
        """When the other end took something last."""
        return self._writes.takes[-1] if self._writes.takes else 0.0

    def fileno(self) -> int:
        """Return this end's number at its `Kernel`, as a socket does: -1 once it is closed."""
        return -1 if self.closed else self.number

    def write_nowait(self, data: bytes | memoryview) -> int:
        """Take what there is room for, as `os.write` does on a socket that does not block."""
        if self.closed or self._writes.ended:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        if self._writes.broken:
            raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
        if self._writes.abandoned and data:
            # Nobody is there any more, and the first to be told so is the next write.
            self._connection.reset(self._peer())
            return len(data)
        taken = self._writes.put(data)
        if data and not taken:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return taken

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
        """Wait until there is room, or nobody who would read."""
        with self._alone("_sending"):
            await trio.lowlevel.checkpoint()
            self._write(b"")
            while self._writes.full and not (self.closed or self._writes.broken):
                await self._writes.changed.park()
            self._write(b"")

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Return what has arrived, at most *max_bytes*; empty at the end."""
        if max_bytes is not None and operator.index(max_bytes) < 1:
            raise ValueError("max_bytes must be at least 1")
        with self._alone("_receiving"):
            await trio.lowlevel.checkpoint()
            while True:
                if self.closed:
                    raise trio.ClosedResourceError("this end was closed")
                if self._reads.waiting_bytes:
                    return self._reads.take(max_bytes or _READ_BYTES)
                if self._reads.broken:
                    error = ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
                    raise trio.BrokenResourceError("the connection was reset") from error
                if self._reads.ended:
                    return b""
                await self._reads.changed.park()

    async def send_eof(self) -> None:
        """Half-close: the other end reads what is on its way and then the end."""
        with self._alone("_sending"):
            await trio.lowlevel.checkpoint()
            if self.closed:
                raise trio.ClosedResourceError("this end was closed")
            self._end_writing()

    def _end_writing(self) -> None:
        self._writes.ended = True
        self._writes.changed.unpark_all()

    def close(self) -> None:
        """Close, with a reset if anything was not read; idempotent."""
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
        """Reset the connection, whatever is on its way."""
        self.closed = True
        self._connection.reset(self)

    async def aclose(self) -> None:
        """Close; cancelled, it has been closed all the same."""
        self.close()
        await trio.lowlevel.checkpoint()


class Kernel:
    """Knows ends by numbers, so that a send queue can offer them bytes at once, as to sockets."""

    def __init__(self) -> None:
        self._ends: list[End] = []

    def register(self, end: End) -> None:
        """Give *end* a number."""
        end.number = len(self._ends)
        self._ends.append(end)

    def eager_fileno(self, stream: trio.abc.Stream) -> Callable[[], int] | None:
        """Stand in for `multichat.net.transport.eager_fileno`."""
        return stream.fileno if isinstance(stream, End) and stream.number >= 0 else None

    def unsent_bytes(self, stream: trio.abc.Stream) -> int:
        """Stand in for `multichat.net.transport.unsent_bytes`."""
        return stream.unsent_bytes if isinstance(stream, End) else 0

    def write(self, number: int, data: bytes | memoryview) -> int:
        """Stand in for `os.write`."""
        if number < 0:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        return self._ends[number].write_nowait(data)
