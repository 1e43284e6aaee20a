"""Typing on a real terminal, in tmux: private text stays private, and no text is lost."""

import json
import os
import re
import signal
import textwrap
from pathlib import Path

import pytest
import trio

import multichat
from tests.support.processes import (
    LOOPBACK,
    MULTICHAT,
    WAIT_SECONDS,
    ServerCommand,
    listening,
    serve,
)
from tests.support.terminals import GREY, Terminal, connect_alice, paste, wait_for_input

pytestmark = pytest.mark.process


def connect(server: ServerCommand, *options: str) -> tuple[str, ...]:
    return (MULTICHAT, "connect", "--name", "alice", *options, LOOPBACK, str(server.port))


def said(server: ServerCommand) -> list[str]:
    return [line.partition("[alice] ")[2] for line in server.lines if "[RX] [alice]" in line]


async def test_a_space_before_a_command_asks_for_confirmation(
    terminal: Terminal, tmp_path: Path
) -> None:
    async with (
        serve(tmp_path) as server,
        multichat.connect(LOOPBACK, server.port, name="bob") as bob,
    ):
        await terminal.open("t", *connect(server), columns=80, rows=24)
        await wait_for_input(terminal, "t", "")
        await terminal.type("t", " /msg bob a secret")
        question = "looks like /msg: Enter again runs it, Ctrl+S sends it to everybody in lobby, or"
        await terminal.wait_for_match("t", rf"^>  /msg bob a secret\s*\n{re.escape(question)}")
        await terminal.type("t", "was that right?")  # as a user does who looks at the keys
        await wait_for_input(terminal, "t", " /msg bob a secretwas that right?", asked=question)
        await terminal.press("t", *["BSpace"] * len("was that right?"))
        await wait_for_input(terminal, "t", " /msg bob a secret")
        await terminal.press("t", "Enter")
        await terminal.wait_for("t", question)
        await terminal.press("t", "Enter")
        async for event in bob:
            assert not isinstance(event, multichat.Said)
            if isinstance(event, multichat.Directed):
                assert event.text == "a secret"
                break
        await terminal.type("t", "/r")
        await terminal.wait_for("t", "usage: /r TEXT")
        await bob.direct("alice", "yes?")
        await terminal.wait_for("t", "bob → you  yes?")
        await terminal.run("send-keys", "-t", "t", "-l", "/r it")
        await wait_for_input(terminal, "t", f"/msg {bob.client} it")
        await terminal.press("t", "Enter")
        await terminal.wait_for_match("t", r"you → bob  it\s*\n>")
        assert said(server) == []


async def test_the_question_breaks_between_words(terminal: Terminal, tmp_path: Path) -> None:
    looks = (
        "looks like /msg: Enter again runs it, Ctrl+S sends it to everybody in lobby, or edit it"
    )
    pasted = (
        "2 pasted lines, with /msg: Ctrl+S sends them to everybody in lobby, "
        "Esc discards them (Ctrl+Y brings them back)"
    )
    (tmp_path / "lines").write_text("one\n/msg bob two\n", "utf-8")
    async with serve(tmp_path) as server:
        await connect_alice(terminal, server, columns=60, rows=24)
        await terminal.type("t", " /msg bob hi")
        for columns in (60, 50, 40):
            await terminal.resize("t", columns, 24)
            await wait_for_question(terminal, "> /msg bob hi", looks, columns)
        await terminal.press("t", "Escape", "C-u")
        await paste(terminal, tmp_path / "lines")
        for columns in (40, 50, 60):
            await terminal.resize("t", columns, 24)
            await wait_for_question(terminal, ">", pasted, columns)


async def wait_for_question(terminal: Terminal, typed: str, question: str, columns: int) -> None:
    """Wait until *question* is below the input line, in rows that are broken between words."""
    rows = textwrap.wrap(question, columns)
    with trio.move_on_after(WAIT_SECONDS):
        while True:
            shown = [" ".join(row.split()) for row in await terminal.rows("t")]
            if typed in shown and shown[shown.index(typed) + 1 :][: len(rows)] == rows:
                return
            await trio.sleep(0.05)
    pytest.fail(f"{rows} never followed {typed!r} in {shown}")


async def test_a_reply_does_not_go_to_another_client_that_has_the_name_now(
    terminal: Terminal, tmp_path: Path
) -> None:
    async with serve(tmp_path) as server:
        await terminal.open("t", *connect(server), columns=80, rows=24)
        await wait_for_input(terminal, "t", "")
        async with multichat.connect(LOOPBACK, server.port, name="bob", reconnect=False) as bob:
            await bob.direct("alice", "hi")
            await terminal.wait_for("t", "bob → you  hi")
            number = bob.client
            await bob.finish()
            async for _ in bob:
                pass
        async with multichat.connect(LOOPBACK, server.port, name="bob") as other:
            await terminal.type("t", "/r my secret")
            await terminal.wait_for("t", f"! there is no client {number}")
            await terminal.type("t", "the end")
            async for event in other:
                assert not isinstance(event, multichat.Directed)
                if isinstance(event, multichat.Said):
                    assert event.text == "the end"
                    break


async def test_a_reply_does_not_go_to_a_client_that_is_ignored(
    terminal: Terminal, tmp_path: Path
) -> None:
    async with (
        serve(tmp_path) as server,
        multichat.connect(LOOPBACK, server.port, name="bob") as bob,
        multichat.connect(LOOPBACK, server.port, name="mallory") as mallory,
    ):
        await terminal.open("t", *connect(server), columns=80, rows=24)
        await wait_for_input(terminal, "t", "")
        await terminal.type("t", "/ignore mallory")
        await terminal.wait_for("t", "mallory is ignored")
        await mallory.direct("alice", "answer me")
        await mallory.say("after it")
        await server.wait_for("after it\n")
        await terminal.type("t", "/r a secret")
        await terminal.wait_for("t", "! nobody has sent you a private message")
        await bob.direct("alice", "yes?")
        await terminal.wait_for("t", "bob → you  yes?")
        await mallory.direct("alice", "answer me")
        await bob.direct("alice", "and?")
        await mallory.direct("alice", "answer me")
        await terminal.wait_for("t", "bob → you  and?")
        await terminal.type("t", "/r a secret")
        await terminal.wait_for_match("t", r"you → bob  a secret\s*\n>")


async def test_a_confirmed_paste_is_sent_unchanged(terminal: Terminal, tmp_path: Path) -> None:
    lines = ["/usr/bin/python3 -V", "/quit", " /msg bob psst", "/help", "the end"]
    file = tmp_path / "pasted"
    file.write_text("".join(f"{line}\n" for line in lines), "utf-8")
    async with serve(tmp_path) as server:
        await terminal.open("t", *connect(server), columns=80, rows=24)
        await wait_for_input(terminal, "t", "")
        await paste(terminal, file)
        question = "5 pasted lines, with /quit: Ctrl+S sends them to everybody in lobby, Esc"
        await terminal.wait_for("t", question)
        await terminal.type("t", "oh, hey there")
        await server.wait_for("[RX] [alice] oh, hey there\n")
        await terminal.wait_for("t", question)
        await terminal.press("t", "C-s")
        await server.wait_for("[RX] [alice] the end\n")
        assert said(server) == ["oh, hey there", *lines]
        await wait_for_input(terminal, "t", "")


async def test_a_letter_with_many_marks_is_drawn_as_fast_as_letters_and_sent_unchanged(
    terminal: Terminal, tmp_path: Path
) -> None:
    file = tmp_path / "pasted"
    seconds: list[float] = []
    async with serve(tmp_path) as server:
        await terminal.open("t", *connect(server), columns=80, rows=24)
        await wait_for_input(terminal, "t", "")
        for text in ("x" * 40_000, "x" + "\u0301" * 20_000):
            file.write_text(text, "utf-8")
            start = trio.current_time()
            await paste(terminal, file)
            await terminal.type("t", "!")
            await server.wait_for(f"[RX] [alice] {text}!\n")
            await wait_for_input(terminal, "t", "")
            seconds.append(trio.current_time() - start)
    letters, marks = seconds
    assert marks < 3 * letters + 3


async def test_a_paste_that_is_too_long_is_reported(terminal: Terminal, tmp_path: Path) -> None:
    file = tmp_path / "pasted"
    file.write_text("x\n" * 10_001, "utf-8")
    async with serve(tmp_path) as server:
        await terminal.open("t", *connect(server), columns=100, rows=24)
        await wait_for_input(terminal, "t", "")
        await terminal.run("send-keys", "-t", "t", "-l", "typed before")
        await paste(terminal, file)
        await terminal.wait_for("t", "! not pasted: 10001 lines, and the limit is 10000")
        await wait_for_input(terminal, "t", "typed before")


async def test_a_line_too_long_for_the_server_returns_to_the_input_line(
    terminal: Terminal, tmp_path: Path
) -> None:
    file = tmp_path / "pasted"
    file.write_text("x" * 2000 + "y", "utf-8")
    async with serve(tmp_path, "--max-line", "1024") as server:
        await terminal.open("t", *connect(server), columns=100, rows=24)
        await wait_for_input(terminal, "t", "")
        await paste(terminal, file)
        await terminal.wait_for("t", "xy")
        await terminal.press("t", "Enter")
        await terminal.wait_for("t", "bytes; the server takes lines of 1024")
        await terminal.wait_for("t", "! the line was not sent; press the up arrow to edit it")
        await terminal.press("t", "Up")
        await terminal.wait_for("t", "xy")


@pytest.mark.parametrize("key", ["C-o", "M-Enter", "Enter"])
async def test_keys_that_accept_a_line_send_it(
    key: str, terminal: Terminal, tmp_path: Path
) -> None:
    async with serve(tmp_path) as server:
        await terminal.open("t", *connect(server))
        await wait_for_input(terminal, "t", "")
        await terminal.run("send-keys", "-t", "t", "-l", "some")
        await terminal.press("t", "C-Space")
        await terminal.type("t", " words", key)
        await server.wait_for("[RX] [alice] some words\n")
        await wait_for_input(terminal, "t", "")
        await terminal.run("send-keys", "-t", "t", "-l", "commented")
        await terminal.press("t", "M-#")
        await terminal.run("send-keys", "-t", "t", "-l", " out")
        await wait_for_input(terminal, "t", "commented out")


@pytest.mark.parametrize("way", ["C-c", "SIGTERM"])
async def test_an_unfinished_line_is_shown_on_exit(
    way: str, terminal: Terminal, tmp_path: Path
) -> None:
    async with serve(tmp_path) as server:
        await terminal.open("t", *connect(server))
        await wait_for_input(terminal, "t", "")
        await terminal.run("send-keys", "-t", "t", "-l", "half a sentence")
        await wait_for_input(terminal, "t", "half a sentence")
        if way == "C-c":
            await terminal.press("t", way)
        else:
            pane = int(await terminal.run("display-message", "-p", "-t", "t", "#{pane_pid}"))
            children = Path(f"/proc/{pane}/task/{pane}/children").read_text().split()
            for child in children:
                os.kill(int(child), signal.SIGTERM)
        await terminal.wait_for("t", "! not sent: half a sentence")
        await terminal.wait_for("t", "status=0")
        await terminal.open("u", *connect(server))
        await wait_for_input(terminal, "u", "")
        await terminal.press("u", "Up")
        await wait_for_input(terminal, "u", "half a sentence")


async def test_lines_that_wait_for_a_connection_are_shown_on_exit(
    terminal: Terminal, tmp_path: Path
) -> None:
    async with listening() as (_, port):  # never answers
        await terminal.open("t", MULTICHAT, "connect", LOOPBACK, str(port))
        await terminal.wait_for("t", "connecting · ")
        await terminal.type("t", "first")
        await terminal.type("t", "second")
        await terminal.wait_for_match("t", r"^\d\d:\d\d you  first\s*\n\d\d:\d\d you  second")
        assert await terminal.colors_of("t", "second") == {GREY}
        await terminal.press("t", "C-c")
        await terminal.wait_for_match("t", r"! not sent: first\n\d\d:\d\d ! not sent: second\n")
        await terminal.wait_for("t", "status=0")


async def test_lines_typed_before_the_server_is_up_are_shown_and_sent_later(
    terminal: Terminal, tmp_path: Path, port: int
) -> None:
    command = (MULTICHAT, "connect", "--wait", "--name", "alice", LOOPBACK, str(port))
    await terminal.open("t", *command)
    await terminal.wait_for("t", "waiting for the server")
    for number in range(30):
        await terminal.type("t", f"line {number}")
    await terminal.wait_for_match(
        "t", r"^ *… 28 more\s*\n\d\d:\d\d alice  line 28\s*\n\d\d:\d\d alice  line 29\s*\n>"
    )
    assert await terminal.colors_of("t", "line 29") == {GREY}
    async with serve(tmp_path, port=port) as server:
        await server.wait_for("[RX] [alice] line 29\n")
        assert said(server) == [f"line {number}" for number in range(30)]
        await wait_for_input(terminal, "t", "")


async def test_a_line_typed_during_the_goodbye_does_not_reach_the_shell(
    terminal: Terminal, tmp_path: Path
) -> None:
    async with listening() as (listener, port):
        await terminal.open_shell("t", columns=80, rows=24)
        await terminal.type("t", f"multichat connect {LOOPBACK} {port}")
        with trio.fail_after(WAIT_SECONDS):
            stream = await listener.accept()
        async with stream:
            welcome = {
                "type": "welcome",
                "protocol": 1,
                "client": 1,
                "name": "alice",
                "room": "lobby",
                "members": 2,
                "limits": {"line": 65536, "name": 32},
                "last": None,
                "server": "test",
                "resumed": False,
            }
            await stream.send_all(json.dumps(welcome, separators=(",", ":")).encode() + b"\n")
            await terminal.wait_for("t", "alice in lobby · 2 here")
            await terminal.run("send-keys", "-t", "t", "-l", "touch shell")
            await wait_for_input(terminal, "t", "touch shell")
            await stream.send_all(b'{"type":"goodbye","reason":"kicked","code":"kicked"}\n')
        await terminal.wait_for("t", "! goodbye: kicked")
        await terminal.wait_for("t", "! The chat has ended; press Enter to leave")
        await terminal.type("t", " -x")
        await terminal.wait_for_match("t", r"! not sent: touch shell -x\n")
        await terminal.wait_for_match("t", r"^\$\s*\Z")
        assert not (tmp_path / "shell").exists()
