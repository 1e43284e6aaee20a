"""`multichat connect` on a real terminal, in tmux: typing, what arrives meanwhile, and leaving."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

import multichat
from tests.support.processes import LOOPBACK, MULTICHAT, WAIT_SECONDS, ServerCommand, serve
from tests.support.terminals import Terminal, paste, wait_for_input

pytestmark = pytest.mark.process


def connect(server: ServerCommand, *options: str) -> tuple[str, ...]:
    return (MULTICHAT, "connect", *options, LOOPBACK, str(server.port))


@asynccontextmanager
async def chatter(server: ServerCommand, every_seconds: float = 0.1) -> AsyncIterator[list[str]]:
    """A client that sends a message ten times a second; yields the messages so far."""
    said: list[str] = []
    async with (
        multichat.connect(LOOPBACK, server.port, name="bob") as chat,
        trio.open_nursery() as nursery,
    ):

        async def talk() -> None:
            while True:
                # Some shorter than the screen is wide, some longer, some with wide characters.
                text = f"line {len(said)} " + "안녕 " * (len(said) % 23)
                said.append(text.strip())
                await chat.say(said[-1])
                await trio.sleep(every_seconds)

        nursery.start_soon(talk)
        yield said
        nursery.cancel_scope.cancel()


def pieces_of_input(rows: list[str]) -> list[str]:
    return [row for row in rows if row.startswith("> ") or row == ">"]


# --- Typing while others talk -----------------------------------------------------------------


@pytest.mark.parametrize(("columns", "rows"), [(80, 24), (60, 15)])
async def test_nothing_typed_is_lost_or_torn_while_lines_arrive(
    columns: int, rows: int, terminal: Terminal, tmp_path: Path
) -> None:
    words = ["the", "quick", "brown", "fox", "jumps", "over", "안녕", "καλημέρα", "été"]
    async with serve(tmp_path) as server:
        await terminal.open("t", *connect(server, "--name", "alice"), columns=columns, rows=rows)
        await wait_for_input(terminal, "t", "")
        async with chatter(server) as said:
            typed = ""
            for word in words:
                before = len(said)
                typed += f"{word} "
                for character in f"{word} ":
                    await terminal.run("send-keys", "-t", "t", "-l", character)
                    # A screen is torn if its input line is not the text typed so far.
                    screen = await terminal.rows("t")
                    shown = pieces_of_input(screen)
                    assert len(shown) == 1, screen
                    assert typed.startswith(shown[0][2:].rstrip())
                await wait_for_input(terminal, "t", typed.rstrip())
                while len(said) == before:  # something arrives between two words at least
                    await trio.sleep(0.01)
            await terminal.wait_for("t", "alice in lobby · 2 here")
            # Editing: the third word away, another one to its front, back to the end.
            await terminal.press("t", "C-a", "M-f", "M-f", "M-f", "C-w")
            await terminal.run("send-keys", "-t", "t", "-l", "red")
            await terminal.press("t", "C-e")
            await terminal.run("send-keys", "-t", "t", "-l", "to b")
            await terminal.press("t", "Tab")
            edited = typed.replace("brown", "red") + "to bob"
            await wait_for_input(terminal, "t", edited)
            await terminal.press("t", "Enter")
            await wait_for_input(terminal, "t", "")
            await server.wait_for(f"[RX] [alice] {edited}\n")
            await terminal.wait_for_match("t", rf"\d\d:\d\d alice  {re.escape(edited)}$")
            # And the messages of others are there too, in order.
            last = said[-1]
            await terminal.wait_for("t", last)
            numbers = re.findall(r"bob  line (\d+)", await terminal.screen("t"))
            assert [int(n) for n in numbers] == list(
                range(int(numbers[0]), int(numbers[0]) + len(numbers))
            )


async def test_no_screen_is_ever_half_drawn(terminal: Terminal, tmp_path: Path) -> None:
    async with serve(tmp_path) as server:
        await terminal.open("t", *connect(server, "--name", "alice"))
        await wait_for_input(terminal, "t", "")
        await terminal.run("send-keys", "-t", "t", "-l", "half a sentence")
        await wait_for_input(terminal, "t", "half a sentence")
        async with chatter(server, every_seconds=0.02):
            for _ in range(300):
                shown = await terminal.rows("t")
                assert pieces_of_input(shown) == ["> half a sentence"], shown
                assert sum(" in lobby · " in row for row in shown) == 1, shown


async def test_nothing_typed_is_lost_while_the_window_is_resized(
    terminal: Terminal, tmp_path: Path
) -> None:
    text = "0123456789" * 4
    sizes = [(60, 15), (80, 24), (50, 12), (132, 40), (64, 15)]
    async with serve(tmp_path) as server:
        await terminal.open("t", *connect(server, "--name", "alice"))
        await wait_for_input(terminal, "t", "")
        async with chatter(server):
            for number, character in enumerate(text):
                await terminal.run("send-keys", "-t", "t", "-l", character)
                if number % 4 == 0:
                    await terminal.resize("t", *sizes[number // 4 % len(sizes)])
            for columns, rows in sizes:
                await terminal.resize("t", columns, rows)
                await wait_for_input(terminal, "t", text)
                await terminal.wait_for_match("t", r"bob  line \d+")
                shown = await terminal.rows("t")
                assert len(pieces_of_input(shown)) == 1, shown
                assert sum(" in lobby · " in row for row in shown) == 1, shown
        await terminal.press("t", "Enter")
        await server.wait_for(f"[RX] [alice] {text}\n")


async def test_a_long_input_line_takes_more_rows_and_releases_them(
    terminal: Terminal, tmp_path: Path
) -> None:
    text = "안" * 70  # 140 columns, on 60
    async with serve(tmp_path) as server:
        await terminal.open("t", *connect(server, "--name", "alice"))
        await wait_for_input(terminal, "t", "")
        await terminal.run("send-keys", "-t", "t", "-l", text)
        with trio.fail_after(WAIT_SECONDS):
            while "".join(await terminal.rows("t")).count("안") != len(text):
                await trio.sleep(0.02)
        await terminal.press("t", "Enter")
        await server.wait_for(f"[RX] [alice] {text}\n")
        await wait_for_input(terminal, "t", "")


async def test_commands_names_and_rooms_are_completed(terminal: Terminal, tmp_path: Path) -> None:
    async with (
        serve(tmp_path) as server,
        multichat.connect(LOOPBACK, server.port, name="bartholomew") as bart,
        multichat.connect(LOOPBACK, server.port, name="barbara"),
        multichat.connect(LOOPBACK, server.port, name="cook", room="kitchen") as cook,
    ):
        await terminal.open("t", *connect(server, "--name", "alice"))
        await terminal.wait_for("t", "alice in lobby · 3 here")
        # When the names are known is up to the server: asked again until they are.
        await until_completed(terminal, "bart", "bartholomew: ")
        await terminal.type("t", "hello")
        assert (await next_said(bart)).text == "bartholomew: hello"
        await terminal.run("send-keys", "-t", "t", "-l", "ba")
        await terminal.press("t", "Tab")  # as far as it is certain, and both are offered
        await terminal.wait_for_match("t", r"^> bar\n\s*barbara: \s*\n\s*bartholomew: ")
        await terminal.press("t", "Tab", "Tab")
        await terminal.wait_for_match("t", "^> bartholomew:")
        await terminal.press("t", "C-a", "C-k")
        await wait_for_input(terminal, "t", "")
        await terminal.run("send-keys", "-t", "t", "-l", "/jo")
        await terminal.press("t", "Tab")
        await terminal.run("send-keys", "-t", "t", "-l", "ki")
        await terminal.press("t", "Tab", "Enter")
        await wait_for_input(terminal, "t", "", room="kitchen")
        await terminal.type("t", "smells good")
        event = await next_said(cook)
        assert (event.name, event.text) == ("alice", "smells good")


async def next_said(chat: multichat.Chat) -> multichat.Said:
    async for event in chat:
        if isinstance(event, multichat.Said):
            return event
    pytest.fail("nobody said anything")


async def until_completed(terminal: Terminal, begun: str, whole: str) -> None:
    with trio.fail_after(WAIT_SECONDS):
        while True:
            await terminal.run("send-keys", "-t", "t", "-l", begun)
            await terminal.press("t", "Tab")
            await terminal.wait_for_match("t", f"^> {begun}")
            if f"> {whole.rstrip()}" in await terminal.screen("t"):
                return
            await terminal.press("t", "C-a", "C-k")
            await wait_for_input(terminal, "t", "")


async def test_the_input_history_survives_a_restart(terminal: Terminal, tmp_path: Path) -> None:
    async with serve(tmp_path, "--password-file", str(password(tmp_path))) as server:
        options = ("--name", "alice", "--password-file", str(password(tmp_path)))
        await terminal.open("t", *connect(server, *options))
        await wait_for_input(terminal, "t", "")
        await terminal.type("t", "first words")
        await terminal.type("t", "/auth swordfish")
        await terminal.type("t", "last words")
        await server.wait_for("[RX] [alice] last words")
        await terminal.press("t", "C-d")
        await terminal.wait_for("t", "status=0")
        history = tmp_path / "history"
        assert history.read_text("utf-8") == "first words\nlast words\n"
        assert history.stat().st_mode & 0o777 == 0o600
        await terminal.open("u", *connect(server, *options))
        await terminal.wait_for("u", "in lobby · ")
        await terminal.press("u", "Up", "Up")
        await terminal.wait_for_match("u", "^> first words")
        await terminal.press("u", "Down")
        await terminal.wait_for_match("u", "^> last words")


def password(folder: Path) -> Path:
    file = folder / "password.txt"
    file.write_text("swordfish\n", "utf-8")
    return file


# --- Pasting ----------------------------------------------------------------------------------


async def test_a_paste_of_many_lines_asks_once(terminal: Terminal, tmp_path: Path) -> None:
    file = tmp_path / "pasted"
    file.write_text("".join(f"pasted line {i}\n" for i in range(14)), "utf-8")
    async with serve(tmp_path) as server:
        await terminal.open("t", *connect(server, "--name", "alice"))
        await wait_for_input(terminal, "t", "")
        await terminal.run("send-keys", "-t", "t", "-l", "look: ")
        await paste(terminal, file)
        await terminal.wait_for_match("t", r"^> look:\s*\n14 pasted lines: Ctrl\+S sends them")
        await terminal.press("t", "x", "BSpace", "Escape")  # only an answer is one
        await wait_for_input(terminal, "t", "look:")
        await paste(terminal, file)
        await terminal.wait_for("t", "14 pasted lines: Ctrl+S sends them")
        await terminal.press("t", "C-s")
        await server.wait_for("[RX] [alice] pasted line 13\n")
        said = [line for line in server.lines if "[RX]" in line]
        expected = ["look: pasted line 0", *(f"pasted line {i}" for i in range(1, 14))]
        assert [line.partition("[alice] ")[2] for line in said] == expected
        await wait_for_input(terminal, "t", "")


async def test_a_paste_of_one_line_waits_for_enter(terminal: Terminal, tmp_path: Path) -> None:
    file = tmp_path / "pasted"
    file.write_text("one \x1b[31m line\n", "utf-8")
    async with serve(tmp_path) as server:
        await terminal.open("t", *connect(server, "--name", "alice"))
        await wait_for_input(terminal, "t", "")
        await paste(terminal, file)
        await wait_for_input(terminal, "t", "one ␛[31m line")
        await terminal.press("t", "Enter")
        await server.wait_for("[RX] [alice] one ␛[31m line\n")


# --- Ways out ---------------------------------------------------------------------------------


async def modes(terminal: Terminal) -> str:
    """What `stty -a` says of the terminal of a shell, whose screen is empty afterwards."""
    await terminal.type("t", "clear; stty -a; echo end=$?")
    await terminal.wait_for_match("t", "^end=0")
    shown = await terminal.screen("t")
    await terminal.type("t", "clear")
    await terminal.wait_for_match("t", r"\A\$\s*\Z")
    return shown[: shown.index("end=0")]


async def pid_of(name: str, port: int) -> int:
    """The process of a client that is on its way to *port*."""
    with trio.fail_after(WAIT_SECONDS):
        while True:
            for folder in Path("/proc").glob("[0-9]*"):
                try:
                    argv = (folder / "cmdline").read_bytes().decode("utf-8", "replace").split("\0")
                except OSError:
                    continue
                if name in argv and str(port) in argv and "connect" in argv:
                    return int(folder.name)
            await trio.sleep(0.02)


@pytest.mark.parametrize(
    "way", ["C-c", "C-d", "/quit", "SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT", "goodbye", "crash"]
)
async def test_every_way_out_leaves_the_terminal_as_it_was(
    way: str, terminal: Terminal, tmp_path: Path
) -> None:
    async with serve(tmp_path) as server:
        await terminal.open_shell("t", columns=80, rows=24)
        before = await modes(terminal)
        assert "-icanon" not in before
        command = f"multichat connect --no-reconnect --name alice {LOOPBACK} {server.port}"
        await terminal.type("t", command)
        await wait_for_input(terminal, "t", "")
        await terminal.type("t", "hello")
        await terminal.wait_for_match("t", "alice  hello$")
        expected = 0
        match way:
            case "C-c" | "C-d":
                await terminal.press("t", way)
            case "/quit":
                await terminal.type("t", way)
            case "goodbye":
                server.signal(signal.SIGTERM)
            case "crash":
                server.process.kill()
                expected = 1
            case _:
                os.kill(await pid_of("alice", server.port), signal.Signals[way])
        await terminal.wait_for_match("t", r"^\$\s*\Z")
        screen = await terminal.screen("t")
        assert "Traceback" not in screen
        assert "in lobby ·" not in screen, "our last rows are gone"
        await terminal.type("t", "echo status=$?")
        await terminal.wait_for_match("t", f"^status={expected}")
        assert await modes(terminal) == before


@pytest.mark.parametrize("ignored", [False, True], ids=["SIGHUP", "nohup"])
async def test_a_closed_terminal_ends_the_client_in_order(
    ignored: bool, terminal: Terminal, tmp_path: Path
) -> None:
    """As when a window is closed or ssh drops; where SIGHUP is ignored, reads and writes fail."""
    async with (
        serve(tmp_path) as server,
        multichat.connect(LOOPBACK, server.port, name="bob") as bob,
    ):
        before = "trap '' HUP; " if ignored else ""
        await terminal.open("t", *connect(server, "--name", "alice"), before=before)
        await wait_for_input(terminal, "t", "")
        pid = await pid_of("alice", server.port)
        await terminal.run("send-keys", "-t", "t", "-l", "half a sentence")
        await wait_for_input(terminal, "t", "half a sentence")
        with trio.fail_after(WAIT_SECONDS):
            async for event in bob:
                if isinstance(event, multichat.Joined) and event.name == "alice":
                    break
        await terminal.run("kill-session", "-t", "t")
        with trio.fail_after(WAIT_SECONDS):
            # Not away, as after a crash: its connection was closed with a quit.
            async for event in bob:
                if isinstance(event, multichat.Left) and event.name == "alice":
                    assert not event.reason
                    break
            while Path(f"/proc/{pid}/fd/0").exists():
                await trio.sleep(0.02)


@pytest.mark.parametrize(
    ("method", "arguments", "keys"),
    [
        ("Conversation.ignore", "*_", [*"/ignore bob", "Enter"]),
        ("ChatSyntax.complete", "self, before", ["b", "Tab"]),
    ],
    ids=["in a command", "in drawing"],
)
async def test_a_bug_leaves_the_terminal_as_it_was(
    method: str, arguments: str, keys: list[str], terminal: Terminal, tmp_path: Path
) -> None:
    program = tmp_path / "crash.py"
    program.write_text(
        "from multichat.cli.main import main\n"
        "from multichat.terminal.app import ChatSyntax, Conversation\n"
        f"def crash({arguments}): raise RuntimeError('a bug of ours')\n"
        f"{method} = crash\n"
        "main()\n",
        "utf-8",
    )
    async with serve(tmp_path) as server:
        await terminal.open_shell("t", columns=80, rows=24)
        before = await modes(terminal)
        command = f"{sys.executable} {program} connect --name alice {LOOPBACK} {server.port}"
        await terminal.type("t", command)
        await wait_for_input(terminal, "t", "")
        await terminal.press("t", *keys)
        await terminal.wait_for("t", "RuntimeError: a bug of ours")
        await terminal.wait_for_match("t", r"^\$\s*\Z")
        assert await modes(terminal) == before


@pytest.mark.parametrize("how", ["C-z", "SIGTSTP", "SIGSTOP"])
async def test_stop_and_continue(how: str, terminal: Terminal, tmp_path: Path) -> None:
    async with serve(tmp_path) as server:
        await terminal.open_shell("t", columns=80, rows=24)
        before = await modes(terminal)
        await terminal.type("t", f"multichat connect --name alice {LOOPBACK} {server.port}")
        await wait_for_input(terminal, "t", "")
        await terminal.run("send-keys", "-t", "t", "-l", "half a sen")
        await wait_for_input(terminal, "t", "half a sen")
        if how == "C-z":
            await terminal.press("t", how)
        else:
            os.kill(await pid_of("alice", server.port), signal.Signals[how])
        await terminal.wait_for("t", "Stopped")
        if how != "SIGSTOP":  # which leaves no time to clean up; the shell does, for itself
            assert await modes(terminal) == before
        await terminal.type("t", "fg", "C-j")  # Enter is another key in a mode that is not ours
        await wait_for_input(terminal, "t", "half a sen")
        await terminal.type("t", "tence")
        await server.wait_for("[RX] [alice] half a sentence\n")
        await wait_for_input(terminal, "t", "")
        await terminal.press("t", "C-d")
        await terminal.wait_for_match("t", r"^\$\s*\Z")
        assert await modes(terminal) == before


async def test_leaving_before_the_connection_exists(terminal: Terminal) -> None:
    with trio.socket.socket() as listener:  # never answers
        await listener.bind((LOOPBACK, 0))
        listener.listen()
        port = listener.getsockname()[1]
        await terminal.open_shell("t", columns=80, rows=24)
        before = await modes(terminal)
        await terminal.type("t", f"multichat connect {LOOPBACK} {port}")
        await terminal.wait_for("t", "connecting · ")
        await terminal.press("t", "C-c")
        await terminal.wait_for_match("t", r"^\$\s*\Z")
        assert await modes(terminal) == before
        await terminal.type("t", f"multichat connect --timeout 0.5 {LOOPBACK} {port}")
        await terminal.wait_for("t", "the server did not answer in 0.5 s")
        assert await modes(terminal) == before


# --- Its cost ---------------------------------------------------------------------------------


def wakes(pid: int) -> int:
    """How often the threads of *pid* have gone to sleep of their own accord."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        found = re.search(
            r"^voluntary_ctxt_switches:\t(\d+)", (task / "status").read_text(), re.MULTILINE
        )
        assert found
        total += int(found[1])
    return total


async def test_an_idle_client_wakes_at_most_once_a_second(
    terminal: Terminal, tmp_path: Path
) -> None:
    async with serve(tmp_path) as server:
        await terminal.open("t", *connect(server, "--name", "alice"))
        await wait_for_input(terminal, "t", "")
        pid = await pid_of("alice", server.port)
        least = float("inf")
        for _ in range(5):  # the minimum of several: earlier work may still be finishing
            started, before = time.monotonic(), wakes(pid)
            await trio.sleep(2)
            least = min(least, (wakes(pid) - before) / (time.monotonic() - started))
            if least <= 1:
                break
        assert least <= 1


OURS = (
    "cli.config_file",
    "cli.main",
    "cli.commands",
    "terminal.app",
    "terminal.input_history",
    "terminal.prompt",
)


def needed_modules() -> list[str]:
    """The modules that are imported before the prompt, except our own."""
    imports = "; ".join(f"import multichat.{name}" for name in OURS)
    code = f"import sys; before = {{*sys.modules}}; {imports}; print(*({{*sys.modules}} - before))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    # The parts of a module that come with it, and what cannot be imported by its name.
    names = {name for name in shown.stdout.split() if not name.startswith(("multichat", "_"))}
    return sorted(name for name in names if name not in ("posixpath", "os.path"))


async def test_the_prompt_appears_within_one_and_a_half_times_the_import_time(
    terminal: Terminal, tmp_path: Path
) -> None:
    """The best of several runs in turn, each of them in a terminal of its own."""
    program = tmp_path / "imports.py"
    lines = [f"import importlib\nfor name in {needed_modules()}:"]
    lines += ["    try: importlib.import_module(name)", "    except ImportError: pass"]
    program.write_text("\n".join([*lines, "print('> ')\n"]), "utf-8")
    async with serve(tmp_path) as server:

        async def seconds(*command: str) -> float:
            name = f"t{time.monotonic_ns()}"
            started = time.perf_counter()
            await terminal.open(name, *command)
            await terminal.wait_for_match(name, "^>")
            taken = time.perf_counter() - started
            await terminal.run("kill-session", "-t", name)
            return taken

        bare, ours = [], []
        for _ in range(30):
            bare.append(await seconds(sys.executable, str(program)))
            ours.append(await seconds(*connect(server)))
            if min(ours) <= 1.5 * min(bare):
                return
        pytest.fail(f"{ours} seconds, and with nothing but the imports {bare}")
