"""The service of deploy/ under a real systemd, with its sockets, for `tests.operation.run`."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tests.support.services import SERVICE, Service, installed

__all__ = ["UnderSystemd", "under_systemd"]

_LOG = "/var/log/multichat/chat.log"
_CTL = ("/opt/multichat/bin/multichat", "ctl", "--socket", "/run/multichat/admin.sock")


class UnderSystemd:
    """The installed *service*, whose page is on *web_port*."""

    def __init__(self, service: Service, web_port: int) -> None:
        self._service, self._systemd = service, service.systemd
        self.port, self.web_port = service.port, web_port
        self._rotated = 0

    @property
    def unix(self) -> Path:
        """The socket of people on the machine."""
        return self._systemd.run_path("/run/multichat/chat.sock")

    @property
    def files(self) -> Path:
        """The folder of its settings."""
        return self._service.config.parent

    @property
    def secrets_owner(self) -> tuple[int, int]:
        """The service's user."""
        found = self._systemd.path("/etc/passwd").read_text()
        [line] = [line for line in found.splitlines() if line.startswith("multichat:")]
        user, group = line.split(":")[2:4]
        return int(user), int(group)

    async def start(self) -> None:
        """Start it as the guide says, with its page."""
        await self._service.do("start")
        await self._service.do("web")

    async def reload(self) -> None:
        """Reload it as the guide says."""
        await self._service.reload()

    async def restart(self) -> None:
        """Restart it as the guide says."""
        await self._service.do("restart")

    async def stop(self) -> None:
        """Stop it."""
        await self._systemd.run("systemctl", "stop", SERVICE)

    async def ctl(self, *words: str) -> str:
        """Run the operator's command as root."""
        return await self._systemd.run(*_CTL, *words)

    async def rotate(self) -> None:
        """Let logrotate do it."""
        self._rotated += 1
        await self._systemd.run("logrotate", "--force", "/etc/logrotate.d/multichat")

    def logs(self) -> list[str]:
        """Return the log files; logrotate compresses none in its first rotation."""
        path = self._systemd.path(_LOG)
        files = [path.with_name(f"{path.name}.{n}") for n in range(self._rotated, 0, -1)]
        return [each.read_text("utf-8") for each in (*files, path)]


@asynccontextmanager
async def under_systemd(
    folder: Path, port: int, web_port: int, *settings: str
) -> AsyncIterator[UnderSystemd]:
    """Install the service with these settings; it is not started yet."""
    log = f'log-file = "{_LOG}"'
    async with installed(folder, port, *settings, log, web_port=web_port) as service:
        for name in ("/etc/logrotate.d", "/var/lib/logrotate"):  # its package has them
            service.systemd.path(name).mkdir()
        await service.do("logrotate")
        yield UnderSystemd(service, web_port)
