"""Input of clients and servers reaches a terminal or a log only as text.

A table of payloads, of their senders and ways, and of everything that shows them to people.
"""

import json
import re
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import msgspec
import pytest
import trio
import trio.testing
from trio.testing import MockClock

from multichat import Event, Goodbye, MultichatError, Refused
from multichat.cli.json_pipe import JsonPipe
from multichat.cli.log_client import LogClient
from multichat.cli.send import send
from multichat.cli.who import who
from multichat.client.connect import Endpoint
from multichat.client.options import ChatOptions
from multichat.log import open_log
from multichat.protocol.json_codec import JSON
from multichat.protocol.json_lines import clean_json
from multichat.testing import MemoryServer, ScriptedClient, memory_server
from tests.support.clients import open_line_chat
from tests.support.harmless import HARMFUL, is_harmless, is_one_harmless_line
from tests.support.log import LogRecorder
from tests.support.processes import (
    LOOPBACK,
    MULTICHAT,
    WAIT_SECONDS,
    Command,
    connect,
    listening,
    serve,
    tcp,
)

pytestmark = pytest.mark.unit

# What each payload imitates: a line of the server.
FORGED = "[Server] FORGED"

PAYLOADS = {
    "clear the screen": f"\x1b[2J\x1b[H{FORGED}",
    "csi in one character": f"\x9b2J{FORGED}",
    "the clipboard": f"\x1b]52;c;Zm9yZ2Vk\x07{FORGED}",
    "the clipboard in C1": f"\x9d52;c;Zm9yZ2Vk\x9c{FORGED}",
    "a title that is answered": f"\x1b]0;x\x1b\\\x1b[21t{FORGED}",
    "a device control string": f"\x90q\x9c\x1bP+q\x1b\\{FORGED}",
    "the bell": f"\x07\x07{FORGED}",
    "carriage return": f"x\r{FORGED}",
    "backspaces": "x\b\b\b\b\b\b\b\b\b\b" + FORGED,
    "line feed": f"x\n{FORGED}",
    "both": f"x\r\n{FORGED}",
    "next line": f"x\x85{FORGED}",
    "vertical tab and form feed": f"x\x0b{FORGED}\x0c{FORGED}",
    "separators": f"x\u2028{FORGED}\u2029{FORGED}\x1c{FORGED}\x1e{FORGED}",
    "overrides": f"\u202eDEGROF ]revreS[\u202c\u202d{FORGED}\u202a\u202b",
    "isolates": f"\u2066x\u2067y\u2068z\u2069{FORGED}",
    "delete and nothing": f"\x7f\x00{FORGED}",
    "telnet": "\xff\xfd\x01\xff\xfa\x18\x01\xff\xf0" + FORGED,
    "a tag and nothing else": FORGED,
}


def test_the_check_for_harmful_text_finds_each_payload() -> None:
    for name, payload in PAYLOADS.items():
        clean = name in ("a tag and nothing else", "line feed")
        assert is_harmless(payload) == clean
    assert is_harmless("καλημέρα 안녕 👋🏽\tשלום مرحبا ␛[2J\nnext")
    assert not is_one_harmless_line("a\nb")
    assert len(HARMFUL) == 31 + 32 + 9 + 2 + 2048 + 1


def strings(value: object) -> Iterator[str]:
    """Every string in decoded JSON, names of fields included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | tuple):
        for each in value:
            yield from strings(each)
    elif isinstance(value, dict):
        for key, each in value.items():
            yield from strings(key)
            yield from strings(each)


def check_lines(data: bytes) -> list[str]:
    """Check the bytes that a plain text terminal receives; return its lines."""
    text = data.decode("utf-8")  # strictly
    assert is_harmless(text)
    lines = text.split("\n")
    assert not [line for line in lines if line.lstrip().startswith(FORGED)]
    return lines


def check_json(data: bytes) -> list[dict[str, object]]:
    """Check the JSON that a program receives, decodes and shows; return the objects."""
    check_lines(data)
    objects: list[dict[str, object]] = []
    for line in data.decode("utf-8").splitlines():
        value = json.loads(line)
        assert isinstance(value, dict)
        for each in strings(value):
            assert is_one_harmless_line(each), each
        objects.append(value)
    return objects


_LOGGED = re.compile(r"\[(INFO|WARNING|ERROR)\] \[(server|client)\] \[(\w+)\] (.*)")


def check_log(lines: list[str]) -> list[str]:
    """Check a log's lines without their times; return what is received or broadcast."""
    shown: list[str] = []
    for line in lines:
        assert is_one_harmless_line(line), line
        found = _LOGGED.fullmatch(line)
        assert found, line
        shown.append(found[4])
    return shown


def check_output(text: str, component: str = "client") -> list[str]:
    """Check a log that stands in a file or on a terminal, with its times; see `check_log`."""
    lines = text.split("\n")
    assert lines.pop() == ""
    stamp = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} (.*)", re.DOTALL)
    rests: list[str] = []
    for line in lines:
        found = stamp.fullmatch(line)
        assert found, line
        rests.append(found[1])
    assert all(f"] [{component}] [" in line for line in rests)
    return check_log(rests)


# --- A hostile client ----------------------------------------------------------------------------


def encode_raw(value: object) -> bytes:
    """Encode JSON without escapes, so that it contains raw control characters."""
    if isinstance(value, str):
        quoted = value.replace("\\", "\\\\").replace('"', '\\"')
        return b'"' + quoted.encode("utf-8", "surrogatepass") + b'"'
    if isinstance(value, dict):
        fields = (encode_raw(key) + b":" + encode_raw(each) for key, each in value.items())
        return b"{" + b",".join(fields) + b"}"
    if isinstance(value, list):
        return b"[" + b",".join(map(encode_raw, value)) + b"]"
    return json.dumps(value).encode()


def encode_escaped(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def said_in_text(payload: str) -> bytes:
    said = [
        payload,
        f"//{payload}",
        f"/me {payload}",
        f"/name {payload}",
        f"/name a{payload}",
        f"/join {payload}",
        f"/msg 1 {payload}",
        f"/msg 2 {payload}",
        f"/msg {payload} hello",
        f"/ping {payload}",
        f"/{payload}",
        f"/auth {payload}",
        f"/quit{payload}",
    ]
    lines = [line.encode("utf-8", "surrogatepass") for line in said]
    # As Latin-1, in which most harmful characters are one byte and not valid UTF-8.
    with suppress(UnicodeEncodeError):
        lines.append(payload.encode("latin-1"))
    return b"".join(line + b"\n" for line in lines)


def said_in_json(payload: str) -> list[dict[str, object]]:
    return [
        {"type": "say", "text": payload, "nonce": payload},
        {"type": "say", "text": payload, "nonce": 1},
        {"type": "say", "text": payload},
        {"type": "act", "text": payload},
        {"type": "direct", "to": 1, "text": payload},
        {"type": "direct", "to": 2, "text": payload, "nonce": payload},
        {"type": "direct", "to": payload, "text": "hello"},
        {"type": "name", "name": payload, "nonce": payload},
        {"type": "name", "name": f"a{payload}"},
        {"type": "join", "room": payload, "nonce": payload},
        {"type": "ping", "token": payload, "nonce": payload},
        {"type": "who", "nonce": payload},
        {"type": payload, "nonce": payload},
        {"type": payload, "text": [payload]},
        {"type": "say", "text": {payload: payload}},
        {"type": "say", payload: payload, "text": "hello"},
        {payload: payload},
    ]


class Room:
    """A server with two listening clients, one in each protocol, and all that they receive."""

    def __init__(self, network: MemoryServer, text: ScriptedClient, program: ScriptedClient):
        self.network, self.text, self.program = network, text, program

    async def told(self, client: ScriptedClient) -> bytes:
        """Have *client* leave; return all that it received."""
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            await client.finish()
        data = bytearray()
        while some := await client.stream.receive_some():
            data += some
        return bytes(data)


@asynccontextmanager
async def room() -> AsyncIterator[Room]:
    async with memory_server() as network:
        text, program = await network.join(), await network.join()
        await program.send("/json")
        await trio.testing.wait_all_tasks_blocked()
        yield Room(network, text, program)


_TAGGED = re.compile(r"(?!\[Server\]|\* Server)(\[(Client 3|\w+)( → you)?\]|\* (Client 3|\w+)) ")


def check_told_in_text(data: bytes) -> None:
    """Check the output of a client that gets no messages of the server itself."""
    *lines, end = check_lines(data)
    assert end == ""
    assert [line for line in lines if not _TAGGED.match(line)] == []


@pytest.mark.parametrize("payload", PAYLOADS.values(), ids=PAYLOADS)
async def test_a_hostile_client_in_text_sends_nothing_harmful_to_others(
    payload: str, log: LogRecorder, autojump_clock: MockClock
) -> None:
    async with room() as here:
        hostile = await here.network.join()
        await hostile.stream.send_all(said_in_text(payload))
        await trio.sleep(5)
        heard = await here.told(hostile)
        await trio.sleep(5)
        text, program = await here.told(here.text), await here.told(here.program)
    check_told_in_text(text)
    check_lines(re.sub(rb"\xff[\xfb-\xfe].", b"", heard))  # telnet's answers, to itself alone
    check_log(log.lines)
    events = check_json(program)
    assert "FORGED" in text.decode()  # so the text itself has arrived
    said = [event for event in events if event["type"] in ("said", "direct")]
    assert len(said) >= 4
    assert not [event for event in events if event["type"] == "notice"]


@pytest.mark.parametrize("encode", [encode_escaped, encode_raw])
@pytest.mark.parametrize("payload", PAYLOADS.values(), ids=PAYLOADS)
async def test_a_hostile_client_in_json_sends_nothing_harmful_to_others(
    payload: str, encode: object, log: LogRecorder, autojump_clock: MockClock
) -> None:
    assert callable(encode)
    async with room() as here:
        hostile = await here.network.join()
        hello = encode({"protocol": 1, "name": f"a{payload}", "room": payload})
        await hostile.stream.send_all(b"/json " + hello + b"\n")
        # A message for a room that cannot exist is published in no other.
        await hostile.stream.send_all(encode({"type": "join", "room": "lobby"}) + b"\n")
        for request in said_in_json(payload):
            await hostile.stream.send_all(encode(request) + b"\n")
        await trio.sleep(5)
        heard = await here.told(hostile)
        await trio.sleep(5)
        text, program = await here.told(here.text), await here.told(here.program)
    check_told_in_text(text)
    check_log(log.lines)
    events = check_json(program)
    if encode is encode_escaped:
        answers = check_json(heard)
        assert len(answers) >= 10
        texts = [event["text"] for event in events if event["type"] == "said"]
        assert len([each for each in texts if "FORGED" in str(each) or "DEGROF" in str(each)]) >= 3
    else:  # a line feed has cut it into lines that are not JSON
        check_lines(heard)
    assert not [event for event in events if event["type"] == "notice"]


async def test_a_hostile_hello_sends_nothing_harmful_to_others(
    log: LogRecorder, autojump_clock: MockClock
) -> None:
    """Its fields, and what is not a hello."""
    async with room() as here:
        for payload in PAYLOADS.values():
            for value in (
                {"protocol": payload},
                {"protocol": 1, "name": payload},
                {"protocol": 1, "room": payload},
                {payload: payload},
                [payload],
                payload,
            ):
                for encode in (encode_escaped, encode_raw):
                    client = await here.network.join()
                    await client.stream.send_all(b"/json " + encode(value) + b"\n")
                    check_lines(await here.told(client))
        check_told_in_text(await here.told(here.text))
        check_json(await here.told(here.program))
    check_log(log.lines)


async def test_the_reason_of_a_disconnect_is_filtered(
    log: LogRecorder, autojump_clock: MockClock
) -> None:
    """What an operator pastes is others' text, too."""
    async with room() as here:
        for payload in PAYLOADS.values():
            hostile = await here.network.join()
            [*_, member] = here.network.server.members
            await here.network.server.broadcast(payload.replace(FORGED, "FORGED"))
            here.network.server.kick(member.client, payload)
            check_lines((await here.told(hostile)).replace(b"[Server] FORGED", b"FORGED"))
        await trio.sleep(5)
        check_json((await here.told(here.program)).replace(b"[Server] FORGED", b"FORGED"))
        check_lines((await here.told(here.text)).replace(b"[Server] FORGED", b"FORGED"))
    check_log(log.lines)


# --- A hostile server ----------------------------------------------------------------------------

WELCOME: dict[str, object] = {
    "type": "welcome",
    "protocol": 1,
    "client": 7,
    "name": "Client 7",
    "room": "lobby",
    "members": 2,
    "limits": {"line": 65536, "name": 32},
    "last": "last",
    "server": "hostile",
    "resumed": False,
}
EVENTS: list[dict[str, object]] = [
    WELCOME,
    {
        "type": "said",
        "id": "1",
        "time": "2025-01-15T10:30:45.123Z",
        "room": "lobby",
        "client": 3,
        "name": "bob",
        "text": "hello",
    },
    {"type": "said", "name": "bob", "text": "waves", "act": True},
    {"type": "said", "name": "", "text": "said by nobody"},
    {"type": "direct", "time": "now", "client": 3, "name": "bob", "text": "psst"},
    {"type": "accepted", "nonce": "1", "id": "1"},
    {"type": "joined", "client": 3, "name": "bob"},
    {"type": "joined", "client": 7, "name": "Client 7", "room": "den", "members": 2},
    {"type": "left", "client": 3, "name": "bob", "reason": "kicked"},
    {"type": "renamed", "client": 3, "old": "bob", "name": "rob"},
    {"type": "renamed", "client": 7, "old": "Client 7", "name": "me"},
    {"type": "presence", "joined": 1, "left": 2, "renamed": 3, "members": 4},
    {"type": "missed", "count": 3},
    {"type": "members", "room": "lobby", "members": [{"client": 3, "name": "bob"}]},
    {"type": "rooms", "rooms": [{"room": "lobby", "members": 1}]},
    {"type": "notice", "text": "maintenance"},
    {"type": "pong", "token": "42"},
    {"type": "error", "code": "name-taken", "text": "no", "nonce": "1"},
    {"type": "unheard of", "text": "what?"},
    {"type": "goodbye", "reason": "enough"},
]


def poisoned(value: object, payload: str) -> Iterator[object]:
    """Yield *value* once for each string in it, with that one replaced by *payload*."""
    if isinstance(value, str):
        yield payload
        yield f"{value} {payload}"
    elif isinstance(value, dict):
        for key, each in value.items():
            for other in poisoned(each, payload):
                yield {**value, key: other}
    elif isinstance(value, list):
        for i, each in enumerate(value):
            for other in poisoned(each, payload):
                yield [*value[:i], other, *value[i + 1 :]]


def poisoned_events(payload: str) -> list[object]:
    events = [other for event in EVENTS for other in poisoned(event, payload)]
    return [*events, {"type": "notice", "text": "x", payload: payload}, payload, [payload]]


def in_text(payload: str) -> list[bytes]:
    lines = [
        payload,
        f"[bob] {payload}",
        f"[{payload}] hello",
        f"[{payload} → you] hello",
        f"[bob → you] {payload}",
        f"* {payload} waves",
        f"* bob {payload}",
        f"[Server] {payload}",
        f"[Server] goodbye: {payload}",
        f"[Server] unknown command /json{payload}",
    ]
    return [line.encode("utf-8", "surrogatepass") for line in lines]


def all_in_text() -> bytes:
    lines = [line for payload in PAYLOADS.values() for line in in_text(payload)]
    return b"".join(line + b"\n" for line in lines)


def all_in_json() -> bytes:
    events = [event for payload in PAYLOADS.values() for event in poisoned_events(payload)]
    # Lines after a goodbye are ignored.
    events.sort(key=lambda event: isinstance(event, dict) and event.get("type") == "goodbye")
    lines = [encode(event) for event in events for encode in (encode_escaped, encode_raw)]
    return b"".join(line + b"\n" for line in lines)


def check_events(events: list[Event]) -> None:
    for event in events:
        for each in strings(msgspec.to_builtins(event)):
            assert is_one_harmless_line(each), event


async def hear(data: bytes, *, plain: bool = False) -> list[Event]:
    """Return the library's events for a server that sends *data* and closes."""
    ours, theirs = trio.testing.memory_stream_pair()
    events: list[Event] = []
    async with trio.open_nursery() as nursery:

        async def speak() -> None:
            await theirs.send_all(data)
            await theirs.send_eof()

        nursery.start_soon(speak)
        try:
            async with open_line_chat(ours, plain=plain) as chat:
                assert (chat.codec is JSON) == data.startswith(b'{"type":"welcome"')
                if chat.welcome is not None:
                    events.append(chat.welcome)
                for each in (chat.name, chat.room):
                    assert is_one_harmless_line(each)
                while some := await chat.receive():
                    events += some
                    for each in (chat.name, chat.room, chat.goodbye or ""):
                        assert is_one_harmless_line(each)
        except Refused as error:  # the server sends a goodbye before it has admitted us
            events.append(Goodbye(str(error)))
        except MultichatError:
            pass
        await theirs.aclose()
    return events


@pytest.mark.parametrize("payload", PAYLOADS.values(), ids=PAYLOADS)
async def test_events_from_a_hostile_text_server_are_filtered(
    payload: str, autojump_clock: MockClock
) -> None:
    data = b"".join(line + b"\n" for line in in_text(payload))
    for plain in (True, False):
        events = await hear(data, plain=plain)
        is_refused = events == [Goodbye(payload)]  # before anything proves a plain line server
        assert len(events) >= len(in_text(payload)) - 1 or is_refused
        check_events(events)


@pytest.mark.parametrize("encode", [encode_escaped, encode_raw])
@pytest.mark.parametrize("payload", PAYLOADS.values(), ids=PAYLOADS)
async def test_events_from_a_hostile_json_server_are_filtered(
    payload: str, encode: object, autojump_clock: MockClock
) -> None:
    assert callable(encode)
    data = b"".join(encode(event) + b"\n" for event in [WELCOME, *poisoned_events(payload)])
    events = await hear(data)
    assert len(events) > len(EVENTS)
    check_events(events)


async def test_errors_of_a_hostile_server_are_filtered(autojump_clock: MockClock) -> None:
    for payload in PAYLOADS.values():
        for event in (
            {"type": "error", "code": payload, "text": "no"},
            {"type": "error", "code": "invalid-name", "text": payload},
        ):
            ours, theirs = trio.testing.memory_stream_pair()
            await theirs.send_all(encode_escaped(WELCOME) + b"\n" + encode_escaped(event) + b"\n")
            with pytest.raises(MultichatError) as refused:
                async with open_line_chat(ours, name="alice"):
                    pytest.fail("it was granted")
            assert is_one_harmless_line(str(refused.value))
            assert is_one_harmless_line(getattr(refused.value, "code", ""))


# --- What commands show of it --------------------------------------------------------------------


@asynccontextmanager
async def hostile_server(*says: bytes) -> AsyncIterator[Endpoint]:
    """A listener that sends every client the same, a piece for each request, and closes."""
    async with listening() as (listener, port), trio.open_nursery() as nursery:

        async def speak(stream: trio.SocketStream) -> None:
            with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                async with stream:
                    for data in says:
                        with trio.move_on_after(0.3):  # for a client that sends nothing before
                            await stream.receive_some()
                        await stream.send_all(data)
                    await stream.send_eof()
                    while await stream.receive_some():
                        pass

        nursery.start_soon(trio.serve_listeners, speak, [listener])
        yield Endpoint(host=LOOPBACK, port=port)
        nursery.cancel_scope.cancel(reason="all was said")


async def show(endpoint: Endpoint, file: Path, *, plain: bool = False) -> str:
    """Return what `multichat connect` prints, and then its last words."""
    with file.open("wb") as out, suppress(MultichatError), open_log(out.fileno()) as writer:
        await LogClient(endpoint, ChatOptions(plain=plain), writer=writer, input_fd=None).run()
    return file.read_bytes().decode("utf-8")


@pytest.mark.process
@pytest.mark.parametrize("codec", ["text", "plain", "json"])
async def test_connect_filters_what_it_shows(codec: str, tmp_path: Path) -> None:
    welcome = encode_escaped(WELCOME) + b"\n"
    # The client waits if no answer in JSON comes at once, but not if the answer is text.
    unknown = b"[Server] unknown command /json\n"
    says = welcome + all_in_json() if codec == "json" else unknown + all_in_text()
    async with hostile_server(says) as endpoint:
        shown = check_output(await show(endpoint, tmp_path / "out", plain=codec == "plain"))
    assert len([line for line in shown if "FORGED" in line]) > len(PAYLOADS) * 9


async def passed_json(endpoint: Endpoint, file: Path) -> bytes:
    with file.open("wb") as out, suppress(MultichatError):
        await JsonPipe(endpoint, ChatOptions(), input_fd=None, output_fd=out.fileno()).run()
    return file.read_bytes()


def without_keys(payload: str) -> list[object]:
    return [other for event in EVENTS for other in poisoned(event, payload)]


@pytest.mark.process
@pytest.mark.parametrize("encode", [encode_escaped, encode_raw])
async def test_passed_json_lines_are_filtered(encode: object, tmp_path: Path) -> None:
    assert callable(encode)
    events = [event for payload in PAYLOADS.values() for event in without_keys(payload)]
    says = b"".join(encode(event) + b"\n" for event in [WELCOME, *events])
    async with hostile_server(says) as endpoint:
        data = await passed_json(endpoint, tmp_path / "out")
    if encode is encode_escaped:
        assert len(check_json(data)) == 1 + len(events)
    assert is_harmless(data.decode("utf-8"))
    for line in data.decode().split("\n"):
        with suppress(ValueError):
            assert all(map(is_one_harmless_line, strings(json.loads(line))))


@pytest.mark.parametrize("payload", ["\x1b[2J", "\x9b2J", "\u202e", "\n"])
def test_names_of_json_fields_are_filtered(payload: str) -> None:
    line = encode_escaped({"type": "notice", payload: "x"}).decode()
    assert is_harmless(clean_json(line))
    assert all(map(is_one_harmless_line, strings(json.loads(clean_json(line)))))


@pytest.mark.parametrize("more", ["NaN", "-Infinity", r'"\ud800"', '"\t"', "1" * 400])
def test_json_that_only_other_decoders_accept_is_filtered(more: str) -> None:
    line = r'{"type":"notice","text":"\u001b[2J","more":' + more + "}"
    try:
        value = json.loads(clean_json(line), strict=False)
    except ValueError:
        return
    assert all(is_one_harmless_line(each) for each in strings(value) if "2J" in each)


async def failure_of(errand: Awaitable[object]) -> MultichatError | None:
    try:
        await errand
    except MultichatError as error:
        return error
    return None


@pytest.mark.process
async def test_send_and_who_filter_what_they_show() -> None:
    """What `send` and `who` print: names of members, and in one line why not."""
    members = [
        {"client": number, "name": payload} for number, payload in enumerate(PAYLOADS.values(), 10)
    ]
    answer = {"type": "members", "room": "lobby", "members": members, "nonce": 1}
    welcome = encode_escaped(WELCOME) + b"\n"
    async with hostile_server(welcome, encode_escaped(answer) + b"\n") as endpoint:
        lines = await who(endpoint, ChatOptions())
    assert len(lines) == len(PAYLOADS)
    assert all(map(is_one_harmless_line, lines))

    async def fail(*says: bytes) -> None:
        async with hostile_server(*(each + b"\n" for each in says)) as endpoint:
            for errand in (
                who(endpoint, ChatOptions()),
                send(endpoint, ChatOptions(), "x", input_fd=0),
                send(endpoint, ChatOptions(), "x", input_fd=0),
            ):
                assert is_one_harmless_line(str(await failure_of(errand) or ""))

    welcome = welcome.rstrip()
    async with trio.open_nursery() as nursery:
        for payload in PAYLOADS.values():
            goodbye = {"type": "goodbye", "reason": payload}
            error = {"type": "error", "code": payload, "text": payload, "nonce": 1}
            nursery.start_soon(fail, welcome, encode_escaped(goodbye))
            nursery.start_soon(fail, welcome, encode_escaped(error), encode_escaped(goodbye))
            text = f"[Server] goodbye: {payload}".encode("utf-8", "surrogatepass")
            nursery.start_soon(fail, text)


# --- Real commands -------------------------------------------------------------------------------


@pytest.mark.process
async def test_real_commands_filter_what_clients_send(tmp_path: Path) -> None:
    async with (
        serve(tmp_path, "--announce") as server,
        connect(tmp_path, server, "--listen") as text,
        connect(tmp_path, server, "--json", "--listen") as program,
        tcp(server) as hostile,
    ):
        await server.wait_for("connected", 3)
        await program.wait_for("welcome")
        await text.wait_for("you are")
        for payload in PAYLOADS.values():
            await hostile.send_all(said_in_text(payload) + b"/join lobby\n")
        await hostile.send_all(b"/json\n")
        for payload in PAYLOADS.values():
            for request in said_in_json(payload):
                await hostile.send_all(encode_escaped(request) + b"\n")
            await hostile.send_all(b'{"type":"join","room":"lobby"}\n')
        last = b'{"type":"say","text":"the last"}\n'
        await hostile.send_all(last)
        with trio.move_on_after(WAIT_SECONDS):
            async with trio.open_nursery() as nursery:

                async def discard() -> None:
                    while await hostile.receive_some():
                        pass

                nursery.start_soon(discard)
                await text.wait_for("the last")
                await program.wait_for("the last")
                await server.wait_for("the last")
                nursery.cancel_scope.cancel(reason="all was shown")
        check_output(server.out, "server")
        check_output(text.out)
        check_json(program.out.encode())
        assert server.err == text.err == program.err == ""
        assert text.out.count("FORGED") > len(PAYLOADS) * 5


@pytest.mark.process
async def test_real_commands_filter_what_servers_send(tmp_path: Path) -> None:
    welcome = encode_escaped(WELCOME) + b"\n"
    error = {"type": "error", "code": "x", "text": PAYLOADS["the clipboard"], "nonce": 1}
    goodbye = {"type": "goodbye", "reason": PAYLOADS["clear the screen"]}
    refusal = b"".join(encode_escaped(each) + b"\n" for each in (error, goodbye))
    commands = {
        "connect --listen": welcome + all_in_json(),
        "connect --plain --listen": all_in_text(),
        "who": welcome + refusal,
        "send": welcome + refusal,
    }

    async def run(line: str, says: bytes) -> None:
        async with hostile_server(says) as endpoint:
            words = ["x"] if line == "send" else []
            argv = (MULTICHAT, *line.split(), LOOPBACK, str(endpoint.port), *words)
            async with Command(tmp_path, *argv) as command:
                await command.wait()
                assert is_harmless(command.out + command.err)
                assert command.err.count("\n") <= 1
                if line.startswith("connect"):
                    check_output(command.out)
                else:
                    assert command.err.startswith("multichat: ")
                    assert "FORGED" in command.err

    async with trio.open_nursery() as nursery:
        for line, says in commands.items():
            nursery.start_soon(run, line, says)
