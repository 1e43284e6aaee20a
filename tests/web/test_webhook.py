"""Posted messages: what they may be, who may post them, and where they are delivered."""

from functools import partial

import msgspec
import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from multichat.errors import StorageFailed
from multichat.journal.base import PendingWrite, RoomJournal
from multichat.journal.memory import MemoryJournal
from multichat.protocol.messages import Directed, Nonce, Said, SaidBlock
from multichat.server.bans import Ban, parse_target
from multichat.server.config import Filtered, Message, ServerConfig
from multichat.testing import memory_server
from multichat.web.config import WebConfig
from multichat.web.http import HttpError, Request
from multichat.web.webhook import Posted, Tokens, error_response, max_body, read_posted
from tests.support.journals import DelegatingRoom
from tests.support.log import LogRecorder
from tests.support.web import TOKEN, Answer, ask, http, posting, read_all, web_connection

pytestmark = pytest.mark.unit

WEB = WebConfig(webhook_tokens=(TOKEN, "another-token-of-somebody"))
hooked = partial(ServerConfig, web=WEB)

JSON = "application/json"


def request(kind: str = "text/plain", **fields: str) -> Request:
    given = {"content-type": kind, **fields}
    return Request(method="POST", path="/", fields=tuple(given.items()))


def said(name: str, text: str, **more: object) -> bytes:
    return msgspec.json.encode({"name": name, "text": text, **more})


# --- Bodies ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"build 42 passed", "build 42 passed"),
        (b"one\n", "one"),
        (b"one\r\n", "one"),
        (b"one\ntwo\r\nthree\n", "one␊two␊three"),
        ("café ☕".encode(), "café ☕"),
        (b"\x1b[31mred", "␛[31mred"),
        ("a\u202eb".encode(), "ab"),
    ],
)
def test_a_text_is_one_clean_message(body: bytes, text: str) -> None:
    assert read_posted(request(), body, 100) == Posted(text)


def test_an_object_has_a_text_and_perhaps_a_name_and_a_nonce() -> None:
    kind = f"{JSON}; charset=utf-8"
    assert read_posted(request(kind), b'{"text":"hi"}', 100) == Posted("hi")
    body = said("ci", "hi\nthere", nonce="a")
    assert read_posted(request(kind), body, 100) == Posted("hi␊there", "ci", "a")


@pytest.mark.parametrize(
    ("kind", "body", "status"),
    [
        ("text/plain", b"", 400),
        ("text/plain", b"\n", 400),
        ("text/plain", b"  ", 400),
        ("text/plain", b"\xff", 400),
        ("text/plain", b"x" * 101, 413),
        (JSON, b"", 400),
        (JSON, b"hi", 400),
        (JSON, b"[]", 400),
        (JSON, b"{}", 400),
        (JSON, b'{"text":3}', 400),
        (JSON, b'{"text":"a","nonce":[]}', 400),
        (JSON, b'{"text":"a","nonce":"' + b"x" * 129 + b'"}', 400),
        (JSON, b'{"text":"a","nam":"b"}', 400),
        (JSON, b'{"text":"a"} {}', 400),
        (JSON, b'{"text":"\xff"}', 400),
        (JSON, b"[" * 10_000, 400),
        (JSON, b'{"text":"' + b"\\u0041" * 101 + b'"}', 413),
        (JSON, b'{"text":"a","name":"' + b"x" * 200 + b'"}', 409),
    ],
)
def test_other_bodies_are_refused(kind: str, body: bytes, status: int) -> None:
    with pytest.raises(HttpError) as refused:
        read_posted(request(kind), body, 100)
    assert refused.value.status == status


@pytest.mark.parametrize(
    ("kind", "body", "code"),
    [
        ("text/plain", b"\n", "empty-text"),
        ("text/plain", b"\xff", "invalid-request"),
        ("text/plain", b"x" * 101, "line-too-long"),
        (JSON, b"{}", "invalid-request"),
    ],
)
def test_errors_have_the_codes_of_the_protocol(kind: str, body: bytes, code: str) -> None:
    with pytest.raises(HttpError) as refused:
        read_posted(request(kind), body, 100)
    assert f'"code":"{code}"'.encode() in error_response(refused.value).body


@given(st.binary(max_size=200), st.booleans())
def test_any_body_is_a_message_or_an_error(body: bytes, json: bool) -> None:
    try:
        posted = read_posted(request(JSON if json else "text/plain"), body, 100)
    except HttpError:
        return
    assert posted.text.strip()
    assert "\n" not in posted.text


def test_a_body_may_be_as_long_as_the_longest_message_written_the_longest_way() -> None:
    body = b'{"text":"' + b"\\u0041" * 100 + b'"}'
    assert len(body) <= max_body(request(JSON), 100)
    assert read_posted(request(JSON), body, 100).text == "A" * 100
    assert max_body(request(), 100) == 102


# --- Tokens ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "number"),
    [
        (f"Bearer {TOKEN}", 0),
        (f"bearer  {TOKEN} ", 0),
        ("Bearer another-token-of-somebody", 1),
        ("Bearer", None),
        (f"Bearer {TOKEN}x", None),
        (f"Bearer {TOKEN[:-1]}", None),
        (f"Basic {TOKEN}", None),
        (TOKEN, None),
        ("", None),
    ],
)
def test_a_token_is_right_as_a_whole(given: str, number: int | None) -> None:
    assert Tokens(WEB.webhook_tokens).find(request(authorization=given)) == number


def test_every_token_is_compared_as_a_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[bytes, bytes]] = []

    def compare(ours: bytes, theirs: bytes) -> bool:
        compared.append((ours, theirs))
        return ours == theirs

    monkeypatch.setattr("hmac.compare_digest", compare)
    Tokens(WEB.webhook_tokens).find(request(authorization="Bearer x"))
    assert [len(each) for pair in compared for each in pair] == [32, 32, 32, 32]


# --- In a server ----------------------------------------------------------------------------------


def refused(answer: Answer, status: int, code: str) -> str:
    assert answer.status == status, answer
    assert answer.fields["Content-Type"] == JSON
    assert answer.json["code"] == code
    return str(answer.json["text"])


async def test_a_posted_message_is_delivered_logged_and_stored(log: LogRecorder) -> None:
    async with memory_server(hooked()) as server:
        listener = await server.join()
        program = await server.join()
        await program.send('/json {"name":"robot"}')
        await program.line()
        answer = await ask(server, posting(b"build 42\npassed\n"))
        assert answer.status == 201
        assert await listener.line() == "[webhook] build 42␊passed"
        event = msgspec.json.decode(await program.line())
        assert event.pop("time")
        assert event == {
            "type": "said",
            "id": answer.json["id"],
            "room": "lobby",
            "client": 0,
            "name": "webhook",
            "text": "build 42␊passed",
        }
        await listener.send("/history 1")
        history = await listener.lines(2)
        assert history[-1].endswith("[webhook] build 42␊passed")
    assert "[INFO] [server] [RX] [webhook] build 42␊passed" in log.lines
    assert "[INFO] [server] [BROADCAST] Broadcasting to 2 clients" in log.lines


async def test_a_message_opens_a_room_and_waits_there() -> None:
    async with memory_server(hooked()) as server:
        assert (await ask(server, posting(b"down", room="%23ops"))).status == 201
        assert server.server.statistics().rooms == 0
        reader = await server.join()
        await reader.send("/join ops", "/history 1")
        assert (await reader.lines(3))[-1].endswith("[webhook] down")


@pytest.mark.parametrize("room", ["%20", "a%2Fb", "a%0Ab", "x" * 33, "%F0%9F%98%80", "..%2F.."])
async def test_a_room_that_cannot_be_is_not_found(room: str) -> None:
    async with memory_server(hooked()) as server:
        assert (await ask(server, posting(b"x", room=room))).status == 404


async def test_without_a_right_token_no_body_is_read_and_nothing_is_published(
    log: LogRecorder,
) -> None:
    async with memory_server(hooked()) as server:
        listener = await server.join()
        for head in (
            posting(b"", "Content-Length: 3", token="wrong-token-0123456"),
            http("/rooms/lobby/messages", "Content-Length: 3", method="POST"),
        ):
            answer = await ask(server, head)
            assert answer.fields["WWW-Authenticate"] == 'Bearer realm="multichat"'
            assert "missing or wrong" in refused(answer, 401, "unauthorized")
        await listener.send("/ping")
        assert await listener.line() == "[Server] pong"
        assert server.server.statistics().refused == 2
    assert not any(TOKEN in line or "wrong-token" in line for line in log.lines)


@pytest.mark.parametrize("name", ["Server", "admin", "a b", "Client 7", "", "12", "аdmin"])
async def test_a_name_that_no_client_may_have_is_refused(name: str) -> None:
    async with memory_server(hooked()) as server:
        refused(await ask(server, posting(said(name, "x"), json=True)), 409, "invalid-name")


async def test_the_name_of_a_client_or_account_is_refused() -> None:
    async with memory_server(hooked()) as server:
        alice = await server.join()
        await alice.send("/name alice", "/register correct horse battery")
        await alice.lines(2)
        bob = await server.join()
        await bob.send("/name bob")
        await bob.line()
        for name in ("alice", "ALICE", "a1ice", "bob"):
            answer = await ask(server, posting(said(name, "x"), json=True))
            refused(answer, 409, "name-taken")
        await bob.finish()
        await bob.rest()
        await alice.finish()
        await alice.rest()
        assert (await ask(server, posting(said("bob", "x"), json=True))).status == 201
        # The name of an account stays taken while its owner is away.
        refused(await ask(server, posting(said("alice", "x"), json=True)), 409, "name-taken")


async def test_no_client_can_take_the_webhooks_own_name() -> None:
    async with memory_server(hooked()) as server:
        client = await server.join()
        await client.send("/name webhook", "/name WEBH00K")
        assert all("taken" in line for line in await client.lines(2))
    async with memory_server() as server:
        client = await server.join()
        await client.send("/name webhook")
        assert "is now webhook" in await client.line()


async def test_a_banned_name_cannot_speak() -> None:
    async with memory_server(hooked()) as server:
        server.server.ban(Ban(target=parse_target("name mallory")))
        refused(await ask(server, posting(said("mallory", "x"), json=True)), 403, "banned")


async def test_filters_change_and_reject_posted_messages() -> None:
    def polite(message: Message) -> Filtered | None:
        if isinstance(message, Directed) or message.text == "no":
            return None
        assert isinstance(message, Said)
        assert (message.client, message.name, message.room) == (0, "webhook", "lobby")
        return msgspec.structs.replace(message, text=message.text.upper())

    async with memory_server(hooked(filters=(polite,))) as server:
        listener = await server.join()
        refused(await ask(server, posting(b"no")), 403, "rejected")
        assert (await ask(server, posting(b"yes"))).status == 201
        assert await listener.line() == "[webhook] YES"


async def test_a_message_that_is_posted_again_is_published_once() -> None:
    async with memory_server(hooked()) as server:
        listener = await server.join()
        body = said("ci", "hi", nonce="n-1")
        answers = [await ask(server, posting(body, json=True)) for _ in range(3)]
        assert {each.status for each in answers} == {201}
        assert len({each.body for each in answers}) == 1
        for other in (said("ci", "ho", nonce="n-1"), said("di", "hi", nonce="n-1")):
            refused(await ask(server, posting(other, json=True)), 409, "nonce-reused")
        elsewhere = posting(body, json=True, room="ops")
        refused(await ask(server, elsewhere), 409, "nonce-reused")
        # The nonces of each token are its own.
        other_token = posting(body, json=True, token="another-token-of-somebody")
        assert (await ask(server, other_token)).status == 201
        assert await listener.lines(2) == ["[ci] hi", "[ci] hi"]
        await listener.send("/ping")
        assert await listener.line() == "[Server] pong"


async def test_tokens_change_while_the_server_runs_and_one_that_stays_keeps_its_nonces() -> None:
    async with memory_server(hooked()) as server:
        change = server.server.settings.change_webhook_tokens
        listener = await server.join()
        body, new = said("ci", "hi", nonce="n-1"), "a-third-token-of-nobody-yet"
        first = await ask(server, posting(body, json=True))
        change([new, TOKEN])
        assert await ask(server, posting(body, json=True)) == first
        assert (await ask(server, posting(b"x", token="another-token-of-somebody"))).status == 401
        assert (await ask(server, posting(b"x", token=new))).status == 201
        change([new])
        assert (await ask(server, posting(b"y"))).status == 401
        assert await listener.lines(2) == ["[ci] hi", "[webhook] x"]


async def test_a_message_whose_token_was_right_is_completed_when_tokens_change() -> None:
    async with memory_server(hooked()) as server:
        listener = await server.join()
        async with web_connection(server) as stream:
            head, body = posting(b"hello").split(b"\r\n\r\n")
            await stream.send_all(head + b"\r\n\r\n")
            await trio.testing.wait_all_tasks_blocked()
            server.server.settings.change_webhook_tokens(["a-third-token-of-nobody-yet"])
            await stream.send_all(body)
            assert (await read_all(stream)).startswith(b"HTTP/1.1 201 ")
        assert await listener.line() == "[webhook] hello"


async def test_a_message_that_is_posted_twice_at_once_is_published_once() -> None:
    async def slowly(message: Message) -> Filtered:
        await trio.testing.wait_all_tasks_blocked()
        return message

    answers: list[Answer] = []
    async with memory_server(hooked(filters=(slowly,))) as server:
        listener = await server.join()

        async def post() -> None:
            body = said("ci", "hi", nonce=7)
            answers.append(await ask(server, posting(body, json=True)))

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(post)
        assert len({each.body for each in answers}) == 1
        await listener.send("/ping")
        assert await listener.lines(2) == ["[ci] hi", "[Server] pong"]


async def test_above_the_rate_the_answer_says_when_to_retry(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with memory_server(hooked(rate=0.1, burst=2)) as server:
        assert [(await ask(server, posting(b"x"))).status for _ in range(2)] == [201, 201]
        answer = await ask(server, posting(b"x"))
        refused(answer, 429, "too-many-requests")
        seconds = int(answer.fields["Retry-After"])
        assert 1 <= seconds <= 10
        await trio.sleep(seconds)
        assert (await ask(server, posting(b"x"))).status == 201


async def test_a_repeated_message_does_not_count_towards_the_rate(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with memory_server(hooked(rate=0.001, burst=1)) as server:
        body = said("ci", "hi", nonce=1)
        assert [(await ask(server, posting(body, json=True))).status for _ in range(3)] == [201] * 3


async def test_rooms_open_within_the_limits() -> None:
    async with memory_server(hooked(max_rooms=1)) as server:
        member = await server.join()
        await member.send("/join a")
        await member.line()
        answer = await ask(server, posting(b"x", room="b"))
        refused(answer, 503, "too-many-rooms")
        assert answer.fields["Retry-After"] == "60"
    async with memory_server(hooked(max_new_rooms=1)) as server:
        assert (await ask(server, posting(b"x", room="a"))).status == 201
        answer = await ask(server, posting(b"x", room="b"))
        refused(answer, 429, "too-many-rooms")
        assert int(answer.fields["Retry-After"]) > 60
        assert (await ask(server, posting(b"x", room="a"))).status == 201


class _FullRoom(DelegatingRoom):
    is_full = True

    def append(
        self, said: SaidBlock, nonces: tuple[Nonce | None, ...] = (), checks: bytes = b""
    ) -> PendingWrite | None:
        if self.is_full:
            raise StorageFailed("the disk is full")
        return super().append(said, nonces, checks)


class _FullJournal(MemoryJournal):
    def room(self, name: str) -> RoomJournal:
        return _FullRoom(super().room(name))


async def test_a_message_that_cannot_be_stored_is_refused_and_may_be_posted_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with memory_server(hooked(), journal=_FullJournal()) as server:
        body = posting(said("ci", "hi", nonce=1), json=True)
        answer = await ask(server, body)
        refused(answer, 503, "storage-failed")
        assert answer.fields["Retry-After"] == "3"
        monkeypatch.setattr(_FullRoom, "is_full", False)
        assert (await ask(server, body)).status == 201


async def test_a_body_above_the_limit_is_refused_before_it_is_read() -> None:
    async with memory_server(hooked(max_line_bytes=100)) as server:
        head = posting(b"", "Content-Length: 103")
        refused(await ask(server, head), 413, "line-too-long")
        chunks = posting(b"100\r\n" + b"x" * 256, "Transfer-Encoding: chunked")
        refused(await ask(server, chunks), 413, "line-too-long")
        assert (await ask(server, posting(b"x" * 100 + b"\r\n"))).status == 201
        refused(await ask(server, posting(b"x" * 101)), 413, "line-too-long")


async def test_a_client_that_waits_gets_continue_only_with_a_right_token() -> None:
    async with memory_server(hooked()) as server:
        async with web_connection(server) as stream:
            await stream.send_all(posting(b"", "Content-Length: 2", "Expect: 100-continue"))
            assert await stream.receive_some(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
            await stream.send_all(b"hi")
            assert (await read_all(stream)).startswith(b"HTTP/1.1 201 ")
        wrong = posting(b"", "Content-Length: 2", "Expect: 100-continue", token="wrong" * 4)
        assert (await ask(server, wrong)).status == 401


async def test_a_body_that_never_comes_is_a_timeout(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with memory_server(hooked()) as server:
        refused(await ask(server, posting(b"", "Content-Length: 2")), 408, "request-timeout")
        async with web_connection(server) as stream:
            await stream.send_all(posting(b"", "Content-Length: 2"))
            await stream.send_eof()
            assert (await read_all(stream)).startswith(b"HTTP/1.1 400 ")
