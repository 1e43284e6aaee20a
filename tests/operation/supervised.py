"""A server under a service manager of the tests' own, which needs neither systemd nor root.

It does what the units in deploy/ ask of systemd: opens the sockets and keeps them, waits for the
server's notifications, and expects a sign of life from its event loop.
"""

import os
import signal
import socket
import stat
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from pathlib import Path

import trio

from tests.kills.checker import LOOPBACK, Wrong
from tests.support.processes import BIN, MULTICHAT, WAIT_SECONDS
from tests.support.service_manager import Managed, Manager, managing

__all__ = ["Supervised", "supervised"]

# As in deploy/multichat.service.  The server reports twice as often.
_WATCHDOG_SECONDS = 30.0


def _listen_tcp() -> socket.socket:
    opened = socket.create_server((LOOPBACK, 0), backlog=1024)
    opened.setblocking(False)
    return opened


def _listen_unix(path: Path) -> socket.socket:
    opened = socket.socket(socket.AF_UNIX)
    opened.bind(str(path))
    path.chmod(0o660)
    opened.listen(1024)
    return opened


class Supervised:
    """A server with its settings and files in *files*, and its sockets in *run*."""

    def __init__(self, files: Path, run: Path, manager: Manager, stack: ExitStack) -> None:
        self.files, self.unix = files, run / "chat.sock"
        self._admin = run / "admin.sock"
        self._manager = manager
        self._chat, self._web = (stack.enter_context(_listen_tcp()) for _ in range(2))
        self._local = stack.enter_context(_listen_unix(self.unix))
        self.port, self.web_port = self._chat.getsockname()[1], self._web.getsockname()[1]
        self._server: Managed | None = None
        self._running: AsyncExitStack | None = None
        self._changed = trio.Condition()
        self._rotated = 0

    @property
    def secrets_owner(self) -> tuple[int, int]:
        """Our own user, who runs the server."""
        return os.getuid(), os.getgid()

    async def listen(self) -> None:
        """Receive the server's notifications; raise `Wrong` if it is silent for too long."""
        alive_at = trio.current_time()
        while True:
            with trio.move_on_after(_WATCHDOG_SECONDS) as in_time:
                said = await self._manager.hear(seconds=_WATCHDOG_SECONDS * 2)
            now = trio.current_time()
            if self._server is None:
                alive_at = now
                continue
            if in_time.cancelled_caught or now - alive_at > _WATCHDOG_SECONDS:
                raise Wrong(f"no sign of life for {_WATCHDOG_SECONDS:g} s")
            if "WATCHDOG" in said or "READY" in said:
                alive_at = now
            async with self._changed:
                self._changed.notify_all()

    def _count(self, name: str) -> int:
        return sum(name in said for said in self._manager.said)

    async def _wait(self, name: str, count: int) -> None:
        """Wait until the server has sent *name* so many times."""
        with trio.fail_after(WAIT_SECONDS):
            async with self._changed:
                while self._count(name) < count:
                    await self._changed.wait()

    async def start(self) -> None:
        """Start the server with the sockets; return when it reports that it is ready."""
        ready = self._count("READY")
        variables = {
            "NOTIFY_SOCKET": self._manager.address,
            "WATCHDOG_USEC": str(int(_WATCHDOG_SECONDS * 1_000_000)),
            "LISTEN_FDNAMES": "chat:chat:web",
            "MULTICHAT_CONFIG": str(self.files / "config.toml"),
        }
        argv = (MULTICHAT, "serve", "--admin", str(self._admin))
        sockets = (self._chat, self._local, self._web)
        self._server = Managed(self.files, *argv, variables=variables, sockets=sockets)
        self._running = AsyncExitStack()
        await self._running.enter_async_context(self._server)
        await self._wait("READY", ready + 1)

    async def reload(self) -> None:
        """Send SIGHUP; return when the server reports that it is ready again."""
        ready = self._count("READY")
        reloading = self._count("RELOADING")
        assert self._server is not None
        self._server.signal(signal.SIGHUP)
        await self._wait("RELOADING", reloading + 1)
        await self._wait("READY", ready + 1)

    async def restart(self) -> None:
        """Stop it, and start it again."""
        await self.stop()
        await self.start()

    async def stop(self) -> None:
        """Send SIGTERM; raise `Wrong` unless it reports that it stops, and ends with status 0."""
        server, running = self._server, self._running
        assert server is not None
        assert running is not None
        stopping = self._count("STOPPING")
        server.signal(signal.SIGTERM)
        await self._wait("STOPPING", stopping + 1)
        status = await server.wait()
        self._server = self._running = None
        await running.aclose()
        if status or server.err:
            raise Wrong(f"the server ended with {status}: {server.err}")
        if not stat.S_ISSOCK(self.unix.stat().st_mode):
            raise Wrong("the server has removed a socket that is not its own")

    async def ctl(self, *words: str) -> str:
        """Run the operator's command."""
        argv = [str(BIN / "multichat"), "ctl", "--socket", str(self._admin), *words]
        done = await trio.run_process(argv, capture_stdout=True)
        return done.stdout.decode()

    async def rotate(self) -> None:
        """Do as logrotate does."""
        self._rotated += 1
        log = self.files / "chat.log"
        log.rename(log.with_name(f"chat.log.{self._rotated}"))
        await self.reload()

    def logs(self) -> list[str]:
        """Return the log files."""
        files = [self.files / f"chat.log.{n + 1}" for n in range(self._rotated)]
        return [each.read_text("utf-8") for each in (*files, self.files / "chat.log")]


@asynccontextmanager
async def supervised(folder: Path, run: Path, *settings: str) -> AsyncIterator[Supervised]:
    """Supervise a server with its files in *folder*, and sockets in *run*, whose path is short.

    It is not started yet.
    """
    files = folder / "files"
    files.mkdir()
    lines = ("[serve]", 'journal = "chat.db"', 'ban-file = "bans.txt"', 'log-file = "chat.log"')
    (files / "config.toml").write_text("\n".join((*lines, *settings, "")), "utf-8")
    with ExitStack() as stack:
        manager = stack.enter_context(managing(str(run / "notify")))
        service = Supervised(files, run, manager, stack)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(service.listen)
            try:
                yield service
            finally:
                if service._running is not None:
                    with trio.CancelScope(shield=True):
                        await service._running.aclose()
                nursery.cancel_scope.cancel(reason="the test is over")
