"""Measures an honest pair: undisturbed, during an attack on a control, and attacked itself."""

import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import trio
import trustme

from tests.support.processes import LOOPBACK, MULTICHAT, WAIT_SECONDS, Command, ServerCommand

from .catalogue import Attack, Said
from .pair import Pair, Talk

__all__ = ["Turn", "answered", "hostile", "turns"]

_HOSTILE = Path(__file__).parent / "hostile.py"
_PASSWORD = "swordfish"
_TOKEN = "0123456789abcdef"

# Enough for an attack of any length.
_UNDISTURBED_SECONDS, _CONTROL_SECONDS = 1.0, 2.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Turn:
    """The pair's results: undisturbed, with a second server attacked, with its own attacked."""

    undisturbed: Talk
    control: Talk
    attacked: Talk

    @property
    def kept(self) -> float:
        """The rate under attack as a share of the lower of the other two."""
        return self.attacked.rate / min(self.undisturbed.rate, self.control.rate)

    @property
    def stalled(self) -> float:
        """The share of the time in which the pair was stalled, minus that of the control."""
        control, attacked = (each.stalled / each.seconds for each in (self.control, self.attacked))
        return max(0.0, attacked - control)


@asynccontextmanager
async def turns(
    attack: Attack, folder: Path, *, seconds: float, command: str = MULTICHAT, options: str = ""
) -> AsyncIterator[Callable[[], Awaitable[Turn]]]:
    """Start two servers with *command* and *options*.

    Yields a function that measures once: the attack for *seconds*, the others for at most as long.
    If the attack lingers, call it once only: the second server is killed.
    """
    async with AsyncExitStack() as stack:
        servers: list[ServerCommand] = []  # the pair's own first
        for name in "attacked", "control":
            context = _server(attack, folder / name, command, options.split())
            server = await stack.enter_async_context(context)
            servers.append(server)
            for said in attack.said:
                await trio.to_thread.run_sync(_say, server.port, said)
            for kind, room in attack.crowd:
                await stack.enter_async_context(hostile(server, folder, kind, room))
        own, other = servers
        ca = folder / "attacked" / "ca.pem" if "--tls-cert" in attack.options else None
        password = _PASSWORD if "--password-file" in attack.options else ""
        pair = await trio.to_thread.run_sync(partial(Pair, own.port, password=password, ca=ca))
        stack.callback(pair.close)

        async def talk(seconds: float = seconds) -> Talk:
            return await trio.to_thread.run_sync(pair.talk, seconds)

        async def turn() -> Turn:
            await _idle(own, open_files, pair)  # after the previous measurement
            undisturbed = await talk(min(seconds, _UNDISTURBED_SECONDS))
            async with _attacked(attack, other, folder, None):
                control = await talk(min(seconds, _CONTROL_SECONDS))
            if attack.lingers:
                other.process.kill()
                await trio.to_thread.run_sync(other.process.wait)
            else:
                await _idle(other, open_files, None)
            async with _attacked(attack, own, folder, pair):
                attacked = await talk()
            return Turn(undisturbed=undisturbed, control=control, attacked=attacked)

        await talk(0.2)  # warm up
        open_files = {server: _open_files(server) for server in servers}
        yield turn
        for server in servers[:1] if attack.lingers else servers:
            assert server.process.poll() is None, server.err
            assert not server.err, server.err


@asynccontextmanager
async def _server(
    attack: Attack, folder: Path, command: str, options: list[str]
) -> AsyncIterator[ServerCommand]:
    folder.mkdir()
    (folder / "password").write_text(f"{_PASSWORD}\n", "utf-8")
    (folder / "password").chmod(0o600)
    (folder / "tokens").write_text(f"{_TOKEN}\n", "utf-8")
    (folder / "tokens").chmod(0o600)
    if "--tls-cert" in attack.options:
        ca = trustme.CA()
        ca.issue_cert(LOOPBACK).private_key_and_cert_chain_pem.write_to_path(
            str(folder / "server.pem")
        )
        ca.cert_pem.write_to_path(str(folder / "ca.pem"))
    own = [each.replace("{folder}", str(folder)) for each in attack.options]
    argv = [command, "serve", "0", "--host", LOOPBACK, *own, *options]
    async with ServerCommand(folder, *argv) as server:
        yield server


@asynccontextmanager
async def hostile(
    server: ServerCommand, folder: Path, kind: str, room: str
) -> AsyncIterator[Command]:
    """Run hostile clients of *kind* while the block runs."""
    port = await server.web_port() if kind.startswith("web-") else server.port
    argv = [sys.executable, "-S", "-E", str(_HOSTILE), str(port), kind, room]
    async with Command(folder, *argv, stdin=subprocess.DEVNULL) as clients:
        await clients.wait_for("flooding")
        yield clients
        assert clients.process.poll() is None, clients.err


@asynccontextmanager
async def _attacked(
    attack: Attack, server: ServerCommand, folder: Path, pair: Pair | None
) -> AsyncIterator[None]:
    """Attack *server*, to which *pair* is connected, while the block runs."""
    async with AsyncExitStack() as stack:
        async with _listening(pair):
            for kind, room in attack.kinds:
                await stack.enter_async_context(hostile(server, folder, kind, room))
        yield


async def _idle(
    server: ServerCommand, open_files: dict[ServerCommand, int], pair: Pair | None
) -> None:
    """Wait until *server* has processed the rest of an attack, and has only *open_files* again.

    Thousands of closed connections may still wait to be accepted and read.
    """
    with trio.fail_after(WAIT_SECONDS):
        async with _listening(pair):
            await trio.to_thread.run_sync(answered, server.port)
            while _open_files(server) > open_files[server]:
                await trio.sleep(0.01)


@asynccontextmanager
async def _listening(pair: Pair | None) -> AsyncIterator[None]:
    """Let *pair* read, so that it does not become a slow client itself."""
    done = False

    async def listen() -> None:
        while pair and not done:
            await trio.to_thread.run_sync(pair.listen, 0.02)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(listen)
        yield
        done = True


def _open_files(server: ServerCommand) -> int:
    return len(list(Path(f"/proc/{server.process.pid}/fd").iterdir()))


def answered(port: int) -> bytes:
    """Connect and wait for any answer; return its first bytes, or none if it was closed."""
    with socket.create_connection((LOOPBACK, port), WAIT_SECONDS) as newcomer:
        newcomer.sendall(b"/ping\n")
        return newcomer.recv(100)


def _say(port: int, said: Said) -> None:
    with ExitStack() as stack:
        speaker = stack.enter_context(socket.create_connection((LOOPBACK, port), WAIT_SECONDS))
        speaker.sendall(f"/join {said.room}\n".encode())
        speaker.sendall((b"x" * (said.message_bytes - 1) + b"\n") * said.messages + b"/ping\n")
        with speaker.makefile("rb") as answers:
            for line in answers:
                if line == b"[Server] pong\n":
                    return
        raise AssertionError("the speaker was disconnected")
