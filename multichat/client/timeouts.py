"""How long a client waits, and for what.  Pure."""

import math
from dataclasses import dataclass, fields

__all__ = ["DEFAULT_TIMEOUTS", "ClientTimeouts"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ClientTimeouts:
    """How many seconds a client waits, for what."""

    # For a TCP connection, and for the TLS handshake on it; a server allows as much for the latter.
    connect: float = 30.0
    handshake: float = 10.0

    # For a server that is not there yet, where the client is told to wait for it.
    wait: float = math.inf

    # For the answer to the hello, and to a question that the command line asks.
    answer: float = 10.0

    # For the welcome where chat came first: a server with a busy lobby may deliver some before it
    # has read the hello.  Then the client speaks text, for good.
    lobby: float = 5.0

    # For a server to ask for the password where the client speaks text and has one to say, and for
    # it to accept that password: the server delays the next try after wrong ones.
    password_request: float = 3.0
    password: float = 30.0

    # Silence from the server after which the client pings it, and for the answer to that.  Half a
    # minute also keeps the idle timers of common proxies and NATs from running out.
    ping: float = 30.0
    pong: float = 10.0

    # Silence, after that ping or after the end of input, while the server has not taken or accepted
    # everything: it may be waiting for a slow client.  The time that the server says it may wait is
    # added.  After the end of input and that, for the server to close.
    stuck: float = 30.0
    finish: float = 2.0

    # Without progress, over however many connections, after the end of input: a machine that
    # restarts is back by then, and an unattended job does not hang for ever.  `blocked` is the same
    # before the end of input, while the server takes no more: a program may have reason to wait, a
    # command that reads a pipe has not.  Both are at least `stuck` and the server's own wait.
    progress: float = 300.0
    blocked: float = math.inf

    # For everything to be accepted, from the end of input on, with progress or without.
    delivery: float = math.inf

    # The first pause before a reconnect, which doubles up to the longest: nobody notices a quarter
    # of a second, and a server that was down for an hour was asked a hundred times.
    first_retry: float = 0.25
    longest_retry: float = 30.0

    # Between two tries to get a name that somebody else has.
    name: float = 30.0

    def __post_init__(self) -> None:
        for field_ in fields(self):
            if not getattr(self, field_.name) > 0:  # NaN is not either
                raise ValueError(f"{field_.name} must be more than 0")


DEFAULT_TIMEOUTS = ClientTimeouts()
