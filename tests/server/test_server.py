"""The server: its nursery tree, limits, public methods, and shutdown."""

import dataclasses
import errno
import json
import math
import socket
import struct
from functools import partial
from typing import Any

import pytest
import trio
import trio.testing
from trio.testing import wait_all_tasks_blocked

import multichat
from multichat import (
    ListenFailed,
    LocalProtocolError,
    MemberInfo,
    Receipt,
    Server,
    ServerConfig,
    Slow,
    UnknownClient,
)
from multichat.journal.memory import MemoryJournal
from multichat.net.fair_share import Shares
from multichat.net.listeners import FairListener
from multichat.net.turns import Meter, Turns
from multichat.server.config import AccountLimits, ReplayLimits, ServerTimeouts
from multichat.testing import MemoryServer, ScriptedClient, memory_server
from tests.support.log import LogRecorder
from tests.support.processes import LOOPBACK, WAIT_SECONDS, listening
from tests.support.sockets import open_client

pytestmark = pytest.mark.unit

GOODBYE = "[Server] goodbye: the server is shutting down"


async def test_broadcast_returns_a_receipt(log: LogRecorder) -> None:
    async with memory_server() as network:
        assert await network.server.broadcast("nobody is here") == Receipt()
        a, b = [await network.join() for _ in range(2)]
        receipt = await network.server.broadcast("maintenance at \x1bnoon\nsharp")
        assert receipt == Receipt(queued=2)
        assert await a.line() == await b.line() == "[Server] maintenance at ␛noon␊sharp"
        with pytest.raises(LocalProtocolError, match="an empty message cannot be sent"):
            await network.server.broadcast("\u202e")
    assert "[INFO] [server] [TX] [Server] maintenance at ␛noon␊sharp" in log.lines


@pytest.mark.parametrize("slow", [Slow.DROP, Slow.DISCONNECT, Slow.WAIT])
async def test_broadcast_counts_the_members_that_did_not_get_it(
    slow: Slow, autojump_clock: trio.testing.MockClock
) -> None:
    async with memory_server(ServerConfig(slow=slow, send_queue_batches=1)) as network:
        await network.join()
        await network.join(lockstep=True)
        receipts = []
        for i in range(3):
            receipts.append(await network.server.broadcast(str(i)))
            await wait_all_tasks_blocked()
        without = Receipt(lagging=1) if slow is Slow.WAIT else Receipt(dropped=1)
        assert receipts == [Receipt(queued=2), Receipt(queued=2), Receipt(queued=1) + without]


@pytest.mark.process
async def test_over_tcp_a_broadcast_is_delivered_at_once() -> None:
    async with trio.open_nursery() as nursery:
        server = await nursery.start(multichat.serve, 0)
        a = await open_client(server.port)
        await settle_on(server, 1)
        assert await server.broadcast("hello") == Receipt(delivered=1)
        assert await a.line() == "[Server] hello"
        await a.stream.aclose()
        server.shutdown()


async def settle_on(server: Server, clients: int) -> None:
    with trio.fail_after(WAIT_SECONDS):
        while len(server.members) != clients:
            await trio.sleep(0.005)


async def test_kick(log: LogRecorder) -> None:
    async with memory_server() as network:
        a, b = [await network.join() for _ in range(2)]
        network.server.kick(1, "be \x1bnice")
        assert await a.rest() == ["[Server] goodbye: be ␛nice"]
        with pytest.raises(UnknownClient, match="no client 1 is connected"):
            network.server.kick(1)
        await b.send("/ping")
        assert await b.line() == "[Server] pong"
        network.server.kick(2, "")
        assert await b.rest() == ["[Server] goodbye: kicked"]
    assert "[INFO] [server] [STATE] Client 1 disconnected (be ␛nice)" in log.lines
    assert "[INFO] [server] [STATE] Client 2 disconnected (kicked)" in log.lines


async def test_members_and_statistics() -> None:
    async with memory_server() as network:
        a, b, c = [await network.join() for _ in range(3)]
        await b.finish()
        await wait_all_tasks_blocked()
        await a.send("one", "two")
        await wait_all_tasks_blocked()
        server = network.server
        assert server.members == [
            MemberInfo(
                client=1,
                name="Client 1",
                room="lobby",
                rooms=("lobby",),
                address="",
                waiting_bytes=0,
            ),
            MemberInfo(
                client=3,
                name="Client 3",
                room="lobby",
                rooms=("lobby",),
                address="",
                waiting_bytes=0,
            ),
        ]
        statistics = server.statistics()
        assert (statistics.clients, statistics.clients_ever, statistics.refused) == (2, 3, 0)
        assert (statistics.messages, statistics.deliveries) == (2, 2)
        assert (statistics.skipped, statistics.too_slow, statistics.waiting_bytes) == (0, 0, 0)


async def test_numbers_are_never_reused() -> None:
    async with memory_server() as network:
        for number in range(1, 4):
            client = await network.join()
            assert [member.client for member in network.server.members] == [number]
            await client.finish()
            await client.rest()


class SlowJournal(MemoryJournal):
    async def reserve_client_numbers(self, clients_ever: int) -> None:
        await trio.sleep(0.1)


async def test_a_slow_journal_does_not_admit_too_many_clients(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with memory_server(ServerConfig(max_clients=2), journal=SlowJournal()) as network:
        clients = [ScriptedClient(network.connect()) for _ in range(5)]
        await trio.sleep(1)
        assert len(network.server.members) == 2
        assert network.server.statistics().refused == 3
        for client in clients:
            await client.finish()


async def test_a_full_server_rejects_clients_until_there_is_a_free_place(
    log: LogRecorder,
) -> None:
    async with memory_server(ServerConfig(max_clients=1)) as network:
        a = await network.join()
        refused = await network.join()
        assert await refused.rest() == ["[Server] goodbye: the server is full (limit: 1)"]
        await a.finish()
        await a.rest()
        b = await network.join()
        await b.send("/ping")
        assert await b.line() == "[Server] pong"
        assert network.server.statistics().refused == 1
    assert "[INFO] [server] [STATE] Refused a client: the server is full (limit: 1)" in log.lines


async def test_rejecting_a_client_that_does_not_read_delays_no_other_client(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with memory_server(ServerConfig(max_clients=1)) as network:
        await network.join()
        await network.join(lockstep=True)  # never reads
        gone = await network.join(lockstep=True)
        await gone.stream.aclose()
        await trio.sleep(10)
        assert len(network.server.members) == 1


@pytest.mark.parametrize(
    "values",
    [
        {"max_line_bytes": 0},
        {"send_queue_batches": 0},
        {"max_clients": 0},
        {"slow_timeout_seconds": -1.0},
        {"grace_seconds": float("nan")},
        {"slow": "drop"},
        {"registration": "closed"},
        {"announce": "no"},
        {"max_clients": "10"},
        {"max_clients": None},
        {"max_rooms": True},
        {"rate": "fast"},
        {"operators": "alice"},
        {"filters": print},
        {"accounts": 10},
        {"max_clients": 1.5},
    ],
)
def test_an_invalid_configuration_is_an_error(values: dict[str, object]) -> None:
    [name] = values
    with pytest.raises(ValueError, match=f"^{name} must be "):
        ServerConfig(**values)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", [ServerTimeouts, ReplayLimits, AccountLimits])
@pytest.mark.parametrize("value", [-1, "5", None, True, float("nan")])
def test_an_invalid_limit_is_an_error(kind: type[Any], value: object) -> None:
    for each in dataclasses.fields(kind):
        with pytest.raises(ValueError, match=f"^{each.name} must be "):
            kind(**{each.name: value})


# --- Shutdown --------------------------------------------------------------------------------


async def test_shutdown_with_all_idle_is_immediate(
    autojump_clock: trio.testing.MockClock, log: LogRecorder
) -> None:
    async with memory_server() as network, trio.open_nursery() as nursery:
        clients = [await network.join() for _ in range(5)]
        rests: list[list[str]] = []

        async def leave_when_told(client: ScriptedClient) -> None:
            rests.append(await client.rest())
            await client.finish()

        for client in clients:
            nursery.start_soon(leave_when_told, client)
        started = trio.current_time()
        await network.server.close()
        await wait_all_tasks_blocked()
        assert trio.current_time() == started
        assert rests == [["[Server] goodbye: the server is shutting down"]] * 5
        assert network.server.members == []


async def test_shutdown_with_full_send_queues_delivers_all_accepted_messages(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with memory_server(ServerConfig(send_queue_batches=1)) as network:
        sender = await network.join()
        slow = await network.join(lockstep=True)
        for i in range(3):  # the last of them is being waited for when the end comes
            await sender.send(str(i))
            await wait_all_tasks_blocked()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(network.server.close)
            await wait_all_tasks_blocked()
            await trio.sleep(1)
            assert await slow.rest() == [
                "[Client 1] 0",
                "[Client 1] 1",
                "[Client 1] 2",
                "[Server] goodbye: the server is shutting down",
            ]


async def lag_by(messages: int, sender: ScriptedClient, network: MemoryServer) -> None:
    """Send so many messages that a client that reads nothing lags."""
    await network.join()
    for i in range(messages):
        await sender.send(str(i), "/ping")
        assert await sender.line() == "[Server] pong"  # possibly after the wait budget is spent
    assert sum(bool(client.lagging()) for client in network.server._registry.clients) == 1


async def test_at_shutdown_a_lagging_client_gets_the_rest_and_then_the_goodbye(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with memory_server(ServerConfig(send_queue_batches=1)) as network:
        sender = await network.join()
        slow = await network.join(lockstep=True)
        await lag_by(10, sender, network)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(network.server.close)
            assert await sender.rest() == ["[Server] goodbye: the server is shutting down"]
            await trio.sleep(1)
            assert await slow.rest() == [
                *(f"[Client 1] {i}" for i in range(10)),
                "[Server] goodbye: the server is shutting down",
            ]


async def test_at_shutdown_a_client_that_lags_too_long_gets_the_number_of_missed_messages(
    autojump_clock: trio.testing.MockClock,
) -> None:
    config = ServerConfig(send_queue_batches=1, grace_seconds=4)
    async with memory_server(config) as network:
        sender = await network.join()
        slow = await network.join(lockstep=True)
        await lag_by(10, sender, network)
        started = trio.current_time()
        await network.server.close()
        assert trio.current_time() - started == pytest.approx(2)
        assert await slow.rest() == [
            "[Client 1] 0",
            "[Client 1] 1",
            "[Server] 8 messages skipped",
            "[Server] goodbye: the server is shutting down",
        ]


@pytest.mark.parametrize("has_file", [False, True])
async def test_at_shutdown_a_client_that_can_come_back_for_the_rest_has_missed_nothing(
    has_file: bool, autojump_clock: trio.testing.MockClock
) -> None:
    """It speaks JSON, and the journal is a file; otherwise the rest counts as missed."""
    config = ServerConfig(send_queue_batches=1, grace_seconds=4)
    journal = MemoryJournal()  # the mock clock would not wait for the thread of a file
    journal.location = "a file" if has_file else ""
    async with memory_server(config, journal=journal) as network:
        sender = await network.join()
        slow = await network.join(lockstep=True)
        await slow.send("/json")
        assert json.loads(await slow.line())["type"] == "welcome"
        await lag_by(10, sender, network)
        await network.server.close()
        told = [json.loads(line) for line in await slow.rest()]
        kinds = [event["type"] for event in told if event["type"] != "said"]
        assert kinds == (["goodbye"] if has_file else ["missed", "goodbye"])
        assert [event["text"] for event in told if event["type"] == "said"] == ["0", "1"]


async def test_a_server_that_is_closing_admits_no_client() -> None:
    async with memory_server() as network:
        await network.server.close()
        late = await network.join()
        assert await late.rest() == ["[Server] goodbye: the server is shutting down"]


@pytest.mark.process
async def test_shutdown_ends_serve_and_frees_the_port(log: LogRecorder) -> None:
    async with trio.open_nursery() as nursery:
        server = await nursery.start(partial(multichat.serve, 0, host=LOOPBACK))
        port = server.port
        client = await open_client(port)
        await settle_on(server, 1)
        server.shutdown()
        server.shutdown()
        assert server.shutting_down
        assert await client.rest() == ["[Server] goodbye: the server is shutting down"]
        await client.stream.aclose()
    assert log.lines[0] == f"[INFO] [server] [start] Starting multi-chat server on port {port}"
    assert log.lines[1] == f"[INFO] [server] [start] Listening on {LOOPBACK}:{port}"
    assert log.lines[-1].startswith("[INFO] [server] [STATE] Client 1 disconnected")
    with pytest.raises(OSError, match="attempts to connect"):
        await open_client(port)


async def test_shutdown_ends_within_the_grace_period_whatever_clients_do(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with memory_server(ServerConfig(send_queue_batches=1, grace_seconds=3)) as network:
        sender = await network.join()
        await network.join(lockstep=True)
        for i in range(2):
            await sender.send(str(i))
            await wait_all_tasks_blocked()
        await network.server.close()
        await trio.sleep(3.1)
        assert await sender.rest() == ["[Server] goodbye: the server is shutting down"]


@pytest.mark.process
async def test_cancelling_serve_ends_it_at_once() -> None:
    async with trio.open_nursery() as nursery:
        server = await nursery.start(multichat.serve, 0)
        client = await open_client(server.port)
        await settle_on(server, 1)
        nursery.cancel_scope.cancel(reason="the test says so")
    assert server.members == []
    assert await client.rest() == []
    await client.stream.aclose()


# --- Listening -------------------------------------------------------------------------------


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


@pytest.mark.process
async def test_a_server_listens_on_every_ipv4_and_ipv6_interface_with_one_port() -> None:
    async with trio.open_nursery() as nursery:
        server = await nursery.start(multichat.serve, 0)
        port = server.port
        expected = [f"0.0.0.0:{port}", f"[::]:{port}"] if has_ipv6() else [f"0.0.0.0:{port}"]
        assert server.addresses == expected
        for host in (LOOPBACK, "::1")[: len(expected)]:
            client = await open_client(port, host)
            await client.send("/ping")
            assert await client.line() == "[Server] pong"
            await client.stream.aclose()
        server.shutdown()


@pytest.mark.process
async def test_several_hosts_share_a_port() -> None:
    async with trio.open_nursery() as nursery:
        hosts = [LOOPBACK, "127.0.0.2"]
        server = await nursery.start(partial(multichat.serve, 0, host=hosts))
        assert server.addresses == [f"{host}:{server.port}" for host in hosts]
        server.shutdown()


@pytest.mark.process
async def test_a_port_in_use_is_a_listen_failed() -> None:
    async with trio.open_nursery() as nursery:
        server = await nursery.start(partial(multichat.serve, 0, host=LOOPBACK))
        message = f"cannot listen on {LOOPBACK} port {server.port}: address already in use"
        with pytest.raises(ListenFailed, match=message):
            await multichat.serve(server.port, host=LOOPBACK)
        server.shutdown()


@pytest.mark.process
async def test_a_server_with_an_infinite_slow_timeout_works() -> None:
    config = multichat.ServerConfig(slow_timeout_seconds=math.inf)
    async with trio.open_nursery() as nursery:
        server = await nursery.start(partial(multichat.serve, 0, host=LOOPBACK, config=config))
        async with multichat.connect(LOOPBACK, server.port) as chat:
            assert chat.welcome is not None
            assert chat.welcome.limits.wait > 0
        server.shutdown()


@pytest.mark.process
async def test_an_address_of_another_machine_is_a_listen_failed() -> None:
    with pytest.raises(ListenFailed, match=r"cannot listen on 192\.0\.2\.1 port 0: cannot assign"):
        await multichat.serve(0, host="192.0.2.1")


@pytest.mark.process
async def test_a_server_starts_without_ipv6(monkeypatch: pytest.MonkeyPatch) -> None:
    open_tcp_listeners = trio.open_tcp_listeners

    async def without_ipv6(port: int, *, host: str) -> list[trio.SocketListener]:
        if host == "::":
            raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")
        return await open_tcp_listeners(port, host=host)

    monkeypatch.setattr(trio, "open_tcp_listeners", without_ipv6)
    async with trio.open_nursery() as nursery:
        server = await nursery.start(multichat.serve, 0)
        assert server.addresses == [f"0.0.0.0:{server.port}"]
        server.shutdown()


@pytest.mark.process
async def test_a_server_that_fails_to_start_accepts_no_client(log: LogRecorder) -> None:
    with pytest.raises(ListenFailed, match=r"cannot listen on no-such-host\.invalid port \d+: "):
        await multichat.serve(0, host=[LOOPBACK, "no-such-host.invalid"])
    assert log.lines == []


async def test_an_empty_list_of_hosts_is_an_error() -> None:
    with pytest.raises(ValueError, match="no host"):
        await multichat.serve(0, host=[])


@pytest.mark.process
async def test_addresses_are_known_while_and_after_serving() -> None:
    server = Server()
    assert (server.port, server.addresses) == (0, [])
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(server.run, 0, host=LOOPBACK))
        server.shutdown()
    assert server.addresses == [f"{LOOPBACK}:{server.port}"]


async def test_a_grace_period_that_ends_before_the_slow_timeout_loses_nothing(
    autojump_clock: trio.testing.MockClock, log: LogRecorder
) -> None:
    """It ends in the middle of a publish of several batches to a stalled client."""
    count = 24_000  # one read, two batches
    patient = ServerConfig(
        slow_timeout_seconds=600, grace_seconds=2, send_queue_batches=4, log_rate=None
    )
    async with memory_server(patient) as network:
        healthy = await network.join()
        await network.join(lockstep=True)
        sender = await network.join()
        await trio.sleep(1)  # after short turns of others, less is read at once
        await sender.send(*["y"] * count)
        await wait_all_tasks_blocked()
        with trio.move_on_after(2):
            await network.server.close()
        lines = await healthy.rest()
        assert lines[:-1] == ["[Client 3] y"] * count
        assert lines[-1] == GOODBYE
    assert log.lines.count("[INFO] [server] [RX] [Client 3] y") == count


@pytest.mark.process
async def test_accepting_takes_turns_with_the_clients_accepted_before(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with listening() as (listener, port), trio.open_nursery() as nursery:
        turns = Turns()
        nursery.start_soon(turns.run)
        fair = FairListener(listener, turns)
        waiting = [await trio.open_tcp_stream(LOOPBACK, port) for _ in range(2)]
        await trio.aclose_forcefully(await fair.accept())
        accepted = Meter(turns, "")
        await accepted.take()
        started = trio.current_time()
        await trio.aclose_forcefully(await fair.accept())
        assert trio.current_time() == started + Shares().longest_seconds
        for each in waiting:
            await trio.aclose_forcefully(each)
        nursery.cancel_scope.cancel(reason="the test is over")


@pytest.mark.process
@pytest.mark.parametrize("reset", [False, True])
async def test_a_connection_that_was_closed_before_it_was_accepted_is_not_returned(
    reset: bool, autojump_clock: trio.testing.MockClock
) -> None:
    async with listening() as (listener, port), trio.open_nursery() as nursery:
        turns = Turns()
        nursery.start_soon(turns.run)
        fair = FairListener(listener, turns)
        for _ in range(100):
            gone = await trio.open_tcp_stream(LOOPBACK, port)
            if reset:
                linger = struct.pack("ii", 1, 0)
                gone.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            await trio.aclose_forcefully(gone)
        async with await trio.open_tcp_stream(LOOPBACK, port) as spoke:
            await spoke.send_all(b"a word and good night")
        quiet = await trio.open_tcp_stream(LOOPBACK, port)
        first = await fair.accept()
        assert await first.receive_some(100) == b"a word and good night"
        second = await fair.accept()
        assert second.socket.getpeername() == quiet.socket.getsockname()
        for each in (first, second, quiet):
            await trio.aclose_forcefully(each)
        nursery.cancel_scope.cancel(reason="the test is over")
