"""Operations that need real sockets."""

import errno
import fcntl
import os
import resource
import socket
import struct
from collections.abc import Callable

import pytest
import trio
import trio.testing

from multichat.net import transport
from tests.support.processes import LOOPBACK
from tests.support.sockets import tcp_pair

pytestmark = pytest.mark.process


def eager(stream: trio.SocketStream) -> Callable[[bytes], int]:
    fileno = transport.eager_fileno(stream)
    assert fileno is not None

    def write_now(data: bytes) -> int:
        try:
            return os.write(fileno(), data)
        except OSError:
            return 0

    return write_now


async def test_an_eager_write_takes_what_fits_and_never_waits() -> None:
    ours, theirs = await tcp_pair()
    async with ours, theirs:
        write_now = eager(ours)
        assert write_now(b"hello\n") == 6
        assert await theirs.receive_some(100) == b"hello\n"
        block = b"x" * 1_000_000
        taken = 0
        while count := write_now(block):
            taken += count
        assert taken > 0
        assert write_now(block) == 0
        received = 0
        while received < taken:
            received += len(await theirs.receive_some(1_000_000))
        assert received == taken


async def test_an_eager_write_to_a_broken_or_closed_connection_takes_nothing() -> None:
    ours, theirs = await tcp_pair()
    write_now = eager(ours)
    async with ours:
        await theirs.aclose()
        with pytest.raises(trio.BrokenResourceError):
            while True:
                await ours.send_all(b"x")
        assert write_now(b"x") == 0
    assert write_now(b"x") == 0  # and not to the new owner of the descriptor


async def test_other_streams_have_no_eager_write() -> None:
    ours, _ = trio.testing.memory_stream_pair()
    assert transport.eager_fileno(ours) is None
    assert transport.unsent_bytes(ours) == 0
    assert transport.peer_address(ours) == ""
    transport.keep_alive(ours)  # does nothing, quietly


@pytest.mark.process
async def test_input_is_seen_on_a_descriptor_of_any_number() -> None:
    """`select` knows them up to 1023 only."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 2000:
        pytest.skip("not enough open files are allowed")
    a, b = await tcp_pair()
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2000), hard))
    high = fcntl.fcntl(a.socket.fileno(), fcntl.F_DUPFD, 1500)
    async with (
        b,
        trio.SocketStream(trio.socket.from_stdlib_socket(socket.socket(fileno=high))) as a2,
    ):
        assert not transport.has_input(a2)
        await b.send_all(b"x")
        await trio.lowlevel.wait_readable(a2.socket)
        assert transport.has_input(a2)
    await a.aclose()


async def test_the_address_of_a_peer_is_read_while_it_is_connected() -> None:
    ours, theirs = await tcp_pair()
    port = ours.socket.getsockname()[1]
    assert transport.peer_address(theirs) == f"{LOOPBACK}:{port}"
    await ours.aclose()
    await theirs.aclose()
    assert transport.peer_address(theirs) == ""
    transport.keep_alive(theirs)


async def test_keepalive_detects_dead_peers() -> None:
    ours, theirs = await tcp_pair()
    async with ours, theirs:
        transport.keep_alive(ours)
        assert ours.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)


async def test_unsent_bytes_are_those_that_the_peer_has_not_acknowledged() -> None:
    ours, theirs = await tcp_pair()
    async with theirs:
        write_now = eager(ours)
        while write_now(b"x" * 1_000_000):
            pass
        assert transport.unsent_bytes(ours) > 0
        await ours.aclose()
        assert transport.unsent_bytes(ours) == 0


async def test_nothing_counts_as_unsent_after_a_reset() -> None:
    ours, theirs = await tcp_pair()
    async with ours:
        write_now = eager(ours)
        while write_now(b"x" * 1_000_000):
            pass
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await theirs.aclose()
        with pytest.raises(trio.BrokenResourceError):
            await ours.receive_some(1)
        assert transport.unsent_bytes(ours) == 0


async def test_errors_of_sockets_are_those_of_streams() -> None:
    ours, theirs = await tcp_pair()
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    await theirs.aclose()
    with pytest.raises(trio.BrokenResourceError) as broken:
        await transport.receive_some(ours, 1)
    assert transport.describe_error(broken.value) == "connection reset"
    with pytest.raises(trio.BrokenResourceError):
        await transport.send_all(ours, b"x")
    await ours.aclose()
    with pytest.raises(trio.ClosedResourceError):
        await transport.receive_some(ours, 1)
    with pytest.raises(trio.ClosedResourceError):
        await transport.send_all(ours, b"x")
    await transport.close_gracefully(ours)


@pytest.mark.parametrize(
    ("name", "formatted"),
    [
        (("127.0.0.1", 9000), "127.0.0.1:9000"),
        (("::1", 9000, 0, 0), "[::1]:9000"),
        ("/run/chat.sock", "/run/chat.sock"),
    ],
)
def test_addresses_are_formatted_as_people_write_them(name: object, formatted: str) -> None:
    assert transport.format_address(name) == formatted


def broken(cause: BaseException) -> trio.BrokenResourceError:
    error = trio.BrokenResourceError()
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(errno.ECONNREFUSED, "?"), "connection refused"),
        (OSError(errno.ECONNRESET, "?"), "connection reset"),
        (broken(OSError(errno.EPIPE, "?")), "connection reset"),
        (broken(OSError(errno.ETIMEDOUT, "?")), "connection timed out"),
        (socket.gaierror(-2, "Name or service not known"), "name or service not known"),
        (ValueError("a label is too long"), "a label is too long"),
        (trio.BrokenResourceError(), "connection broken"),
        (
            ExceptionGroup(
                "all", [OSError(errno.ECONNREFUSED, "::1"), OSError(errno.ECONNREFUSED, "127")]
            ),
            "connection refused",
        ),
        (
            ExceptionGroup(
                "all", [OSError(errno.ECONNREFUSED, ""), OSError(errno.ENETUNREACH, "")]
            ),
            "connection refused, network is unreachable",
        ),
    ],
)
def test_reasons_are_a_few_words_of_the_system(error: BaseException, reason: str) -> None:
    assert transport.describe_error(error) == reason


async def test_hanging_up_lets_the_peer_read_everything() -> None:
    ours, theirs = await tcp_pair()
    async with theirs, trio.open_nursery() as nursery:
        await theirs.send_all(b"unread" * 1000)  # closing over this would be a reset
        await ours.send_all(b"last words\n")
        nursery.start_soon(transport.close_gracefully, ours)
        await trio.testing.wait_all_tasks_blocked()
        assert await theirs.receive_some(100) == b"last words\n"
        assert await theirs.receive_some(100) == b""
        await theirs.aclose()  # else it is a second more


async def test_hanging_up_on_a_peer_that_stays_takes_a_second(
    autojump_clock: trio.testing.MockClock,
) -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    started = trio.current_time()
    await transport.close_gracefully(ours)
    assert trio.current_time() - started == transport.LINGER_SECONDS
    with pytest.raises(trio.BrokenResourceError):
        await theirs.send_all(b"x")


async def test_a_peer_that_keeps_sending_is_read_only_a_few_times(
    autojump_clock: trio.testing.MockClock,
) -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    reads = 0

    async def send_more() -> None:
        nonlocal reads
        reads += 1
        await theirs.send_all(b"x")

    ours.receive_stream.receive_some_hook = send_more
    await transport.close_gracefully(ours, 1.0, 4)
    assert reads == 4
    assert trio.current_time() == pytest.approx(1.0)  # its end has time to read the goodbye


async def test_the_user_at_the_other_end_of_a_unix_socket_is_known() -> None:
    ours, theirs = map(trio.SocketStream, trio.socket.socketpair())
    async with ours, theirs:
        assert transport.peer_user(ours) == os.getuid()
    ours, theirs = await tcp_pair()
    async with ours, theirs:
        assert transport.peer_user(ours) is None
    assert transport.peer_user(trio.testing.memory_stream_pair()[0]) is None


async def test_hanging_up_on_a_lost_peer_is_not_an_error() -> None:
    ours, theirs = await tcp_pair()
    await ours.aclose()
    await transport.close_gracefully(ours)
    await theirs.aclose()
