"""The handshake of a WebSocket (RFC 6455, section 4): an upgrade request and its answer.  Pure.

Extensions are not negotiated: compression would let a client make the server use memory, and
an attacker could guess secrets that are compressed together with its own text from the length.
"""

import base64
import binascii
import hashlib
from dataclasses import dataclass

from multichat.web.http import HttpError, Request

__all__ = ["LINES", "Handshake", "shake_hands"]

LINES = "multichat.lines"
"""The subprotocol with many lines in one message."""

_GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_KEY_BYTES = 16
_VERSION = "13"


@dataclass(frozen=True, kw_only=True, slots=True)
class Handshake:
    """An accepted handshake: its *response*, and whether messages may have several *lines*."""

    response: bytes
    lines: bool


def shake_hands(request: Request, *, date: str) -> Handshake:
    """Return the answer to an upgrade request, sent on *date*; raises `HttpError`."""
    if request.method != "GET":
        raise HttpError(405, "a WebSocket begins with GET", {"Allow": "GET"})
    is_upgrade = "websocket" in request.tokens("upgrade") and "upgrade" in request.tokens(
        "connection"
    )
    if not is_upgrade or not request.is_http_1_1:
        upgrade = {"Upgrade": "websocket", "Sec-WebSocket-Version": _VERSION}
        raise HttpError(426, "this is the address of a WebSocket", upgrade)
    if request.get("content-length") or request.get("transfer-encoding"):
        raise HttpError(400, "a handshake has no body")
    if request.one("sec-websocket-version") != _VERSION:
        raise HttpError(
            426, f"the version of WebSocket here is {_VERSION}", {"Sec-WebSocket-Version": _VERSION}
        )
    key = request.one("sec-websocket-key") or ""
    try:
        is_key = len(base64.b64decode(key, validate=True)) == _KEY_BYTES
    except (binascii.Error, ValueError):
        is_key = False
    if not is_key:
        raise HttpError(400, "the Sec-WebSocket-Key is invalid")
    digest = hashlib.sha1(f"{key}{_GUID}".encode(), usedforsecurity=False).digest()
    lines = LINES in request.tokens("sec-websocket-protocol")
    head = [
        "HTTP/1.1 101 Switching Protocols",
        f"Date: {date}",
        "Upgrade: websocket",
        "Connection: Upgrade",
        f"Sec-WebSocket-Accept: {base64.b64encode(digest).decode()}",
        *([f"Sec-WebSocket-Protocol: {LINES}"] if lines else []),
    ]
    return Handshake(response=("\r\n".join(head) + "\r\n\r\n").encode(), lines=lines)
