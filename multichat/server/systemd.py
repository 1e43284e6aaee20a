"""Notifications to the service manager, by the protocol of systemd: readiness, status, watchdog.

Each is one datagram to the socket in the variable NOTIFY_SOCKET; without it nothing is sent.

1. Nothing here waits.  A datagram that the service manager does not accept at once is dropped,
   except a state: ready, reloading or stopping is sent again until it is accepted or no longer
   true.
2. A task of the event loop feeds the watchdog, never a thread: if the loop is blocked, the service
   manager notices.
3. The variables are removed from the environment, so that no child process uses them.
"""

import os
import re
import socket
import time
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from functools import partial
from logging import WARNING

import trio

from multichat.log import Log
from multichat.net import transport
from multichat.protocol.framing import clean
from multichat.server.server import Server

__all__ = ["ServiceManager"]

_NOTIFY_SOCKET = "NOTIFY_SOCKET"
_WATCHDOG_USEC = "WATCHDOG_USEC"
_WATCHDOG_PID = "WATCHDOG_PID"

_USEC = 1_000_000

# The interval at which a changed status, and a state that was not accepted, are sent.
_STATUS_SECONDS = 1.0

# No unit has a time with more digits, and longer numbers may not be convertible.
_NUMBER = re.compile(r"[0-9]{1,18}")

# Feeding the watchdog more often would take time from the clients; a unit's watchdog has seconds.
_LEAST_FEEDING_SECONDS = 0.01

# The longest stop that is announced if `--grace` is unlimited.
_MAX_STOP_SECONDS = 7 * 86400.0

# For closing a journal or leaving a cluster, after the last client has left.
_CLOSING_SECONDS = 10.0


class ServiceManager:
    """The service manager at *address*, a path or `@` and an abstract name; empty if there is none.

    It expects a keep-alive within each *watchdog_seconds*, if given.  *clock* returns the
    nanoseconds of CLOCK_MONOTONIC.
    """

    def __init__(
        self,
        address: str = "",
        *,
        watchdog_seconds: float | None = None,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        self._clock = clock
        self._log = Log("server")
        self._failed = self._stopping = False
        self._status = ""  # the last one that was accepted
        self._unsent: tuple[str, ...] = ()  # the fields of a state that was not accepted
        self._socket: socket.socket | None = None
        self.watchdog_seconds = watchdog_seconds
        if address:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)  # closed on exec
            self._socket.setblocking(False)

    @classmethod
    def from_environment(
        cls, environ: MutableMapping[str, str] = os.environ, pid: int | None = None
    ) -> "ServiceManager":
        """Return the service manager that *environ* names, and remove its variables.

        *pid* is this process: a watchdog for another process is ignored.
        """
        address = environ.pop(_NOTIFY_SOCKET, "")
        usec = environ.pop(_WATCHDOG_USEC, "")
        watched = environ.pop(_WATCHDOG_PID, "")
        is_ours = watched in ("", str(os.getpid() if pid is None else pid))
        has_watchdog = is_ours and _NUMBER.fullmatch(usec) is not None and int(usec) > 0
        return cls(
            address if address.startswith(("/", "@")) and hasattr(socket, "AF_UNIX") else "",
            watchdog_seconds=int(usec) / _USEC if has_watchdog else None,
        )

    def close(self) -> None:
        """Close the socket; nothing is sent after that.  Idempotent."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    async def run(self, server: Server) -> None:
        """Report that *server* accepts connections, then report its state until cancelled.

        Closes the socket at the end.
        """
        try:
            if self._socket is None:
                return
            with server.reloading.observed(partial(self._reloading, server)):
                async with trio.open_nursery() as nursery:
                    self._change_state(server, "READY=1")
                    nursery.start_soon(self._report, server)
                    nursery.start_soon(self._watch_end, server)
                    if self.watchdog_seconds is not None:
                        nursery.start_soon(self._feed_watchdog, self.watchdog_seconds / 2)
        finally:
            self.close()

    async def _feed_watchdog(self, seconds: float) -> None:
        while True:
            self._send("WATCHDOG=1")
            await trio.sleep(max(seconds, _LEAST_FEEDING_SECONDS))

    async def _report(self, server: Server) -> None:
        while True:
            await trio.sleep(_STATUS_SECONDS)
            if self._unsent or _status_of(server) != self._status:
                self._change_state(server, *self._unsent)

    def _change_state(self, server: Server, *fields: str) -> None:
        """Send *fields*, which replace any that were not accepted, and the status."""
        self._unsent, status = fields, _status_of(server)
        if self._send(*fields, status):
            self._unsent, self._status = (), status

    async def _watch_end(self, server: Server) -> None:
        await server.ending.begun.wait()
        self._stopping = True
        seconds = server.ending.seconds_left + server.config.grace_seconds
        seconds += server.config.timeouts.linger + _CLOSING_SECONDS
        usec = int(min(seconds, _MAX_STOP_SECONDS) * _USEC)
        self._change_state(server, "STOPPING=1", f"EXTEND_TIMEOUT_USEC={usec}")

    @contextmanager
    def _reloading(self, server: Server) -> Iterator[None]:
        if not self._stopping:
            moment = f"MONOTONIC_USEC={self._clock() // 1000}"
            self._change_state(server, "RELOADING=1", moment)
        try:
            yield
        finally:
            if not self._stopping:
                self._change_state(server, "READY=1")

    def _send(self, *fields: str) -> bool:
        """Send *fields*; return False if the service manager is too busy to accept them now."""
        if self._socket is None:
            return True
        try:
            self._socket.sendto("\n".join(fields).encode(), self._address)
        except BlockingIOError:
            return False
        except OSError as error:  # the next datagram would most likely fail, too
            if not self._failed:
                self._failed = True
                reason = transport.describe_error(error)
                text = f"The service manager cannot be notified: {reason}"
                self._log.line("STATE", text, WARNING)
        return True


def _status_of(server: Server) -> str:
    return f"STATUS={clean(server.admin.summary())}"
