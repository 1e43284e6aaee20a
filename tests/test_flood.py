"""Ten honest clients keep their share of the server while ten hostile ones do their worst.

Everybody is where it would be: the server in a process of its own, the hostile in another, the
honest in this one.  The honest talk in closed loops: each says a line, waits until all others have
it, and says the next; so what the others cost them is what the rate shows.  Undisturbed and
disturbed moments take turns, and only their ratio counts: the machine is shared, and what it does
meanwhile is done to both.  The server has a processor of its own: else the system puts two of the
three processes on one, as chance would have it, and that is what the rate shows.
"""

import os
import select
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from statistics import median

import pytest
import trio

from .support.processes import LOOPBACK, MULTICHAT, WAIT_SECONDS, Command, ServerCommand

pytestmark = pytest.mark.stress

HONEST = 10
HOSTILE = Path(__file__).parent / "soak" / "hostile.py"

# Many and short ones: others who use the machine come and go within seconds.  So many in which they
# were not here are enough, and of so many in all what there is.
TURNS = 9
MOST_TURNS = 27
TURN_SECONDS = 0.3
QUIET = 0.8

# Without any defence it is a twentieth, with ours more than half to nine tenths: ten more who only
# listen leave 85 %, as each line goes to twice as many.
KEPT = 0.5

# The server's, and everybody else's; the same where there is but one.
PROCESSORS = sorted(os.sched_getaffinity(0))
SERVERS, OTHERS = set(PROCESSORS[:1]), set(PROCESSORS[1:] or PROCESSORS)


class Honest:
    """Ten who talk with each other, all in one loop over bare sockets: cheap beside the server.

    Raises `AssertionError` where one of them misses a line, or has it twice or out of order.
    """

    def __init__(self, port: int) -> None:
        self._stack = ExitStack()
        self._poll = self._stack.enter_context(select.epoll())
        self._sockets = [
            self._stack.enter_context(socket.create_connection((LOOPBACK, port)))
            for _ in range(HONEST)
        ]
        self._by_fd = {each.fileno(): i for i, each in enumerate(self._sockets)}
        self._halves = [b""] * HONEST
        self._said = [0] * HONEST
        self._missing = [0] * HONEST  # who has not got the last line of each
        self._heard = [[0] * HONEST for _ in range(HONEST)]
        for i, each in enumerate(self._sockets):
            each.settimeout(WAIT_SECONDS)
            each.sendall(b"/name honest-%d\n" % i)
            assert each.recv(1000) == b"[Server] Client %d is now honest-%d\n" % (i + 1, i)
            each.setblocking(False)
            self._poll.register(each, select.EPOLLIN)

    def close(self) -> None:
        self._stack.close()

    def talk(self, seconds: float) -> float:
        """Talk for so long, until everybody has everything; return the rate, in lines a second."""
        os.sched_setaffinity(0, OTHERS)  # of this thread, which others may use after us
        try:
            return self._talk(seconds)
        finally:
            os.sched_setaffinity(0, PROCESSORS)

    def _talk(self, seconds: float) -> float:
        started = time.monotonic()
        before = sum(self._said)
        talking = set(range(HONEST))
        for i in range(HONEST):
            self._say(i)
        while talking:
            elapsed = time.monotonic() - started
            assert elapsed < seconds + WAIT_SECONDS, f"{talking} still wait for the others"
            for i in self._listen():
                if elapsed < seconds:
                    self._say(i)
                else:
                    talking.remove(i)
        return (sum(self._said) - before) / (time.monotonic() - started)

    def listen(self, seconds: float) -> None:
        """Say nothing for so long, and hear what the others still say."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            assert not self._listen(seconds)

    def _say(self, i: int) -> None:
        line = b"%d\n" % self._said[i]
        assert self._sockets[i].send(line) == len(line)
        self._said[i] += 1
        self._missing[i] = HONEST - 1

    def _listen(self, seconds: float = 1.0) -> list[int]:
        """Return whose last line everybody has by now, after so long at the latest."""
        finished = []
        for fd, _ in self._poll.poll(seconds):
            listener = self._by_fd[fd]
            data = self._sockets[listener].recv(1 << 20)
            assert data, f"honest-{listener} was disconnected"
            lines = (self._halves[listener] + data).split(b"\n")
            self._halves[listener] = lines.pop()
            for line in lines:
                if line.startswith(b"[honest-"):
                    i, number = int(line[8:9]), int(line[11:])
                    assert number == self._heard[listener][i]
                    self._heard[listener][i] += 1
                    self._missing[i] -= 1
                    if not self._missing[i]:
                        finished.append(i)
        return finished


def open_files(server: ServerCommand) -> int:
    return len(list(Path(f"/proc/{server.process.pid}/fd").iterdir()))


def move(process: "subprocess.Popen[bytes]", processors: set[int]) -> None:
    """Have *process*, with all of its threads, run on those *processors*."""
    for thread in Path(f"/proc/{process.pid}/task").iterdir():
        os.sched_setaffinity(int(thread.name), processors)


def shares(undisturbed: list[float], disturbed: list[float], quiet: float = QUIET) -> list[float]:
    """What was kept in each disturbed turn that stands between two in which nobody else was here.

    Others who use the machine take some seconds from us, and of a flood more than of a talk; that
    they did shows in the undisturbed turns before and after.
    """
    least = quiet * max(undisturbed)
    return [
        2 * rate / (before + after)
        for before, rate, after in zip(undisturbed, disturbed, undisturbed[1:], strict=False)
        if min(before, after) >= least
    ]


@pytest.mark.parametrize(
    ("kind", "room"),
    [
        ("noise", "lobby"),
        ("long", "lobby"),
        ("churn", "lobby"),
        ("all", "lobby"),
        ("paced-noise", "lobby"),
        ("paced-lines", "lobby"),
    ],
)
async def test_the_honest_are_not_starved_and_lose_nothing(
    kind: str, room: str, tmp_path: Path
) -> None:
    undisturbed: list[float] = []
    disturbed: list[float] = []
    # What coverage measures takes many times as long, and some of it more than the rest.
    unmeasured = ("env", "-u", "COVERAGE_PROCESS_START", "-u", "COVERAGE_PROCESS_CONFIG")
    argv = [*unmeasured, MULTICHAT, "serve", "0", "--host", LOOPBACK]
    async with ServerCommand(tmp_path, *argv) as server:
        move(server.process, SERVERS)
        honest = Honest(server.port)
        try:
            honest.talk(0.2)  # until what has to warm up has
            undisturbed.append(await trio.to_thread.run_sync(honest.talk, TURN_SECONDS))
            before = open_files(server)
            while len(disturbed) < MOST_TURNS and len(shares(undisturbed, disturbed)) < TURNS:
                argv = [*unmeasured, sys.executable, str(HOSTILE), str(server.port), kind, room]
                async with Command(tmp_path, *argv) as hostile:
                    await hostile.wait_for("flooding")
                    move(hostile.process, OTHERS)
                    disturbed.append(await trio.to_thread.run_sync(honest.talk, TURN_SECONDS))
                    assert hostile.process.poll() is None, hostile.err
                # Thousands who came and went may still wait to be let in, and what was sent to be
                # read: until then nobody is undisturbed.
                with trio.fail_after(WAIT_SECONDS):
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(trio.to_thread.run_sync, come_and_ask, server.port)
                        while nursery.child_tasks or open_files(server) > before:
                            await trio.to_thread.run_sync(honest.listen, 0.05)
                undisturbed.append(await trio.to_thread.run_sync(honest.talk, TURN_SECONDS))
        finally:
            honest.close()
        assert server.err == ""
    kept = median(shares(undisturbed, disturbed) or shares(undisturbed, disturbed, 0.0))
    rates = f"{[*map(round, undisturbed)]} undisturbed, {[*map(round, disturbed)]} disturbed"
    sys.stdout.write(f"{kind} in {room}: {kept:.0%} kept; lines a second: {rates}\n")  # with -rA
    assert kept >= KEPT, rates


async def test_newcomers_come_in_while_hundreds_come_and_hang_up(tmp_path: Path) -> None:
    argv = [MULTICHAT, "serve", "0", "--host", LOOPBACK]
    async with ServerCommand(tmp_path, *argv) as server:
        honest = Honest(server.port)
        try:
            argv = [sys.executable, str(HOSTILE), str(server.port), "doors", ""]
            async with Command(tmp_path, *argv) as hostile:
                await hostile.wait_for("flooding")
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(trio.to_thread.run_sync, honest.talk, 2.0)
                    for _ in range(3):
                        await trio.sleep(0.5)
                        with trio.fail_after(10):
                            await trio.to_thread.run_sync(come_and_ask, server.port)
                assert hostile.process.poll() is None, hostile.err
        finally:
            honest.close()


def come_and_ask(port: int) -> None:
    with socket.create_connection((LOOPBACK, port), 10) as newcomer:
        newcomer.sendall(b"/ping\n")
        answer = b""
        while b"pong\n" not in answer:
            data = newcomer.recv(1 << 16)
            assert data, answer[-1000:]
            answer += data
