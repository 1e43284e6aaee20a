"""Encodings at the edges: locales, arguments, variables and standard input that are not UTF-8."""

import re
import subprocess
from pathlib import Path

import pytest
import trio

import multichat
from multichat.cli.process import read_password_file
from tests.support.processes import (
    LOOPBACK,
    MULTICHAT,
    Command,
    ServerCommand,
    connect,
    program,
    serve,
)
from tests.support.terminals import Terminal

pytestmark = pytest.mark.process

# Locales of terminals; the last one is that in which old systems start programs.
LOCALES = {
    "C": {"LC_ALL": "C"},
    "POSIX": {"LC_ALL": "POSIX"},
    "ascii": {"PYTHONIOENCODING": "ascii"},
    "latin-1": {"PYTHONIOENCODING": "latin-1"},
    "utf-16": {"PYTHONIOENCODING": "utf-16"},
    "no UTF-8 mode": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
}
NAME = "Женя"
TEXT = "grüße 张伟 👋"

in_every_locale = pytest.mark.parametrize("variables", LOCALES.values(), ids=LOCALES)


def in_environment(folder: Path, variables: dict[str, str], *argv: str) -> Command:
    settings = [f"{key}={value}" for key, value in variables.items()]
    return Command(folder, program("env"), *settings, MULTICHAT, *argv)


@in_every_locale
async def test_commands_work_in_every_locale(variables: dict[str, str], tmp_path: Path) -> None:
    async with (
        serve(tmp_path) as server,
        multichat.connect(LOOPBACK, server.port, name=NAME),
    ):
        place = f"{LOOPBACK}:{server.port}"
        async with (
            in_environment(tmp_path, variables, "who", place) as who,
            in_environment(tmp_path, variables, "send", place, TEXT, "--name", "Ζωή") as send,
            in_environment(tmp_path, variables, "send", place, "-") as piped,
            in_environment(tmp_path, variables, "connect", place, "--name", NAME) as talking,
            in_environment(tmp_path, variables, "config") as config,
        ):
            await piped.type(f"{TEXT} by a pipe\n")
            await talking.wait_for("you are")
            for client in (piped, talking):
                client.end_input()
            for client in (who, send, piped, talking, config):
                assert await client.wait() == 0, client.err
                assert "Traceback" not in client.err
            assert f"1 {NAME}\n" in who.out
            assert f"the name '{NAME}' is taken" in talking.out
        await server.wait_for(f"[Ζωή] {TEXT}\n")
        await server.wait_for(f"{TEXT} by a pipe\n")


@in_every_locale
async def test_the_terminal_works_in_every_locale(
    variables: dict[str, str], terminal: Terminal, tmp_path: Path
) -> None:
    async with (
        serve(tmp_path) as server,
        multichat.connect(LOOPBACK, server.port, name=NAME) as chat,
    ):
        settings = [f"{key}={value}" for key, value in variables.items()]
        argv = (program("env"), *settings, MULTICHAT, "connect", f"{LOOPBACK}:{server.port}")
        await terminal.open("t", *argv, columns=80)
        await terminal.wait_for("t", "you are")
        await terminal.type("t", TEXT)
        with trio.fail_after(60):
            while not (isinstance(event := await anext(chat), multichat.Said)):
                pass
        assert event.text == TEXT
        await chat.say(f"{TEXT} to you")
        await terminal.wait_for("t", f"{TEXT} to you")
        await terminal.type("t", "/quit")
        await terminal.wait_for("t", "status=0")


async def test_arguments_and_variables_that_are_not_utf_8_are_refused(tmp_path: Path) -> None:
    bad = "caf\udce9"  # as Python passes on the byte E9
    for argv, name in (
        (["send", LOOPBACK, bad], "TEXT"),
        (["connect", LOOPBACK, "--name", bad], "--name"),
        (["connect", bad], "HOST"),
        (["serve", "0", "--filter", bad], "--filter"),
    ):
        async with Command(tmp_path, MULTICHAT, *argv) as client:
            assert await client.wait() == 2
            assert client.err == f"multichat: {name} is not UTF-8\n"
    for variable in ("MULTICHAT_ROOM", "MULTICHAT_PASSWORD"):
        argv = [program("env"), f"{variable}={bad}", MULTICHAT, "who", f"{LOOPBACK}:1"]
        async with Command(tmp_path, *argv) as client:
            assert await client.wait() == 2
            assert client.err == f"multichat: {variable} is not UTF-8\n"


async def test_a_path_may_have_any_bytes(short_path: Path) -> None:
    path = short_path / "caf\udce9"
    async with (
        ServerCommand(short_path, MULTICHAT, "serve", "0", "--unix", str(path)) as server,
        Command(short_path, MULTICHAT, "connect", "--unix", str(path)) as client,
    ):
        await client.wait_for("you are")
        await client.type("hello\n")
        await server.wait_for("] hello\n")
        client.end_input()
        assert (await client.wait(), client.err, server.err) == (0, "", "")
    async with Command(short_path, MULTICHAT, "connect", "--unix", str(path)) as client:
        assert await client.wait() == 1
        assert client.err.count("\n") == 1


async def test_a_byte_order_mark_in_piped_input_is_removed(tmp_path: Path) -> None:
    async with serve(tmp_path) as server, connect(tmp_path, server, "--name", "al") as client:
        await client.wait_for("you are")
        await client.type("\ufeff/me waves\r\n\ufeffhello\r\n")
        await server.wait_for("* al waves\n")
        await server.wait_for("[al] hello\n")
        async with Command(tmp_path, MULTICHAT, "send", LOOPBACK, str(server.port), "-") as send:
            await send.type("\ufeffone line\r\n")
            send.end_input()
            assert await send.wait() == 0
        await server.wait_for("] one line\n")
        async with await trio.open_tcp_stream(LOOPBACK, server.port) as other:  # as PowerShell
            await other.send_all(b"\xef\xbb\xbf/name bo\r\nit is bo\r\n")
            await server.wait_for("[bo] it is bo\n")


@pytest.mark.parametrize("command", ["send", "connect", "connect --json", "connect --plain"])
async def test_utf_16_on_standard_input_is_one_clear_line(command: str, tmp_path: Path) -> None:
    file = tmp_path / "input"
    file.write_bytes("hello\r\nworld\r\n".encode("utf-16"))
    words = ["-"] if command == "send" else []
    async with serve(tmp_path) as server:
        with file.open("rb") as data:
            argv = [MULTICHAT, *command.split(), LOOPBACK, str(server.port), *words]
            async with Command(tmp_path, *argv, stdin=data.fileno()) as client:
                assert await client.wait() == 1
                assert client.err == "multichat: standard input is UTF-16; convert it to UTF-8\n"
        assert "] h" not in server.out


@pytest.mark.parametrize("password", ["pässwörd", " two spaces ", "café"])
@pytest.mark.parametrize("end", ["", "\n", "\r\n", "\n\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.unit
def test_a_password_file_is_the_same_whichever_editor_wrote_it(
    password: str, end: str, mark: str, tmp_path: Path
) -> None:
    file = tmp_path / "password"
    file.write_bytes(f"{mark}{password}{end}".encode())
    assert read_password_file(file) == password


async def test_a_server_and_a_client_read_a_password_of_different_editors(tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    ours.write_bytes(" pässwörd \n".encode())
    theirs.write_bytes("\ufeff pässwörd \r\n".encode())
    async with serve(tmp_path, "--password-file", str(ours)) as server:
        place = f"{LOOPBACK}:{server.port}"
        for option in ([], ["--plain"]):
            argv = [MULTICHAT, "send", *option, place, "hello", "--password-file", str(theirs)]
            async with Command(tmp_path, *argv) as client:
                assert await client.wait() == 0, client.err


async def test_a_password_is_the_same_in_both_normal_forms(tmp_path: Path) -> None:
    """Keyboards and file systems differ in how they compose letters."""
    (tmp_path / "password").write_text("caf\u00e9", "utf-8")
    async with serve(tmp_path, "--password-file", str(tmp_path / "password")) as server:
        argv = [MULTICHAT, "who", f"{LOOPBACK}:{server.port}"]
        for password, status in (("cafe\u0301", 0), ("caf\u00e9", 0), ("cafe", 1)):
            async with Command(
                tmp_path, program("env"), f"MULTICHAT_PASSWORD={password}", *argv
            ) as client:
                assert await client.wait() == status
        await server.wait_for("wrong password")


def test_help_and_errors_are_written_in_every_locale(tmp_path: Path) -> None:
    for variables in LOCALES.values():
        settings = [f"{key}={value}" for key, value in variables.items()]
        argv = [program("env"), *settings, f"MULTICHAT_CONFIG={tmp_path / NAME}", MULTICHAT]
        for words in (["config"], ["config", NAME], ["connect", f"{NAME}:x"], ["--help"]):
            shown = subprocess.run([*argv, *words], capture_output=True)
            assert b"Traceback" not in shown.stderr, variables
            assert not re.search(rb"Error\b", shown.stderr), variables
