"""An operator maintains a service while people chat, who lose no message and notice nothing.

Clients of all kinds chat all the time, and reconnect by themselves: programs over TLS, WebSocket
and the Unix socket, which the checker of `tests.kills` judges, and two people with
`multichat connect`.  Meanwhile the certificate is renewed, the password changed, the log rotated,
somebody banned, and the server drained and restarted.
"""

import json
import os
import re
import ssl
import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Protocol

import trio
import trustme

from multichat.testing import ScriptedClient
from tests.kills.checker import LOOPBACK, Dial, Rooms, Wrong

from .links import dial_tls, dial_unix, dial_websocket
from .people import NAMES, People, people

__all__ = ["PASSWORDS", "SETTINGS", "Service", "operate"]

PASSWORDS = ("swordfish", "haddock")

# For a shared machine.
_SECONDS = 120.0

# How long people chat between two steps.
_BETWEEN_SECONDS = 1.0

SETTINGS = (
    'tls-cert = "chat.pem"',
    'password-file = "password"',
    "drain = 2",
    "log-rate = 0",
)
"""The settings that the run needs, besides a journal, a ban file, a log file and a page."""


class Service(Protocol):
    """A server under a service manager.

    Its clients use *port* and *web_port* of loopback and the socket at *unix*; *files* is the
    folder of its configuration.
    """

    port: int
    web_port: int

    @property
    def unix(self) -> Path: ...
    @property
    def files(self) -> Path: ...
    @property
    def secrets_owner(self) -> tuple[int, int]:
        """The user and group to which the server's secrets belong."""
        ...

    async def start(self) -> None:
        """Start it, and return when clients can connect."""

    async def reload(self) -> None:
        """Reload it, and return when that is done."""

    async def restart(self) -> None:
        """Restart it, and return when clients can connect."""

    async def stop(self) -> None:
        """Stop it in order."""

    async def ctl(self, *words: str) -> str:
        """Return the output of `multichat ctl` with these arguments."""
        ...

    async def rotate(self) -> None:
        """Rotate the log, so that the server begins a new file."""

    def logs(self) -> list[str]:
        """Return the contents of all log files, from the oldest on."""
        ...


class _Run:
    """One run on *service*, with temporary files in *folder*; *tell* gets a line for each step."""

    def __init__(self, service: Service, folder: Path, tell: Callable[[str], None]) -> None:
        self.service, self.folder, self._tell = service, folder, tell
        self._authority = trustme.CA()
        self._ca_file = folder / "ca.pem"
        self._authority.cert_pem.write_to_path(str(self._ca_file))
        self._context = ssl.create_default_context(cafile=str(self._ca_file))
        self._began = time.monotonic()

    def tell(self, text: str) -> None:
        self._tell(f"{time.monotonic() - self._began:5.1f} s  {text}")

    def write(self, name: str, data: bytes) -> None:
        """Replace a file of the server's in one step, as its owner's secret."""
        new = self.service.files / f"{name}.new"
        new.write_bytes(data)
        new.chmod(0o400)
        user, group = self.service.secrets_owner
        os.chown(new, user, group)
        new.rename(self.service.files / name)

    def renew(self, days: float) -> None:
        """Give the server a certificate that ends in so many days."""
        ends = datetime.now(UTC) + timedelta(days=days)
        issued = self._authority.issue_cert(LOOPBACK, "localhost", not_after=ends)
        chain = b"".join(each.bytes() for each in issued.cert_chain_pems)
        self.write("chat.pem", chain + issued.private_key_pem.bytes())

    def dials(self) -> list[Dial]:
        """Return the ways of the clients to connect."""
        return [
            partial(dial_tls, self.service.port, self._context),
            partial(dial_unix, self.service.unix),
            partial(dial_websocket, self.service.web_port, self._context),
        ]

    async def whole(self) -> None:
        """Do all of it; raises `Wrong`."""
        service = self.service
        self.renew(days=5)
        self.write("password", PASSWORDS[0].encode())
        await service.start()
        self.tell("started; its certificate ends in five days")
        old_password = self.folder / "password"
        old_password.write_text(PASSWORDS[0])
        old_password.chmod(0o600)
        rooms = Rooms(
            service.port,
            1,
            rooms=6,
            writers=2,
            readers=1,
            rooms_each=2,
            dials=self.dials(),
            password=PASSWORDS[0],
        )
        tls = ("--tls-ca", str(self._ca_file), f"{LOOPBACK}:{service.port}")
        rooms.start()
        try:
            async with (
                people(self.folder, old_password, tls, service.unix) as persons,
                trio.open_nursery() as nursery,
            ):
                await _in_thread(rooms.wait_connected, _SECONDS)
                nursery.start_soon(persons.write)
                self.tell(f"{len(rooms.clients)} programs and two people chat")
                await self._steps(rooms)
                persons.stop()
                await _in_thread(rooms.wait_heard, _SECONDS)
                heard = await persons.check()
                rooms.password = PASSWORDS[1]  # the history is read by a newcomer
                await _in_thread(rooms.check)
        finally:
            await _in_thread(rooms.stop)
        # A connection may end while it begins, but there is always a server that listens.
        nobody = (ConnectionRefusedError, FileNotFoundError, TimeoutError)
        if refused := [each for each in rooms.not_connected if isinstance(each, nobody)]:
            raise Wrong(f"{len(refused)} times a client could not connect: {refused[0]!r}")
        self.tell(f"each message arrived once, in one order: {rooms.statistics()}; {heard}")
        await service.stop()
        self._check_log(rooms, persons)
        self.tell("stopped; the log has each message once")

    async def _steps(self, rooms: Rooms) -> None:
        service = self.service
        await trio.sleep(_BETWEEN_SECONDS)
        before = await self.certificate()
        self.renew(days=90)
        await service.reload()
        if await self.certificate() == before:
            raise Wrong("newcomers get the old certificate")
        self.tell("the certificate is renewed")

        await trio.sleep(_BETWEEN_SECONDS)
        self.write("password", PASSWORDS[1].encode())
        await service.reload()
        await self.expect("wrong password", f"/auth {PASSWORDS[0]}")
        await self.expect("password accepted", f"/auth {PASSWORDS[1]}")
        self.tell("the password is another one: newcomers need it")

        await trio.sleep(_BETWEEN_SECONDS)
        await service.rotate()
        self.tell("the log is rotated")

        await trio.sleep(_BETWEEN_SECONDS)
        await self.ban(service)
        self.tell("somebody is banned")

        await trio.sleep(_BETWEEN_SECONDS)
        if any(each.resumed for each in rooms.clients):
            raise Wrong("a client was disconnected before the restart")
        found = json.loads(await service.ctl("stats", "--json"))
        shown = "{clients} clients in {rooms} rooms, {messages} messages so far".format_map(found)
        self.tell(f"ctl stats: {shown}")
        await service.restart()
        while not all(each.resumed for each in rooms.clients):
            rooms.raise_failures()
            await trio.sleep(0.05)
        self.tell("drained and restarted: all are back")

        await trio.sleep(_BETWEEN_SECONDS)
        if max(each.resumed for each in rooms.clients) > 1:
            raise Wrong("a client was disconnected after the restart")
        if "mallory" not in await service.ctl("bans"):
            raise Wrong("the ban did not survive the restart")

    async def connect(self) -> ScriptedClient:
        stream = await trio.open_ssl_over_tcp_stream(
            LOOPBACK, self.service.port, ssl_context=self._context
        )
        return ScriptedClient(stream)  # type: ignore[arg-type]

    async def certificate(self) -> bytes:
        """Return the certificate that a newcomer gets."""
        client = await self.connect()
        stream: trio.SSLStream[trio.SocketStream] = client.stream  # type: ignore[assignment]
        with trio.fail_after(_SECONDS):
            await stream.do_handshake()
        found = stream.getpeercert(binary_form=True)
        await trio.aclose_forcefully(stream)
        assert found
        return bytes(found)

    async def expect(self, answer: str, line: str) -> None:
        """Connect and send *line*; raise `Wrong` unless the answer to it has *answer*."""
        client = await self.connect()
        try:
            with trio.fail_after(_SECONDS):
                await client.send(line)
                await client.line()  # the prompt
                if answer not in (said := await client.line()):
                    raise Wrong(f"{line} is answered by {said!r}")
        finally:
            await trio.aclose_forcefully(client.stream)

    async def ban(self, service: Service) -> None:
        """Ban a client by its name; raise `Wrong` unless it is disconnected and stays out."""
        client = await self.connect()
        try:
            with trio.fail_after(_SECONDS):
                await client.send(f"/auth {PASSWORDS[1]}", "/name mallory", "/ping")
                while "mallory" not in await client.line():
                    pass
                said = await service.ctl("ban", "name", "mallory")
                if "1 client was disconnected" not in said:
                    raise Wrong(said)
                if "goodbye: " not in (last := (await client.rest())[-1]):
                    raise Wrong(f"the banned client heard {last!r}")
        finally:
            await trio.aclose_forcefully(client.stream)

    def _check_log(self, rooms: Rooms, persons: People) -> None:
        """Raise `Wrong` unless the log files have each message once."""
        logs = self.service.logs()
        if len(logs) < 2 or not all(logs):
            raise Wrong(f"there are {len(logs)} log files of {[len(each) for each in logs]} bytes")
        said = Counter(re.findall(r" \[RX\] \[[^]]+\] (.*)$", "".join(logs), re.MULTILINE))
        expected = {
            f"{member.room} {member.name} {number}"
            for member in rooms.members
            for number in range(member.said)
        }
        expected |= {f"{name} {n}" for name in NAMES for n in range(persons.written)}
        if missing := expected - said.keys():
            raise Wrong(f"{len(missing)} of {len(expected)} messages are not in the log")
        if wrong := {text for text in expected if said[text] != 1}:
            raise Wrong(f"in the log more than once: {sorted(wrong)[:5]}")


async def _in_thread(function: Callable[..., object], *arguments: object) -> None:
    await trio.to_thread.run_sync(function, *arguments, abandon_on_cancel=True)


async def operate(service: Service, folder: Path, *, tell: Callable[[str], None] = print) -> None:
    """Look after *service* while people chat; raises `Wrong` if anybody lost anything."""
    await _Run(service, folder, tell).whole()
