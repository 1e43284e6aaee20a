"""What is said before anybody has a protocol: the password, refusals, what strangers say.  Pure."""

import re

__all__ = [
    "HTTP_ANSWER",
    "PASSWORD_ACCEPTED",
    "PASSWORD_REQUIRED",
    "SERVER_IS_FULL",
    "SPEAKS_NO_TLS",
    "SPEAKS_TLS",
    "TOO_MANY_ATTEMPTS",
    "TOO_MANY_FROM_ADDRESS",
    "TOO_MANY_WRONG",
    "WRONG_PASSWORD",
    "encode_password",
    "looks_like_http",
    "looks_like_tls",
    "read_password",
]

# What a server says that asks for a password, before anybody has a protocol.
PASSWORD_REQUIRED = "a password is asked for: /auth PASSWORD"  # noqa: S105 - words, not one
WRONG_PASSWORD = "wrong password"  # noqa: S105
PASSWORD_ACCEPTED = "password accepted"  # noqa: S105
TOO_MANY_WRONG = "too many wrong passwords from your address; try again later"

# To a client whose own address is not the reason.
TOO_MANY_ATTEMPTS = "too many others are trying passwords; try again later"

# How a server begins to say that it has no room just now; how much it has comes after it.
SERVER_IS_FULL = "the server is full"
TOO_MANY_FROM_ADDRESS = "too many clients from your address"


# To a client that speaks the one where this port speaks the other.
SPEAKS_TLS = "this server speaks TLS: multichat needs --tls"
SPEAKS_NO_TLS = "this server does not speak TLS: leave out --tls"


def read_password(line: str) -> str | None:
    """Return the password that *line* says, if it says one."""
    command, space, password = line.partition(" ")
    return password if command.lower() == "/auth" and space else None


def encode_password(password: str) -> str:
    """Spell it as the line that a server waits for which asked for it."""
    return f"/auth {password}"


_HTTP = re.compile(r"[A-Z]{3,20} \S+ HTTP/[0-9.]+")

HTTP_ANSWER = (
    b"HTTP/1.0 400 Bad Request\r\nContent-Type: text/plain\r\n\r\n"
    b"This is a multichat server, not a web server: use nc or multichat connect.\n"
)
"""One line to whoever looks, behind the header without which a browser would show nothing."""


def looks_like_http(line: str) -> bool:
    """Whether a client's first *line* is an HTTP request."""
    return _HTTP.fullmatch(line) is not None


def looks_like_tls(data: bytes | bytearray) -> bool:
    """Whether a client's first bytes are a TLS handshake record (RFC 8446, section 5.1)."""
    return data.startswith(b"\x16\x03")
