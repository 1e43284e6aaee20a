"""The service of deploy/ under a real systemd, with the commands of docs/service.md."""

import signal
from pathlib import Path

import pytest
import trio

from .support.processes import WAIT_SECONDS
from .support.services import SERVICE, Service, installed

pytestmark = pytest.mark.process


async def test_the_service_runs_with_nothing_that_it_does_not_need(
    tmp_path: Path, port: int
) -> None:
    async with installed(tmp_path, port) as service:
        await service.start()
        status = await service.status()
        ids = await service.systemd.run("id", "-u", "multichat")
        assert status["Uid"].split() == [ids.strip()] * 4
        assert {int(status[name], 16) for name in status if name.startswith("Cap")} == {0}
        assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
        assert service.state.stat().st_mode & 0o777 == 0o700
        journal = service.state / "chat.db"
        assert journal.stat().st_mode & 0o777 == 0o600
        # Whatever a server does must work in spite of that.
        client = await service.client()
        async with client.stream:
            with trio.fail_after(WAIT_SECONDS):
                await client.send("/name alice", "/register correct horse battery", "kept")
                while "you are logged in as alice" not in (line := await client.line()):
                    assert "cannot" not in line
        await service.wait_for("[RX] [alice] kept")
        soft, hard = await open_files(service)
        assert soft == hard == 16384
        await service.systemd.run("systemctl", "stop", SERVICE)
        assert await service.systemd.show(SERVICE, "Result") == "success"
        assert "Shutting down multi-chat server" in service.log
        assert "kept" in await service.do("history")
        assert {path.stat().st_uid for path in service.state.iterdir()} == {journal.stat().st_uid}


async def open_files(service: Service) -> tuple[int, int]:
    """Return its limits of open files."""
    text = await service.systemd.run("cat", f"/proc/{await service.process()}/limits")
    [line] = [line for line in text.splitlines() if line.startswith("Max open files")]
    soft, hard = line.split()[3:5]
    return int(soft), int(hard)


async def test_a_server_that_was_killed_is_started_again_with_what_it_had(
    tmp_path: Path, port: int
) -> None:
    async with installed(tmp_path, port) as service:
        await service.start()
        client = await service.client()
        async with client.stream:
            await client.send("before")
            await service.wait_for("] before")
            await service.signal(signal.SIGKILL)
            await client.rest()
        await service.wait_for("Starting multi-chat server", 2)
        await service.wait_listening()
        again = await service.client()
        async with again.stream:
            await again.send("/history")
            with trio.fail_after(WAIT_SECONDS):
                while "before" not in await again.line():
                    pass
        assert await service.systemd.show(SERVICE, "NRestarts") == "1"


async def test_a_mistake_in_the_settings_is_one_line_and_no_loop(tmp_path: Path, port: int) -> None:
    async with installed(tmp_path, port, "max-client = 5") as service:
        await service.systemd.run("systemctl", "start", SERVICE, check=False)
        await service.wait_for("max-client")
        with trio.fail_after(WAIT_SECONDS):
            while await service.systemd.show(SERVICE, "ActiveState") != "failed":
                await trio.sleep(0.1)
        said = "multichat: /etc/multichat/config.toml: serve.max-client: serve has no such option"
        assert set(service.log.splitlines()) == {said}


async def test_the_owner_of_a_secret_is_the_service_alone(tmp_path: Path, port: int) -> None:
    async with installed(tmp_path, port, 'password-file = "password"') as service:
        secret = service.systemd.path("/opt/clone") / "secret.txt"
        secret.write_text("swordfish\n")
        await service.do("secret")
        await service.start()
        client = await service.client()
        async with client.stream:
            await client.send("/auth swordfish")
            with trio.fail_after(WAIT_SECONDS):
                while "password accepted" not in await client.line():
                    pass
        assert "can be read by other users" not in service.log
        kept = service.systemd.path("/etc/multichat/password")
        assert kept.stat().st_mode & 0o777 == 0o400
