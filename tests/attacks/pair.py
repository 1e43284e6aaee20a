"""An honest pair that plays ping-pong: its round trips show the cost of other clients."""

import select
import socket
import ssl
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from tests.support.processes import LOOPBACK, WAIT_SECONDS

__all__ = ["STALL_SECONDS", "Pair", "Talk"]

# Ten times the longest undisturbed round trip.
STALL_SECONDS = 0.05


@dataclass(frozen=True, kw_only=True, slots=True)
class Talk:
    """A measurement; *stalled* is the time of round trips above `STALL_SECONDS`."""

    round_trips: int
    seconds: float
    longest: float
    stalled: float

    @property
    def rate(self) -> float:
        """Round trips per second."""
        return self.round_trips / self.seconds


class Pair:
    """Two clients of the text protocol in the lobby, on raw sockets.

    Raises `AssertionError` if one is disconnected, or if it misses a message of the other, or gets
    it twice or out of order.  Messages of others are read and ignored.
    """

    def __init__(self, port: int, *, password: str = "", ca: Path | None = None) -> None:
        self._stack = ExitStack()
        self._words = 0
        self._halves = [b"", b""]
        self._sockets: list[socket.socket] = []
        context = ssl.create_default_context(cafile=ca) if ca else None
        for i in range(2):
            each = socket.create_connection((LOOPBACK, port), WAIT_SECONDS)
            if context:
                each = context.wrap_socket(each, server_hostname=LOOPBACK)
            self._sockets.append(self._stack.enter_context(each))
            if password:
                each.sendall(f"/auth {password}\n".encode())
            each.sendall(b"/name honest-%d\n" % i)
            self._read_until(i, b"is now honest-%d" % i)

    def close(self) -> None:
        self._stack.close()

    def talk(self, seconds: float) -> Talk:
        """Play for that long, and until the current round trip ends."""
        round_trips = 0
        longest = stalled = 0.0
        started = now = time.monotonic()
        while now - started < seconds:
            for listener in 1, 0:
                self._sockets[1 - listener].sendall(b"%d\n" % self._words)
                self._read_until(listener, b"[honest-%d] %d" % (1 - listener, self._words))
            self._words += 1
            round_trips += 1
            before, now = now, time.monotonic()
            longest = max(longest, now - before)
            if now - before > STALL_SECONDS:
                stalled += now - before
        return Talk(
            round_trips=round_trips, seconds=now - started, longest=longest, stalled=stalled
        )

    def listen(self, seconds: float) -> None:
        """Read the messages of others for that long."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            for ready in select.select(self._sockets, [], [], left)[0]:
                self._read(self._sockets.index(ready))

    def _read_until(self, i: int, wanted: bytes) -> None:
        """Read until a line of the server or the partner ends with *wanted*.

        Until then the partner must have sent nothing else.
        """
        found = False
        while not found:
            for line in self._read(i):
                if line.startswith((b"[honest-", b"[Server] ")):
                    assert not line.startswith(b"[h") or (line.endswith(wanted) and not found), line
                    found = found or line.endswith(wanted)

    def _read(self, i: int) -> list[bytes]:
        data = self._sockets[i].recv(1 << 20)
        assert data, f"honest-{i} was disconnected: {self._halves[i][-1000:]!r}"
        lines = (self._halves[i] + data).split(b"\n")
        self._halves[i] = lines.pop()
        return lines
