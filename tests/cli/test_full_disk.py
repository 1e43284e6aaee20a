"""An unwritable standard output is one line of error, never a traceback."""

import os
import shlex
import signal
import subprocess
from pathlib import Path

import pytest
import trio

from tests.support.journals import make_journal
from tests.support.processes import LOOPBACK, MULTICHAT, Command, connect, serve

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no full device"),
]

SAID = "multichat: cannot write to standard output: no space left on device\n"


def into_full(folder: Path, *arguments: str) -> Command:
    """A command whose standard output is a full disk."""
    # Which shell completion is for is not asked of the processes above: there may be no shell.
    variables = [f"HOME={folder}", "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION=1"]
    line = shlex.join(["env", *variables, MULTICHAT, *arguments])
    return Command(folder, "/bin/sh", "-c", f"exec {line} > /dev/full")


@pytest.mark.parametrize(
    "arguments",
    ["--help", "--version", "config", "serve --help", "history journal"]
    + [f"--{what}-completion bash" for what in ("install", "show")],
)
async def test_a_command_that_cannot_write_reports_it(arguments: str, tmp_path: Path) -> None:
    make_journal(tmp_path / "journal")
    words = arguments.replace("journal", str(tmp_path / "journal")).split()
    async with into_full(tmp_path, *words) as command:
        assert await command.wait() == 1
    assert command.err == SAID


@pytest.mark.parametrize("arguments", ["--help", "--version", "config", "serve --help"])
def test_a_command_whose_output_is_a_closed_pipe_reports_it(arguments: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [MULTICHAT, *arguments.split()]
    try:
        result = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True)
    finally:
        os.close(writing)
    assert result.stderr == "multichat: cannot write to standard output: broken pipe\n"
    assert result.returncode == 1


@pytest.mark.parametrize("options", ["connect --listen", "connect --json", "connect", "who"])
async def test_a_client_that_cannot_write_exits_before_it_sends_anything(
    options: str, tmp_path: Path
) -> None:
    async with serve(tmp_path) as server, connect(tmp_path, server, "--listen") as other:
        await other.wait_for("Connected")
        words = [*options.split(), LOOPBACK, str(server.port)]
        async with into_full(tmp_path, *words) as command:
            assert await command.wait() == 1
        assert command.err == SAID


async def test_a_server_that_cannot_write_its_log_reports_it_once_and_continues(
    tmp_path: Path, port: int
) -> None:
    arguments = ["serve", str(port), "--host", LOOPBACK]
    async with into_full(tmp_path, *arguments) as server:
        for _ in range(3):
            await say_hello(port)
        server.signal(signal.SIGTERM)
        assert await server.wait() == 0
    assert server.err == (
        "multichat: warning: standard output cannot be written to: no space left on device; "
        "its lines are lost\n"
    )


async def say_hello(port: int) -> None:
    with trio.fail_after(60):
        while True:
            try:
                stream = await trio.open_tcp_stream(LOOPBACK, port)
                break
            except OSError:
                await trio.sleep(0.05)
        async with stream:
            await stream.send_all(b"/ping\n")
            assert await stream.receive_some() == b"[Server] pong\n"
