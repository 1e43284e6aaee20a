"""The service of deploy/, installed in a systemd of the tests' own as docs/service.md says."""

import re
import shutil
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from multichat.testing import ScriptedClient

from .processes import WAIT_SECONDS
from .sockets import open_client
from .systemd import ROOT, Systemd, running_systemd

__all__ = ["GUIDE", "Service", "block", "installed"]

DEPLOY = ROOT / "deploy"
GUIDE = ROOT / "docs" / "service.md"

SERVICE = "multichat.service"

_LOG = "/var/log/multichat.out"
_CLONE = "/opt/clone"

# There is no journal of systemd in the tests.
_DROP_IN = f"[Service]\nStandardOutput=append:{_LOG}\nStandardError=inherit\n"


def block(name: str) -> str:
    """Return the commands, or the settings, of the guide with that name, without the prompts."""
    pattern = rf"^<!-- (?:run|edit) in systemd: {re.escape(name)} -->\n```\w+\n(.*?)^```$"
    [found] = re.findall(pattern, GUIDE.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    return re.sub(r"^[#$] ", "", found, flags=re.MULTILINE)


class Service:
    """The service, installed in *systemd*, on *port* of loopback."""

    def __init__(self, systemd: Systemd, port: int) -> None:
        self.systemd, self.port = systemd, port
        self.config = systemd.path("/etc/multichat/config.toml")
        self.state = systemd.path("/var/lib/multichat")

    async def do(self, name: str) -> str:
        """Run the commands of the guide with that name; return their output."""
        return await self.systemd.shell(block(name), Path(_CLONE))

    async def start(self) -> None:
        """Start it as the guide says."""
        await self.do("start")

    async def override(self, text: str, unit: str = SERVICE) -> None:
        """Do as `systemctl edit` does with *text*; before the unit is started."""
        folder = self.systemd.path("/etc/systemd/system") / f"{unit}.d"
        folder.mkdir(exist_ok=True)
        (folder / "override.conf").write_text(text, "utf-8")
        await self.systemd.run("systemctl", "daemon-reload")

    async def process(self) -> int:
        """Return the id of its process, as systemd inside counts."""
        return int(await self.systemd.show(SERVICE, "MainPID"))

    async def status(self) -> dict[str, str]:
        """Return what the kernel says about its process."""
        text = await self.systemd.run("cat", f"/proc/{await self.process()}/status")
        return dict(re.findall(r"^(\w+):\s+(.*)$", text, re.MULTILINE))

    async def signal(self, number: signal.Signals) -> None:
        """Send its process a signal."""
        await self.systemd.run("kill", f"-{number}", str(await self.process()))

    @property
    def log(self) -> str:
        """Its log."""
        path = self.systemd.path(_LOG)
        return path.read_text("utf-8") if path.exists() else ""

    async def wait_for(self, text: str, count: int = 1) -> None:
        """Wait until it has logged *text* *count* times."""
        with trio.move_on_after(WAIT_SECONDS):
            while self.log.count(text) < count:
                await trio.sleep(0.02)
            return
        raise AssertionError(f"never logged {text!r}: {self.log[-4000:]}")

    async def reload(self, *, fails: bool = False) -> None:
        """Reload it as the guide says; with *fails*, that must fail."""
        argv = ("systemctl", "reload", SERVICE)
        before = self.log.count("[reload] Reloaded: ")
        if fails:
            assert "Job for" in await self.systemd.run(*argv, check=False)
        else:
            assert block("reload").split() == list(argv)
            await self.systemd.run(*argv)
        assert self.log.count("[reload] Reloaded: ") == before + 1  # it has waited for that

    async def renew(self) -> None:
        """Call the hook of renewal as certbot does."""
        hook = "/opt/multichat/bin/renew_certificate"
        lineage = "RENEWED_LINEAGE=/etc/letsencrypt/live/chat.example"
        await self.systemd.run("env", lineage, hook)

    async def client(self) -> ScriptedClient:
        """Return a new client; the caller closes its stream."""
        return await open_client(self.port)


@asynccontextmanager
async def installed(
    folder: Path, port: int, *settings: str, web_port: int | None = None
) -> AsyncIterator[Service]:
    """Install the service, with these lines more in its settings; does not start it.

    With *web_port*, with the page.
    """
    async with running_systemd(folder) as systemd:
        clone = systemd.path(f"{_CLONE}/deploy")
        shutil.copytree(DEPLOY, clone)
        for path in clone.iterdir():
            text = path.read_text("utf-8")
            for documented, here in (("9000", port), ("8080", web_port)):
                text = text.replace(
                    f"ListenStream={documented}\n", f"ListenStream=127.0.0.1:{here}\n"
                )
            if path.name == "config.toml":
                text += "".join(f"{line}\n" for line in settings)
            path.write_text(text, "utf-8")
        drop_in = systemd.path("/etc/systemd/system") / f"{SERVICE}.d" / "test.conf"
        drop_in.parent.mkdir()
        drop_in.write_text(_DROP_IN, "utf-8")
        service = Service(systemd, port)
        await service.do("install")
        yield service
