"""The scenarios of the quick benchmarks: real work of multichat, counted in units.

`python -m benchmarks.scenarios NAME N` runs one N times in a deterministic process, of which
`benchmarks.quick` counts the instructions; `benchmarks/micro` measures the time of the same work in
an ordinary process.

A scenario is a context manager whose setup is not measured; it yields a function that does the work
*n* times.  Scenarios import multichat themselves, because importing is measured too, and a revision
that lacks one scenario can run the others.
"""

import gc
import itertools
import socket
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    ExitStack,
    asynccontextmanager,
    contextmanager,
)
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from multichat.server.server import Server

__all__ = ["SCENARIOS", "Scenario", "main", "run"]

Repeat: TypeAlias = Callable[[int], None]
RepeatAsync: TypeAlias = Callable[[int], Awaitable[None]]
Prepared: TypeAlias = AbstractContextManager[Repeat] | AbstractAsyncContextManager[RepeatAsync]

CHUNK_BYTES = 64 * 1024
MEMBERS = 100
NAME = "Client 1"
TEXT_63 = "Sphinx of black quartz, judge my vow; pack my box, lazy dog 1-2"  # 64 bytes with its LF
EPOCH, NOW = "19ab3c5d1e2", "2025-01-15T10:30:45.123Z"
KOREAN = "안녕하세요 여러분 👋 오늘도 좋은 하루 되세요 🎉"


@contextmanager
def framing(line: str) -> Iterator[Repeat]:
    """Decode a chunk full of *line* into lines."""
    from multichat.protocol.framing import LineDecoder

    spelled = f"{line}\n".encode()
    chunk = spelled * (CHUNK_BYTES // len(spelled))
    decoder = LineDecoder(CHUNK_BYTES)

    def repeat(n: int) -> None:
        for _ in range(n):
            decoder.feed(chunk)

    yield repeat


@contextmanager
def spelling(messages: int) -> Iterator[Repeat]:
    """Decode a batch of lines to requests, and encode the events for them."""
    from multichat.protocol.messages import SaidBlock, SayBlock
    from multichat.protocol.text_codec import TEXT

    lines = "\n".join([TEXT_63] * messages)

    def repeat(n: int) -> None:
        for _ in range(n):
            for request in TEXT.parse_requests(lines):
                if isinstance(request, SayBlock):
                    TEXT.encode_said(SaidBlock(EPOCH, 0, NOW, "lobby", 1, NAME, request.text))

    yield repeat


@contextmanager
def logging(messages: int) -> Iterator[Repeat]:
    """Log a batch, which the log's thread writes to a file.

    Waits for each batch, so that the two threads switch at the same points in every run.
    """
    import multichat.log
    from multichat.log import Log, open_log

    multichat.log.LINGER_SECONDS = 0.0  # so that no waiting is measured
    log = Log("server")
    texts = "\n".join([TEXT_63] * messages)
    with tempfile.TemporaryFile("ab") as file, open_log(file.fileno()) as writer:

        def repeat(n: int) -> None:
            file.truncate(0)  # to bound its size
            for _ in range(n):
                log.said(f"[{NAME}]", texts, MEMBERS)
                writer.wait_below(0)

        yield repeat


async def _take_no_samples(_: object) -> None:
    pass


def _server() -> "Server":
    """Return a server without pauses, so that all input is processed once all tasks wait.

    Under valgrind everything takes fifty times as long, and longer on a busy machine, so the
    measured time of turns must not matter, nor what is done four times a second.
    """
    from multichat.server.server import Server

    try:
        from multichat.server.loop_watch import LoopWatch
    except ImportError:  # a revision that takes no samples
        pass
    else:
        LoopWatch.run = _take_no_samples  # type: ignore[method-assign, assignment]

    try:
        from multichat.net.fair_share import NO_PAUSES
    except ImportError:  # a revision without turns
        return Server()
    return Server(
        shares=replace(NO_PAUSES, short_seconds=60.0, poll_seconds=60.0, hold_seconds=-1.0)
    )


@asynccontextmanager
async def publish(
    messages: int, members: int, *, said: str = "text", heard: str = "text"
) -> AsyncGenerator[RepeatAsync]:
    """Publish *messages* messages at once to *members* members on real sockets, without a log.

    From the bytes that a sender writes to the bytes that every member reads; *said* and *heard* are
    their protocols.
    """
    import trio
    from trio.testing import wait_all_tasks_blocked

    line = TEXT_63 if said == "text" else f'{{"type":"say","text":"{TEXT_63}"}}'
    chunk = f"{line}\n".encode() * messages
    buffer = bytearray(4 * CHUNK_BYTES)
    with ExitStack() as stack:
        far_ends: list[socket.socket] = []
        async with _server().open() as server, trio.open_nursery() as nursery:
            for _ in range(members + 1):
                near, far = socket.socketpair()
                far_ends.append(stack.enter_context(far))
                stream = trio.SocketStream(trio.socket.from_stdlib_socket(near))
                nursery.start_soon(server.handle, stream)
                await wait_all_tasks_blocked()  # for a deterministic order of numbers
            sender, *others = far_ends
            for far, codec in zip(far_ends, [said] + [heard] * members, strict=True):
                if codec == "json":
                    far.sendall(b"/json\n")
                    await wait_all_tasks_blocked()
                    far.recv(CHUNK_BYTES)  # the welcome
            # All ids and times are as long as the first.
            size = messages * len(f"[{NAME}] {TEXT_63}\n")
            if heard == "json" and others:
                sender.sendall(chunk[: len(chunk) // messages])
                await wait_all_tasks_blocked()
                sizes = [far.recv_into(buffer) for far in others]
                size = messages * sizes[0]

            await trio.sleep(0.1)  # after short turns of others, less is read at once

            async def repeat(n: int) -> None:
                for _ in range(n):
                    sender.sendall(chunk)
                    await wait_all_tasks_blocked()
                    for far in others:
                        left = size
                        while left > 0:
                            left -= far.recv_into(buffer)

            yield repeat
            nursery.cancel_scope.cancel(reason="the block is over")


@asynccontextmanager
async def idle_client() -> AsyncGenerator[RepeatAsync]:
    """Connect an idle client over loopback TCP and disconnect it, without a log."""
    import trio
    from trio.testing import wait_all_tasks_blocked

    server = _server()
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(server.run, 0, host="127.0.0.1"))

        async def repeat(n: int) -> None:
            # The client is a raw socket, whose cost is negligible.
            for _ in range(n):
                with socket.socket() as client:
                    client.connect(("127.0.0.1", server.port))
                    await wait_all_tasks_blocked()  # it is in the room
                    client.shutdown(socket.SHUT_WR)
                    await trio.lowlevel.wait_readable(client)  # until the server closes
                await wait_all_tasks_blocked()

        yield repeat
        nursery.cancel_scope.cancel(reason="the block is over")


@contextmanager
def start() -> Iterator[Repeat]:
    """Import the modules of `multichat serve`; repeated imports cost nothing."""

    def repeat(_: int) -> None:
        import trio  # noqa: F401

        import multichat.cli.main
        import multichat.cli.serve
        import multichat.server.server  # noqa: F401

    yield repeat


@dataclass(frozen=True)
class Scenario:
    """A scenario: the work, its *units*, and how often it is repeated for counting.

    The difference between *many* and *few* repetitions counts; *few* must be enough for the
    interpreter to specialize the code.  If it is 0, the whole process counts.
    """

    prepare: Callable[[], Prepared]
    unit: str
    units: int
    many: int
    few: int = 20


def _to_json(messages: int, said: str) -> Callable[[], Prepared]:
    return partial(publish, messages, MEMBERS, said=said, heard="json")


SCENARIOS = {
    "framing": Scenario(partial(framing, TEXT_63), "64 KiB", 1, 220),
    "framing_unicode": Scenario(partial(framing, KOREAN), "64 KiB", 1, 120),
    "spelling_1": Scenario(partial(spelling, 1), "message", 1, 2020),
    "spelling_1000": Scenario(partial(spelling, 1000), "message", 1000, 220),
    "logging_1": Scenario(partial(logging, 1), "message", 1, 1020),
    "logging_1000": Scenario(partial(logging, 1000), "message", 1000, 120),
    "alone_1": Scenario(partial(publish, 1, 0), "message", 1, 520),
    "alone_500": Scenario(partial(publish, 500, 0), "message", 500, 120),
    "publish_1": Scenario(partial(publish, 1, MEMBERS), "delivery", MEMBERS, 120),
    "publish_500": Scenario(partial(publish, 500, MEMBERS), "delivery", 500 * MEMBERS, 120),
    "alone_1_json": Scenario(partial(publish, 1, 0, said="json"), "message", 1, 520),
    "alone_500_json": Scenario(partial(publish, 500, 0, said="json"), "message", 500, 120),
    "publish_1_json": Scenario(_to_json(1, "text"), "delivery", MEMBERS, 120),
    "publish_500_json": Scenario(_to_json(500, "text"), "delivery", 500 * MEMBERS, 120),
    "publish_500_all_json": Scenario(_to_json(500, "json"), "delivery", 500 * MEMBERS, 120),
    "idle_client": Scenario(idle_client, "client", 1, 120),
    "start": Scenario(start, "process", 1, 1, few=0),
}


def run(name: str, n: int) -> None:
    """Run the work of scenario *name* that many times."""
    prepared = SCENARIOS[name].prepare()
    if isinstance(prepared, AbstractContextManager):
        with prepared as repeat:
            _forget_history()
            repeat(n)
    else:
        import trio
        from trio._core import _run as trio_run

        # Trio shuffles the order of ready tasks.
        trio_run._r.seed(0)  # noqa: SLF001 - there is no public way
        trio.run(_run_async, prepared, n)


async def _run_async(prepared: AbstractAsyncContextManager[RepeatAsync], n: int) -> None:
    async with prepared as repeat:
        _forget_history()
        await repeat(n)


def _forget_history() -> None:
    # Garbage collections examine only objects of the work, not the imported modules.
    gc.collect()
    gc.freeze()


def _leave_nothing_to_chance() -> None:
    """Make this process deterministic, whatever else the machine does."""
    # Threads switch only when one waits, never after 5 ms.
    sys.setswitchinterval(1000)
    # Records are 50 µs apart, so that exactly each 20th has a new millisecond to format.
    now = itertools.count(1_750_000_000_000_000_000, 50_000)
    vars(time).update(time=lambda: next(now) / 1e9, time_ns=now.__next__)


def main() -> None:
    """Run one scenario from the command line, with the multichat beside this folder."""
    import multichat

    home = Path(__file__).resolve().parents[1]
    if Path(multichat.__file__).resolve().parents[1] != home:
        raise RuntimeError(f"this is the multichat of {multichat.__file__}, not that of {home}")
    _leave_nothing_to_chance()
    name, n = sys.argv[1:]
    run(name, int(n))


if __name__ == "__main__":
    main()
