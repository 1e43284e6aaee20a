"""Recognizes a client of another protocol by the first bytes of its connection.  Pure.

A browser, a TLS client on a port without TLS, and a plain client on a port with TLS get an answer
that their user can see, and the connection is closed.  The same happens to a client behind a load
balancer whose PROXY header the server does not expect: otherwise the header and the client's hello,
which may contain a session token, would be a message.  Telnet clients use the text protocol and are
not refused: see `multichat.protocol.telnet`.
"""

import re
from typing import NamedTuple

from multichat.protocol.messages import Goodbye
from multichat.protocol.text_codec import TEXT

__all__ = ["NO_TLS", "TLS_RECORD", "OtherProtocol", "sniff_bytes", "sniff_line"]


class OtherProtocol(NamedTuple):
    """Why a client is disconnected: *reason* for the log, and the *answer* that it gets."""

    reason: str
    answer: bytes


TLS_RECORD = b"\x16"
"""The first byte of a TLS handshake record (RFC 8446, section 5.1)."""

NO_TLS = OtherProtocol(
    "the client does not use TLS, which this port requires",
    TEXT.encode(Goodbye("this server requires TLS: use multichat with --tls")),
)
_TLS = OtherProtocol(
    "the client uses TLS, which this port does not support",
    TEXT.encode(Goodbye("this server does not use TLS: omit --tls")),
)
_PROXIED = OtherProtocol(
    "its load balancer sends a PROXY header: give the balancer's address to --proxy",
    TEXT.encode(Goodbye("this server does not expect the PROXY header of its load balancer")),
)
# Of the 12 bytes with which version 2 begins, those that no text has.
_PROXY_2 = b"\r\n\r\n\x00"
_PROXY_1 = re.compile(r"PROXY (?:UNKNOWN|TCP[46](?: [0-9A-Fa-f:.]+){4})")
_HTTP_REQUEST = re.compile(r"[A-Z]{3,20} \S+ HTTP/[0-9.]+")


def sniff_bytes(data: bytes | bytearray) -> OtherProtocol | None:
    """Return the protocol of a client's first bytes if it is TLS, or a PROXY header of version 2.

    Two bytes are enough for TLS, and a PROXY header comes whole.
    """
    if data.startswith(_PROXY_2):
        return _PROXIED
    return _TLS if data.startswith(TLS_RECORD + b"\x03") else None


def sniff_line(line: str, web_url: str = "") -> OtherProtocol | None:
    """Return the protocol of a client's first line if it is HTTP, or a PROXY header of version 1.

    *web_url* is where the server's page is, empty without one.
    """
    if _PROXY_1.fullmatch(line):
        return _PROXIED
    if not _HTTP_REQUEST.fullmatch(line):
        return None
    text = (
        f"This is the chat port of a multichat server. Its page is at {web_url}"
        if web_url
        else "This is a multichat server, not a web server: use nc or multichat connect."
    )
    # Without the header a browser would show nothing.
    head = "HTTP/1.0 400 Bad Request\r\nContent-Type: text/plain\r\n\r\n"
    return OtherProtocol(
        "the client speaks HTTP; this is a chat server", f"{head}{text}\n".encode()
    )
