"""Admission: input before the password, waiting connections, and rejections."""

import hmac
import logging
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from itertools import count

import pytest
import trio
import trio.testing
from trio.testing import MockClock, wait_all_tasks_blocked

import multichat
from multichat import Server, ServerConfig, ServerTimeouts
from multichat.net import transport
from multichat.net.listeners import is_reachable_remotely
from multichat.protocol.auth import encode_password, parse_password
from multichat.protocol.framing import LineDecoder
from multichat.server import start_log
from multichat.server.admission import (
    MAX_BYTES,
    MAX_PENDING,
    Admission,
    AdmissionRefused,
    AdmittedConnection,
    PendingSlot,
)
from multichat.server.authentication import MAX_TRIES
from multichat.server.config import MAX_CLIENTS_PER_ADDRESS
from multichat.server.origin import Origin
from multichat.testing import MemoryServer, ScriptedClient, memory_server
from tests.support.log import LogRecorder
from tests.support.processes import WAIT_SECONDS

pytestmark = pytest.mark.unit

LOOPBACK = "127.0.0.1"
SECRET = "correct horse"
ASKED = "[Server] a password is required: /auth PASSWORD"
WRONG = "[Server] wrong password"
ACCEPTED = "[Server] password accepted"


@pytest.fixture
def log(log: LogRecorder) -> Iterator[LogRecorder]:
    """Record the log at level DEBUG; at the end it must contain no password, right or wrong."""
    logging.getLogger("multichat").setLevel(logging.DEBUG)
    yield log
    for line in log.lines:
        assert SECRET not in line
        assert "mellon" not in line  # the wrong password
        assert "/auth" not in line.removesuffix("/auth PASSWORD")


def asking(**settings: object) -> ServerConfig:
    return ServerConfig(password=SECRET, **settings)  # type: ignore[arg-type]


async def knock(network: MemoryServer) -> ScriptedClient:
    client = await network.join()
    assert await client.line() == ASKED
    return client


async def enter(network: MemoryServer) -> ScriptedClient:
    client = await knock(network)
    await client.send(f"/auth {SECRET}")
    assert await client.line() == ACCEPTED
    await wait_all_tasks_blocked()
    return client


# --- The wire ------------------------------------------------------------------------------------


async def test_a_client_with_the_password_is_admitted(log: LogRecorder) -> None:
    async with memory_server(asking()) as network:
        a = await enter(network)
        b = await knock(network)
        await b.send("/auth mellon")
        assert await b.line() == WRONG
        await b.send(f"/AUTH {SECRET}")
        assert await b.line() == ACCEPTED
        await b.send("hello")
        assert await a.line() == "[Client 2] hello"
        await b.send(f"/auth {SECRET}")  # again, without a prompt
        assert await b.line() == "[Server] no password is required"
    assert [line for line in log.lines if "connected" in line][:2] == [
        "[INFO] [server] [STATE] Client 1 connected",
        "[INFO] [server] [STATE] Client 2 connected",
    ]


async def test_before_the_password_no_request_works_and_nothing_is_announced(
    log: LogRecorder, autojump_clock: MockClock
) -> None:
    async with memory_server(asking(announce=True)) as network:
        text = await enter(network)
        program = await enter(network)
        await program.send("/json")
        await program.line()
        assert await text.line() == "[Server] Client 2 joined"
        await trio.sleep(5)  # time for presence to be announced
        before = len(log.lines)
        stranger = await knock(network)
        tries = [
            "hello",
            "/name mallory",
            '/json {"protocol":1,"name":"mallory","room":"den"}',
            '{"type":"say","text":"psst"}',
            "/who",
            "/rooms",
            "/msg 1 psst",
            "/join den",
            "/auth",  # without a password
            "/authenticate mellon",
            "//auth mellon",
            "/quit",
        ]
        for line in tries:
            await stranger.send(line)
            assert await stranger.line() == ASKED
        await trio.sleep(5)  # time for presence to be announced
        assert [member.client for member in network.server.members] == [1, 2]
        assert log.lines[before:] == []
        await stranger.send(f"/auth {SECRET}", "/who")
        assert await stranger.lines(2) == [ACCEPTED, "[Server] 3 in lobby:"]
        assert await text.line() == "[Server] Client 3 joined"
        told = [await program.line()]
        if '"client":1' in told[0]:  # a client that had joined just before
            told.append(await program.line())
        assert told[-1] == '{"type":"joined","client":3,"name":"Client 3","members":3}'


async def test_three_wrong_passwords_end_the_connection(
    log: LogRecorder, autojump_clock: MockClock
) -> None:
    async with memory_server(asking()) as network:
        client = await knock(network)
        await client.send(*["/auth mellon"] * MAX_TRIES, f"/auth {SECRET}")
        assert await client.rest() == [
            *[WRONG] * (MAX_TRIES - 1),
            "[Server] goodbye: wrong password",
        ]
        assert network.server.statistics().refused == 1
    assert log.lines == ["[INFO] [server] [STATE] Refused a client: wrong password"]


@pytest.mark.parametrize(
    ("said", "seconds"), [("", 4.0), ("hello\n", 4.0), ("/auth mellon\n/auth mellon\n", 4.0)]
)
async def test_the_time_for_the_password_is_limited_whatever_is_sent(
    said: str, seconds: float, log: LogRecorder, autojump_clock: MockClock
) -> None:
    """Only waiting for input counts; the delay after a wrong password does not."""
    async with memory_server(asking(auth_seconds=4.0)) as network:
        client = await knock(network)
        started = trio.current_time()
        await trio.sleep(3.5)
        if said:
            await client.stream.send_all(said.encode())
        received = await client.rest()
        assert trio.current_time() - started == pytest.approx(seconds)
        assert received[-1] == "[Server] goodbye: no password in 4 s"
        assert received[:-1] == (ASKED if "hello" in said else WRONG).splitlines() * said.count(
            "\n"
        )
    reason = "wrong password" if "mellon" in said else "no password in 4 s"
    assert log.lines == [f"[INFO] [server] [STATE] Refused a client: {reason}"]


async def test_the_time_for_the_password_is_limited_for_a_client_that_does_not_read(
    log: LogRecorder, autojump_clock: MockClock
) -> None:
    async with memory_server(asking()) as network:
        await network.join(lockstep=True)
        await trio.sleep(9)
        assert log.lines == []
        await trio.sleep(3)
    assert log.lines == ["[INFO] [server] [STATE] Refused a client: no password in 10 s"]


async def test_the_number_of_lines_before_the_password_is_limited(log: LogRecorder) -> None:
    async with memory_server(asking(max_line_bytes=100)) as network:
        client = await knock(network)
        await client.send(*["hello", "x" * 101] * 30)
        assert await client.rest() == [
            *[ASKED] * 16,
            "[Server] goodbye: a password is required: /auth PASSWORD",
        ]


@pytest.mark.parametrize("said", ["\n", "\r\n", "x", "\x00", "\xff", "\xff\xf1"])
async def test_only_8_kib_are_read_before_the_password(said: str, log: LogRecorder) -> None:
    """Empty lines, an endless line, telnet commands: any input without lines to answer."""
    async with memory_server(asking()) as network:
        client = await knock(network)
        data = (said.encode("latin-1") * MAX_BYTES)[: MAX_BYTES - 1]
        await client.stream.send_all(data)
        await wait_all_tasks_blocked()
        assert log.lines == []
        await client.stream.send_all(b"xx")
        assert (await client.rest())[-1].endswith(
            "[Server] goodbye: no password in the first 8192 bytes"
        )
    assert log.lines == [
        "[INFO] [server] [STATE] Refused a client: no password in the first 8192 bytes"
    ]


async def test_the_password_may_be_at_the_end_of_a_read(log: LogRecorder) -> None:
    right = f"/auth {SECRET}\n".encode()
    async with memory_server(asking()) as network:
        client = await knock(network)
        await client.stream.send_all(b"\n" * (MAX_BYTES - len(right)) + right + b"/ping\n" * 2000)
        assert await client.lines(2001) == [ACCEPTED, *["[Server] pong"] * 2000]


SAID = '{"type":"say","text":"hello there"}'
PIPELINES = {
    "text": (
        f"/auth {SECRET}\nhello there\n/ping 1\n",
        [ASKED, ACCEPTED, "[Server] pong 1"],
    ),
    "crlf": (
        f"/auth {SECRET}\r\nhello there\r\n/ping 1\r\n",
        [ASKED, ACCEPTED, "[Server] pong 1"],
    ),
    "json": (
        f'/json\n/auth {SECRET}\n/json {{"name":"alice"}}\n{SAID}\n{{"type":"ping","token":"1"}}\n',
        [ASKED, ASKED, ACCEPTED, '{"type":"welcome"', '{"type":"pong","token":"1"}'],
    ),
}


@pytest.mark.parametrize("kind", PIPELINES)
async def test_input_after_the_password_is_processed_wherever_it_was_split(
    kind: str, log: LogRecorder
) -> None:
    said, answers = PIPELINES[kind]
    data = said.encode()
    async with memory_server(asking()) as network:
        witness = await enter(network)
        for cut in range(len(data)):
            client = await network.join()
            if cut:
                await client.stream.send_all(data[:cut])
                await wait_all_tasks_blocked()
            await client.stream.send_all(data[cut:])
            received = await client.lines(len(answers))
            assert [
                line[: len(answer)] for line, answer in zip(received, answers, strict=True)
            ] == (answers)
            assert (await witness.line()).endswith("] hello there")
            await client.stream.aclose()
            await wait_all_tasks_blocked()


@pytest.mark.parametrize("end", ["\n", "", "\r\n", "\r"])
async def test_the_end_of_input_ends_a_password_line(end: str, log: LogRecorder) -> None:
    async with memory_server(asking()) as network:
        witness = await enter(network)
        client = await knock(network)
        await client.stream.send_all(f"/auth {SECRET}\nbye{end}".encode())
        await client.finish()
        assert await client.rest() == [ACCEPTED]
        assert (await witness.line()).startswith("[Client 2] bye")


async def test_a_connection_that_ends_before_the_password_is_not_a_client(log: LogRecorder) -> None:
    async with memory_server(asking()) as network:
        for said in (b"", b"hello", b"/auth mellon"):
            client = await knock(network)
            if said:
                await client.stream.send_all(said)
            await client.finish()
            await client.rest()
        broken = await knock(network)
        await broken.stream.aclose()
        await wait_all_tasks_blocked()
        assert network.server.statistics().clients_ever == 0
    refused = "[INFO] [server] [STATE] Refused a client: "
    assert log.lines[0] == f"{refused}disconnected without a password"
    assert log.lines[1] == f"{refused}disconnected without a password"
    assert log.lines[2] == f"{refused}wrong password"
    assert len(log.lines) == 4
    assert log.lines[3].startswith(refused)


PASSWORDS = [
    "s3cret",
    "pässwörd 안녕 🔑",
    "  blanks before and behind  ",
    " ",
    "/auth",
    "a\ttab",
    "\x1b[2J",
    "\x00",
    "a\u202eb\u2028c",
    '"quoted" \\u001b \\',
    "\U0001f511" * 1024,
]


@pytest.mark.parametrize("password", PASSWORDS, ids=range(len(PASSWORDS)))
async def test_any_line_of_text_is_a_password(password: str, autojump_clock: MockClock) -> None:
    """The filter changes the configured and the typed password in the same way."""
    async with memory_server(ServerConfig(password=password)) as network:
        client = await knock(network)
        await client.send(f"/auth {password}")
        assert await client.line() == ACCEPTED
        for wrong in (f"{password}x", f"x{password}", password[:-1] + "~"):
            client = await knock(network)
            await client.send(f"/auth {wrong}")
            assert await client.line() == WRONG
        for plain in (False, True):
            stream = network.connect()
            async with multichat.open_chat(stream, password=password, plain=plain) as chat:
                await chat.say("I am in")


@pytest.mark.parametrize("password", ["", "x" * 1025, "two\nlines", "\n"])
def test_invalid_passwords_are_refused(password: str) -> None:
    with pytest.raises(ValueError, match="password"):
        ServerConfig(password=password)


def test_a_password_that_cannot_be_typed_is_refused() -> None:
    with pytest.raises(ValueError, match="password"):
        ServerConfig(password="\u202e\u2066")  # cleaned, it is empty


def test_the_password_is_not_shown_with_the_configuration() -> None:
    assert SECRET not in repr(asking())
    assert SECRET not in str(asking())
    assert SECRET not in repr(vars(Server(asking())._admission)).replace(repr(asking()), "")


def test_auth_lines_are_recognized() -> None:
    assert parse_password("/auth x y ") == "x y "
    assert parse_password("/Auth  x") == " x"
    assert parse_password("/auth ") == ""
    assert parse_password(encode_password(" /auth x")) == " /auth x"
    for line in ("/auth", "/authx y", " /auth x", "//auth x", "auth x", "/auth\tx", ""):
        assert parse_password(line) is None


# --- Other protocols -----------------------------------------------------------------------------


async def test_a_browser_is_answered_before_the_password(log: LogRecorder) -> None:
    async with memory_server(asking()) as network:
        client = await knock(network)
        await client.stream.send_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        answer = await client.rest()
        assert answer[0] == "HTTP/1.0 400 Bad Request\r"
        assert "not a web server" in answer[-1]
        # Later it would be an ordinary line.
        client = await knock(network)
        await client.send("hello", "GET / HTTP/1.1", f"/auth {SECRET}")
        assert await client.lines(3) == [ASKED, ASKED, ACCEPTED]
    assert log.lines[0] == (
        "[INFO] [server] [STATE] Refused a client: the client speaks HTTP; this is a chat server"
    )


async def test_a_browser_reads_nothing_but_http_where_there_is_a_page(
    autojump_clock: MockClock,
) -> None:
    """A browser shows nothing of an answer that begins with the request for a password."""
    async with memory_server(asking()) as network:
        network.server._authentication.web_url = "http://chat.example/"
        client = await network.join()
        await trio.sleep(0.1)
        await client.send("GET / HTTP/1.1", "Host: x", "")
        answer = await client.rest()
        assert answer[0] == "HTTP/1.0 400 Bad Request\r"
        assert answer[-1].endswith("Its page is at http://chat.example/")
        # Everybody else is asked after a moment, and loses nothing.
        started = trio.current_time()
        client = await knock(network)
        assert trio.current_time() - started < 0.5
        client = await network.join()
        await client.send("hello", f"/auth {SECRET}")
        assert await client.lines(3) == [ASKED, ASKED, ACCEPTED]
        client = await network.join()
        await client.stream.send_all(b"/au")
        await trio.sleep(1)
        await client.send(f"th {SECRET}")
        assert await client.lines(2) == [ASKED, ACCEPTED]


@pytest.mark.parametrize(
    ("data", "words", "reason"),
    [
        (
            b"\x16\x03\x01\x00\xc8\x01\x00\x00\xc4\x03\x03",
            "this server does not use TLS: omit --tls",
            "the client uses TLS, which this port does not support",
        ),
        (
            b"\r\n\r\n\x00\r\nQUIT\n\x20\x00\x00\x00",
            "this server does not expect the PROXY header of its load balancer",
            "its load balancer sends a PROXY header: give the balancer's address to --proxy",
        ),
    ],
)
async def test_another_protocol_before_the_password_is_logged(
    data: bytes, words: str, reason: str, log: LogRecorder
) -> None:
    async with memory_server(asking()) as network:
        client = await knock(network)
        await client.stream.send_all(data)
        assert await client.rest() == [f"[Server] goodbye: {words}"]
    assert log.lines == [f"[INFO] [server] [STATE] Refused a client: {reason}"]


# --- Wrong passwords -----------------------------------------------------------------------------


class Network:
    """A server in memory whose clients have addresses chosen by the test."""

    def __init__(self, network: MemoryServer, monkeypatch: pytest.MonkeyPatch) -> None:
        self._network = network
        self._monkeypatch = monkeypatch

    async def knock(self, address: str) -> ScriptedClient:
        self._monkeypatch.setattr(transport, "peer_address", lambda _: address)
        return await knock(self._network)

    async def seconds_of_a_try(self, address: str, password: str = "mellon") -> float:
        client = await self.knock(address)
        started = trio.current_time()
        await client.send(f"/auth {password}")
        assert await client.line() == (ACCEPTED if password == SECRET else WRONG)
        took = trio.current_time() - started
        await client.stream.aclose()
        await wait_all_tasks_blocked()
        return took


async def test_each_wrong_password_makes_its_address_wait_longer(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock, log: LogRecorder
) -> None:
    async with memory_server(asking()) as network:
        door = Network(network, monkeypatch)
        took = [await door.seconds_of_a_try(f"203.0.113.7:{port}") for port in range(7)]
        assert took == pytest.approx([0, 0.5, 1, 2, 4, 8, 8])
        # Other addresses do not wait; a right password from the same address does.
        assert await door.seconds_of_a_try("203.0.113.8:1", SECRET) == 0
        assert await door.seconds_of_a_try("203.0.113.7:1", SECRET) == pytest.approx(8)
        assert await door.seconds_of_a_try("203.0.113.7:1") == 0  # forgotten
        assert await door.seconds_of_a_try("203.0.113.7:1") == 0.5
        await trio.sleep(ServerTimeouts().forget_attempts + 10)
        assert await door.seconds_of_a_try("203.0.113.7:1") == 0


async def test_an_ipv6_64_counts_as_one_address_for_passwords(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    async with memory_server(asking()) as network:
        door = Network(network, monkeypatch)
        for address, seconds in (
            ("[2001:db8:0:7::1]:1", 0),
            ("[2001:db8:0:7::2]:1", 0.5),
            ("[2001:db8:0:7:1:2:3:4]:1", 1),
            ("[2001:db8:0:7:ffff:ffff:ffff:ffff]:1", 2),
        ):
            assert await door.seconds_of_a_try(address) == pytest.approx(seconds)
        assert await door.seconds_of_a_try("[2001:db8:0:8::1]:1") == 0
        assert await door.seconds_of_a_try("203.0.113.7:1") == 0
        assert await door.seconds_of_a_try("[::ffff:203.0.113.7]:1") == 0.5  # the same address


async def test_many_attempts_from_one_address_take_turns_and_are_rejected(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock, log: LogRecorder
) -> None:
    """Otherwise a hundred connections could try a hundred passwords in the time of one."""
    async with memory_server(asking()) as network:
        door = Network(network, monkeypatch)
        for _ in range(4):
            await door.seconds_of_a_try("203.0.113.7:1")
        clients = [await door.knock("203.0.113.7:1") for _ in range(10)]
        for client in clients:
            await client.send(f"/auth {SECRET}x")
        await wait_all_tasks_blocked()
        answered, refused = 0, 0
        for client in clients[::-1]:
            line = await client.line()
            answered += line == WRONG
            refused += line == (
                "[Server] goodbye: too many wrong passwords from your address; try again later"
            )
        assert (answered, refused) == (2, 8)  # after 4 and 8 seconds
        elsewhere = await door.knock("203.0.113.8:1")
        await elsewhere.send(f"/auth {SECRET}")
        assert await elsewhere.line() == ACCEPTED


class Crowd:
    """Clients of a server in memory, each with a different address."""

    def __init__(self, network: MemoryServer, monkeypatch: pytest.MonkeyPatch) -> None:
        self._network = network
        self._addresses: dict[int, str] = {}
        self._numbers = count()
        monkeypatch.setattr(transport, "peer_address", lambda it: self._addresses[id(it)])

    @asynccontextmanager
    async def client(self, address: str = "") -> AsyncIterator[ScriptedClient]:
        ours, theirs = trio.testing.memory_stream_pair()
        number = next(self._numbers)
        fresh = f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}:1"
        self._addresses[id(ours)] = address or fresh
        self._network.accept(ours)
        async with theirs:
            yield ScriptedClient(theirs)

    async def try_(self, password: str, address: str = "") -> str:
        """Try *password*; return the result."""
        async with self.client(address) as client:
            assert await client.line() == ASKED
            await client.send(f"/auth {password}")
            return await client.line()


@pytest.mark.parametrize("attackers", [50, 250])
async def test_guesses_from_many_addresses_are_limited_and_lock_out_no_honest_client(
    attackers: int, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    """*attackers* try without pausing, each time from another address."""
    async with memory_server(asking()) as network, trio.open_nursery() as nursery:
        crowd = Crowd(network, monkeypatch)
        assert await crowd.try_(SECRET, "203.0.113.7:1") == ACCEPTED
        wrong = 0

        async def attack() -> None:
            nonlocal wrong
            while True:
                wrong += await crowd.try_("mellon") == WRONG

        for _ in range(attackers):
            nursery.start_soon(attack)
        await trio.sleep(20)
        before = wrong
        for address, longest in (
            ("203.0.113.7:2", 0.1),  # known
            ("203.0.113.8:1", attackers / 30 + 0.5),  # new
            ("[2001:db8::1]:1", attackers / 30 + 0.5),
        ):
            started = trio.current_time()
            assert await crowd.try_(SECRET, address) == ACCEPTED
            assert trio.current_time() - started <= longest
        await trio.sleep(20)
        assert wrong - before <= 30 * (trio.current_time() - 20) + 1
        nursery.cancel_scope.cancel(reason="all came in")


async def test_passwords_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[bytes, bytes]] = []
    honest = hmac.compare_digest

    def spy(a: bytes, b: bytes) -> bool:
        compared.append((a, b))
        return honest(a, b)

    monkeypatch.setattr(hmac, "compare_digest", spy)
    async with memory_server(asking()) as network:
        client = await knock(network)
        await client.send("/auth x", f"/auth {SECRET}")
        assert await client.lines(2) == [WRONG, ACCEPTED]
    assert len(compared) == 2
    # Digests of equal length, not the passwords.
    assert {len(each) for pair in compared for each in pair} == {32}
    assert [a == b for a, b in compared] == [False, True]


# --- Limits of connections -----------------------------------------------------------------------


async def test_pending_connections_do_not_lock_out_others(
    log: LogRecorder, autojump_clock: MockClock
) -> None:
    number = MAX_PENDING + 50
    async with memory_server(asking()) as network:
        crowd = [await knock(network) for _ in range(number)]
        for client in crowd[:50]:
            assert await client.rest() == []
        late = "[INFO] [server] [STATE] Refused a client: too many connections wait for admission"
        assert log.lines == [late] * 50
        await enter(network)
        assert log.lines[50] == late
        await crowd[-1].send(f"/auth {SECRET}")
        assert await crowd[-1].line() == ACCEPTED
        assert len(network.server.members) == 2
        await trio.sleep(20)
        assert network.server._admission.pending == {}


class Door:
    """Connections that wait for admission until their slots are needed."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.admission = Admission(ServerConfig())
        self._nursery = nursery
        self.closed: list[str] = []

    async def wait(self, *addresses: str) -> None:
        for address in addresses:
            self._nursery.start_soon(self._wait, address)
            await wait_all_tasks_blocked()

    async def _wait(self, address: str) -> None:
        try:
            with PendingSlot(self.admission, Origin.of(address)):
                await trio.sleep_forever()
        except AdmissionRefused:
            self.closed.append(address)


MANY = MAX_PENDING
FLOODS = {
    "an IPv4 address": [f"192.0.2.1:{port}" for port in range(MANY)],
    "an IPv6 /64": [f"[2001:db8:7:7::{port:x}]:1" for port in range(MANY)],
    "an IPv6 /48": [f"[2001:db8:7:{port:x}::1]:1" for port in range(MANY)],
    "loopback": [f"127.0.0.1:{port}" for port in range(MANY)],
}


@pytest.mark.parametrize("kind", FLOODS)
async def test_one_address_or_site_takes_no_place_of_another(kind: str) -> None:
    others = ["198.51.100.1:1", "198.51.100.1:2", "[2001:db8:8:8::1]:1", "127.0.0.2:1"]
    async with trio.open_nursery() as nursery:
        door = Door(nursery)
        await door.wait(*others[:2], *FLOODS[kind], *others[2:], *FLOODS[kind])
        assert set(door.closed) <= set(FLOODS[kind])
        assert len(door.closed) == MANY + len(others)
        assert door.closed[:4] == FLOODS[kind][:4]  # the oldest
        nursery.cancel_scope.cancel(reason="all was seen")


async def test_of_a_site_the_address_with_most_connections_is_closed_first() -> None:
    neighbours = [f"[2001:db8:7:{number:x}::1]:1" for number in range(10)]
    async with trio.open_nursery() as nursery:
        door = Door(nursery)
        flood = FLOODS["an IPv6 /64"]
        await door.wait(*neighbours[:7], *neighbours[8:], *flood, *flood)
        assert set(door.closed) == set(flood)
        nursery.cancel_scope.cancel(reason="all was seen")


async def test_rejected_connections_from_many_addresses_take_no_place_of_another(
    autojump_clock: MockClock,
) -> None:
    others = [f"198.51.100.{number}:1" for number in range(20)]
    streams = [trio.testing.memory_stream_pair() for _ in range(2 * MANY)]
    async with trio.open_nursery() as nursery:
        door = Door(nursery)
        await door.wait(*others)
        for ours, _ in streams:  # the goodbyes are not read
            rejected = AdmittedConnection(ours, LineDecoder(1000))
            nursery.start_soon(door.admission.reject, rejected, b"goodbye\n")
        await wait_all_tasks_blocked()
        assert len(door.admission.pending) == MANY
        await trio.sleep(ServerTimeouts().linger + 0.1)
        assert len(door.admission.pending) == len(others)
        assert door.closed == []
        nursery.cancel_scope.cancel(reason="all was seen")


async def test_a_client_of_a_server_that_fills_up_meanwhile_gets_the_reason(
    log: LogRecorder,
) -> None:
    full = "[Server] goodbye: the server is full (limit: 1)"
    async with memory_server(asking(max_clients=1)) as network:
        a, b = await knock(network), await knock(network)
        await a.send(f"/auth {SECRET}")
        assert await a.line() == ACCEPTED
        await b.send(f"/auth {SECRET}")
        assert await b.rest() == [ACCEPTED, full]
        assert await (await network.join()).rest() == [full]  # before the password prompt


TOO_MANY = "[Server] goodbye: too many clients from your address (at most 2)"


@pytest.mark.process
async def test_clients_per_address_are_limited(log: LogRecorder) -> None:
    config = ServerConfig(max_clients_per_address=2)
    async with trio.open_nursery() as nursery:
        run = partial(multichat.serve, 0, host=LOOPBACK, config=config)
        server = await nursery.start(run)

        async def arrive() -> ScriptedClient:
            stream = await trio.open_tcp_stream(LOOPBACK, server.port)
            stack.push_async_callback(trio.aclose_forcefully, stream)
            return ScriptedClient(stream)

        async def until_there(count: int) -> None:
            with trio.fail_after(WAIT_SECONDS):
                while (
                    len(server.members) != count
                    or sum(server._admission._connections.values()) != count
                ):
                    await trio.sleep(0.005)

        async with AsyncExitStack() as stack:
            first = await arrive()
            await arrive()
            await until_there(2)
            for _ in range(5):  # refused clients take no slot
                refused = await arrive()
                assert await refused.rest() == [TOO_MANY]
                await refused.stream.aclose()
            await first.stream.aclose()
            await until_there(1)
            third = await arrive()
            await until_there(2)
            await third.send("/ping")
            assert await third.line() == "[Server] pong"
            assert await (await arrive()).rest() == [TOO_MANY]
        nursery.cancel_scope.cancel(reason="all was seen")
    lines = [line for line in log.lines if "Refused" in line]
    assert len(lines) == 6
    for line in lines:
        assert line.startswith(f"[INFO] [server] [STATE] Refused {LOOPBACK}:")
        assert line.endswith(": too many clients from your address (at most 2)")


async def test_an_ipv6_64_counts_as_one_address_for_the_client_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = ServerConfig(max_clients_per_address=2)
    async with memory_server(config) as network:

        async def arrive(address: str) -> list[str]:
            monkeypatch.setattr(transport, "peer_address", lambda _: address)
            client = await network.join()
            await client.send("/ping")
            return [await client.line()]

        pong = ["[Server] pong"]
        assert await arrive("[2001:db8::1]:1") == pong
        assert await arrive("[2001:db8::2]:1") == pong
        assert await arrive("[2001:db8::dead:beef]:1") == [TOO_MANY]
        assert await arrive("[2001:db8:0:1::1]:1") == pong
        for _ in range(3):
            assert await arrive("") == pong  # a Unix socket has no address
        admission = network.server._admission
        await wait_all_tasks_blocked()
        assert sorted(admission._connections.values()) == [1, 2]
    assert not admission._connections  # closed connections leave nothing


@pytest.mark.parametrize(
    ("limit", "address", "admitted"),
    [
        (None, "203.0.113.7:1", MAX_CLIENTS_PER_ADDRESS),
        (None, "[2001:db8::1]:1", MAX_CLIENTS_PER_ADDRESS),
        (None, "127.0.0.1:1", 200),
        (None, "[::1]:1", 200),
        (None, "", 200),
        (0, "203.0.113.7:1", 200),
        (150, "203.0.113.7:1", 150),
        (2, "127.0.0.1:1", 2),
        (2, "", 200),
    ],
)
def test_the_default_limit_of_clients_per_address(
    limit: int | None, address: str, admitted: int
) -> None:
    """Of 200 clients, `MAX_CLIENTS_PER_ADDRESS` are admitted, but all from this machine."""
    admission = Admission(ServerConfig(max_clients_per_address=limit))
    origin = Origin.of(address, None if address else 7)
    refusals = [admission.add_connection(origin) for _ in range(200)]
    assert [not refusal for refusal in refusals] == [True] * admitted + [False] * (200 - admitted)
    for _ in range(200):
        admission.remove_connection(origin)
    assert not admission._connections


def test_connections_are_bounded_by_memory() -> None:
    """Eight per MiB, but at least 128, from any addresses."""
    for mebibytes, most in ((1, 128), (64, 512)):
        admission = Admission(ServerConfig(memory_bytes=mebibytes * 2**20))
        refusals = [admission.add_connection(None) for _ in range(most + 1)]
        full = f"the server is full (memory for {most} connections)"
        assert refusals == [""] * most + [full]
        for _ in range(2):
            admission.remove_connection(None)
        assert not admission.add_connection(None)


@pytest.mark.process
@pytest.mark.parametrize(("clients", "is_told"), [(512, False), (513, True)])
async def test_a_server_whose_clients_need_more_memory_says_how_much(
    clients: int, is_told: bool, log: LogRecorder
) -> None:
    server = Server(ServerConfig(memory_bytes=64 << 20, max_clients=clients))
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(server.run, 0, host="127.0.0.1"))
        server.shutdown()
    told = [line for line in log.lines if "Memory for" in line]
    text = "[INFO] [server] [start] Memory for 512 connections: 513 need --memory 65"
    assert told == [text] * is_told


async def test_an_error_while_a_waiting_connection_is_cancelled_frees_its_place() -> None:
    admission = Admission(ServerConfig())

    async def fail_when_cancelled() -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise ValueError

    with pytest.RaisesGroup(ValueError), PendingSlot(admission, Origin.of("192.0.2.1:5")):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fail_when_cancelled)
            nursery.start_soon(trio.sleep_forever)
            await wait_all_tasks_blocked()
            admission.close()
    assert admission.pending == {}


async def test_pending_connections_count_for_the_limit_per_address(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    async with memory_server(asking(max_clients_per_address=1)) as network:
        door = Network(network, monkeypatch)
        waiting = await door.knock("203.0.113.7:1")
        second = await network.join()
        assert await second.rest() == [
            "[Server] goodbye: too many clients from your address (at most 1)"
        ]
        await waiting.stream.aclose()
        await wait_all_tasks_blocked()
        third = await door.knock("203.0.113.7:1")
        await third.send(f"/auth {SECRET}")
        assert await third.line() == ACCEPTED


# --- Warnings ------------------------------------------------------------------------------------

WARNING = (
    "[INFO] [server] [start] Reachable from other machines without TLS or a password: "
    "anybody can read and join"
)


class _Listener:
    def __init__(self, name: object) -> None:
        self.socket = self
        self._name = name

    def getsockname(self) -> object:
        return self._name


@pytest.mark.parametrize(
    ("name", "beyond"),
    [
        (("127.0.0.1", 9000), False),
        (("127.8.9.10", 9000), False),
        (("0.0.0.0", 9000), True),
        (("192.0.2.7", 9000), True),
        (("::1", 9000, 0, 0), False),
        (("::", 9000, 0, 0), True),
        (("::ffff:192.0.2.7", 9000, 0, 0), True),
        (("fe80::1%eth0", 9000, 0, 2), True),
        ("/run/chat", False),
    ],
)
def test_addresses_that_other_machines_can_reach(name: object, beyond: bool) -> None:
    assert is_reachable_remotely(_Listener(name)) is beyond  # type: ignore[arg-type]


@pytest.mark.process
@pytest.mark.parametrize("reachable", [True, False])
@pytest.mark.parametrize("password", [None, SECRET])
@pytest.mark.parametrize("tls", [False, True])
async def test_an_open_server_logs_a_warning(
    reachable: bool,
    password: str | None,
    tls: bool,
    log: LogRecorder,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(start_log, "is_reachable_remotely", lambda _: reachable)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH) if tls else None
    async with trio.open_nursery() as nursery:
        config = ServerConfig(password=password)
        run = partial(multichat.serve, 0, host=LOOPBACK, tls=context, config=config)
        running = await nursery.start(run)
        running.shutdown()
    assert (WARNING in log.lines) == (reachable and password is None and not tls)
    if WARNING in log.lines:  # with the other start lines, before the first connection
        assert log.lines[2] == WARNING
