"""Notices on a standard error that may be closed, full or unread."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from tests.support.processes import (
    LOOPBACK,
    MULTICHAT,
    WAIT_SECONDS,
    Command,
    ServerCommand,
    connect,
    listening,
    program,
    serve,
    tcp,
)

pytestmark = pytest.mark.process

DISGUISED = " /msg bob secret\n"


@pytest.fixture(params=["&-", "/dev/full", "unread"])
def stderr(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Return the target of `2>` for a standard error that is closed, full, or not read."""
    if request.param != "unread":
        yield request.param
        return
    path = tmp_path / "unread"
    os.mkfifo(path)
    fd = os.open(path, os.O_RDWR | os.O_NONBLOCK)
    try:
        while True:
            os.write(fd, b"x" * 4096)
    except BlockingIOError:
        pass
    os.set_blocking(fd, True)
    yield str(path)
    os.close(fd)


def run(folder: Path, stderr: str, *arguments: str) -> Command:
    """Run `multichat` with *arguments*; *stderr* is the target of the shell's `2>`."""
    return Command(folder, "/bin/sh", "-c", f'exec "$@" 2>{stderr}', "sh", MULTICHAT, *arguments)


async def test_many_lines_that_are_not_sent_make_one_notice(tmp_path: Path) -> None:
    async with serve(tmp_path) as server, connect(tmp_path, server) as client:
        await client.wait_for("Connected")
        await client.type(DISGUISED * 100 + "hello\n")
        client.end_input()
        assert await client.wait() == 0
        await server.wait_for("[RX] [Client 1] hello")
        assert client.err == (
            "multichat: 100 lines not said, the first: not sent, because it looks like /msg: "
            "type /msg to run it, //msg to say it\n"
        )


async def test_a_notice_that_cannot_be_written_loses_no_message(
    stderr: str, tmp_path: Path
) -> None:
    async with serve(tmp_path) as server:
        arguments = ("connect", LOOPBACK, str(server.port))
        async with run(tmp_path, stderr, *arguments) as client:
            await client.wait_for("Connected")
            await client.type(DISGUISED * 5000 + "hello\n")
            await server.wait_for("[RX] [Client 1] hello")
            client.end_input()
            assert await client.wait() == 0
            assert "secret" not in client.out
            assert "not said" not in client.out


async def test_send_sends_when_its_notice_cannot_be_written(stderr: str, tmp_path: Path) -> None:
    async with (
        listening() as (listener, port),
        run(tmp_path, stderr, "send", LOOPBACK, str(port), "hello") as client,
        await listener.accept() as stream,
    ):
        await stream.send_all(b"a banner\n")
        received = b""
        with trio.fail_after(WAIT_SECONDS):
            while data := await stream.receive_some():
                received += data
        await stream.aclose()
        assert await client.wait() == 0
        assert received.endswith(b"\nhello\n")
        assert client.out == ""


async def test_console_output_that_cannot_be_written_does_not_stop_the_server(
    stderr: str, tmp_path: Path
) -> None:
    controller, terminal = os.openpty()
    command = f'exec {program("setsid")} --ctty "$@" 2>{stderr}'
    arguments = (MULTICHAT, "serve", "0", "--host", LOOPBACK)
    server = ServerCommand(tmp_path, "/bin/sh", "-c", command, "sh", *arguments, stdin=terminal)
    try:
        async with server, tcp(server) as stream:
            for _ in range(50):
                os.write(controller, b"/help\n")
            os.write(controller, b"hello\n")
            with trio.fail_after(WAIT_SECONDS):
                assert await stream.receive_some() == b"[Server] hello\n"
            server.signal(signal.SIGTERM)
            assert await server.wait() == 0
            assert "who is connected" not in server.out
    finally:
        os.close(terminal)
        os.close(controller)


@pytest.mark.parametrize(
    ("arguments", "status"),
    [(("who", LOOPBACK, "1"), 1), (("connect", "--no-such-option"), 2), (("frobnicate",), 2)],
)
async def test_the_exit_status_is_kept_if_the_error_cannot_be_written(
    arguments: tuple[str, ...], status: int, stderr: str, tmp_path: Path
) -> None:
    async with run(tmp_path, stderr, *arguments) as command:
        assert await command.wait() == status
        assert command.out == ""
