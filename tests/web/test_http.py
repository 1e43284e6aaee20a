"""One HTTP request from bytes: any split, every trick with framing, and responses to bytes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multichat.web.http import HttpError, NotHttp, Request, RequestReader, Response

pytestmark = pytest.mark.unit

HEAD_BYTES = 4096


def read(data: bytes, *, body_bytes: int | None = None) -> RequestReader:
    reader = RequestReader(HEAD_BYTES)
    reader.feed(data)
    if body_bytes is not None:
        reader.start_body(body_bytes)
    return reader


def request_of(data: bytes) -> Request:
    request = read(data).request
    assert request is not None
    return request


def refused(data: bytes, *, body_bytes: int | None = None) -> HttpError:
    with pytest.raises(HttpError) as caught:
        read(data, body_bytes=body_bytes)
    return caught.value


def get(*fields: str, target: str = "/", version: str = "1.1") -> bytes:
    lines = [f"GET {target} HTTP/{version}", "Host: localhost:8080", *fields, "", ""]
    return "\r\n".join(lines).encode()


def post(body: bytes, *fields: str) -> bytes:
    lines = ["POST /rooms/lobby/messages HTTP/1.1", "Host: localhost", *fields, "", ""]
    return "\r\n".join(lines).encode() + body


def test_a_request_has_a_method_a_path_and_fields() -> None:
    request = request_of(get("X-A: 1", "x-a: 2", target="/caf%C3%A9?x=1"))
    assert (request.method, request.path) == ("GET", "/café")
    assert request.all("x-a") == ["1", "2"]
    assert request.get("x-a") == "2"
    assert request.get("host") == "localhost:8080"
    with pytest.raises(HttpError, match="several x-a"):
        request.one("x-a")


def test_fields_that_are_lists_have_items_in_lower_case() -> None:
    request = request_of(get("Connection: keep-alive, Upgrade", "connection: X"))
    assert request.tokens("connection") == ["keep-alive", "upgrade", "x"]


@given(st.lists(st.integers(0, 60), max_size=6))
def test_the_result_does_not_depend_on_how_the_bytes_are_split(cuts: list[int]) -> None:
    data = post(b"hello, world", "Content-Length: 12") + b"more"
    reader = RequestReader(HEAD_BYTES)
    at = 0
    pieces = []
    for cut in cuts:
        pieces.append(data[at : at + cut])
        at += cut
    for piece in [*pieces, data[at:]]:
        was_read = reader.request is not None
        reader.feed(piece)
        if reader.request is not None and not was_read:
            reader.start_body(100)
    assert reader.body == b"hello, world"


def test_a_head_byte_by_byte_is_read_in_linear_time() -> None:
    data = get(f"X: {'x' * 4000}")
    reader = RequestReader(HEAD_BYTES * 2)
    for i in range(len(data)):
        assert reader.request is None
        reader.feed(data[i : i + 1])
    assert reader.request is not None


@given(st.binary(max_size=300))
def test_garbage_raises_only_documented_errors(data: bytes) -> None:
    for prefix in (b"", b"GET / HTTP/1.1\r\n", b"GET / HTTP/1.1\r\nHost: a\r\n"):
        reader = RequestReader(HEAD_BYTES)
        try:
            reader.feed(prefix + data)
            if reader.request is not None:
                reader.start_body(100)
            reader.feed_eof()
        except (HttpError, NotHttp):
            pass


@pytest.mark.parametrize(
    "data",
    [
        post(b"", "Content-Length: 3", "Transfer-Encoding: chunked"),
        post(b"", "Transfer-Encoding: chunked", "Content-Length: 3"),
        post(b"abc", "Content-Length: 3", "Content-Length: 4"),
        post(b"abc", "Content-Length: 3", "Content-Length: 3"),
        post(b"abc", "Content-Length: 3, 3"),
        post(b"abc", "Content-Length: +3"),
        post(b"abc", "Content-Length: 0x3"),
        post(b"abc", "Content-Length: -1"),
        post(b"abc", "Content-Length : 3"),
        post(b"", "Transfer-Encoding: chunked", "Transfer-Encoding: chunked"),
        post(b"", "Transfer-Encoding: identity, chunked"),
        post(b"", "Transfer-Encoding: xchunked"),
        post(b"", "Transfer-Encoding: \x0bchunked"),
        post(b"", "Transfer-Encoding: chunked").replace(b"HTTP/1.1", b"HTTP/1.0"),
        post(b"abc", "X: a\r\n Content-Length: 3"),
        post(b"abc", "X: a\r\n\tContent-Length: 3"),
        post(b"abc", "X: a\nContent-Length: 3"),
        post(b"abc", "X: a\rContent-Length: 3"),
        post(b"abc", "X: a\x00b"),
        post(b"abc", "X"),
        post(b"abc", ": a"),
        post(b"abc", "Host: localhost"),
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\nHost: a\n\n",
        b"GET / HTTP/1.1\r\n Host: a\r\n\r\n",
        b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1 \r\nHost: a\r\n\r\n",
        b"GET /\tx HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET / HTTP/3.0\r\nHost: a\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        get(target="http://localhost/"),
        get(target="*"),
        get(target="localhost:8080"),
        get(target="/%ff"),
    ],
)
def test_requests_that_two_parsers_may_read_differently_are_refused(data: bytes) -> None:
    assert refused(data, body_bytes=100).status in (400, 501, 505)


@pytest.mark.parametrize(
    "body",
    [
        b"3\nabc\r\n0\r\n\r\n",
        b"3\r\nabc0\r\n\r\n",
        b"3\r\nabcd\r\n0\r\n\r\n",
        b"-3\r\nabc\r\n0\r\n\r\n",
        b"0x3\r\nabc\r\n0\r\n\r\n",
        b"+3\r\nabc\r\n0\r\n\r\n",
        b" 3\r\nabc\r\n0\r\n\r\n",
        b"3 3\r\nabc\r\n0\r\n\r\n",
        b"f" * 30 + b"\r\nabc",
        b"\r\nabc",
    ],
)
def test_invalid_chunks_are_refused(body: bytes) -> None:
    data = post(body, "Transfer-Encoding: chunked")
    assert refused(data, body_bytes=100).status in (400, 413)


def test_a_body_in_chunks_is_one_body() -> None:
    data = post(b"3\r\nabc\r\n2;x=y\r\nde\r\n0\r\n\r\n", "Transfer-Encoding: chunked")
    assert read(data, body_bytes=5).body == b"abcde"


@pytest.mark.parametrize(
    "data",
    [
        post(b"", "Content-Length: 101"),
        post(b"", f"Content-Length: {'9' * 18}"),
        post(b"", f"Content-Length: {'9' * 3000}"),
        post(b"40\r\n" + b"x" * 64 + b"\r\n40\r\n" + b"x" * 64, "Transfer-Encoding: chunked"),
    ],
)
def test_a_body_above_the_limit_is_refused_before_it_is_complete(data: bytes) -> None:
    # h11 does not accept a length of more than 20 digits.
    assert refused(data, body_bytes=100).status in (400, 413)


def test_a_head_above_the_limit_is_refused_without_its_end() -> None:
    assert refused(b"GET / HTTP/1.1\r\nX: " + b"x" * HEAD_BYTES).status == 431
    assert refused(b"GET /" + b"x" * HEAD_BYTES).status == 431


def test_a_line_of_the_chat_is_not_http() -> None:
    for line in (b"/json {}\n", b"hello\r\n", b"\n", b'{"type":"say"}\n'):
        with pytest.raises(NotHttp):
            read(line)


def test_bytes_after_the_head_are_kept() -> None:
    reader = read(get() + b"\x81\x85")
    reader.feed(b"abc")
    assert reader.rest == b"\x81\x85abc"


def test_an_input_that_ends_too_early_is_an_error() -> None:
    reader = read(get()[:-2])
    with pytest.raises(HttpError, match="incomplete"):
        reader.feed_eof()
    reader = read(post(b"ab", "Content-Length: 3"), body_bytes=10)
    with pytest.raises(HttpError, match="incomplete"):
        reader.feed_eof()


def test_a_client_may_wait_for_continue() -> None:
    reader = read(post(b"", "Content-Length: 3", "Expect: 100-continue"), body_bytes=10)
    assert reader.expects_continue
    reader.feed(b"abc")
    assert reader.body == b"abc"
    assert not reader.expects_continue


def test_a_response_has_its_length_and_closes_the_connection() -> None:
    response = Response(status=200, headers={"Content-Type": "text/plain"}, body=b"hi\n")
    data = response.encode(date="now")
    head, _, body = data.partition(b"\r\n\r\n")
    assert head.split(b"\r\n") == [
        b"HTTP/1.1 200 OK",
        b"Date: now",
        b"X-Content-Type-Options: nosniff",
        b"Content-Type: text/plain",
        b"Connection: close",
        b"Content-Length: 3",
    ]
    assert body == b"hi\n"
    assert response.encode(date="now", with_body=False) == head + b"\r\n\r\n"


def test_an_unchanged_file_has_no_body_and_no_length() -> None:
    data = Response(status=304).encode(date="now")
    assert data.startswith(b"HTTP/1.1 304 Not Modified\r\n")
    assert b"Content-Length" not in data
