"""The timeouts of a client.  Pure."""

import math
from dataclasses import dataclass, fields

__all__ = ["DEFAULT_TIMEOUTS", "ClientTimeouts"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ClientTimeouts:
    """How many seconds a client waits for what.

    Raises `ValueError` for a value that is not positive.
    """

    # For a TCP connection.
    connect: float = 30.0

    # For the TLS handshake; a server allows as much.
    handshake: float = 10.0

    # For a server that cannot be reached yet, when the client was told to wait for it.
    wait: float = math.inf

    # For the answer to the hello, and to a question of the command line.
    answer: float = 10.0

    # For the welcome, after chat has arrived first: a server with a busy lobby may send some before
    # it has read the hello.  After this the client speaks text, for good.
    lobby: float = 5.0

    # For a server to ask for the password, when the client speaks text and has a password.
    password_request: float = 3.0

    # For a server to accept the password: after wrong ones it delays the next attempt.
    password: float = 30.0

    # Of silence from the server before the client pings it.  Half a minute also keeps the idle
    # timers of common proxies and NATs from expiring.
    ping: float = 30.0

    # For the answer to that ping.
    pong: float = 10.0

    # Of silence after that ping, or after the end of input, while the server has not accepted
    # everything: it may be waiting for a slow client.  The time for which the server says that it
    # may wait is added.
    stuck: float = 30.0

    # For the server to close the connection, after the end of input and once everything is
    # accepted.
    finish: float = 2.0

    # Without progress, over any number of connections, after the end of input: a machine that
    # restarts is back by then, and an unattended job does not hang for ever.  At least `stuck` and
    # the server's own wait.
    progress: float = 300.0

    # Without progress before the end of input, while the server accepts no more.  A program may
    # have a reason to wait; a command that reads a pipe has none, and sets this.  At least `stuck`
    # and the server's own wait.
    blocked: float = math.inf

    # From the end of input until everything is accepted, with progress or without.
    delivery: float = math.inf

    # Before the first reconnect; each further pause is twice as long.  Nobody notices a quarter of
    # a second.
    first_retry: float = 0.25

    # Before a reconnect at most: a server that was down for an hour was tried a hundred times.
    longest_retry: float = 30.0

    # Between two attempts to get a name that is taken.
    name: float = 30.0

    def __post_init__(self) -> None:
        for field_ in fields(self):
            if not getattr(self, field_.name) > 0:  # NaN is not either
                raise ValueError(f"{field_.name} must be more than 0")


DEFAULT_TIMEOUTS = ClientTimeouts()
