"""WebSocket members: the same session as over TCP, in frames."""

import json
import time
from ipaddress import ip_network
from typing import Any

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from multichat.net.turns import Meter
from multichat.protocol.websocket import WebSocketDecoder
from multichat.server.authentication import AdmissionRequest
from multichat.server.bans import Ban
from multichat.server.config import ReplayLimits, ServerConfig
from multichat.server.server import Server
from multichat.testing import MemoryServer, ScriptedClient, memory_server
from tests.support.log import LogRecorder
from tests.support.web import read_all
from tests.support.websockets import (
    WebSocketClient,
    frame,
    join_websocket,
    serve_websocket,
)

pytestmark = pytest.mark.unit

CONTINUATION, TEXT, PING = 0, 1, 9


async def ask(client: WebSocketClient | ScriptedClient, line: str) -> dict[str, Any]:
    """Send *line* and return the answer, in JSON."""
    await client.send(line)
    return json.loads(await client.line())  # type: ignore[no-any-return]


async def hear(client: WebSocketClient | ScriptedClient, type_: str) -> dict[str, Any]:
    """Return the next event of that type."""
    while (event := json.loads(await client.line()))["type"] != type_:
        pass
    return event  # type: ignore[no-any-return]


async def program(
    network: MemoryServer, hello: str = "{}", *, lines: bool = False
) -> WebSocketClient:
    client = await join_websocket(network, lines=lines)
    assert (await ask(client, f"/json {hello}"))["type"] == "welcome"
    return client


# --- Messages -------------------------------------------------------------------------------------


async def test_members_over_tcp_and_websocket_get_the_same_messages_once(
    autojump_clock: MockClock,
) -> None:
    async with memory_server() as network:
        tcp_text, tcp_json = await network.join(), await network.join()
        web_text = await join_websocket(network)
        web_json = await program(network)
        web_lines = await program(network, lines=True)
        assert (await ask(tcp_json, "/json"))["type"] == "welcome"
        await trio.sleep(2)
        for client in (tcp_json, web_json, web_lines):
            await client.send('{"type":"ping","token":"now"}')
            await hear(client, "pong")
        await web_text.send("one", "two", "three")
        texts = ["one", "two", "three"]
        assert await tcp_text.lines(3) == [f"[Client 3] {text}" for text in texts]
        for each in (tcp_json, web_json, web_lines):
            assert [json.loads(line)["text"] for line in await each.lines(3)] == texts
        for each, text in ((tcp_json, "from TCP"), (web_json, "from the web")):
            await each.send(json.dumps({"type": "say", "text": text, "nonce": 1}))
            assert (await hear(each, "accepted"))["nonce"] == 1
        assert await web_text.lines(2) == ["[Client 2] from TCP", "[Client 4] from the web"]
        assert [json.loads(line)["text"] for line in await web_lines.lines(2)] == [
            "from TCP",
            "from the web",
        ]
        assert json.loads(await tcp_json.line())["text"] == "from the web"


async def test_with_the_subprotocol_a_batch_is_one_message(autojump_clock: MockClock) -> None:
    async with memory_server() as network:
        one, many = await join_websocket(network), await join_websocket(network, lines=True)
        sender = await network.join()
        await sender.send(*map(str, range(100)))
        for client, messages in ((one, 100), (many, 1)):
            assert await client.lines(100) == [f"[Client 3] {i}" for i in range(100)]
            assert client.messages == messages


async def test_a_message_may_have_several_lines(autojump_clock: MockClock) -> None:
    async with memory_server() as network:
        web, other = await join_websocket(network), await network.join()
        await web.send("one\ntwo\r\n\nthree")
        assert await other.lines(3) == ["[Client 1] one", "[Client 1] two", "[Client 1] three"]


async def test_bytes_after_the_upgrade_are_the_first_message(autojump_clock: MockClock) -> None:
    early = frame(TEXT, b"/json {}") + frame(PING, b"?") + frame(TEXT, b'{"type":"who"}')[:-3]
    async with memory_server() as network:
        web = await join_websocket(network, early=early)
        assert json.loads(await web.line())["type"] == "welcome"
        assert await web.pong() == b"?"


async def test_a_first_message_that_looks_like_http_or_telnet_is_a_message(
    autojump_clock: MockClock,
) -> None:
    async with memory_server() as network:
        other, web = await network.join(), await join_websocket(network)
        await web.send("GET / HTTP/1.1", "\x16\x03 ÿþ")
        assert await other.lines(2) == ["[Client 2] GET / HTTP/1.1", "[Client 2] ␖␃ ÿþ"]


async def test_a_line_that_is_too_long_is_an_error_as_on_tcp(autojump_clock: MockClock) -> None:
    async with memory_server(ServerConfig(max_line_bytes=100)) as network:
        web = await program(network)
        assert (await ask(web, "x" * 101))["code"] == "line-too-long"
        assert (await ask(web, '{"type":"ping"}'))["type"] == "pong"


# --- Admission ------------------------------------------------------------------------------------


async def test_the_password_comes_first(autojump_clock: MockClock) -> None:
    async with memory_server(ServerConfig(password="a secret")) as network:
        web = await join_websocket(network)
        assert "password" in await web.line()
        for half, fin in ((b"/auth a ", False), (b"", False), (b"secret", True)):
            opcode = TEXT if half.startswith(b"/auth") else CONTINUATION
            await web.stream.send_all(frame(PING, b"!") + frame(opcode, half, fin=fin))
            assert await web.pong() == b"!"
        assert await web.line() == "[Server] password accepted"
        await web.send('/json {"name":"zoe"}')
        assert json.loads(await web.line())["name"] == "zoe"


async def test_all_of_it_may_come_at_once(autojump_clock: MockClock) -> None:
    async with memory_server(ServerConfig(password="a secret")) as network:
        early = frame(PING, b"1") + frame(TEXT, b"/auth a secret") + frame(TEXT, b"/json")
        web = await join_websocket(network, early=early + frame(TEXT, b'{"type":"quit"}'))
        lines = await web.rest()
        assert [json.loads(line)["type"] for line in lines[2:]] == ["welcome", "goodbye"]
        assert web.pongs == [b"1"]
        assert web.close is not None
        assert web.close.code == 1000


async def test_three_wrong_passwords_close_the_connection(autojump_clock: MockClock) -> None:
    async with memory_server(ServerConfig(password="a secret")) as network:
        web = await join_websocket(network)
        await web.send("/auth 1", "/auth 2", "/auth 3")
        assert (await web.rest())[-1] == "[Server] goodbye: wrong password"
        assert web.close is not None
        assert web.close.code == 1008
        assert network.server.statistics().refused == 1


async def test_a_protocol_error_before_the_password_closes_the_connection(
    autojump_clock: MockClock,
) -> None:
    async with memory_server(ServerConfig(password="a secret")) as network:
        web = await join_websocket(network)
        await web.stream.send_all(b"\x81\x02hi")
        await web.rest()
        assert web.close is not None
        assert web.close.code == 1002


async def test_a_client_that_closes_before_the_password_is_answered(
    autojump_clock: MockClock,
) -> None:
    async with memory_server(ServerConfig(password="a secret")) as network:
        web = await join_websocket(network)
        web.peer.send_close(1001)
        await web.flush()
        await web.rest()
        assert web.close is not None
        assert web.close.code == 1001


@pytest.mark.parametrize("is_web", [True, False])
async def test_nothing_follows_half_of_an_answer_before_the_password(
    autojump_clock: MockClock, is_web: bool
) -> None:
    async with memory_server(ServerConfig(password="a secret")) as network:
        ours, theirs = trio.testing.lockstep_stream_pair()
        serve = serve_websocket if is_web else Server.handle
        network._nursery.start_soon(serve, network.server, theirs)
        assert b"a password is required" in await ours.receive_some()
        will_echo = b"\xff\xfb\x01"  # telnet's, which is answered, too
        await ours.send_all(frame(PING, b"are you there?") if is_web else will_echo)
        assert len(await ours.receive_some(2)) == 2
        await trio.sleep(ServerConfig().auth_seconds + 1)
        assert b"goodbye" not in await read_all(ours)


async def test_a_full_server_asks_to_come_again(autojump_clock: MockClock) -> None:
    async with memory_server(ServerConfig(max_clients=1)) as network:
        await network.join()
        web = await join_websocket(network)
        assert (await web.rest())[0].startswith("[Server] goodbye: the server is full")
        assert web.close is not None
        assert web.close.code == 1013


@pytest.mark.parametrize("encrypted", [True, False])
async def test_the_program_decides_who_may_join_as_over_tcp(
    autojump_clock: MockClock, encrypted: bool
) -> None:
    asked: list[AdmissionRequest] = []

    async def authenticate(request: AdmissionRequest) -> str:
        asked.append(request)
        return "zoe"

    async with memory_server(authenticate=authenticate) as network:
        web = await join_websocket(network, address="192.0.2.7:51234", encrypted=encrypted)
        assert (await ask(web, "/json {}"))["name"] == "zoe"
    [request] = asked
    assert (request.address, request.encrypted) == ("192.0.2.7:51234", encrypted)


@pytest.mark.parametrize("secure", [True, False])
async def test_a_passphrase_is_refused_where_others_can_read_it(
    autojump_clock: MockClock, secure: bool
) -> None:
    async with memory_server() as network:
        web = await join_websocket(network, secure=secure)
        assert (await ask(web, "/json {}"))["type"] == "welcome"
        answer = await ask(web, '{"type":"register","passphrase":"correct horse"}')
        assert answer["code"] == ("invalid-request" if secure else "insecure"), "it has no name"


async def test_the_address_counts_as_for_any_client(autojump_clock: MockClock) -> None:
    async with memory_server() as network:
        web = await join_websocket(network, address="192.0.2.7:51234")
        assert (await ask(web, "/json {}"))["type"] == "welcome"
        assert network.server.members[0].address == "192.0.2.7:51234"
        assert network.server.ban(Ban(target=ip_network("192.0.2.0/24"), reason="loud")) == [1]
        assert json.loads((await web.rest())[-1])["code"] == "banned"
        again = await join_websocket(network, address="192.0.2.8:51234")
        assert "banned" in (await again.rest())[0]


# --- Leaving --------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [1000, 1001, 4000, None])
async def test_a_close_is_answered_and_the_client_has_left(
    autojump_clock: MockClock, code: int | None
) -> None:
    async with memory_server() as network:
        web, other = await join_websocket(network), await network.join()
        await web.send("last words")
        web.peer.send_close(*(() if code is None else (code, "bye")))
        await web.flush()
        assert await web.rest() == []
        assert web.close is not None
        assert web.close.code == (code or 1005)
        assert await other.line() == "[Client 1] last words"
        assert len(network.server.members) == 1


async def test_a_protocol_error_closes_with_its_code_and_is_logged(
    autojump_clock: MockClock, log: LogRecorder
) -> None:
    async with memory_server() as network:
        web = await join_websocket(network)
        await web.stream.send_all(frame(TEXT, b"hello") + b"\x81\x02hi")
        assert await web.rest() == []
        assert web.close is not None
        assert (web.close.code, web.close.reason) == (1002, "a frame is not masked")
    assert any("disconnected (WebSocket: a frame is not masked)" in line for line in log.lines)


@pytest.mark.parametrize("hello", [True, False])
async def test_a_shutdown_says_goodbye_and_going_away(
    autojump_clock: MockClock, hello: bool
) -> None:
    async with memory_server() as network:
        web = await program(network) if hello else await join_websocket(network)
        await trio.testing.wait_all_tasks_blocked()
        await network.server.close()
        [line] = await web.rest()
        assert "the server is shutting down" in line
        assert web.close is not None
        assert (web.close.code, web.close.reason) == (1001, "the server is shutting down")


async def test_a_kick_is_final(autojump_clock: MockClock) -> None:
    async with memory_server() as network:
        web = await program(network)
        network.server.kick(1, "loud")
        assert json.loads((await web.rest())[-1])["code"] == "kicked"
        assert web.close is not None
        assert (web.close.code, web.close.reason) == (1008, "loud")


async def test_pings_do_not_defeat_the_idle_limit(autojump_clock: MockClock) -> None:
    async with memory_server(ServerConfig(idle_seconds=60)) as network:
        web = await program(network)
        for _ in range(3):
            await trio.sleep(19)
            web.peer.send_ping(b"awake")
            await web.flush()
            assert await web.pong() == b"awake"
        assert json.loads((await web.rest())[-1])["code"] == "idle"
        assert trio.current_time() < 70


async def test_a_client_that_vanishes_has_left(autojump_clock: MockClock) -> None:
    async with memory_server() as network:
        for end in (frame(TEXT, b"half", fin=False), b"\x81", frame(PING, b"ping")[:-2]):
            web = await join_websocket(network)
            await web.stream.send_all(end)
            await web.stream.send_eof()
            assert await web.rest() == []
        assert network.server.members == []


# --- Sessions -------------------------------------------------------------------------------------


async def test_a_session_resumes_over_websocket_from_either_transport(
    autojump_clock: MockClock,
) -> None:
    async with memory_server() as network:
        tcp, other = await network.join(), await network.join()
        welcome = await ask(tcp, '/json {"name":"zoe"}')
        await other.send("before")
        last = (await hear(tcp, "said"))["id"]
        await tcp.finish()
        await trio.testing.wait_all_tasks_blocked()
        await other.send("meanwhile", "and more")
        await trio.testing.wait_all_tasks_blocked()
        hello = json.dumps({"session": welcome["session"], "since": last})
        web = await join_websocket(network)
        assert (await ask(web, f"/json {hello}"))["resumed"] is True
        assert [(await hear(web, "said"))["text"] for _ in "12"] == ["meanwhile", "and more"]
        # Taken over by another WebSocket, while the first one is still there.
        second = await join_websocket(network, lines=True)
        welcome = await ask(second, f"/json {hello}")
        assert (welcome["client"], welcome["name"], welcome["resumed"]) == (1, "zoe", True)
        assert (await hear(web, "goodbye"))["code"] == "replaced"
        await web.rest()
        assert web.close is not None
        assert web.close.code == 1000
        assert [(await hear(second, "said"))["text"] for _ in "12"] == ["meanwhile", "and more"]


# --- Slow clients ---------------------------------------------------------------------------------


async def test_a_slow_client_lags_and_gets_everything(autojump_clock: MockClock) -> None:
    config = ServerConfig(
        slow_timeout_seconds=0.5, send_queue_batches=2, replay=ReplayLimits(queue_bytes=500)
    )
    async with memory_server(config) as network:
        sender = await network.join()
        for lines in (False, True):
            slow = await join_websocket(network, lines=lines, lockstep=True)
            sending = trio.Event()
            async with trio.open_nursery() as nursery:

                async def send(done: trio.Event) -> None:
                    for number in range(200):
                        await sender.send(f"message {number}", "/ping")
                        while await sender.line() != "[Server] pong":
                            pass
                    done.set()

                nursery.start_soon(send, sending)
                await sending.wait()
                [client] = [c for c in network.server._registry.clients if c.number != 1]
                assert client.lagging()
                received = await slow.lines(200)
            assert received == [f"[Client 1] message {number}" for number in range(200)]
            await trio.sleep(1)
            assert not client.lagging()
            await slow.stream.aclose()
            await trio.sleep(1)


async def test_a_flood_of_pings_that_reads_nothing_is_not_read_further(
    autojump_clock: MockClock,
) -> None:
    async with memory_server() as network:
        web = await join_websocket(network, lockstep=True)
        await trio.testing.wait_all_tasks_blocked()
        [client] = network.server._registry.clients
        flood = frame(PING, b"x" * 125) * 100
        sent = 0
        with trio.move_on_after(60):
            while True:
                await web.stream.send_all(flood)
                sent += 1
        # One answer for each read, at most as many as the queue has places for.
        assert sent <= 70
        assert client.send_queue.waiting_bytes <= 70 * 127
        assert [await web.pong() for _ in range(60)] == [b"x" * 125] * 60


@pytest.mark.parametrize("flood", [frame(PING, b"x"), frame(CONTINUATION, b"x", fin=False)])
async def test_the_time_for_pings_and_fragments_is_charged(flood: bytes) -> None:
    flood = flood * 1000 + frame(PING, b"done")
    decoder = WebSocketDecoder(100_000, 10_000_000)
    decoder.feed(frame(TEXT, fin=False))
    started = time.thread_time()
    for _ in range(20):
        decoder.feed(flood)
    seconds = time.thread_time() - started
    assert decoder.ending is None
    async with Server().open() as server, trio.open_nursery() as nursery:
        meter = Meter(server._turns, "192.0.2.7")
        early = frame(TEXT, fin=False)
        web = await join_websocket(MemoryServer(server, nursery), early=early, meter=meter)
        for _ in range(20):
            await web.stream.send_all(flood)
            while await web.pong() != b"done":
                pass
        await trio.testing.wait_all_tasks_blocked()
        # Half: the machine may have been slower at one of the two.
        assert meter.rank >= seconds / 2
        nursery.cancel_scope.cancel(reason="the test is over")


async def test_the_memory_held_for_a_client_is_released(autojump_clock: MockClock) -> None:
    async with memory_server() as network:
        budget = network.server._registry.budget
        web = await join_websocket(network)
        await web.stream.send_all(frame(TEXT, b"x" * 10_000, fin=False))
        await trio.testing.wait_all_tasks_blocked()
        assert budget.held_bytes >= 10_000
        await trio.aclose_forcefully(web.stream)
        await trio.sleep(5)
        assert budget.held_bytes == 0
