"""A terminal that is closed while SIGHUP is ignored, as with `nohup`."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import trio

from multichat.protocol.json_codec import JSON
from multichat.protocol.messages import PROTOCOL, Limits, Welcome
from tests.support.processes import LOOPBACK, MULTICHAT, WAIT_SECONDS, listening

pytestmark = pytest.mark.process

FLOOD = b"[Client 2] " + b"x" * 200 + b"\n"
WELCOME = JSON.encode(
    Welcome(PROTOCOL, 1, "Client 1", "lobby", 1, Limits(65536, 32), None, "x", resumed=False)
)

# `connect`, but for how long it waits for the server's end.
IMPATIENT = """
import os, sys, typer
from pathlib import Path
from multichat import ClientTimeouts
from multichat.client.connect import Endpoint
from multichat.client.options import ChatOptions
from multichat.terminal.input_history import History
from multichat.cli.process import one_line_errors
from multichat.terminal.app import TerminalChat

endpoint = Endpoint(host=sys.argv[1], port=int(sys.argv[2]))
try:
    with one_line_errors():
        options = ChatOptions(reconnect=False, timeouts=ClientTimeouts(finish=0.2))
        TerminalChat(endpoint, options, history=History(Path(os.devnull))).run()
except typer.Exit as status:
    sys.exit(status.exit_code)
"""

# Draws while its terminal is closed.
DRAW = """
import os, sys
from prompt_toolkit.input import DummyInput
from multichat.cli.process import command_line
from multichat.terminal.screen import ScreenApplication

controller, terminal = os.openpty()
os.dup2(terminal, 1)
with command_line():
    app = ScreenApplication(wraps=True, input=DummyInput())
    os.close(controller)
    for text in ("few", "many" * 10_000):
        app.output.write(text)
        app.output.flush()
    sys.exit(0 if app.screen.closed else "not noticed")
"""


class Client:
    """A command in a terminal of its own, which `hang_up` closes."""

    def __init__(self, process: subprocess.Popen[bytes], controller: int, err: Path) -> None:
        self._process, self._controller, self._err = process, controller, err

    def type(self, text: str) -> None:
        os.write(self._controller, text.encode())

    async def wait_for(self, text: bytes) -> None:
        """Wait until the terminal has been sent *text*."""
        shown = b""
        with trio.fail_after(WAIT_SECONDS):
            while text not in shown:
                await trio.lowlevel.wait_readable(self._controller)
                shown += os.read(self._controller, 65536)

    def hang_up(self) -> None:
        os.close(self._controller)

    async def wait(self) -> tuple[int, str]:
        """Wait until it ends; return its status and its standard error."""
        with trio.fail_after(WAIT_SECONDS):
            while self._process.poll() is None:
                await trio.sleep(0.02)
        return self._process.returncode, self._err.read_text("utf-8")


@contextmanager
def client_in_terminal(folder: Path, *argv: str) -> Iterator[Client]:
    controller, terminal = os.openpty()
    with (folder / "stderr").open("wb") as err:
        process = subprocess.Popen(
            ["/bin/sh", "-c", 'trap "" HUP; exec "$@"', "sh", *argv],
            stdin=terminal,
            stdout=terminal,
            stderr=err,
            env={**os.environ, "TERM": "xterm", "MULTICHAT_HISTORY": os.devnull},
            start_new_session=True,
        )
    os.close(terminal)
    try:
        yield Client(process, controller, folder / "stderr")
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def test_drawing_on_a_closed_terminal_is_not_an_error() -> None:
    """Neither when it is drawn nor when Python flushes its streams at the end."""
    drawn = subprocess.run(
        [sys.executable, "-c", DRAW], capture_output=True, text=True, timeout=WAIT_SECONDS
    )
    assert (drawn.returncode, drawn.stderr) == (0, "")


async def test_a_client_without_its_terminal_exits_during_a_flood(
    tmp_path: Path,
) -> None:
    argv = (MULTICHAT, "connect", "--plain", LOOPBACK)
    async with listening() as (listener, port), trio.open_nursery() as nursery:
        with client_in_terminal(tmp_path, *argv, str(port)) as client:
            with trio.fail_after(WAIT_SECONDS):
                stream = await listener.accept()
            nursery.start_soon(_flood, stream)
            await client.wait_for(b"Client 2")
            client.hang_up()
            assert await client.wait() == (
                1,
                "multichat: connection lost: the terminal is gone\n",
            )
        nursery.cancel_scope.cancel(reason="the client has ended")


async def _flood(stream: trio.SocketStream) -> None:
    async with stream:
        with suppress(trio.BrokenResourceError):
            while True:
                await stream.send_all(FLOOD * 200)


async def test_typed_messages_are_delivered_after_the_terminal_is_gone(tmp_path: Path) -> None:
    argv = (sys.executable, "-c", IMPATIENT, LOOPBACK)
    async with listening() as (listener, port):
        with client_in_terminal(tmp_path, *argv, str(port)) as client:
            with trio.fail_after(WAIT_SECONDS):
                stream = await listener.accept()
            await stream.send_all(WELCOME)
            await client.wait_for(b"1 here")
            client.type("hello\r")
            heard = b""
            with trio.fail_after(WAIT_SECONDS):
                while b'"hello"' not in heard:
                    heard += await stream.receive_some()
            client.hang_up()
            with trio.move_on_after(1):  # much longer than the client waits for the server's end
                while data := await stream.receive_some():
                    assert b"quit" not in data
                pytest.fail("the client did not wait for its message to be accepted")
            nonce = heard.split(b'"nonce":')[1].split(b",")[0].split(b"}")[0].decode()
            answers = (
                f'{{"type":"accepted","nonce":{nonce},"id":"x-1"}}',
                '{"type":"goodbye","reason":"closing","code":"kicked","reconnect":false}',
            )
            await stream.send_all("".join(f"{line}\n" for line in answers).encode())
            await stream.aclose()
            assert await client.wait() == (0, "")
