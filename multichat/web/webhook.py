"""The webhook's requests and answers: decodes a body to a message, encodes answers as JSON.  Pure.

A body is one message: text, whatever type `curl -d` declares, or a JSON object with `text` and
perhaps a `name` and a `nonce`.  An answer is an object, too: `{"id": …}`, or `{"code", "text"}`
with the codes of the JSON protocol.
"""

import hashlib
import hmac
import math
from collections.abc import Iterable
from http import HTTPStatus

import msgspec

from multichat.protocol.fields import MAX_DECOMPOSED, Nonce
from multichat.protocol.framing import clean
from multichat.web.config import WEBHOOK_NAME
from multichat.web.http import HttpError, Request, Response

__all__ = ["Posted", "Tokens", "answer", "error_response", "max_body", "read_posted", "retry_after"]

# In JSON, one byte of text takes six at most: \u0041.  The rest is for the other fields.
_ESCAPED_BYTES = 6
_FIELDS_BYTES = 4096

_JSON = "application/json"

# The codes of the JSON protocol.  It has none for the other statuses, which have their phrase.
_CODES = {400: "invalid-request", 413: "line-too-long"}


class Posted(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One message as it was posted; its text is clean and not empty."""

    text: str
    name: str = WEBHOOK_NAME
    nonce: Nonce | None = None


_decode = msgspec.json.Decoder(Posted).decode


class Tokens:
    """The *tokens* that allow to post; a request must have one of them."""

    def __init__(self, tokens: Iterable[str]) -> None:
        self._digests = [_digest(token.encode()) for token in tokens]

    def find(self, request: Request) -> int | None:
        """Return the number of the token that *request* has; None if it has none.

        Takes the same time for every token, right or wrong.
        """
        scheme, _, token = (request.one("authorization") or "").partition(" ")
        digest = _digest(token.strip().encode("utf-8", "replace"))
        same = [hmac.compare_digest(digest, each) for each in self._digests]
        return same.index(True) if scheme.lower() == "bearer" and any(same) else None


def _digest(token: bytes) -> bytes:
    # Digests have a fixed length, so the time of a comparison does not reveal the token's.
    return hashlib.sha256(token).digest()


def _is_json(request: Request) -> bool:
    kind = (request.get("content-type") or "").partition(";")[0].strip().lower()
    return kind == _JSON


def max_body(request: Request, max_line_bytes: int) -> int:
    """Return how many bytes the body of *request* may have; a text may end with a line end."""
    if _is_json(request):
        return _ESCAPED_BYTES * max_line_bytes + _FIELDS_BYTES
    return max_line_bytes + len(b"\r\n")


def read_posted(request: Request, body: bytes, max_line_bytes: int) -> Posted:
    """Return the message in *body*; raises `HttpError`."""
    try:
        posted = _decode(body) if _is_json(request) else Posted(body.decode())
    except UnicodeDecodeError:
        raise HttpError(400, "the text is not UTF-8") from None
    except msgspec.MsgspecError as error:
        text = f"the body is not an object with text, and perhaps name and nonce: {error}"
        raise HttpError(400, clean(text)) from None
    text = posted.text.removesuffix("\n").removesuffix("\r")
    if len(text.encode("utf-8", "replace")) > max_line_bytes:
        raise HttpError(413, f"a message has at most {max_line_bytes} bytes")
    text = clean(text.replace("\r\n", "\n"))
    if not text.strip():
        raise HttpError(400, "the message is empty", code="empty-text")
    if len(posted.name) > MAX_DECOMPOSED:
        raise HttpError(409, f"a name has at most {MAX_DECOMPOSED} characters", code="invalid-name")
    return Posted(text, clean(posted.name), posted.nonce)


def answer(id_: str) -> Response:
    """Return the answer to a message that was accepted with that id."""
    return _json(201, {"id": id_})


def error_response(error: HttpError) -> Response:
    """Return *error* as a response with a JSON object."""
    code = error.code or _CODES.get(error.status)
    if code is None:
        code = HTTPStatus(error.status).phrase.lower().replace(" ", "-")
    return _json(error.status, {"code": code, "text": error.text}, error.headers)


def _json(status: int, body: dict[str, str], headers: dict[str, str] | None = None) -> Response:
    fields = {"Content-Type": _JSON, "Cache-Control": "no-store", **(headers or {})}
    return Response(status=status, headers=fields, body=msgspec.json.encode(body) + b"\n")


def retry_after(seconds: float) -> dict[str, str]:
    """Return the field that says when to retry."""
    return {"Retry-After": str(max(1, math.ceil(seconds)))}
