"""TLS: conversations, untrusted certificates, and floods of handshakes."""

import json
import shutil
import signal
import socket
import ssl
import struct
import time
import warnings
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import cast

import pytest
import trio
import trio.testing
import trustme
from cryptography.hazmat.primitives import serialization

import multichat
from multichat import Chat, ConnectFailed, Server, ServerConfig, open_chat
from multichat.client.connect import Endpoint, client_tls, connect, dial
from multichat.errors import BadCertificate
from multichat.net.certificates import explain_handshake, server_tls
from multichat.protocol.messages import Goodbye
from multichat.protocol.text_codec import TEXT
from multichat.server.admission import MAX_PENDING
from multichat.testing import ScriptedClient
from tests.support.log import LogRecorder
from tests.support.processes import (
    LOOPBACK,
    MULTICHAT,
    WAIT_SECONDS,
    Command,
    ServerCommand,
    listening,
    program,
    serve,
    tcp,
)

pytestmark = pytest.mark.process

SPEAKS_TLS = "this server requires TLS: use multichat with --tls"
GOODBYE = "[Server] goodbye: the server is shutting down"


@dataclass
class Certificates:
    """Certificates in PEM files, by name; `good` is for this machine and signed by `ca`."""

    folder: Path

    def path(self, name: str) -> Path:
        return self.folder / f"{name}.pem"

    def server(self, name: str = "good") -> ssl.SSLContext:
        return server_tls(self.path(name))

    def client(self) -> ssl.SSLContext:
        return client_tls(self.path("ca"))


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    made = Certificates(tmp_path_factory.mktemp("certificates"))
    ca, other_ca = trustme.CA(), trustme.CA()
    past = datetime.now(UTC) - timedelta(days=1)
    good = ca.issue_cert(LOOPBACK, "localhost")
    leaves = {
        "good": good,
        "untrusted": other_ca.issue_cert(LOOPBACK),
        "expired": ca.issue_cert(LOOPBACK, not_before=past - timedelta(days=9), not_after=past),
        "early": ca.issue_cert(LOOPBACK, not_before=past + timedelta(days=3)),
        "named": ca.issue_cert("chat.example.org"),
    }
    for name, leaf in leaves.items():
        leaf.private_key_and_cert_chain_pem.write_to_path(str(made.path(name)))
    ca.cert_pem.write_to_path(str(made.path("ca")))
    other_ca.cert_pem.write_to_path(str(made.path("other-ca")))
    # An authority that shows its own certificate, which only it has signed.
    key = ca.private_key_pem.bytes()
    made.path("self-signed").write_bytes(key + ca.cert_pem.bytes())
    made.path("chain").write_bytes(b"".join(blob.bytes() for blob in good.cert_chain_pems))
    made.path("key").write_bytes(good.private_key_pem.bytes())
    made.path("other-key").write_bytes(leaves["named"].private_key_pem.bytes())
    locked = serialization.load_pem_private_key(good.private_key_pem.bytes(), None).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"secret"),
    )
    made.path("locked").write_bytes(locked)
    made.path("no").write_bytes(b"nothing of the kind\n")
    return made


@asynccontextmanager
async def running(
    context: ssl.SSLContext | None, config: ServerConfig | None = None
) -> AsyncIterator[Server]:
    """A server of this process on a port of the system's choice."""
    async with trio.open_nursery() as nursery:
        run = partial(multichat.serve, 0, host=LOOPBACK, tls=context, config=config)
        yield await nursery.start(run)
        nursery.cancel_scope.cancel(reason="the block is over")


@asynccontextmanager
async def scripted(stream: trio.abc.Stream) -> AsyncIterator[ScriptedClient]:
    """The test's hands on *stream*, which over TLS cannot be half-closed."""
    try:
        yield ScriptedClient(cast("trio.abc.HalfCloseableStream", stream))
    finally:
        await trio.aclose_forcefully(stream)


async def until_logged(log: LogRecorder, text: str, count: int = 1) -> list[str]:
    """Wait until *text* stands in so many of the log's lines, and return these."""
    with trio.fail_after(WAIT_SECONDS):
        while len(found := [line for line in log.lines if text in line]) < count:
            await trio.sleep(0.005)
    return found


def serve_tls(folder: Path, certificates: Certificates, *options: str) -> ServerCommand:
    return serve(folder, "--tls-cert", str(certificates.path("good")), *options)


def client(
    folder: Path, certificates: Certificates, port: int, command: str, *words: str
) -> Command:
    trust = ("--tls-ca", str(certificates.path("ca")))
    return Command(folder, MULTICHAT, *command.split(), *trust, LOOPBACK, str(port), *words)


# --- It works ------------------------------------------------------------------------------------


async def test_clients_talk_over_tls_and_get_the_goodbye(
    certificates: Certificates, tmp_path: Path
) -> None:
    async with serve_tls(tmp_path, certificates) as server, AsyncExitStack() as stack:
        port = server.port
        ncat = Command(tmp_path, program("ncat"), "--ssl", LOOPBACK, str(port))
        await stack.enter_async_context(ncat)
        await server.wait_for("Client 1 connected")
        connected = client(tmp_path, certificates, port, "connect --name=alice")
        await stack.enter_async_context(connected)
        plain = client(tmp_path, certificates, port, "connect --plain")
        await stack.enter_async_context(plain)
        await server.wait_for("Client 3 connected")
        await connected.wait_for("you are alice in lobby")
        await ncat.type("hello, καλημέρα 👋\n")
        await connected.wait_for("[RX] [Client 1] hello, καλημέρα 👋")
        await connected.type("good morning\n")
        await ncat.wait_for("[alice] good morning\n")
        await plain.wait_for("[RX] [alice] good morning")
        await plain.type("from a plain one\n")
        await ncat.wait_for("from a plain one\n")
        async with client(tmp_path, certificates, port, "send --name=ci", "it", "is", "done") as ci:
            assert await ci.wait() == 0
        await ncat.wait_for("[ci] it is done\n")
        await server.wait_for("Client 4 disconnected")
        async with client(tmp_path, certificates, port, "who") as who:
            assert await who.wait() == 0
            assert "1 Client 1\n" in who.out
            assert who.out.count("\n") == 3
        server.signal(signal.SIGINT)
        assert await server.wait() == 0
        assert await plain.wait() == 0
        assert f"[INFO] [client] [RX] {GOODBYE}" in plain.lines
        await connected.wait_for("Connection lost: the server is shutting down; reconnecting")
        connected.signal(signal.SIGINT)
        assert await connected.wait() == 0
        assert connected.err == plain.err == ""
        await ncat.wait_for(GOODBYE)
        assert server.err == ""


@pytest.mark.parametrize("command", ["connect", "connect --plain", "send"])
async def test_two_thousand_lines_arrive_whole_before_the_end_of_input(
    command: str, certificates: Certificates, tmp_path: Path
) -> None:
    """Over TLS there is no half-closing: leaving must not overtake earlier messages."""
    async with running(certificates.server()) as server:
        stream = await dial(LOOPBACK, server.port, tls=certificates.client())
        async with scripted(stream) as listener:
            words = ["-"] if command == "send" else []
            argv = client(tmp_path, certificates, server.port, command, *words)
            async with argv as sender:
                await sender.type("".join(f"{i} {'x' * 50}\n" for i in range(2000)) + "last")
                sender.end_input()
                lines = await listener.lines(2001)
                assert await sender.wait() == 0
                assert sender.err == ""
            tag = lines[0].partition("0 ")[0]
            assert lines == [f"{tag}{i} {'x' * 50}" for i in range(2000)] + [f"{tag}last"]


async def test_delivered_messages_arrive_complete_over_tls(
    certificates: Certificates, tmp_path: Path
) -> None:
    async with (
        running(certificates.server()) as server,
        client(tmp_path, certificates, server.port, "connect --listen") as ear,
        connect(LOOPBACK, server.port, tls=certificates.client()) as chat,
    ):
        await ear.wait_for("[STATE] you are")
        await chat.send(*(f"line {i}" for i in range(2000)))
        await ear.wait_for(" line 1999\n")
        said = [line.rpartition("] ")[2] for line in ear.lines if " line " in line]
        assert said == [f"line {i}" for i in range(2000)]


async def test_the_certificate_is_verified_against_the_given_name(
    certificates: Certificates, tmp_path: Path
) -> None:
    async with running(certificates.server("named")) as server:
        argv = client(
            tmp_path, certificates, server.port, "send --tls-name chat.example.org", "there you are"
        )
        async with argv as send:
            assert await send.wait() == 0


async def test_a_certificate_and_its_key_may_stand_in_two_files(
    certificates: Certificates, log: LogRecorder
) -> None:
    context = server_tls(certificates.path("chain"), certificates.path("key"))
    async with (
        running(context) as server,
        connect("localhost", server.port, tls=certificates.client(), name="alice") as chat,
    ):
        assert chat.welcome is not None
        [member] = server.members
        assert member.address.startswith(f"{LOOPBACK}:")
    assert not [line for line in log.lines if "without TLS or a password" in line]


@pytest.mark.parametrize("plain", [False, True])
async def test_tls_works_over_any_stream(
    plain: bool,
    certificates: Certificates,
    log: LogRecorder,
    autojump_clock: trio.testing.MockClock,
) -> None:
    """`Server.handle` speaks TLS in memory just as on a socket."""

    @asynccontextmanager
    async def chat(server: Server, *, plain: bool) -> AsyncIterator[Chat]:
        ours, theirs = trio.testing.memory_stream_pair()
        nursery.start_soon(partial(server.handle, ours, tls=context))
        stream = trio.SSLStream(theirs, certificates.client(), server_hostname="localhost")
        async with open_chat(stream, plain=plain) as made:
            await trio.testing.wait_all_tasks_blocked()
            yield made

    context = certificates.server()
    async with Server().open() as server, trio.open_nursery() as nursery:
        async with chat(server, plain=plain) as a, chat(server, plain=False) as b:
            await a.send(*map(str, range(500)))
            received = [await anext(b) for _ in range(500)]
            assert [TEXT.format(event) for event in received] == [
                f"[Client 1] {i}" for i in range(500)
            ]
            await b.send("and back")
            received = [await anext(a) for _ in range(1 if plain else 2)]  # also `joined`
            assert TEXT.format(received[-1]) == "[Client 2] and back"
        await trio.testing.wait_all_tasks_blocked()
        assert server.members == []
    left = [line for line in log.lines if "disconnected" in line]
    assert sorted(left) == [f"[INFO] [server] [STATE] Client {n} disconnected" for n in (1, 2)]


async def test_the_end_of_a_server_says_goodbye_over_tls(certificates: Certificates) -> None:
    async with trio.open_nursery() as nursery:
        run = partial(multichat.serve, 0, host=LOOPBACK, tls=certificates.server())
        server = await nursery.start(run)
        tls = certificates.client()
        async with connect(LOOPBACK, server.port, tls=tls, reconnect=False) as chat:
            await chat.members()
            server.shutdown()
            goodbye = Goodbye.of("shutdown", "the server is shutting down")
            assert [event async for event in chat] == [goodbye]
            assert chat.goodbye == "the server is shutting down"


async def test_a_broken_tls_connection_is_one_log_line(
    certificates: Certificates, log: LogRecorder
) -> None:
    """With a reset, and without the goodbye that TLS has."""
    async with running(certificates.server()) as server:
        for number, linger in enumerate((True, False), 1):
            stream = await trio.open_tcp_stream(LOOPBACK, server.port)
            encrypted = trio.SSLStream(stream, certificates.client(), server_hostname=LOOPBACK)
            await encrypted.send_all(b"hello\n")
            await until_logged(log, f"[Client {number}] hello")
            if linger:
                stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            await trio.aclose_forcefully(stream)
            await until_logged(log, f"Client {number} disconnected")
    assert [line for line in log.lines if "disconnected" in line] == [
        "[INFO] [server] [STATE] Client 1 disconnected (connection reset)",
        "[INFO] [server] [STATE] Client 2 disconnected (the TLS connection broke off)",
    ]


# --- Who cannot be trusted -----------------------------------------------------------------------

NOT_TRUSTED = "its certificate is not accepted: "
HINT = "; trust it with --tls-ca FILE"
NAME_HINT = "; expect another name in it with --tls-name NAME"
EXPIRED = "; its operator has to renew it, if the clock of this machine is right"


@pytest.mark.parametrize(
    ("certificate", "command", "reason"),
    [
        ("untrusted", "connect", f"unable to get local issuer certificate{HINT}"),
        ("self-signed", "send", f"self-signed certificate{HINT}"),
        ("expired", "who", f"certificate has expired{EXPIRED}"),
        ("early", "connect", "certificate is not yet valid; is the clock of this machine right?"),
        (
            "named",
            "send",
            f"ip address mismatch, certificate is not valid for '127.0.0.1'{NAME_HINT}",
        ),
    ],
)
async def test_an_untrusted_certificate_is_one_line_on_both_sides(
    certificate: str,
    command: str,
    reason: str,
    certificates: Certificates,
    log: LogRecorder,
    tmp_path: Path,
) -> None:
    # No option says to trust the self-signed one.
    trust = "--tls" if certificate == "self-signed" else f"--tls-ca={certificates.path('ca')}"
    words = ["x"] if command == "send" else []
    async with running(certificates.server(certificate)) as server:
        argv = (MULTICHAT, command, trust, LOOPBACK, str(server.port), *words)
        async with Command(tmp_path, *argv) as refused:
            assert await refused.wait() == 1
            where = f"cannot connect to {LOOPBACK} port {server.port}"
            assert refused.err == f"multichat: {where}: {NOT_TRUSTED}{reason}\n"
            assert "Traceback" not in refused.out
        [line] = await until_logged(log, "Refused")
        assert line.startswith(f"[INFO] [server] [STATE] Refused {LOOPBACK}:")
        # A client of this kind closes without an alert; others send one.
        why = "perhaps the client does not trust the certificate"
        dates = {"expired": "expired on ", "early": "is not valid before "}
        if certificate in dates:
            why = f"the certificate {dates[certificate]}"
        assert f": TLS handshake aborted; {why}" in line
        assert server.statistics().refused == 1
    assert not [line for line in log.lines if "crashed" in line or "connected" in line]


async def test_a_client_that_reconnects_trusts_the_present_contents_of_its_file(
    certificates: Certificates, tmp_path: Path
) -> None:
    """A server whose certificate was renewed by another authority."""
    trusted = tmp_path / "ca"
    shutil.copy(certificates.path("ca"), trusted)
    async with running(certificates.server()) as server:
        tls = client_tls(trusted)
        endpoint = Endpoint(host=LOOPBACK, port=server.port, tls=tls, tls_ca=trusted)
        await (await endpoint.dial()).aclose()
        server.settings.change_certificate(certificates.server("untrusted"))
        with pytest.raises(ConnectFailed, match=NOT_TRUSTED) as caught:
            await endpoint.dial()
        assert caught.value.lasting
        trusted.write_text("half a file\n", "utf-8")
        with pytest.raises(ConnectFailed, match=NOT_TRUSTED):
            await endpoint.dial()
        shutil.copy(certificates.path("other-ca"), trusted)
        await (await endpoint.dial()).aclose()


@pytest.mark.parametrize(
    ("certificate", "said"),
    [
        ("expired", "certificate expired; the certificate expired on "),
        ("early", "bad certificate; the certificate is not valid before "),
        ("untrusted", "unknown ca; perhaps the chain in the certificate's file is not complete"),
    ],
)
async def test_the_clients_tls_alert_is_logged_and_explained(
    certificate: str, said: str, certificates: Certificates, log: LogRecorder
) -> None:
    context = certificates.client()
    async with running(certificates.server(certificate)) as server:

        def shake_hands() -> None:
            plain = socket.create_connection((LOOPBACK, server.port))
            with plain, pytest.raises(ssl.SSLCertVerificationError):
                context.wrap_socket(plain, server_hostname=LOOPBACK)

        await trio.to_thread.run_sync(shake_hands)
        [line] = await until_logged(log, "Refused")
        assert f": TLS: the other side says {said}" in line


@pytest.mark.parametrize(
    ("reason", "explained"),
    [
        ("SSLV3_ALERT_CERTIFICATE_EXPIRED", "it has not: the client's clock is perhaps wrong"),
        ("SSLV3_ALERT_HANDSHAKE_FAILURE", ""),
        ("NO_SHARED_CIPHER", ""),
    ],
)
def test_an_alert_is_explained_as_far_as_it_is_known(
    reason: str, explained: str, certificates: Certificates
) -> None:
    cause = ssl.SSLError(1, f"[SSL: {reason}] …")
    cause.reason = reason
    error = trio.BrokenResourceError()
    error.__cause__ = cause
    shown = explain_handshake(error, certificates.server(), time.time())
    assert shown.partition("; ")[2] == explained


async def test_the_given_name_is_verified_instead_of_the_host(
    certificates: Certificates,
) -> None:
    async with running(certificates.server()) as server:
        tls = certificates.client()
        for name in ("", None, LOOPBACK, "localhost"):  # no name at all is the host's
            await (await dial(LOOPBACK, server.port, tls=tls, tls_name=name)).aclose()
        for name in ("evil.example.org", "*", "x" * 300, "a..b", ".", "\udcff", "ü" * 99):
            with pytest.raises(ConnectFailed) as failed:
                await dial(LOOPBACK, server.port, tls=tls, tls_name=name)
            assert str(failed.value).startswith(f"cannot connect to {LOOPBACK} port {server.port}")
            assert "\n" not in str(failed.value)


@pytest.mark.parametrize(
    ("certificate", "key", "reason"),
    [
        ("missing", None, "{certificate}: no such file or directory"),
        ("no", None, "{certificate}: no certificate and key in PEM form"),
        (".", None, "{certificate}: is a directory"),
        ("chain", None, "{certificate}: no certificate and key in PEM form"),  # no key in it
        ("key", None, "{certificate}: no certificate and key in PEM form"),
        ("chain", "missing", "{key}: no such file or directory"),
        ("chain", "no", "{certificate}: no certificate and key in PEM form"),
        ("chain", ".", "{key}: is a directory"),
        ("chain", "other-key", "{certificate}: the key {key} belongs to another certificate"),
        ("chain", "locked", "{key}: it asks for a passphrase"),
    ],
)
def test_an_unusable_certificate_is_an_error_with_its_reason(
    certificate: str, key: str | None, reason: str, certificates: Certificates
) -> None:
    def path(name: str) -> Path:
        return certificates.folder if name == "." else certificates.path(name)

    key_path = None if key is None else path(key)
    with pytest.raises(BadCertificate) as bad:
        server_tls(path(certificate), key_path)
    assert str(bad.value) == reason.format(certificate=path(certificate), key=key_path)


@pytest.mark.parametrize(
    ("authority", "reason"),
    [
        ("missing", "no such file or directory"),
        ("no", "no certificate in PEM form"),
        ("key", "no certificate in PEM form"),
    ],
)
def test_an_unusable_ca_is_an_error_with_its_reason(
    authority: str, reason: str, certificates: Certificates
) -> None:
    with pytest.raises(BadCertificate) as bad:
        client_tls(certificates.path(authority))
    assert str(bad.value) == f"{certificates.path(authority)}: {reason}"


async def test_an_unusable_certificate_file_is_one_line_of_the_command(
    certificates: Certificates, tmp_path: Path
) -> None:
    path = certificates.path
    commands = {
        ("serve", "0", "--tls-cert", str(path("no"))): (
            f"multichat: {path('no')}: no certificate and key in PEM form\n"
        ),
        ("connect", "--tls-ca", str(path("missing")), LOOPBACK, "1"): (
            f"multichat: {path('missing')}: no such file or directory\n"
        ),
        ("serve", "0", "--tls-key", str(path("key"))): "",  # which is a mistake in the usage
    }
    async with trio.open_nursery() as nursery:

        async def check(argv: tuple[str, ...], error: str) -> None:
            async with Command(tmp_path, MULTICHAT, *argv) as command:
                assert await command.wait() == (1 if error else 2)
                assert command.err == error or (not error and "needs --tls-cert" in command.err)
                assert command.out == ""

        for argv, error in commands.items():
            nursery.start_soon(check, argv, error)


# --- Clients without TLS -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "said",
    [b"hi\n", b"hello\n", b"GET / HTTP/1.1\r\n\r\n", b'/json {"protocol":1}\n', b"\0" * 99],
)
async def test_a_client_without_tls_is_answered_in_plain_text(
    said: bytes, certificates: Certificates, log: LogRecorder
) -> None:
    async with running(certificates.server()) as server:
        async with scripted(await trio.open_tcp_stream(LOOPBACK, server.port)) as plain:
            await plain.stream.send_all(said)
            words = [line for line in await plain.rest() if line.startswith("[Server]")]
            assert words == [f"[Server] goodbye: {SPEAKS_TLS}"]
        [line] = await until_logged(log, "Refused")
        assert line.startswith(f"[INFO] [server] [STATE] Refused {LOOPBACK}:")
        assert line.endswith(": the client does not use TLS, which this port requires")


async def test_nc_gets_a_line_that_says_to_use_tls(
    certificates: Certificates, tmp_path: Path
) -> None:
    async with serve_tls(tmp_path, certificates) as server:
        async with Command(tmp_path, program("nc"), LOOPBACK, str(server.port)) as nc:
            await nc.type("hello?\n")
            await nc.wait_for(f"[Server] goodbye: {SPEAKS_TLS}\n")
        async with Command(tmp_path, MULTICHAT, "connect", LOOPBACK, str(server.port)) as plain:
            assert await plain.wait() in (0, 1)
            assert SPEAKS_TLS in plain.out + plain.err
            assert "Traceback" not in plain.out + plain.err
        script = f"echo done | {MULTICHAT} connect {LOOPBACK} {server.port}"
        async with Command(tmp_path, "/bin/sh", "-c", script) as pipe:
            assert await pipe.wait() == 1
            assert pipe.err == f"multichat: {SPEAKS_TLS}\n"
        async with Command(tmp_path, MULTICHAT, "who", LOOPBACK, str(server.port)) as who:
            assert await who.wait() == 1
            assert who.err == f"multichat: {SPEAKS_TLS}\n"
        server.signal(signal.SIGINT)
        assert await server.wait() == 0
        assert server.err == ""
        assert server.out.count("the client does not use TLS, which this port requires\n") == 4


# The beginning of every TLS client: a record of 200 bytes that holds a hello.
HALF_A_HELLO = b"\x16\x03\x01\x00\xc8\x01\x00\x00\xc4\x03\x03" + bytes(20)


@pytest.mark.parametrize("said", [b"", b"\x16", HALF_A_HELLO])
async def test_a_silent_handshake_times_out(
    said: bytes, certificates: Certificates, log: LogRecorder
) -> None:
    config = ServerConfig(handshake_seconds=0.2)
    async with running(certificates.server(), config) as server:
        async with scripted(await trio.open_tcp_stream(LOOPBACK, server.port)) as silent:
            if said:
                await silent.stream.send_all(said)
            with trio.fail_after(WAIT_SECONDS):
                assert await silent.rest() == []
        [line] = await until_logged(log, "Refused")
        assert line.endswith(": no TLS handshake in 0.2 s")


@pytest.mark.parametrize("said", [b"", HALF_A_HELLO])
async def test_an_aborted_handshake_is_one_log_line(
    said: bytes, certificates: Certificates, log: LogRecorder
) -> None:
    async with running(certificates.server()) as server:
        for reset in (False, True):
            stream = await trio.open_tcp_stream(LOOPBACK, server.port)
            await stream.send_all(said)
            if reset:
                stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            await stream.aclose()
        lines = await until_logged(log, "Refused ", 2)
        assert len(lines) == 2
        assert not [line for line in log.lines if "crashed" in line]


@pytest.mark.parametrize("name", ["connect", "connect --json", "connect --wait", "send", "who"])
@pytest.mark.parametrize("password", [None, "secret"])
async def test_the_error_of_a_tls_client_on_a_plain_server_says_to_omit_tls(
    name: str, password: str | None, certificates: Certificates, tmp_path: Path
) -> None:
    file = tmp_path / "password"
    file.write_text("secret", "utf-8")
    options = [] if password is None else ["--password-file", str(file)]
    words = ["hello"] if name == "send" else []
    async with (
        serve(tmp_path, *options) as server,
        client(tmp_path, certificates, server.port, name, *words) as mistaken,
    ):
        assert await mistaken.wait() == 1
        assert mistaken.err == (
            f"multichat: cannot connect to {LOOPBACK} port {server.port}: "
            "the server does not use TLS: omit --tls\n"
        )


async def test_json_over_tls_ends_with_a_request_to_quit(
    certificates: Certificates, tmp_path: Path
) -> None:
    async with (
        serve_tls(tmp_path, certificates) as server,
        client(tmp_path, certificates, server.port, "connect --json") as bot,
    ):
        await bot.wait_for("welcome")
        await bot.type('{"type":"say","text":"hi","nonce":1}\n')
        bot.end_input()
        assert await bot.wait() == 0
        assert bot.err == ""
        kinds = [json.loads(line)["type"] for line in bot.out.splitlines()]
        assert kinds == ["welcome", "accepted", "goodbye"]
        await server.wait_for("Client 1 disconnected")
        assert "broke off" not in server.out


async def test_a_tls_client_of_a_foreign_plain_server_gets_a_hint(
    certificates: Certificates, tmp_path: Path
) -> None:
    async with (
        listening() as (listener, port),
        client(tmp_path, certificates, port, "who") as mistaken,
    ):
        async with await listener.accept() as stream:
            await stream.receive_some()
        assert await mistaken.wait() == 1
        assert mistaken.err.endswith("; if the server does not use TLS, omit --tls\n")


async def test_a_tls_client_on_a_plain_port_is_one_line_on_both_sides(
    certificates: Certificates, tmp_path: Path
) -> None:
    async with serve(tmp_path) as server, tcp(server) as witness:
        await server.wait_for("Client 1 connected")
        async with client(tmp_path, certificates, server.port, "connect") as mistaken:
            assert await mistaken.wait() == 1
            assert mistaken.err.startswith(f"multichat: cannot connect to {LOOPBACK} port")
            assert mistaken.err.count("\n") == 1
        await server.wait_for(
            "Client 2 disconnected (the client uses TLS, which this port does not support)\n"
        )
        await witness.send_all(b"/ping\n")
        assert await witness.receive_some() == b"[Server] pong\n"
        server.signal(signal.SIGINT)
        assert await server.wait() == 0
        assert server.err == ""


async def test_old_tls_versions_are_refused(certificates: Certificates, log: LogRecorder) -> None:
    assert certificates.server().minimum_version >= ssl.TLSVersion.TLSv1_2
    assert certificates.client().minimum_version >= ssl.TLSVersion.TLSv1_2
    old = certificates.client()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        old.minimum_version, old.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1
    old.set_ciphers("ALL:@SECLEVEL=0")  # else it would not even ask
    async with running(certificates.server()) as server:
        with pytest.raises(ConnectFailed):
            await dial(LOOPBACK, server.port, tls=old)
        [line] = await until_logged(log, "Refused")
        assert line.endswith(": TLS: unsupported protocol")
        new = certificates.client()
        new.maximum_version = ssl.TLSVersion.TLSv1_2
        await (await dial(LOOPBACK, server.port, tls=new)).aclose()


# --- Many at the door ----------------------------------------------------------------------------


async def test_a_flood_of_half_open_handshakes_does_not_lock_out_an_honest_client(
    certificates: Certificates, tmp_path: Path
) -> None:
    count = MAX_PENDING + 50
    async with serve_tls(tmp_path, certificates) as server, AsyncExitStack() as stack:
        # A client that was admitted before, and stays.
        witness = await dial(LOOPBACK, server.port, tls=certificates.client())
        stack.push_async_callback(trio.aclose_forcefully, witness)
        await server.wait_for("Client 1 connected")
        flood = [await trio.open_tcp_stream(LOOPBACK, server.port) for _ in range(count)]
        for stream in flood:
            stack.push_async_callback(trio.aclose_forcefully, stream)
        await server.wait_for("too many connections wait for admission", count - MAX_PENDING)
        async with connect(LOOPBACK, server.port, tls=certificates.client()) as honest:
            assert len(await honest.members()) == 2
            await honest.send("I am in")
            assert b"I am in\n" in await witness.receive_some()
        await server.wait_for("too many connections wait for admission", count + 1 - MAX_PENDING)
        assert (
            server.out.count("too many connections wait for admission") == count + 1 - MAX_PENDING
        )
        # The oldest had to go, and the newest are waited for.
        assert await flood[0].receive_some() == b""
        with trio.move_on_after(0.2) as waited:
            await flood[-1].receive_some()
        assert waited.cancelled_caught


async def test_a_hello_without_an_end_is_read_for_8_kib(
    certificates: Certificates, log: LogRecorder
) -> None:
    async with running(certificates.server()) as server:
        async with await trio.open_tcp_stream(LOOPBACK, server.port) as stream:
            # The header of a record of 16 KiB that begins with a hello, and less than that of it.
            record = b"\x16\x03\x01\x40\x00" + b"\x01\x00\x3f\xfc\x03\x03" + bytes(12_000)
            with trio.fail_after(WAIT_SECONDS):
                await stream.send_all(record)
                with suppress(trio.BrokenResourceError):
                    assert await stream.receive_some() == b""
        [line] = await until_logged(log, "Refused")
        assert line.endswith(": more than 8192 bytes without a TLS handshake")
        async with connect(LOOPBACK, server.port, tls=certificates.client()) as chat:
            # The input of an admitted client is not limited.
            await chat.send("x" * 50_000)
            assert len(await chat.members()) == 1


async def test_an_honest_client_is_admitted_during_the_flood(
    certificates: Certificates, log: LogRecorder
) -> None:
    async with running(certificates.server()) as server, trio.open_nursery() as nursery:

        async def flood() -> None:
            streams: list[trio.SocketStream] = []
            async with AsyncExitStack() as stack:
                while True:
                    stream = await trio.open_tcp_stream(LOOPBACK, server.port)
                    streams.append(await stack.enter_async_context(stream))
                    if len(streams) > 300:
                        await streams.pop(0).aclose()
                    await trio.lowlevel.checkpoint()

        nursery.start_soon(flood)
        await until_logged(log, "too many connections wait for admission")
        for _ in range(3):
            with trio.fail_after(WAIT_SECONDS):
                async with connect(LOOPBACK, server.port, tls=certificates.client()) as chat:
                    assert chat.welcome is not None
        nursery.cancel_scope.cancel(reason="all came in")


async def test_pending_handshakes_do_not_delay_shutdown(
    certificates: Certificates,
) -> None:
    async with trio.open_nursery() as nursery:
        config = ServerConfig(grace_seconds=600)
        run = partial(multichat.serve, 0, host=LOOPBACK, tls=certificates.server(), config=config)
        server = await nursery.start(run)
        async with await trio.open_tcp_stream(LOOPBACK, server.port):
            await trio.sleep(0.1)
            server.shutdown()
            with trio.fail_after(WAIT_SECONDS):
                while nursery.child_tasks:
                    await trio.sleep(0.01)
