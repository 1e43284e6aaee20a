"""One client's session, over memory streams."""

import errno

import msgspec
import pytest
import trio
import trio.testing
from trio.testing import wait_all_tasks_blocked

from multichat import ServerConfig
from multichat.protocol.codec import encoded_help
from multichat.protocol.messages import SaidBlock
from multichat.protocol.text_codec import TEXT
from multichat.server.broadcast import MAX_BATCH_BYTES, encode_blocks
from multichat.testing import ScriptedClient, memory_server
from tests.support.log import LogRecorder
from tests.support.processes import WAIT_SECONDS
from tests.support.sockets import tcp_pair

pytestmark = pytest.mark.unit


async def test_a_message_reaches_everybody_else(log: LogRecorder) -> None:
    async with memory_server() as network:
        a, b, c = [await network.join() for _ in range(3)]
        await a.send("Hello everyone!")
        assert await b.line() == await c.line() == "[Client 1] Hello everyone!"
        await c.send("Hello back!")
        assert await a.line() == await b.line() == "[Client 3] Hello back!"  # and no echo
        await a.finish()
        assert await a.rest() == []
    assert log.lines[:8] == [
        "[INFO] [server] [STATE] Client 1 connected",
        "[INFO] [server] [STATE] Client 2 connected",
        "[INFO] [server] [STATE] Client 3 connected",
        "[INFO] [server] [RX] [Client 1] Hello everyone!",
        "[INFO] [server] [BROADCAST] Broadcasting to 3 clients",
        "[INFO] [server] [RX] [Client 3] Hello back!",
        "[INFO] [server] [BROADCAST] Broadcasting to 3 clients",
        "[INFO] [server] [STATE] Client 1 disconnected",
    ]


async def test_the_server_sends_nothing_unasked() -> None:
    async with memory_server() as network:
        a = await network.join()
        await network.join()
        with pytest.raises(trio.WouldBlock):
            await _receive_nowait(a)


async def _receive_nowait(client: ScriptedClient) -> None:
    with trio.move_on_after(0) as scope:
        await client.stream.receive_some(1)
    if scope.cancelled_caught:
        raise trio.WouldBlock


async def test_each_message_of_a_batch_is_logged(log: LogRecorder) -> None:
    async with memory_server() as network:
        a = await network.join()
        await a.send("one", "two")
        await wait_all_tasks_blocked()
    assert log.lines[1:5] == [
        "[INFO] [server] [RX] [Client 1] one",
        "[INFO] [server] [BROADCAST] Broadcasting to 1 clients",
        "[INFO] [server] [RX] [Client 1] two",
        "[INFO] [server] [BROADCAST] Broadcasting to 1 clients",
    ]


async def test_all_members_get_the_same_order(
    autojump_clock: trio.testing.MockClock,
) -> None:
    count = 50
    async with memory_server() as network, trio.open_nursery() as nursery:
        senders = [await network.join() for _ in range(4)]
        listeners = [await network.join() for _ in range(3)]
        seen: list[list[str]] = [[] for _ in listeners]

        async def talk(client: ScriptedClient) -> None:
            for i in range(count):
                await client.send(str(i))
                await trio.lowlevel.checkpoint()

        async def listen(i: int) -> None:
            seen[i] = await listeners[i].lines(count * len(senders))

        for sender in senders:
            nursery.start_soon(talk, sender)
        for i in range(len(listeners)):
            nursery.start_soon(listen, i)
        await wait_all_tasks_blocked()
    assert seen[0] == seen[1] == seen[2]
    for number in range(1, 5):
        own = [line for line in seen[0] if line.startswith(f"[Client {number}] ")]
        assert own == [f"[Client {number}] {i}" for i in range(count)]


async def test_commands_are_answered_in_turn_to_their_client_alone() -> None:
    async with memory_server() as network:
        a, b = [await network.join() for _ in range(2)]
        await a.send("/ping", "one", "/knick bob", "//usr is full", "/ping 7")
        assert await a.lines(3) == [
            "[Server] pong",
            (
                "[Server] unknown command /knick; /help lists them; "
                "start with // to send a line that starts with /"
            ),
            "[Server] pong 7",
        ]
        assert await b.lines(2) == ["[Client 1] one", "[Client 1] /usr is full"]
        await a.send("/help")
        assert "[Server] /quit          leave the chat" in await a.lines(
            encoded_help(TEXT).count(b"\n")
        )


async def test_a_publish_that_grows_is_cut_into_batches_between_messages() -> None:
    """30,000 one-letter lines in one read, which with their tags exceed a batch."""
    count = 30_000
    async with memory_server() as network:
        a, b = [await network.join() for _ in range(2)]
        await a.send(*["x"] * count)
        assert await b.lines(count) == ["[Client 1] x"] * count
    said = SaidBlock("epoch", 0, "now", "lobby", 1, "Client 1", "\n".join(["x"] * count))
    sizes = [len(batch.encoded(TEXT)) for batch in encode_blocks(said, count, [TEXT])]
    assert len(sizes) > 1
    assert max(sizes) <= MAX_BATCH_BYTES
    assert sum(sizes) == count * len("[Client 1] x\n")
    # A single message is never split.
    [alone] = encode_blocks(
        msgspec.structs.replace(said, text="x" * 2 * MAX_BATCH_BYTES), 1, [TEXT]
    )
    assert alone.messages == 1


async def test_quit_is_answered_with_a_goodbye(log: LogRecorder) -> None:
    async with memory_server() as network:
        a, b = [await network.join() for _ in range(2)]
        await a.send("bye", "/quit", "never said")
        assert await a.rest() == ["[Server] goodbye: you asked to leave"]
        assert await b.line() == "[Client 1] bye"
        await wait_all_tasks_blocked()
        assert [member.client for member in network.server.members] == [2]
    assert "[INFO] [server] [STATE] Client 1 disconnected" in log.lines


async def test_input_after_the_last_line_end_is_a_message() -> None:
    async with memory_server() as network:
        a, b = [await network.join() for _ in range(2)]
        await a.stream.send_all(b"whole\nhalf")
        await a.finish()
        assert await b.lines(2) == ["[Client 1] whole", "[Client 1] half"]


async def test_a_client_that_ends_its_input_gets_its_queued_data() -> None:
    async with memory_server() as network:
        a, b = [await network.join() for _ in range(2)]
        await b.send("for you")
        await wait_all_tasks_blocked()
        await a.send("done")
        await a.finish()
        assert await a.rest() == ["[Client 2] for you"]  # no goodbye, because it left by itself
        assert await b.line() == "[Client 1] done"


async def test_a_line_that_is_too_long_costs_only_itself(log: LogRecorder) -> None:
    async with memory_server(ServerConfig(max_line_bytes=10)) as network:
        a, b = [await network.join() for _ in range(2)]
        await a.send("before", "x" * 11, "/ping", "after")
        assert await a.lines(2) == [
            "[Server] the line was longer than 10 bytes and was dropped",
            "[Server] pong",
        ]
        assert await b.lines(2) == ["[Client 1] before", "[Client 1] after"]


async def test_no_client_can_forge_a_tag_or_a_log_line(log: LogRecorder) -> None:
    async with memory_server() as network:
        a, b = [await network.join() for _ in range(2)]
        await a.stream.send_all(b"hi\r[Server] forged\x1b[2J\xe2\x80\xa8[Client 2] me\n")
        line = "[Client 1] hi␍[Server] forged␛[2J [Client 2] me"
        assert await b.line() == line
    assert f"[INFO] [server] [RX] {line}" in log.lines


HTTP = b"GET /x HTTP/1.1\r\nHost: chat\r\n\r\n"
TLS = b"\x16\x03\x01\x00\x05hello\n"
PROXY = b"\r\n\r\n\x00\r\nQUIT\n!\x11\x00\x0c\x7f\x00\x00\x01\x7f\x00\x00\x02\x01\x02\x23\x28"
OLD_PROXY = b"PROXY TCP4 127.0.0.1 127.0.0.2 258 9000\r\n"
HELLO = b'/json {"session":"secret"}\n'
NO_PROXY = b"[Server] goodbye: this server does not expect the PROXY header of its load balancer\n"
PROXIED = "its load balancer sends a PROXY header: give the balancer's address to --proxy"
SPEAKS_NO_TLS = b"[Server] goodbye: this server does not use TLS: omit --tls\n"


@pytest.mark.parametrize(
    ("chunks", "answer", "reason"),
    [
        ([HTTP], b"HTTP/1.0 400 ", "the client speaks HTTP; this is a chat server"),
        ([TLS], SPEAKS_NO_TLS, "the client uses TLS, which this port does not support"),
        ([PROXY + HELLO], NO_PROXY, PROXIED),
        ([OLD_PROXY + HELLO], NO_PROXY, PROXIED),
        ([OLD_PROXY[:7], OLD_PROXY[7:], HELLO], NO_PROXY, PROXIED),
        (
            [TLS[:1], TLS[1:]],
            SPEAKS_NO_TLS,
            "the client uses TLS, which this port does not support",
        ),
    ],
)
async def test_other_protocols_are_answered_and_their_input_is_not_published(
    chunks: list[bytes], answer: bytes, reason: str, log: LogRecorder
) -> None:
    async with memory_server() as network:
        a, b = [await network.join() for _ in range(2)]
        for chunk in chunks:
            await a.stream.send_all(chunk)
            await wait_all_tasks_blocked()
        received = bytearray()
        async for data in a.stream:
            received += data
        assert received.startswith(answer)
        await b.send("/ping")
        assert await b.line() == "[Server] pong"
        assert f"[INFO] [server] [STATE] Client 1 disconnected ({reason})" in log.lines


async def test_http_after_the_first_line_is_chat() -> None:
    async with memory_server() as network:
        a, b = [await network.join() for _ in range(2)]
        await a.send("look:", "GET / HTTP/1.1")
        assert await b.lines(2) == ["[Client 1] look:", "[Client 1] GET / HTTP/1.1"]


async def test_a_lone_control_character_is_not_tls() -> None:
    async with memory_server() as network:
        a, b = [await network.join() for _ in range(2)]
        await a.stream.send_all(b"\x16")
        await wait_all_tasks_blocked()
        await a.send(" is SYN")
        assert await b.line() == "[Client 1] ␖ is SYN"


class FailingReceiveStream(trio.abc.ReceiveStream):
    """The receiving side of a connection that fails."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        await trio.lowlevel.checkpoint()
        raise self._error

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


def failing_stream(error: Exception) -> trio.abc.Stream:
    send, _ = trio.testing.memory_stream_one_way_pair()
    return trio.StapledStream(send, FailingReceiveStream(error))


async def test_a_connection_that_breaks_is_logged_with_its_reason(log: LogRecorder) -> None:
    async with memory_server() as network:
        broken = trio.BrokenResourceError()
        broken.__cause__ = ConnectionResetError(errno.ECONNRESET, "reset")
        network.accept(failing_stream(broken))
        await wait_all_tasks_blocked()
        assert network.server.members == []
    assert log.lines[-1] == "[INFO] [server] [STATE] Client 1 disconnected (connection reset)"


async def test_input_of_a_client_that_cannot_be_written_to_is_processed(log: LogRecorder) -> None:
    async with memory_server() as network:
        a, b = [await network.join() for _ in range(2)]
        a.stream.receive_stream.close()  # type: ignore[attr-defined]
        await b.send("you cannot hear this")
        await wait_all_tasks_blocked()
        await a.send("but I can say that")
        assert await b.line() == "[Client 1] but I can say that"
        await a.finish()
        await wait_all_tasks_blocked()
        assert [member.client for member in network.server.members] == [2]


async def test_a_client_that_cannot_be_written_to_is_disconnected_in_the_end(
    autojump_clock: trio.testing.MockClock, log: LogRecorder
) -> None:
    async with memory_server() as network:
        a, b = [await network.join() for _ in range(2)]
        a.stream.receive_stream.close()  # type: ignore[attr-defined]
        await b.send("you cannot hear this")
        await trio.sleep(network.server.config.grace_seconds + 0.1)
        assert [member.client for member in network.server.members] == [2]
    assert "[INFO] [server] [STATE] Client 1 disconnected (connection broken)" in log.lines


class CancelAt(trio.abc.Instrument):
    """Cancels *scope* when the task *name* is about to run for the *step*th time."""

    def __init__(self, name: str, step: int) -> None:
        self.scope = trio.CancelScope()
        self.cancelled = False
        self._name, self._left = name, step

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        if self._name in task.name and not self.cancelled:
            self._left -= 1
            if self._left < 0:
                self.cancelled = True
                self.scope.cancel(reason="the test says so")


@pytest.mark.parametrize("task", ["handle", "Session._write"])
async def test_cancelled_at_any_await_a_session_leaves_nothing_behind(
    task: str, autojump_clock: trio.testing.MockClock, log: LogRecorder
) -> None:
    """One run for each step of the session's tasks, until a run ends uncancelled."""
    for step in range(60):
        log.lines.clear()
        cancel = CancelAt(task, step)
        async with memory_server(ServerConfig(send_queue_batches=1)) as network:
            witness = await network.join()
            ours, theirs = trio.testing.lockstep_stream_pair()
            victim = ScriptedClient(theirs)

            async def be_the_victim(stream: trio.abc.Stream = ours) -> None:
                trio.lowlevel.current_task().name = "handle the victim"
                with cancel.scope:
                    await network.server.handle(stream)

            async with trio.open_nursery() as nursery:
                trio.lowlevel.add_instrument(cancel)
                nursery.start_soon(be_the_victim)
                nursery.start_soon(_live, victim)
                for i in range(3):
                    await witness.send(f"a {i}", "/ping")
                    await wait_all_tasks_blocked()
            trio.lowlevel.remove_instrument(cancel)
            assert [member.client for member in network.server.members] == [1]
            left = [line for line in log.lines if "Client 2 disconnected" in line]
            assert len(left) == len([line for line in log.lines if "Client 2 connected" in line])
            with pytest.raises(trio.ClosedResourceError):
                await ours.send_all(b"x")
            await witness.send("/ping after")
            lines: list[str] = []
            while not lines or lines[-1] != "[Server] pong after":
                lines.append(await witness.line())
        if not cancel.cancelled:
            return
    pytest.fail("the session never ended by itself")


async def _live(client: ScriptedClient) -> None:
    """The client's script: send, request, receive, leave."""
    try:
        await client.send("one", "/ping", "two")
        await client.line()
        await client.send("/help")
        await client.lines(5)
        await client.finish()
        await client.rest()
    except (trio.BrokenResourceError, trio.ClosedResourceError, EOFError):
        pass


async def test_a_bug_in_one_session_is_logged_and_affects_no_other_client(
    log: LogRecorder,
) -> None:
    async with memory_server() as network:
        a = await network.join()
        network.accept(failing_stream(RuntimeError("boo")))
        await wait_all_tasks_blocked()
        await a.send("/ping")
        assert await a.line() == "[Server] pong"
        assert [member.client for member in network.server.members] == [1]
    [crash] = [line for line in log.lines if "ERROR" in line]
    assert crash.startswith("[ERROR] [server] [STATE] a session crashed: ")
    assert "RuntimeError('boo')" in crash
    assert "Traceback" not in "".join(log.lines)


@pytest.mark.process
async def test_a_fast_client_has_one_task_and_a_slow_one_two() -> None:
    def tasks() -> list[int]:
        return [
            1 + sum(len(nursery.child_tasks) for nursery in task.child_nurseries)
            for task in sorted(network._nursery.child_tasks, key=lambda task: task._counter)
        ]

    async with memory_server() as network:
        ours, theirs = await tcp_pair()
        network.accept(ours)
        await wait_all_tasks_blocked()
        talker = await network.join()
        await talker.send("hello")
        assert await theirs.receive_some() == b"[Client 2] hello\n"
        assert tasks() == [1, 1]
        await theirs.send_all(b"hello yourself\n")
        assert await talker.line() == "[Client 1] hello yourself"  # there is no socket
        assert tasks() == [1, 2]
        network.server.kick(1)
        assert await theirs.receive_some() == b"[Server] goodbye: kicked\n"
        assert await theirs.receive_some() == b""
        await theirs.aclose()


@pytest.mark.process
async def test_a_goodbye_does_not_wait_for_slow_clients() -> None:
    config = ServerConfig(slow_timeout_seconds=600, send_queue_batches=1)
    async with memory_server(config) as network:
        ours, theirs = await tcp_pair()
        network.accept(ours)
        await wait_all_tasks_blocked()
        await network.join(lockstep=True)  # never reads
        with trio.fail_after(WAIT_SECONDS):
            while network.server.statistics().messages < 3:  # one in flight, one queued, one more
                await theirs.send_all(b"x\n")
                await trio.sleep(0.01)
            network.server.kick(1)
            assert await theirs.receive_some() == b"[Server] goodbye: kicked\n"
        await theirs.aclose()
