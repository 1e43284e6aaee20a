"""A client whose name or room is refused is not announced, and speaks in no other room."""

from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
import trustme
from trio.testing import MockClock

import multichat
from multichat import (
    Chat,
    Event,
    Filtered,
    Joining,
    Refused,
    Said,
    ServerConfig,
    client_tls,
    connect,
    server_tls,
)
from multichat.testing import ScriptedClient, memory_server
from tests.support.clients import open_line_chat
from tests.support.log import LogRecorder
from tests.support.processes import LOOPBACK

# Longer than a client that has been seen may be away.
LATER_SECONDS = 60


async def move_old_to_new(item: Filtered) -> Filtered | None:
    await trio.lowlevel.checkpoint()
    match item:
        case Joining(text="old"):
            return msgspec.structs.replace(item, text="new")
        case Joining(text="secret"):
            return None
    return item


async def events_of(chat: Chat) -> list[Event]:
    events: list[Event] = []
    with trio.move_on_after(LATER_SECONDS):
        async for event in chat:
            events.append(event)  # noqa: PERF401 - those before the timeout are kept
    return events


@pytest.mark.unit
@pytest.mark.parametrize(
    "options", [{"name": "alice"}, {"room": "x y"}, {"rooms": ("a", "x y")}, {"room": "secret"}]
)
async def test_a_client_that_is_refused_is_not_announced(
    options: dict[str, Any], autojump_clock: MockClock
) -> None:
    config = ServerConfig(filters=(move_old_to_new,), filter_joins=True)
    async with memory_server(config) as network, network.chat(name="alice") as alice:
        with pytest.raises(Refused):
            async with open_line_chat(network.connect(), **options):
                pytest.fail("the chat was opened")
        assert await events_of(alice) == []


@pytest.mark.process
async def test_a_client_that_is_refused_over_tls_ends_its_session(
    tmp_path: Path, log: LogRecorder
) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    certificate = authority.issue_cert(LOOPBACK)
    certificate.private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "server.pem"))
    tls = client_tls(tmp_path / "ca.pem")
    serve = partial(multichat.serve, 0, host=LOOPBACK, tls=server_tls(tmp_path / "server.pem"))
    async with trio.open_nursery() as nursery:
        port = (await nursery.start(serve)).port
        async with connect(LOOPBACK, port, tls=tls, name="alice"):
            with pytest.raises(Refused):
                async with connect(LOOPBACK, port, tls=tls, name="alice"):
                    pytest.fail("the chat was opened")
        nursery.cancel_scope.cancel(reason="the test is over")
    # Without a reason: it has asked to leave.
    assert "[INFO] [server] [STATE] Client 2 disconnected" in log.lines


@pytest.mark.unit
async def test_a_client_that_leaves_before_it_was_announced_is_not_mentioned(
    autojump_clock: MockClock,
) -> None:
    async with memory_server() as network, network.chat(name="alice") as alice:
        visitor = ScriptedClient(network.connect())
        await visitor.send('/json {"type":"hello","protocol":1,"name":"bob"}')
        await visitor.line()
        await trio.aclose_forcefully(visitor.stream)
        assert await events_of(alice) == []


@pytest.mark.unit
@pytest.mark.parametrize("name", [None, "alice"])
async def test_a_room_that_a_filter_has_changed_is_not_refused(
    name: str | None, autojump_clock: MockClock
) -> None:
    config = ServerConfig(filters=(move_old_to_new,), filter_joins=True)
    async with memory_server(config) as network, network.chat(name="alice", room="new") as alice:
        async with open_line_chat(
            network.connect(), name=name, room="old", name_required=False
        ) as chat:
            assert chat.room == "new"
            refusal = chat.link.name_refusal
            assert (refusal and refusal.code) == ("name-taken" if name else None)
            await chat.say("hello")
        async for event in alice:
            if isinstance(event, Said):
                assert (event.room, event.text) == ("new", "hello")
                break


@pytest.mark.unit
async def test_a_room_that_is_refused_besides_the_name_is_refused(
    autojump_clock: MockClock,
) -> None:
    config = ServerConfig(filters=(move_old_to_new,), filter_joins=True)
    async with memory_server(config) as network, network.chat(name="alice"):
        with pytest.raises(Refused) as refused:
            async with open_line_chat(
                network.connect(), name="alice", room="secret", name_required=False
            ):
                pytest.fail("the chat was opened")
    assert refused.value.code == "rejected"
