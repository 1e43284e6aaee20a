"""The protocol of the admin socket: one line of JSON for a command, one for its answer.  Pure.

A request is `{"command":"kick","arguments":"bob too loud"}`: a command of
`multichat.protocol.commands.ADMIN_COMMANDS` without its slash, and what would follow it at the
console.  Each request has one answer, in order:

- `{"ok":true,"lines":[…],"result":…}`: *lines* are for people, *result* is for programs; either may
  be missing.
- `{"ok":false,"code":"refused","error":"no client 7 is connected"}`: the server did not do it.
  *code* is one of `Code`; *error* is one line.

Fields that a later version adds are ignored.  Every string is cleaned, as in the JSON protocol.
"""

from enum import Enum
from typing import Any

import msgspec

from multichat.errors import InvalidRequest
from multichat.protocol.framing import clean
from multichat.protocol.json_lines import JsonDecoder, NestedTooDeeply

__all__ = [
    "Code",
    "ControlAnswer",
    "ControlRequest",
    "decode_answer",
    "decode_request",
    "encode_answer",
    "encode_request",
]

_EXAMPLE = '{"command":"who"}'


class Code(Enum):
    """Why there is no result."""

    USAGE = "usage"
    """The request is not valid: no such command, wrong arguments, not JSON."""

    REFUSED = "refused"
    """The server cannot do it: the client is not connected, a file is not valid."""

    BUSY = "busy"
    """Too many connections use the admin socket; this one is closed."""

    FAILED = "failed"
    """A bug in the server; its log has the details."""


class ControlRequest(msgspec.Struct, frozen=True, omit_defaults=True):
    """One *command* of the operator, without its slash, and its *arguments* as they are typed."""

    command: str
    arguments: str = ""


class ControlAnswer(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The answer to one request; see the module's docstring."""

    ok: bool
    lines: tuple[str, ...] = ()
    result: Any = None
    code: Code | None = None
    error: str = ""


_REQUEST = JsonDecoder(ControlRequest)
_ANSWER = JsonDecoder(ControlAnswer)
_encode = msgspec.json.Encoder().encode


def encode_request(request: ControlRequest) -> bytes:
    """Return *request* as a line."""
    return _encode(request) + b"\n"


def decode_request(line: str) -> ControlRequest:
    """Return the request in *line*, which is without its LF; raises `InvalidRequest`."""
    try:
        return _REQUEST.decode(clean(line))  # type: ignore[no-any-return]
    except NestedTooDeeply as error:
        raise InvalidRequest(str(error)) from None
    except (msgspec.MsgspecError, RecursionError):
        raise InvalidRequest(f"that is not a request such as {_EXAMPLE}") from None


def encode_answer(answer: ControlAnswer) -> bytes:
    """Return *answer* as a line; its result may hold dataclasses and msgspec structs."""
    return _encode(answer) + b"\n"


def decode_answer(line: str) -> ControlAnswer:
    """Return the answer in *line*, which is without its LF; raises `InvalidRequest`."""
    try:
        return _ANSWER.decode(clean(line))  # type: ignore[no-any-return]
    except (msgspec.MsgspecError, NestedTooDeeply, RecursionError):
        raise InvalidRequest("that is not an answer of multichat's admin socket") from None
