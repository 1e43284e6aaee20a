"""The service of deploy/ under a real systemd, with the commands of docs/service.md."""

import gzip
import json
import re
import signal
import ssl
import subprocess
from pathlib import Path

import pytest
import trio

from multichat.testing import ScriptedClient

from .support.processes import WAIT_SECONDS, module, program
from .support.services import SERVICE, Service, block, installed
from .support.sockets import open_client

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


async def test_a_killed_server_is_started_again_with_its_data(tmp_path: Path, port: int) -> None:
    async with installed(tmp_path, port) as service:
        await service.start()
        client = await service.client()
        async with client.stream:
            await client.send("before")
            await service.wait_for("] before")
            await service.signal(signal.SIGKILL)
            await client.rest()
        await service.wait_for("Starting multi-chat server", 2)
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


async def test_sockets_outlive_the_server(tmp_path: Path, port: int, web_port: int) -> None:
    async with installed(tmp_path, port, web_port=web_port) as service:
        await service.start()
        await service.do("web")
        await service.do("unix")
        await service.wait_for("] hello from this machine")
        socket = service.systemd.run_path("/run/multichat/chat.sock")
        assert socket.stat().st_mode & 0o777 == 0o660
        with trio.fail_after(WAIT_SECONDS):
            await service.systemd.run("systemctl", "stop", SERVICE)
            assert socket.exists()
            for number, path in ((port, b"/ping\n"), (web_port, b"GET /ready HTTP/1.0\r\n\r\n")):
                # Only systemd listens, and starts the server for a connection.
                stream = await trio.open_tcp_stream("127.0.0.1", number)
                async with stream:
                    await stream.send_all(path)
                    answer = await stream.receive_some()
                assert answer.startswith(b"[Server] pong" if number == port else b"HTTP/1.1 200")
        assert service.log.count("Starting multi-chat server") == 3  # the page's restart is one


async def test_the_port_is_changed_without_touching_the_units(
    tmp_path: Path, port: int, web_port: int
) -> None:
    async with installed(tmp_path, port) as service:
        text = block("port").replace("=443", f"=127.0.0.1:{web_port}")
        await service.override(text, "multichat.socket")
        await service.start()
        with pytest.raises(OSError, match="connect"):
            await trio.open_tcp_stream("127.0.0.1", port)
        client = await open_client(web_port)
        async with client.stream:
            await client.send("/ping")
            with trio.fail_after(WAIT_SECONDS):
                assert "pong" in await client.line()


async def test_an_operator_sees_what_the_service_does(
    tmp_path: Path, port: int, web_port: int
) -> None:
    module("prometheus_client")
    async with installed(tmp_path, port, f"metrics = {web_port}") as service:
        await service.start()
        client = await service.client()
        async with client.stream:
            await client.send("hello")
            await service.wait_for("] hello")
            shown = await service.do("ctl")
            scraped = await open_client(web_port)
            async with scraped.stream:
                await scraped.send("GET /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\n\r")
                while "multichat_clients 1.0" not in (line := await scraped.line()):
                    assert not line.startswith("HTTP") or "200" in line
        assert re.search(r"^ *Active: active \(running\)", shown, re.MULTILINE)
        assert "clients" in shown.partition("CGroup")[2]


async def test_a_renewed_certificate_is_served_without_disconnecting_anybody(
    tmp_path: Path, port: int
) -> None:
    # What openssl asks has the host of the guide.
    expiry = block("expiry").replace("chat.example:9000", f"127.0.0.1:{port}")
    async with installed(tmp_path, port, 'tls-cert = "chat.pem"') as service:
        await service.do("hook")
        lineage = service.systemd.path("/etc/letsencrypt/live/chat.example")
        make_certificate(lineage, days=5)
        await service.renew()  # as for the first certificate: there is no server yet
        await service.start()
        await service.wait_for("in 4 days: renew it, then reload it with SIGHUP")
        context = ssl.create_default_context(cafile=str(lineage / "fullchain.pem"))
        client = ScriptedClient(await connect_tls(port, context))  # type: ignore[arg-type]
        async with client.stream:
            await client.send("/name alice")
            await client.line()
            old = await service.systemd.run("sh", "-c", expiry)
            make_certificate(lineage, days=60)
            await service.renew()
            new = await service.systemd.run("sh", "-c", expiry)
            assert old.startswith("notAfter=")
            assert new.startswith("notAfter=")
            assert old != new
            # A mistake: the old one stays, and the hook fails.
            (lineage / "privkey.pem").write_text("nothing")
            with pytest.raises(pytest.fail.Exception, match="Job for"):
                await service.renew()
            assert await service.systemd.run("sh", "-c", expiry) == new
            await service.wait_for("Could not reload the certificate (unchanged): ")
            await client.send("/ping")
            await client.line()
        kept = service.systemd.path("/etc/multichat/chat.pem")
        assert kept.stat().st_mode & 0o777 == 0o400
        assert [path.name for path in kept.parent.glob("chat.pem*")] == ["chat.pem"]
        assert "can be read by other users" not in service.log


def make_certificate(folder: Path, *, days: int) -> None:
    """Make a certificate for loopback as certbot has it."""
    folder.mkdir(parents=True, exist_ok=True)
    argv = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", str(days)]
    argv += ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    argv += ["-keyout", str(folder / "privkey.pem"), "-out", str(folder / "fullchain.pem")]
    subprocess.run([program("openssl"), *argv], check=True, capture_output=True)


async def connect_tls(port: int, context: ssl.SSLContext) -> trio.SSLStream[trio.SocketStream]:
    stream = await trio.open_ssl_over_tcp_stream("127.0.0.1", port, ssl_context=context)
    await stream.do_handshake()
    return stream


async def test_logrotate_takes_no_line_from_the_log(tmp_path: Path, port: int) -> None:
    program("logrotate")
    async with installed(tmp_path, port, 'log-file = "/var/log/multichat/chat.log"') as service:
        for name in ("/etc/logrotate.d", "/var/lib/logrotate"):  # its package has them
            service.systemd.path(name).mkdir()
        await service.do("logrotate")
        await service.start()
        client = await service.client()
        folder = service.systemd.path("/var/log/multichat")
        async with client.stream:
            for number in range(3):
                await client.send(*(f"line {number} {each}" for each in range(200)))
                # An empty log is not rotated; the rest is written during the rotation.
                await service.wait_for(f"] line {number} 0")
                rotate = ("logrotate", "--force", "/etc/logrotate.d/multichat")
                await service.systemd.run(*rotate)
            await client.send("end")
            await service.wait_for("] end")
        await service.systemd.run("systemctl", "stop", SERVICE)
        files = sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime)
        assert len(files) == 4
        logged = "".join(map(read_log, files))
        # What `ExecReload` has said is there, too.
        printed = [line for line in service.log.splitlines() if line.startswith("20")]
        assert logged.splitlines() == printed
        assert re.findall(r"\] line (\d+ \d+)$", logged, re.MULTILINE) == [
            f"{number} {each}" for number in range(3) for each in range(200)
        ]
        assert {path.stat().st_mode & 0o777 for path in files} == {0o600}


def read_log(path: Path) -> str:
    data = path.read_bytes()
    return (gzip.decompress(data) if path.suffix == ".gz" else data).decode()


async def test_a_backup_is_restored_as_the_guide_says(
    tmp_path: Path, port: int, web_port: int
) -> None:
    program("sqlite3")
    async with installed(tmp_path, port, web_port=web_port) as service:
        await service.start()
        await service.do("web")
        client = await service.client()
        async with client.stream:
            await client.send("kept")
            await service.wait_for("] kept")
            await service.do("backup")
            await client.send("lost")
            await service.wait_for("] lost")
        await service.signal(signal.SIGKILL)  # so that there is a -wal
        stop, _, rest = block("restore").partition("\n")
        await service.systemd.run(*stop.split())
        # No connection can start it meanwhile: neither the chat's port nor the page's is open.
        for closed in (port, web_port):
            with pytest.raises(OSError, match="connect"):
                await trio.open_tcp_stream("127.0.0.1", closed)
        await service.systemd.shell(rest, Path("/"))
        await (await trio.open_tcp_stream("127.0.0.1", web_port)).aclose()
        history = await service.do("history")
        assert "kept" in history
        assert "lost" not in history
        before = await service.systemd.shell(
            block("history").replace("chat.db", "before/chat.db"), Path("/")
        )
        assert "lost" in before


async def test_a_restart_ends_and_begins_in_order(tmp_path: Path, port: int) -> None:
    async with installed(tmp_path, port) as service:
        await service.start()
        client = await service.client()
        async with client.stream:
            await client.send("/json {}", '{"type":"say","text":"before","nonce":1}')
            await service.wait_for("] before")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(service.do, "restart")
                *_, last = await client.rest()
        assert json.loads(last)["reconnect"] is True
        await service.wait_for("Starting multi-chat server", 2)
        assert "before" in await service.do("history")
        assert await service.systemd.show(SERVICE, "NRestarts") == "0"


async def test_a_server_that_hangs_is_started_again(tmp_path: Path, port: int) -> None:
    async with installed(tmp_path, port) as service:
        await service.override("[Service]\nWatchdogSec=2\nTimeoutAbortSec=1\n")
        await service.start()
        await service.signal(signal.SIGSTOP)
        await service.wait_for("Starting multi-chat server", 2)
        assert await service.systemd.show(SERVICE, "NRestarts") == "1"


async def test_a_drain_may_take_longer_than_systemd_would_wait(tmp_path: Path, port: int) -> None:
    async with installed(tmp_path, port, "drain = 6") as service:
        await service.override("[Service]\nTimeoutStopSec=2\n")
        await service.start()
        client = await service.client()
        async with client.stream:
            await client.send("/json {}")
            await service.wait_for("connected")
            # Until its goodbye, after a third of the drain, it keeps the server.
            async with trio.open_nursery() as nursery:
                nursery.start_soon(service.systemd.run, "systemctl", "stop", SERVICE)
                *_, last = await client.rest()
        goodbye = json.loads(last)
        assert (goodbye["code"], goodbye["reconnect"]) == ("draining", True)
        assert await service.systemd.show(SERVICE, "Result") == "success"
        assert "Shutting down multi-chat server" in service.log


async def test_systemctl_returns_when_clients_can_connect(tmp_path: Path, port: int) -> None:
    async with installed(tmp_path, port) as service:
        await service.do("start")
        client = await service.client()
        async with client.stream:
            with trio.fail_after(WAIT_SECONDS):
                while "1 client" not in (text := await service.systemd.show(SERVICE, "StatusText")):
                    await trio.sleep(0.1)
        assert text
