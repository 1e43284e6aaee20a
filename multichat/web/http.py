"""HTTP/1.1: decodes the one request of a connection, and encodes responses.  Pure.

`h11` parses.  This module owns the bounds, and refuses what two parsers may read differently,
because that would allow to smuggle a second request past a proxy: lines that do not end with CR LF,
folded fields, a body with both a length and an encoding, or with several lengths.  A connection
serves one request and is closed after the response, so that a smuggled one would not be read.

Invariants:

1. Of a head at most its limit is buffered, and of a body what the caller allows.
2. Any bytes are valid input or raise `HttpError` or `NotHttp`; the result does not depend on how
   they were split.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from urllib.parse import unquote_to_bytes

import h11

__all__ = ["CONTINUE", "HttpError", "NotHttp", "Request", "RequestReader", "Response"]

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
"""The answer to `Expect: 100-continue`, for which a client waits before it sends the body."""

_END = b"\r\n\r\n"
# LF without CR, CR without LF; and a line that continues the one before (obs-fold, RFC 9112, 5.2).
# The last byte so far may be a CR whose LF has not come yet.
_STRAY = re.compile(rb"(?<!\r)\n|\r(?!\n|\Z)|\r\n[ \t]")
_LENGTH = re.compile(rb"\r\ncontent-length[ \t]*:([^\r]*)", re.IGNORECASE)
_VERSIONS = (b"1.0", b"1.1")
_REQUEST_LINE = re.compile(rb"[A-Z]{1,20} \S+ HTTP/[0-9.]+\r")


class NotHttp(Exception):
    """The first line is not that of an HTTP request."""


class HttpError(Exception):
    """A request is refused, with a *response* that says why; *logged* if the operator should know.

    *text* is one line without a full stop; *code* is for programs, empty if the status says it all.
    """

    def __init__(
        self,
        status: int,
        text: str,
        headers: Mapping[str, str] | None = None,
        *,
        logged: str = "",
        code: str = "",
    ) -> None:
        super().__init__(text)
        self.status, self.text, self.headers = status, text, dict(headers or {})
        self.logged, self.code = logged, code

    @property
    def response(self) -> "Response":
        """The response, as plain text."""
        return Response.of_text(self.status, self.text, self.headers)


@dataclass(frozen=True, kw_only=True, slots=True)
class Response:
    """A response with its whole *body*; `encode` adds the fields that every response has."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""

    @classmethod
    def of_text(
        cls, status: int, text: str, headers: Mapping[str, str] | None = None
    ) -> "Response":
        """Return one with one line of text."""
        fields = {"Content-Type": "text/plain; charset=utf-8", "Cache-Control": "no-store"}
        return cls(status=status, headers=fields | dict(headers or {}), body=f"{text}\n".encode())

    def encode(self, *, date: str, with_body: bool = True) -> bytes:
        """Return it as bytes; *with_body* is false for HEAD, *date* is the time in HTTP's form."""
        lines = [f"HTTP/1.1 {self.status} {HTTPStatus(self.status).phrase}", f"Date: {date}"]
        fields = {"X-Content-Type-Options": "nosniff", **self.headers, "Connection": "close"}
        if self.status != HTTPStatus.NOT_MODIFIED:
            fields["Content-Length"] = str(len(self.body))
        lines += [f"{name}: {value}" for name, value in fields.items()]
        return ("\r\n".join(lines) + "\r\n\r\n").encode("ascii") + self.body * with_body


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """The head of a request; the names of *fields* are in lower case.

    *path* is decoded, without the query.
    """

    method: str
    path: str
    fields: tuple[tuple[str, str], ...]
    is_http_1_1: bool = True

    def all(self, name: str) -> list[str]:
        """Return the values of every field called *name*, in their order."""
        return [value for key, value in self.fields if key == name]

    def get(self, name: str) -> str | None:
        """Return the value of the field *name*; if there are several, the last one."""
        values = self.all(name)
        return values[-1] if values else None

    def one(self, name: str) -> str | None:
        """Return the value of the field *name*; raises `HttpError` if there are several."""
        values = self.all(name)
        if len(values) > 1:
            raise HttpError(400, f"the request has several {name} fields")
        return values[0] if values else None

    def tokens(self, name: str) -> list[str]:
        """Return the items of a field that is a list, in lower case."""
        items = [item.strip().lower() for value in self.all(name) for item in value.split(",")]
        return [item for item in items if item]


class RequestReader:
    """Reads one request: `feed` it until `request` is set, then, for a body, until `body` is.

    *rest* are the bytes after the head, until `start_body` is called.
    """

    def __init__(self, max_head_bytes: int) -> None:
        self._max_head_bytes = max_head_bytes
        self._buffer = bytearray()
        self._looked_at = 0
        self._line_end = -1  # of the request line
        self._connection = h11.Connection(h11.SERVER, max_incomplete_event_size=max_head_bytes)
        self._pieces: list[bytes] = []
        self._size = 0
        self._max_body_bytes = 0
        self._reads_body = False
        self.request: Request | None = None
        self.rest = b""
        self.body: bytes | None = None

    @property
    def expects_continue(self) -> bool:
        """Whether the client waits for `CONTINUE` before it sends the body."""
        return self._connection.they_are_waiting_for_100_continue

    def feed(self, data: bytes | bytearray) -> None:
        """Take the next bytes; raises `HttpError` or `NotHttp`."""
        if self._reads_body:
            self._feed_body(bytes(data))
        elif self.request is None:
            self._buffer += data
            self._read_head()
        else:
            self.rest += data

    def feed_eof(self) -> None:
        """Note the end of the input; raises `HttpError` if something is missing."""
        if self.request is None or (self._reads_body and self.body is None):
            raise HttpError(400, "the request is incomplete")

    def _read_head(self) -> None:
        buffer, looked_at = self._buffer, self._looked_at
        if self._line_end < 0 and (line_end := buffer.find(b"\n", looked_at)) >= 0:
            self._line_end = line_end
            first = bytes(buffer[:line_end])
            if not _REQUEST_LINE.fullmatch(first):
                if b" HTTP/" in first:
                    raise HttpError(400, "the request line is invalid")
                raise NotHttp
        end = buffer.find(_END, max(0, looked_at - len(_END)))
        size = len(buffer) if end < 0 else end + len(_END)
        if self._line_end >= 0 and _STRAY.search(buffer, max(0, looked_at - 3), size):
            raise HttpError(400, "the lines of a request end with CR LF and are not folded")
        if size > self._max_head_bytes:
            raise HttpError(431, f"the head of a request has at most {self._max_head_bytes} bytes")
        self._looked_at = len(buffer)
        if end >= 0:
            self.rest = bytes(buffer[size:])
            self._buffer = bytearray()
            self.request = self._parse(bytes(buffer[:size]))

    def _parse(self, head: bytes) -> Request:
        self._connection.receive_data(head)
        try:
            event = self._connection.next_event()
        except h11.RemoteProtocolError as error:
            raise HttpError(400, f"invalid HTTP: {error}") from None
        if not isinstance(event, h11.Request):
            raise HttpError(400, "invalid HTTP")
        if event.http_version not in _VERSIONS:
            raise HttpError(505, "the version of HTTP here is 1.1")
        # Not from the parsed fields: h11 merges several equal lengths into one.
        lengths = _LENGTH.findall(head)
        if len(lengths) > 1 or not all(each.strip(b" \t").isdigit() for each in lengths):
            raise HttpError(400, "the length of the body is ambiguous")
        fields = tuple(
            (name.decode("ascii"), value.decode("latin-1")) for name, value in event.headers
        )
        request = Request(
            method=event.method.decode("ascii"),
            path=_path(event.target),
            fields=fields,
            is_http_1_1=event.http_version == b"1.1",
        )
        _check_framing(request)
        return request

    def start_body(self, max_bytes: int) -> None:
        """Read a body of at most *max_bytes*; raises `HttpError`."""
        assert self.request is not None  # noqa: S101 - the caller has it
        length = self.request.get("content-length")
        if length is not None and (len(length) > 15 or int(length) > max_bytes):
            raise HttpError(413, f"a body has at most {max_bytes} bytes here")
        self._max_body_bytes = max_bytes
        self._reads_body = True
        rest, self.rest = self.rest, b""
        self._feed_body(rest)

    def _feed_body(self, data: bytes) -> None:
        if data:
            self._connection.receive_data(data)
        while self.body is None:
            try:
                event = self._connection.next_event()
            except h11.RemoteProtocolError as error:
                raise HttpError(400, f"invalid HTTP: {error}") from None
            if isinstance(event, h11.Data):
                self._pieces.append(bytes(event.data))
                self._size += len(event.data)
                if self._size > self._max_body_bytes:
                    raise HttpError(413, f"a body has at most {self._max_body_bytes} bytes here")
            elif isinstance(event, h11.EndOfMessage):
                self.body = b"".join(self._pieces)
            else:
                return


def _path(target: bytes) -> str:
    """Return the decoded path of a request's target; raises `HttpError`."""
    if not target.startswith(b"/"):
        raise HttpError(400, "the target of a request begins with /")
    try:
        return unquote_to_bytes(target.partition(b"?")[0]).decode()
    except UnicodeDecodeError:
        raise HttpError(400, "the target of a request is not UTF-8") from None


def _check_framing(request: Request) -> None:
    """Raise `HttpError` unless every parser finds the same body after *request*."""
    encodings = request.all("transfer-encoding")
    if encodings and request.all("content-length"):
        raise HttpError(400, "the length of the body is ambiguous")
    if encodings and ([each.lower() for each in encodings] != ["chunked"]):
        raise HttpError(501, "the only transfer encoding here is chunked")
    if encodings and not request.is_http_1_1:
        raise HttpError(400, "HTTP/1.0 has no transfer encoding")
