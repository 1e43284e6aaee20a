"""The timeouts of a client.  Pure."""

import math
from dataclasses import dataclass, fields

__all__ = ["DEFAULT_TIMEOUTS", "ClientTimeouts"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ClientTimeouts:
    """The client's timeouts, in seconds.

    Raises `ValueError` for a value that is not positive.
    """

    # Time limit for the TCP connection.
    connect: float = 30.0

    # Time limit for the TLS handshake; the server's is the same.
    handshake: float = 10.0

    # Time limit for a server to become reachable, if the client was told to wait for it.
    wait: float = math.inf

    # Time limit for the answer to the hello, or to a query of the command line.
    answer: float = 10.0

    # Time limit for the welcome if chat has arrived first: a server with a busy lobby may send some
    # before it has read the hello.  After this the client uses the text protocol, for good.
    lobby: float = 5.0

    # Time limit for the server's password request, if the client uses the text protocol and has a
    # password.
    password_request: float = 3.0

    # Time limit for the server to accept the password: after wrong ones it delays the next attempt.
    password: float = 30.0

    # Silence from the server after which the client pings it.  Half a minute also keeps the idle
    # timers of common proxies and NATs from expiring.
    ping: float = 30.0

    # Time limit for the answer to that ping.
    pong: float = 10.0

    # Time limit for silence after that ping, or after the end of input, while the server has not
    # accepted everything: it may be waiting for a slow client.  The time for which the server says
    # that it may wait is added.
    stuck: float = 30.0

    # Time limit for the server to close the connection, after the end of input and once everything
    # is accepted.
    finish: float = 2.0

    # Time limit without progress after the end of input, over any number of connections: a machine
    # that restarts is back by then, and an unattended job does not hang forever.  It is at least
    # `stuck` plus the server's own wait.
    progress: float = 300.0

    # Time limit without progress before the end of input, while the server accepts no more.  A
    # program may have a reason to wait; a command that reads a pipe has none, and sets this.  It is
    # at least `stuck` plus the server's own wait.
    blocked: float = math.inf

    # Time limit from the end of input until everything is accepted, with progress or without.
    delivery: float = math.inf

    # Delay before the first attempt to reconnect; it doubles with each attempt.  Nobody notices a
    # quarter of a second.
    first_retry: float = 0.25

    # The longest delay between attempts; an hour's outage costs about 160 attempts, with jitter.
    longest_retry: float = 30.0

    # Interval between two attempts to get a name that is taken.
    name: float = 30.0

    def __post_init__(self) -> None:
        for field_ in fields(self):
            if not getattr(self, field_.name) > 0:  # NaN is not either
                raise ValueError(f"{field_.name} must be more than 0")


DEFAULT_TIMEOUTS = ClientTimeouts()
