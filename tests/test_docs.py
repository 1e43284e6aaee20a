"""Checks the documents: wire examples run, and commands and options exist."""

import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TypeVar, get_args

import msgspec
import pytest
import trio
import trio.testing
from websockets.frames import Opcode

import multichat
from multichat import ServerConfig, errors
from multichat.errors import RemoteProtocolError
from multichat.protocol.messages import WireEvent, WireRequest
from multichat.server.config import AccountLimits
from multichat.testing import ScriptedClient, memory_server

from .support.documents import load
from .support.processes import program
from .support.websockets import frame, join_websocket

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])


def blocks(path: Path, language: str) -> list[str]:
    text = path.read_text("utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def wire_bytes(text: str) -> bytes:
    """Return the bytes that a line of an example represents."""
    unended = text.endswith("\\c")
    escapes = {"\\r": b"\r", "\\n": b"\n", "\\t": b"\t", "\\\\": b"\\"}
    made = b""
    for piece in re.split(r"(\\x[0-9a-f]{2}|\\[rnt\\])", text.removesuffix("\\c")):
        if piece.startswith("\\x"):
            made += bytes.fromhex(piece[2:])
        else:
            made += escapes.get(piece, piece.encode())
    return made if unended else made + b"\n"


WIRE = blocks(ROOT / "docs" / "protocol.md", "wire")
WITH_ACCOUNTS = blocks(ROOT / "docs" / "protocol.md", "wire accounts")
WITH_PASSWORD = blocks(ROOT / "docs" / "protocol.md", "wire password")
WEBSOCKET = blocks(ROOT / "docs" / "protocol.md", "wire websocket")
WEBSOCKET_LINES = blocks(ROOT / "docs" / "protocol.md", "wire websocket lines")


@pytest.mark.parametrize("block", WIRE, ids=range(len(WIRE)))
async def test_the_examples_of_the_wire(block: str, autojump_clock: trio.testing.MockClock) -> None:
    await run_example(block, ServerConfig())


async def test_the_example_with_a_password(autojump_clock: trio.testing.MockClock) -> None:
    [block] = WITH_PASSWORD
    await run_example(block, ServerConfig(password="swordfish"))


@pytest.mark.parametrize("number", range(len(WITH_ACCOUNTS)))
async def test_the_examples_with_accounts(number: int) -> None:
    """On the real clock, because passphrases are hashed in a thread."""
    accounts = AccountLimits(hash_kib=8, hash_passes=1)
    await run_example(
        WITH_ACCOUNTS[number],
        ServerConfig(accounts=accounts, operators=("alice",) if number else ()),
        account="alice correct horse" if number else "",
    )


@pytest.mark.parametrize("number", range(len(WEBSOCKET)))
async def test_the_examples_of_websocket(
    number: int, autojump_clock: trio.testing.MockClock
) -> None:
    await run_websocket_example(WEBSOCKET[number], lines=False)


async def test_the_example_of_the_subprotocol(autojump_clock: trio.testing.MockClock) -> None:
    [block] = WEBSOCKET_LINES
    await run_websocket_example(block, lines=True)


async def run_websocket_example(block: str, *, lines: bool) -> None:
    """Run an example whose client 1 uses WebSocket, and client 2 TCP."""
    kinds = {"part": Opcode.TEXT, "ping": Opcode.PING, "close": Opcode.CLOSE}
    async with memory_server() as network:
        web, tcp = await join_websocket(network, lines=lines), await network.join()
        amid_message = False
        for line in block.splitlines():
            step = re.fullmatch(r"(\d)([<>.]) ?(?:\((\w+)\) ?)?(.*)", line)
            assert step, line
            client, direction, kind, text = step.groups()
            data = wire_bytes(text).removesuffix(b"\n")
            match client, direction:
                case "1", ">":
                    opcode = kinds.get(kind, Opcode.TEXT)
                    if opcode is Opcode.CLOSE:
                        data = int(data[:4]).to_bytes(2, "big") + data[5:]
                    elif opcode is Opcode.TEXT and amid_message:
                        opcode = Opcode.CONT
                    await web.stream.send_all(frame(opcode, data, fin=kind != "part"))
                    if kind in (None, "part"):
                        amid_message = kind == "part"
                case "1", "<":
                    event = await web.event()
                    received = bytes(event.data)
                    if event.opcode is Opcode.CLOSE:
                        code = int.from_bytes(received[:2], "big")
                        received = f"{code} {received[2:].decode()}".rstrip().encode()
                    assert event.opcode.name == (kind or "text").upper(), event
                    pattern = re.escape(data).replace("…".encode(), b".*")
                    assert re.fullmatch(pattern, received), (received, data)
                case "1", _:
                    await web.rest()
                    assert web.events == []
                case _, ">":
                    await tcp.stream.send_all(data + b"\n")
                case _, "<":
                    assert await tcp.line() == text
            await trio.testing.wait_all_tasks_blocked()
        if not web.ended:
            web.peer.send_close(1000)
            await web.flush()
            await web.rest()
            assert [event.opcode for event in web.events] == [Opcode.CLOSE]
        assert not await _unannounced(tcp)


async def run_example(block: str, config: ServerConfig, *, account: str = "") -> None:
    steps = [re.fullmatch(r"(\d)([<>|.]) ?(.*)", line) for line in block.splitlines()]
    async with memory_server(config) as network:
        if account:
            await network.server.admin.account(f"add {account}")
        clients = [await network.join(), await network.join()]
        received = [bytearray(), bytearray()]
        for step in steps:
            assert step, block
            client = clients[int(step[1]) - 1]
            match step[2]:
                case ">":
                    await client.stream.send_all(wire_bytes(step[3]))
                case "|":
                    await client.finish()
                case "<":
                    expected = wire_bytes(step[3])
                    buffer = received[int(step[1]) - 1]
                    while b"\n" not in buffer:
                        with trio.fail_after(60):
                            buffer += await client.stream.receive_some()
                    line, _, rest = buffer.partition(b"\n")
                    # "…" stands for values that vary.
                    pattern = re.escape(expected).replace("…".encode(), b".*")
                    assert re.fullmatch(pattern, bytes(line) + b"\n"), (bytes(line), expected)
                    buffer[:] = rest
                case ".":
                    with trio.fail_after(60):
                        assert await client.stream.receive_some() == b""
            await trio.testing.wait_all_tasks_blocked()
        for client, buffer in zip(clients, received, strict=True):
            assert not buffer
            assert not await _unannounced(client)


async def _unannounced(client: ScriptedClient) -> bytes:
    with trio.move_on_after(1):
        return bytes(await client.stream.receive_some())
    return b""


def test_there_are_examples_of_the_wire() -> None:
    assert len(WIRE) >= 6


def links() -> Iterator[tuple[Path, str]]:
    for page in PAGES:
        for target in re.findall(r"\]\((?!http)([^)#]+)", page.read_text("utf-8")):
            yield page, target


@pytest.mark.parametrize(("page", "target"), list(links()), ids=str)
def test_links_lead_somewhere(page: Path, target: str) -> None:
    assert (page.parent / target).exists()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_options_named_in_documents_exist(page: Path) -> None:
    known = set(
        re.findall(r"--[a-z][a-z-]+", (ROOT / "docs" / "command_line.md").read_text("utf-8"))
    )
    known |= {"--write", "--chat", "--max-conns", "--from"}  # ours to nox, ncat's, uvx's
    known |= {"--data-binary", "--build", "--now", "--upgrade"}  # of curl, docker, systemctl, pip
    known |= {"--deploy-hook", "--standalone", "--stop-timeout", "--signal"}  # of certbot, docker
    known |= {"--systemd"}  # of the run as a service
    known |= {
        "--appendonly",
        "--appendfsync",
        "--maxmemory",
        "--maxmemory-policy",
        "--dir",
        "--rdb",
        "--requirepass",
        "--protected-mode",
        "--askpass",
    }
    # the last ones are of Valkey
    known |= {
        "--seed",
        "--seeds",
        "--start",
        "--seconds",
        "--minutes",
        "--kills",
        "--rooms",
    }  # of the simulation, fuzzing, the soak, kills
    known |= set(re.findall(r'"(--[a-z-]+)"', (ROOT / "benchmarks/__main__.py").read_text("utf-8")))
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", page.read_text("utf-8")))
    named -= {option for option in named if f"pip install {option}" in page.read_text("utf-8")}
    assert named <= known


@pytest.mark.process
def test_every_command_is_in_the_reference() -> None:
    shown = subprocess.run(
        [Path(sys.executable).parent / "multichat", "--help"], capture_output=True, text=True
    ).stdout
    commands = re.findall(r"^  (\w+)  +\w", shown.partition("Commands:")[2], re.MULTILINE)
    assert commands
    reference = (ROOT / "docs" / "command_line.md").read_text("utf-8")
    for command in commands:
        assert f"## `multichat {command}`" in reference


def test_names_in_the_readmes_program_exist() -> None:
    [program] = blocks(ROOT / "README.md", "python")
    compile(program, "README.md", "exec")
    for name in re.findall(r"multichat\.(\w+)", program):
        assert name in multichat.__all__
    readme = (ROOT / "README.md").read_text("utf-8")
    [listed] = re.findall(r"`server` has (.*)\.", readme)
    for name in re.findall(r"`(\w+)`", listed):
        assert hasattr(multichat.Server, name)


@pytest.mark.process
async def test_the_program_of_the_readme_runs(port: int) -> None:
    [program] = blocks(ROOT / "README.md", "python")
    source = program.replace("9000", str(port)).replace("print(event) ", "print(event, flush=True)")
    async with trio.open_nursery() as nursery:
        run = partial(trio.run_process, capture_stdout=True, check=False)
        process = await nursery.start(run, [sys.executable, "-c", source])
        while True:
            try:
                stream = await trio.open_tcp_stream("127.0.0.1", port)
            except OSError:
                assert process.returncode is None
                await trio.sleep(0.05)
            else:
                break
        async with stream:
            await stream.send_all(b"Hello back!\n/quit\n")
            while await stream.receive_some():
                pass
        process.terminate()
        await process.wait()


def test_the_readme_has_its_two_commands_and_ci_runs_the_second() -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    assert re.search(r"<!-- run -->\n```sh\n[^\n]*multichat serve 9000\n```", readme)
    assert re.search(r"<!-- test -->\n```sh\n[^\n]*/nox\n```", readme)
    assert "<!-- test -->" in (ROOT / ".ci" / "run").read_text("utf-8")


T = TypeVar("T")


def held(session: Callable[[Path], T], is_as_shown: Callable[[T], bool]) -> T:
    """Run a documented session on terminals, and return its output.

    Repeated if it differs from the document: on a busy machine a client may be announced before it
    has sent its name.
    """
    for _ in range(3):
        # The path of a socket has at most 107 bytes; the folder of a test may be longer.
        with tempfile.TemporaryDirectory() as folder:
            shown = session(Path(folder))
        if is_as_shown(shown):
            break
    return shown


@pytest.mark.process
def test_the_documented_session_matches_reality() -> None:
    for name in ("tmux", "nc"):
        program(name)
    make_session = load("make_session")
    page = (ROOT / "docs" / "session.md").read_text("utf-8")
    shown = held(make_session.hold_session, lambda shown: make_session.encode(shown) == page)
    assert make_session.encode(shown) == page


@pytest.mark.process
def test_the_pictures_match_reality() -> None:
    program("tmux")
    make_pictures = load("make_pictures")
    pages = {theme: page.read_text("utf-8") for theme, page in make_pictures.PAGES.items()}
    session = partial(trio.run, make_pictures.hold_session)
    shown = held(session, lambda shown: make_pictures.make(shown) == pages)
    assert make_pictures.make(shown) == pages


def test_the_changelog_knows_this_version() -> None:
    assert f"## {multichat.__version__}" in (ROOT / "CHANGELOG.md").read_text("utf-8")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_one_sentence_per_line(page: Path) -> None:
    if page.name == "command_line.md":
        return  # generated
    text = re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    for line in text.splitlines():
        if not line.startswith(("|", "-", "#")):
            assert not re.search(r"[a-z`)]\. [A-Z]", line), line


def test_the_design_lists_every_module() -> None:
    design = (ROOT / "docs" / "design.md").read_text("utf-8")
    package = ROOT / "multichat"
    modules = {
        ".".join(path.relative_to(package).with_suffix("").parts)
        for path in package.rglob("[!_]*.py")
    }
    listed = set(re.findall(r"^\| `([\w.]+)` \|", design, re.MULTILINE))
    assert modules <= listed


@pytest.mark.parametrize("kind", [*get_args(WireRequest), *get_args(WireEvent)])
def test_every_request_and_event_is_documented_with_its_fields(kind: type[msgspec.Struct]) -> None:
    tag, fields = kind.__struct_config__.tag, kind.__struct_encode_fields__
    protocol = (ROOT / "docs" / "protocol.md").read_text("utf-8")
    rows = "".join(re.findall(rf"^\| `{tag}` \|.*", protocol, re.MULTILINE))
    assert {f"`{field}`" for field in fields if field != "nonce"} <= set(
        re.findall("`[^`]+`", rows)
    )


def test_every_error_code_is_documented() -> None:
    protocol = (ROOT / "docs" / "protocol.md").read_text("utf-8")
    codes = {
        error.code
        for error in vars(errors).values()
        if isinstance(error, type) and issubclass(error, RemoteProtocolError)
    }
    assert {code for code in codes if f"`{code}`" not in protocol} == set()
