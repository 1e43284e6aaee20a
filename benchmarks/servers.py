"""The measured servers: multichat, its alternatives, and the limits of the machine.

A `Server` describes how to start a server on a port, how clients join, and how a message is encoded
on the wire for the load generator (`load.c`).  Every configuration has its reason.
"""

import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

__all__ = ["SERVERS", "Dialect", "Server"]

CHATS = Path(__file__).parent / "chats"

# As `load.c` has it.
PAYLOAD_BYTES = 63

# More than the clients of the largest workload.
CLIENTS = 6000


@dataclass(frozen=True)
class Dialect:
    """How a client of this server joins and sends a message.

    A step is what it sends and what it waits for in the answer; `#####` is its number.  A message
    is between *prefix* and *suffix*.
    """

    receiver: tuple[tuple[bytes, bytes], ...] = ()
    sender: tuple[tuple[bytes, bytes], ...] = ()
    prefix: bytes = b""
    suffix: bytes = b"\n"

    def arguments(self) -> list[str]:
        """Return it as arguments of the load generator."""
        return [
            f"receiver={self._encode(self.receiver)}",
            f"sender={self._encode(self.sender)}",
            f"prefix={self.prefix.hex()}",
            f"suffix={self.suffix.hex()}",
        ]

    @staticmethod
    def _encode(steps: tuple[tuple[bytes, bytes], ...]) -> str:
        return ",".join(f"{hello.hex()}:{ready.hex()}" for hello, ready in steps)


@dataclass(frozen=True, kw_only=True)
class Server:
    """Something that can be measured.

    *command* gets a folder for configuration, the port, and the number of clients; it returns the
    arguments for *program*.  *package* is Debian's, empty for programs in this repository.  A
    *limit* is not a real server; one that *only_writes* has no senders.  With *two_ports*,
    receivers connect to the port after that of the senders.
    """

    name: str
    program: str
    command: Callable[[Path, int, int], list[str]]
    dialect: Dialect
    why: str
    package: str = ""
    version: tuple[str, ...] = ()
    ours: bool = False
    limit: bool = False
    only_writes: bool = False
    two_ports: bool = False
    frames: bool = True
    max_clients: int = CLIENTS
    outstanding: int = 128

    @property
    def path(self) -> str | None:
        """The path of the program, or None if it is not installed."""
        return shutil.which(self.program)


def _line_chat(greeting: bytes, hello: bytes = b"") -> Dialect:
    steps = ((hello, greeting),)
    return Dialect(receiver=steps, sender=steps)


def _write(folder: Path, name: str, text: str) -> str:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    path.chmod(0o644)
    return str(path)


def _multichat(_folder: Path, port: int, clients: int) -> list[str]:
    # The default limit is 1,024 clients; only that, and the memory for it, is changed.
    more = ["--max-clients", f"{clients + 16}", "--memory", "1024"] if clients > 1000 else []
    return ["-m", "multichat", "serve", str(port), "--host", "127.0.0.1", *more]


def _with_journal(durability: str) -> Callable[[Path, int, int], list[str]]:
    def command(folder: Path, port: int, clients: int) -> list[str]:
        file = folder / f"{durability}-{port}.db"  # a new one for each run
        journal = ["--journal", str(file), "--durability", durability]
        return [*_multichat(folder, port, clients), *journal]

    return command


def _ngircd(folder: Path, port: int, _clients: int) -> list[str]:
    config = _write(
        folder,
        "ngircd.conf",
        f"""[Global]
        Name = bench.example
        Info = bench
        AdminInfo1 = bench
        Listen = 127.0.0.1
        Ports = {port}
        MotdPhrase = bench
        ServerUID = 0
        ServerGID = 0
        [Limits]
        MaxConnections = 0
        MaxConnectionsIP = 0
        MaxJoins = 0
        MaxNickLength = 16
        MaxPenaltyTime = 0
        [Options]
        DNS = no
        Ident = no
        PAM = no
        """,
    )
    return ["--nodaemon", "--config", config]


def _inspircd(folder: Path, port: int, _clients: int) -> list[str]:
    config = _write(
        folder,
        "inspircd.conf",
        f"""<server name="bench.example" description="bench" network="bench">
        <admin name="bench" nick="bench" email="bench@bench.example">
        <bind address="127.0.0.1" port="{port}" type="clients">
        <connect allow="*" timeout="60" pingfreq="600" hardsendq="67108864" softsendq="16777216"
                 recvq="1048576" threshold="4000000" commandrate="1000000000" fakelag="no"
                 localmax="100000" globalmax="100000" maxchans="20" resolvehostnames="no"
                 useconnflood="no" maxconnwarn="no">
        <performance softlimit="100000" somaxconn="4096" netbuffersize="65534">
        <options defaultmodes="nt">
        <log method="file" type="*" level="default" target="{folder}/inspircd.log">
        <pid file="{folder}/inspircd.pid">
        """,
    )
    return ["--nofork", "--runasroot", "--config", config]


def _mosquitto(folder: Path, port: int, _clients: int) -> list[str]:
    text = f"""listener {port} 127.0.0.1
allow_anonymous true
set_tcp_nodelay true
user root
"""
    return ["-c", _write(folder, "mosquitto.conf", text)]


def _redis(folder: Path, port: int, _clients: int) -> list[str]:
    text = f"""bind 127.0.0.1
port {port}
save ""
appendonly no
maxclients 20000
tcp-backlog 4096
dir {folder}
"""
    return [_write(folder, "redis.conf", text)]


def _multichat_web(folder: Path, port: int, clients: int) -> list[str]:
    return [*_multichat(folder, port, clients), "--web", str(port + 1)]


def _message(text: bytes) -> bytes:
    """Return the frame of a message of 126 bytes or less, masked with zeros: what it says."""
    return bytes((0x81, 0x80 | len(text))) + bytes(4) + text


def _upgrade(subprotocol: bytes = b"") -> tuple[bytes, bytes]:
    wanted = b"Sec-WebSocket-Protocol: %b\r\n" % subprotocol if subprotocol else b""
    request = (
        b"GET /ws HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: YmVuY2htYXJrcyBvZiBpdA==\r\n%b\r\n"
    )
    return request % wanted, b"\r\n\r\n"


def _web_receivers(subprotocol: bytes = b"") -> Dialect:
    return replace(_JSON, receiver=(_upgrade(subprotocol), (_message(b"/json {}"), b'"welcome"')))


_JSON_HELLO = ((b"/json {}\n", b'"welcome"'),)
_JSON = Dialect(
    receiver=_JSON_HELLO,
    sender=_JSON_HELLO,
    prefix=b'{"type":"say","text":"',
    suffix=b'"}\n',
)
_WEBSOCKET_HELLO = ((_upgrade()[0], b"You are"),)
_IRC_HELLO = (
    (b"NICK n#####\r\nUSER u 0 * :bench\r\n", b" 001 "),
    (b"JOIN #c\r\n", b" 366 "),
)
_IRC = Dialect(receiver=_IRC_HELLO, sender=_IRC_HELLO, prefix=b"PRIVMSG #c :", suffix=b"\r\n")
_JOINS = "5,000 clients in one channel cause 12.5 million lines about joins, so this was not tried."
_NATS_HELLO = b'CONNECT {"verbose":false,"pedantic":false,"echo":false}\r\n'
_MQTT_CONNECT = b"\x10\x11\x00\x04MQTT\x04\x02\x00\x00\x00\x05#####"
_REDIS = Dialect(
    receiver=((b"*2\r\n$9\r\nSUBSCRIBE\r\n$1\r\nc\r\n", b":1\r\n"),),
    sender=((b"PING\r\n", b"+PONG"),),
    prefix=b"*3\r\n$7\r\nPUBLISH\r\n$1\r\nc\r\n$63\r\n",
    suffix=b"\r\n",
)
_REDIS_WHY = (
    "No persistence: pub/sub needs none. "
    "The limit of a subscriber's output buffer (32 MB, or 8 MB for a minute) is the default."
)

SERVERS = [
    Server(
        name="multichat",
        program=sys.executable,
        command=_multichat,
        dialect=_line_chat(b"pong", hello=b"/ping\n"),
        why="Defaults; every message is logged, standard output is a file.",
        ours=True,
    ),
    *(
        Server(
            name=f"multichat, {durability} journal",
            program=sys.executable,
            command=_with_journal(durability),
            dialect=_line_chat(b"pong", hello=b"/ping\n"),
            why=f"The same with `--journal FILE --durability {durability}`.",
        )
        for durability in ("full", "normal")
    ),
    Server(
        name="multichat, JSON",
        program=sys.executable,
        command=_multichat,
        dialect=_JSON,
        why="The same; all clients speak JSON.",
        ours=True,
    ),
    *(
        Server(
            name=name,
            program=sys.executable,
            command=_multichat_web,
            dialect=_web_receivers(subprotocol),
            why=why,
            ours=True,
            two_ports=True,
        )
        for name, subprotocol, why in (
            (
                "multichat, WebSocket",
                b"",
                "With `--web`; senders speak JSON over TCP, receivers over WebSocket.",
            ),
            (
                "multichat, WebSocket lines",
                b"multichat.lines",
                "The same; receivers ask for many lines in a message, as the page does.",
            ),
        )
    ),
    Server(
        name="ncat --chat",
        program="ncat",
        command=lambda _folder, port, clients: (
            f"-l 127.0.0.1 {port} --chat --max-conns {clients + 16}".split()
        ),
        dialect=_line_chat(b"already connected"),
        why="`--max-conns` only; it tags reads, not lines, and `select` limits it to 1,024 files.",
        package="ncat",
        version=("--version",),
        frames=False,
        max_clients=1010,
        outstanding=4,  # its backlog is ten
    ),
    Server(
        name="nats-server",
        program="nats-server",
        command=lambda _folder, port, _clients: f"--addr 127.0.0.1 --port {port}".split(),
        dialect=Dialect(
            receiver=((_NATS_HELLO + b"SUB c 1\r\nPING\r\n", b"PONG\r\n"),),
            sender=((_NATS_HELLO + b"PING\r\n", b"PONG\r\n"),),
            prefix=b"PUB c 63\r\n",
            suffix=b"\r\n",
        ),
        why="Defaults: core NATS, no JetStream; clients with `verbose` off, as all libraries do.",
        package="nats-server",
        version=("--version",),
    ),
    Server(
        name="redis",
        program="redis-server",
        command=_redis,
        dialect=_REDIS,
        why=_REDIS_WHY,
        package="redis-server",
        version=("--version",),
    ),
    Server(
        name="valkey",
        program="valkey-server",
        command=_redis,
        dialect=_REDIS,
        why=_REDIS_WHY,
        package="valkey-server",
        version=("--version",),
    ),
    Server(
        name="inspircd",
        program="inspircd",
        command=_inspircd,
        dialect=_IRC,
        why=(
            "No flood control (it would disconnect the sender), no name lookups, a send queue of "
            "64 MiB, the largest read buffer: with the default it takes 10 KB a second from a "
            "sender that never pauses, because it reads one buffer per event. " + _JOINS
        ),
        max_clients=1100,
        package="inspircd",
        version=("--version",),
    ),
    Server(
        name="ngircd",
        program="ngircd",
        command=_ngircd,
        dialect=_IRC,
        why=(
            "No flood penalty, no limit of connections, no name or ident lookups; its clients "
            f"connect eight at a time, because more made it hang. {_JOINS}"
        ),
        max_clients=1100,
        outstanding=8,
        package="ngircd",
        version=("--version",),
    ),
    Server(
        name="mosquitto",
        program="mosquitto",
        command=_mosquitto,
        dialect=Dialect(
            receiver=(
                (_MQTT_CONNECT, b"\x20\x02\x00\x00"),
                (b"\x82\x06\x00\x01\x00\x01c\x00", b"\x90\x03\x00\x01\x00"),
            ),
            sender=((_MQTT_CONNECT, b"\x20\x02\x00\x00"),),
            prefix=b"\x30\x42\x00\x01c",
            suffix=b"",
        ),
        why="QoS 0, no persistence, no-delay set; otherwise defaults.",
        package="mosquitto",
        version=("-h",),
    ),
    Server(
        name="asyncio streams",
        program=sys.executable,
        command=lambda _folder, port, _clients: [str(CHATS / "asyncio_chat.py"), str(port)],
        dialect=_line_chat(b"You are"),
        why="`benchmarks/chats/asyncio_chat.py`: a tutorial's chat, with logging like multichat's.",
    ),
    Server(
        name="websockets",
        program=sys.executable,
        command=lambda _folder, port, _clients: [str(CHATS / "websockets_chat.py"), str(port)],
        dialect=Dialect(
            receiver=_WEBSOCKET_HELLO,
            sender=_WEBSOCKET_HELLO,
            prefix=_message(bytes(PAYLOAD_BYTES))[:-PAYLOAD_BYTES],
            suffix=b"",
        ),
        why=(
            "`benchmarks/chats/websockets_chat.py`: the broadcast of the `websockets` library, "
            "without compression, with logging like multichat's."
        ),
    ),
    Server(
        name="threads",
        program=sys.executable,
        command=lambda _folder, port, _clients: [str(CHATS / "threads_chat.py"), str(port)],
        dialect=_line_chat(b"You are"),
        why="`benchmarks/chats/threads_chat.py`: one thread per client, one lock, logging.",
    ),
    Server(
        name="C loop",
        program="reference",
        command=lambda _folder, port, _clients: ["loop", str(port)],
        dialect=_line_chat(b"You are"),
        why="`benchmarks/reference.c`: read 64 KiB, send to each of the others in turn; no log.",
        limit=True,
        frames=False,
    ),
    Server(
        name="limit: 64 KiB writes",
        program="reference",
        command=lambda _folder, port, clients: ["limit", str(port), str(clients), "65536"],
        dialect=Dialect(),
        why="`benchmarks/reference.c`: ready-made bytes, 64 KiB a write, nothing read.",
        limit=True,
        only_writes=True,
    ),
    Server(
        name="limit: one message a write",
        program="reference",
        command=lambda _folder, port, clients: ["limit", str(port), str(clients), "1"],
        dialect=Dialect(),
        why="The same, one message a write.",
        limit=True,
        only_writes=True,
    ),
]
