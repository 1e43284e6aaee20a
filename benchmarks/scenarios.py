"""What the small benchmarks repeat: each scenario is real work of multichat, counted in its units.

`python -m benchmarks.scenarios NAME N` does it N times in a process of its own, from which chance
has been taken out; `benchmarks.quick` counts its instructions, `benchmarks/micro` takes the time
of the same work in an ordinary process.

A scenario is a context manager: what is set up on the way in is not part of what is measured, and
what it yields does the work *n* times.  multichat is imported inside them: the start is measured
too, and a revision that lacks one piece has the others.
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
    """Cut a chunk, full of *line*, into lines."""
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
    """Take a batch of lines for what they ask, and spell what everybody is told."""
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
    """Log a batch and have it written to a file, by the thread that does so in a server.

    Batch by batch: who waits until nothing waits hands the interpreter to the thread and gets it
    back, always at the same place.  Left to run, the two share it out by the clock.
    """
    import multichat.log
    from multichat.log import Log, open_log

    multichat.log.LINGER_SECONDS = 0.0  # or the waiting is what is measured
    log = Log("server")
    texts = "\n".join([TEXT_63] * messages)
    with tempfile.TemporaryFile("ab") as file, open_log(file.fileno()) as writer:

        def repeat(n: int) -> None:
            file.truncate(0)  # however often somebody repeats, no disk fills up
            for _ in range(n):
                log.said(f"[{NAME}]", texts, MEMBERS)
                writer.wait_below(0)

        yield repeat


def _server() -> "Server":
    """Return a server in which nobody pauses, so that what was sent is done once all tasks wait.

    Under valgrind everything takes fifty times as long, and on a busy machine longer: how long a
    turn takes makes no difference.
    """
    from multichat.server.server import Server

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
    """Say so many *messages* at once to *members* who keep up, on real sockets; no log.

    From the bytes that a sender writes to the bytes that every member reads.  It is *said* in one
    protocol and *heard* in another, or the same.
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
                await wait_all_tasks_blocked()  # or two would be numbered by chance
            sender, *others = far_ends
            for far, codec in zip(far_ends, [said] + [heard] * members, strict=True):
                if codec == "json":
                    far.sendall(b"/json\n")
                    await wait_all_tasks_blocked()
                    far.recv(CHUNK_BYTES)  # the welcome
            # Ids and times are all as long as the first.
            size = messages * len(f"[{NAME}] {TEXT_63}\n")
            if heard == "json" and others:
                sender.sendall(chunk[: len(chunk) // messages])
                await wait_all_tasks_blocked()
                sizes = [far.recv_into(buffer) for far in others]
                size = messages * sizes[0]

            await trio.sleep(0.1)  # so that nobody has just talked: less is read at once then

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
    """Have a client connect to a server over loopback TCP, say nothing, and leave; no log."""
    import trio
    from trio.testing import wait_all_tasks_blocked

    server = _server()
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(server.run, 0, host="127.0.0.1"))

        async def repeat(n: int) -> None:
            # The far end is a bare socket, to be next to nothing beside what the server does.
            for _ in range(n):
                with socket.socket() as client:
                    client.connect(("127.0.0.1", server.port))
                    await wait_all_tasks_blocked()  # it is in the room
                    client.shutdown(socket.SHUT_WR)
                    await trio.lowlevel.wait_readable(client)  # the server hangs up in turn
                await wait_all_tasks_blocked()

        yield repeat
        nursery.cancel_scope.cancel(reason="the block is over")


@contextmanager
def start() -> Iterator[Repeat]:
    """Import what `multichat serve` does; more than once is no more than once."""

    def repeat(_: int) -> None:
        import trio  # noqa: F401

        import multichat.cli.main
        import multichat.server.server  # noqa: F401

    yield repeat


@dataclass(frozen=True)
class Scenario:
    """Work, how many *units* are in doing it once, and how often it is done to be counted.

    What differs between *many* times and *few* counts; *few* are enough for the interpreter to
    have specialised the code.  0 of them: the whole process counts.
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
    """Do the work of scenario *name* so many times."""
    prepared = SCENARIOS[name].prepare()
    if isinstance(prepared, AbstractContextManager):
        with prepared as repeat:
            _forget_history()
            repeat(n)
    else:
        import trio
        from trio._core import _run as trio_run

        # Trio tosses a coin for the order in which tasks that are ready get their turn.
        trio_run._r.seed(0)  # noqa: SLF001 - there is no public way
        trio.run(_run_async, prepared, n)


async def _run_async(prepared: AbstractAsyncContextManager[RepeatAsync], n: int) -> None:
    async with prepared as repeat:
        _forget_history()
        await repeat(n)


def _forget_history() -> None:
    # A collection goes through what the work left behind, not through whatever was imported.
    gc.collect()
    gc.freeze()


def _leave_nothing_to_chance() -> None:
    """Have this process do the same each time that it runs, whatever else the machine does."""
    # The interpreter changes hands where a thread waits, never because 5 ms are over.
    sys.setswitchinterval(1000)
    # Records are 50 µs apart, so that each 20th has a new millisecond to spell, and it is not the
    # machine's load that says how many.
    now = itertools.count(1_750_000_000_000_000_000, 50_000)
    vars(time).update(time=lambda: next(now) / 1e9, time_ns=now.__next__)


def main() -> None:
    """Run one scenario as the command line says, on the multichat that lies beside this folder."""
    import multichat

    home = Path(__file__).resolve().parents[1]
    if Path(multichat.__file__).resolve().parents[1] != home:
        raise RuntimeError(f"this is the multichat of {multichat.__file__}, not that of {home}")
    _leave_nothing_to_chance()
    name, n = sys.argv[1:]
    run(name, int(n))


if __name__ == "__main__":
    main()
