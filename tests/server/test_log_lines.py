"""What the log says about clients, and what it leaves out: addresses and written text."""

import json
import logging
import re
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

import multichat
from multichat import ServerConfig, WebConfig
from multichat.log import Log
from multichat.protocol.messages import WireRequest
from multichat.server import log_lines
from multichat.server.bans import Ban, parse_target
from multichat.server.config import AccountLimits, Filtered, LogMessages, Message
from multichat.server.refusals import RefusedFor
from multichat.testing import MemoryServer, memory_server
from tests.support.log import LogRecorder
from tests.support.processes import LOOPBACK, WAIT_SECONDS, serve, tcp
from tests.support.programs import join
from tests.support.terminals import Terminal
from tests.support.web import TOKEN, ask, posting

STATE = "[INFO] [server] [STATE] "

PACKAGE = Path(multichat.__file__).parent
DOCS = Path(__file__).parents[2] / "docs"

MARKER = "MARKER"
RIGHT = "correct horse"

# A value for each field of a request: names of clients and things, and written text.
FIELDS: dict[str, object] = {
    "text": MARKER,
    "reason": MARKER,
    "passphrase": f"{MARKER} horse",
    "token": MARKER,
    "to": "reader",
    "who": "kicked",
    "what": "name nobody",
    "time": "1h",
    "name": "boss",
    "room": "kitchen",
    "since": f"{MARKER}-1",
    "before": f"{MARKER}-1",
    "replay": 1,
    "limit": 1,
}


@pytest.mark.unit
async def test_the_line_of_a_client_that_has_left_has_its_name_and_the_reason(
    log: LogRecorder,
) -> None:
    async with memory_server() as network:
        unnamed, alice, bob = [await network.join() for _ in range(3)]
        await alice.send("/name alice")
        await bob.send("/name bob")
        await bob.line()
        await alice.finish()
        await alice.rest()
        network.server.kick(3)
        network.server.kick(1, "bye")
        for each in (unnamed, bob):
            await each.rest()
    assert [line for line in log.lines if "disconnected" in line] == [
        STATE + "Client 2 disconnected (alice)",
        STATE + "Client 3 disconnected (bob) (kicked)",
        STATE + "Client 1 disconnected (bye)",
    ]


@pytest.mark.process
@pytest.mark.parametrize("shown", [False, True])
async def test_addresses_of_clients_are_logged_only_if_asked_for(
    tmp_path: Path, *, shown: bool
) -> None:
    options = ("--log-file", str(tmp_path / "log"), *(("--log-addresses",) if shown else ()))
    async with (
        serve(
            tmp_path, "--unix", str(tmp_path / "socket"), "--max-clients", "1", *options
        ) as server,
        tcp(server) as one,
    ):
        await server.wait_for("Client 1 connected")
        async with tcp(server) as other:
            await server.wait_for("Refused ")
            refused = other.socket.getsockname()[1]
        own = one.socket.getsockname()[1]
    assert server.out == (tmp_path / "log").read_text("utf-8")
    origin = f" from {LOOPBACK}:{own}" if shown else ""
    assert f"{STATE}Client 1 connected{origin}\n" in server.out
    assert (f":{own}" in server.out) == shown
    assert f"{STATE}Refused {LOOPBACK}:{refused}: the server is full" in server.out


def requests() -> dict[str, dict[str, object]]:
    """Return each request, with everything in it that a client may write."""
    return {
        kind.__struct_config__.tag: {
            each.name: FIELDS[each.name]
            for each in msgspec.structs.fields(kind)
            if each.name != "nonce"
        }
        for kind in get_args(WireRequest)
    }


async def broken(message: Message) -> Filtered:
    await trio.lowlevel.checkpoint()
    if MARKER in message.text:
        raise LookupError(f"no {message.text}")
    return message


async def no_message(message: Message) -> Any:
    await trio.lowlevel.checkpoint()
    return f"not {message.text}" if MARKER in message.text else message


async def fails(chat: multichat.Chat) -> None:
    async for event in chat:
        if isinstance(event, multichat.Said) and event.text == MARKER:
            raise LookupError(event.text)


async def write_everything(net: MemoryServer) -> None:
    """Have MARKER written in every way there is."""
    server = net.server
    await server.admin.account(f"add boss {RIGHT}")
    await server.start_bot(fails, name="bot")
    reader = await join(net, name="reader", room="kitchen")
    text = await net.join()
    await join(net, name="kicked")
    await join(net, name="banned")
    boss = await join(net, login={"name": "boss", "passphrase": RIGHT})
    await boss.ask("enter", room="kitchen")
    everything = requests()
    leaving = everything.pop("quit"), everything.pop("logout")
    for kind, fields in everything.items():
        await boss.ask(kind, **fields)
    await text.send(
        f"{MARKER} 1",
        f"/me {MARKER}",
        f"/msg reader {MARKER}",
        f"/r {MARKER}",
        f"/no-such-command {MARKER}",
        f"/name {MARKER} {MARKER}",
        f"/login nobody {MARKER}",
        f'/json {{"name": 3, "x": "{MARKER}"',
        f'{{"type":"say","text":"{MARKER}"',
        MARKER * 20_000,
    )
    await wait_all_tasks_blocked()
    await text.stream.send_all(f"{MARKER} without an end".encode())
    answer = await ask(net, posting(f"{MARKER} 2".encode()))
    assert answer.status == 201
    answer = await ask(net, posting(MARKER.encode(), token=f"{MARKER}-{MARKER}-{MARKER}"))
    assert answer.status == 401
    await server.broadcast(MARKER)
    await server.tell(reader.welcome["client"], MARKER)
    await server.admin.announce(MARKER)
    await server.admin.topic(f"kitchen {MARKER}")
    await reader.send({"type": "say", "text": f"{MARKER} 3"})
    server.admin.kick("reader", MARKER)
    await boss.ask("logout", **leaving[1])
    await boss.send({"type": "quit", **leaving[0]})
    server.ban(Ban(target=parse_target("192.0.2.7"), reason=MARKER))
    server.ban(Ban(target=parse_target("name banned"), reason=MARKER))
    await wait_all_tasks_blocked()


@pytest.mark.unit
@pytest.mark.parametrize("shown", list(LogMessages))
async def test_without_messages_the_log_has_all_events_and_nothing_that_was_written(
    shown: LogMessages, log: LogRecorder
) -> None:
    logging.getLogger("multichat").setLevel(logging.DEBUG)
    config = ServerConfig(
        log_messages=shown,
        accounts=AccountLimits(hash_kib=8, hash_passes=1),
        operators=("boss",),
        filters=(broken, no_message),
        filter_joins=True,
        web=WebConfig(webhook_tokens=(TOKEN,)),
    )
    async with memory_server(config) as net:
        with trio.fail_after(WAIT_SECONDS):
            await write_everything(net)
    tags = [line.split("[server] ")[1].split("]")[0] for line in log.lines]
    assert {"[RX", "[TX", "[BROADCAST", "[STATE", "[FILTER"} <= set(tags)
    with_marker = [line for line in log.lines if MARKER in line]
    if shown is LogMessages.ALL:
        for kind in (
            "[RX] [boss]",
            "[RX] * boss",
            "[RX] [webhook]",
            "[TX] [Server]",
            "[FILTER]",
            "Operator boss",
            "(kicked) (kicked: ",
            "Banned 192.0.2.7",
            "/topic",
        ):
            assert any(kind in line for line in with_marker), kind
        return
    assert with_marker == []
    for line in (
        "[INFO] [server] [RX] [boss]",
        "[INFO] [server] [RX] * boss",
        "[INFO] [server] [RX] [webhook]",
        "[INFO] [server] [TX] [Server]",
        STATE + "Client 4 disconnected (kicked) (kicked)",
        STATE + "Client 5 disconnected (banned) (banned)",
        STATE + "Banned 192.0.2.7 for ever",
        STATE + "Operator boss (Client 6): /topic (in kitchen)",
        STATE + "Operator boss (Client 6): /announce",
        STATE + "Operator boss (Client 6): /kick kicked",
        "[WARNING] [server] [FILTER] broken raised LookupError; messages pass unchanged",
    ):
        assert line in log.lines, line


@pytest.mark.unit
@pytest.mark.parametrize("hides", [False, True])
def test_a_refusal_has_the_address_and_the_operators_reason_only_with_messages(
    log: LogRecorder, *, hides: bool
) -> None:
    server_log = Log("server", hides_messages=hides)
    log_lines.refused(server_log, "192.0.2.7:5", RefusedFor.BANNED, "banned for ever: spam")
    log_lines.refused(server_log, "", RefusedFor.FULL, "the server is full")
    assert log.lines == [
        f"{STATE}Refused 192.0.2.7:5: {'banned' if hides else 'banned for ever: spam'}",
        f"{STATE}Refused a client: the server is full",
    ]


@pytest.mark.process
async def test_a_server_logs_json_to_a_terminal_and_a_file_and_no_text_if_asked_for(
    terminal: Terminal, tmp_path: Path
) -> None:
    file = tmp_path / "log"
    options = f"--log-format json --log-messages none --log-addresses --log-file {file}"
    await terminal.open_shell("t", columns=200, rows=24)
    await terminal.type("t", f"multichat serve 0 --host {LOOPBACK} {options}")
    found = await terminal.wait_for_match("t", r'"event":"starting","port":(\d+)')
    await terminal.wait_for("t", "what you type is sent to everybody")
    async with multichat.connect(LOOPBACK, int(found[1]), name="alice", room="kitchen") as alice:
        await alice.say(MARKER)
        await terminal.type("t", f"to all: {MARKER}")
        await terminal.wait_for("t", '"tag":"TX","event":"announced","clients":1}')
    await terminal.wait_for("t", '"event":"disconnected"')
    screen = await terminal.screen("t")
    lines = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    assert MARKER not in file.read_text("utf-8")
    assert screen.count(MARKER) == 1  # what was typed
    events = {each["event"]: each for each in lines if "event" in each}
    for each in lines:
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", each.pop("time"))
        assert (each.pop("level"), each.pop("component")) == ("INFO", "server")
    own = {"event": "said", "client": 1, "name": "alice", "room": "kitchen", "clients": 1}
    assert events["said"] == {"tag": "RX", **own}
    assert (
        events["connected"].pop("text")
        == f"Client 1 connected from {events['connected']['address']}"
    )
    left = {"event": "disconnected", "client": 1, "name": "alice", "code": "quit"}
    assert events["disconnected"] == {
        "tag": "STATE",
        **left,
        "text": "Client 1 disconnected (alice)",
    }


@pytest.mark.unit
def test_the_guide_lists_every_event_of_the_log() -> None:
    code = "".join(path.read_text("utf-8") for path in PACKAGE.rglob("*.py"))
    [listed] = re.findall(r"`event` is present for .*", (DOCS / "operating.md").read_text("utf-8"))
    logged = set(re.findall(r'"event": "([\w-]+)"', code))
    assert set(re.findall(r"`([\w-]+)`", listed)) - {"event", "code"} == logged
