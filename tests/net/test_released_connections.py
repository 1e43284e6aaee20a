"""However a client's connection ends, reference counting alone releases what belonged to it.

A server's collector runs rarely, and long-lived objects wait for it longest: in reference cycles,
clients that left would be memory that anybody could make the server use.
"""

import socket
import ssl
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import trio
import trustme

import multichat
from multichat import Server, ServerConfig, ServerTimeouts
from multichat.client.connect import client_tls
from multichat.net.certificates import server_tls
from multichat.net.send_queue import SendQueue
from multichat.server.session import Session
from tests.support.collector import collector_off, in_cycles
from tests.support.processes import LOOPBACK

pytestmark = pytest.mark.process

VISITS = 3
# A `trio.SSLStream` refers to itself, and so keeps its socket; see `test_soak.py` for its memory.
KINDS_OVER_TLS = (Session, SendQueue)
KINDS = (*KINDS_OVER_TLS, trio.SocketStream)

CONFIG = ServerConfig(
    auth_seconds=0.05,
    handshake_seconds=0.05,
    idle_seconds=0.05,
    grace_seconds=0.5,
    timeouts=ServerTimeouts(linger=0.1, first_attempt_delay=0),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("certificates")
    ca = trustme.CA()
    ca.issue_cert(LOOPBACK).private_key_and_cert_chain_pem.write_to_path(str(made / "server.pem"))
    ca.cert_pem.write_to_path(str(made / "ca.pem"))
    return made


# --- How a client behaves, in a thread: it leaves no objects of ours -----------------------------


def connected(port: int) -> socket.socket:
    made = socket.create_connection((LOOPBACK, port), timeout=60)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    return made


def read_all(client: socket.socket) -> None:
    with suppress(OSError):
        while client.recv(65536):
            pass


def reset(client: socket.socket) -> None:
    """Closing it resets it, because of its option not to linger."""
    client.sendall(b"hello\n/ping\n")
    client.recv(4096)


def reset_at_once(client: socket.socket) -> None:
    pass


def reset_while_it_is_sent_much(client: socket.socket) -> None:
    with suppress(TimeoutError):
        client.settimeout(0.2)
        client.sendall(b"/help\n" * 100_000)


def end_input(client: socket.socket) -> None:
    client.sendall(b"hello\nhalf a li")
    client.shutdown(socket.SHUT_WR)
    read_all(client)


def quit_chat(client: socket.socket) -> None:
    client.sendall(b"/quit\n")
    read_all(client)


def speak_http(client: socket.socket) -> None:
    client.sendall(b"GET / HTTP/1.1\r\n\r\n")
    read_all(client)


def say_nothing(client: socket.socket) -> None:
    read_all(client)


def guess_passwords(client: socket.socket) -> None:
    client.sendall(b"/auth a\n/auth b\n/auth c\n")
    read_all(client)


def begin_handshake(client: socket.socket) -> None:
    outgoing = ssl.MemoryBIO()
    context = ssl.create_default_context()
    with suppress(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=LOOPBACK).do_handshake()
    client.sendall(outgoing.read())
    client.recv(1)


Behavior = Callable[[socket.socket], None]

PLAIN = [
    reset,
    reset_at_once,
    reset_while_it_is_sent_much,
    end_input,
    quit_chat,
    speak_http,
    begin_handshake,
    say_nothing,
]
PASSWORD = [reset_at_once, say_nothing, guess_passwords, speak_http, begin_handshake]
OVER_TLS = [reset, reset_at_once, reset_while_it_is_sent_much, quit_chat, say_nothing]


@asynccontextmanager
async def nothing_left_in_cycles(
    config: ServerConfig, tls: ssl.SSLContext | None = None
) -> AsyncIterator[Server]:
    """Run a server for the block; look for leftovers when all clients have left."""
    async with trio.open_nursery() as nursery:
        run = partial(multichat.serve, 0, host=LOOPBACK, tls=tls, config=config)
        server: Server = await nursery.start(run)
        with collector_off():
            before = trio.lowlevel.current_statistics().tasks_living
            yield server
            while trio.lowlevel.current_statistics().tasks_living > before:
                await trio.sleep(0.01)
            left = [type(each).__name__ for each in in_cycles(*(KINDS_OVER_TLS if tls else KINDS))]
        nursery.cancel_scope.cancel(reason="the test is over")
    assert left == []


async def visit(port: int, behave: Behavior, tls: ssl.SSLContext | None = None) -> None:
    def in_thread() -> None:
        for _ in range(VISITS):
            # On a busy machine some are disconnected for being idle before they do anything.
            with connected(port) as client, suppress(OSError):
                if tls is None:
                    behave(client)
                else:
                    with tls.wrap_socket(client, server_hostname=LOOPBACK) as encrypted:
                        behave(encrypted)

    await trio.to_thread.run_sync(in_thread)


@pytest.mark.parametrize("behave", PLAIN)
async def test_a_plain_client_is_released(behave: Behavior) -> None:
    async with nothing_left_in_cycles(CONFIG) as server:
        await visit(server.port, behave)


@pytest.mark.parametrize("behave", PASSWORD)
async def test_a_client_that_was_asked_for_a_password_is_released(behave: Behavior) -> None:
    async with nothing_left_in_cycles(replace(CONFIG, password="secret")) as server:
        await visit(server.port, behave)


@pytest.mark.parametrize("behave", OVER_TLS)
async def test_a_tls_client_is_released(behave: Behavior, folder: Path) -> None:
    config = replace(CONFIG, handshake_seconds=60, idle_seconds=0.5)
    async with nothing_left_in_cycles(config, server_tls(folder / "server.pem")) as server:
        await visit(server.port, behave, client_tls(folder / "ca.pem"))


@pytest.mark.parametrize(
    "limited", [replace(CONFIG, max_clients=1), replace(CONFIG, max_clients_per_address=1)]
)
async def test_a_client_over_a_limit_is_released(limited: ServerConfig) -> None:
    config = replace(limited, idle_seconds=None)
    async with nothing_left_in_cycles(config) as server:
        with connected(server.port):
            while not server.members:
                await trio.sleep(0.01)
            await visit(server.port, say_nothing)


@pytest.mark.parametrize("password", [None, "secret"])
async def test_clients_of_a_server_that_ends_are_released(password: str | None) -> None:
    config = replace(CONFIG, idle_seconds=None, auth_seconds=60, password=password)
    async with nothing_left_in_cycles(config) as server:
        with connected(server.port) as client:
            if password is None:
                client.sendall(b"/ping\n")
            await trio.to_thread.run_sync(client.recv, 1)
            server.shutdown()
            await trio.to_thread.run_sync(read_all, client)
