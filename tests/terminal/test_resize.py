"""Resizing a terminal, in tmux: every message stays, once, on the screen or in the scrollback."""

import re
from collections import Counter
from itertools import cycle
from pathlib import Path

import pytest
import trio

import multichat
from tests.support.processes import LOOPBACK, WAIT_SECONDS, serve
from tests.support.terminals import Terminal, connect_alice

pytestmark = pytest.mark.process

MESSAGES = 40

# Shorter than any screen is wide, longer than the narrowest, longer than the widest; wide
# characters, a word that is longer than a row, and one that wraps at words.
FILLERS = ["", "안녕하세요 " * 5, "x" * 90, "several short words " * 6, "καλημέρα 👋 " * 3]

SEQUENCES = {
    "lower and back": [(80, 12), (80, 24)],
    "much lower and back": [(80, 5), (80, 24), (80, 30)],
    "narrower and back": [(60, 24), (80, 24)],
    "very narrow and back": [(20, 24), (80, 24)],
    "wider and back": [(120, 24), (80, 24)],
    "both ways at once": [(60, 12), (100, 30), (20, 10), (80, 24)],
    "by one row and column": [(79, 23), (78, 22), (79, 23), (80, 24), (81, 25)],
}

# What stands in the input line: one row, two of them when it is narrower, three.
TYPED = ["", "x" * 70, "several words " * 12]


def message(number: int, filler: str) -> str:
    return f"<{number}> {filler}<end{number}>"


async def everything(terminal: Terminal) -> str:
    """The scrollback and the screen, as one piece of text without the breaks in it."""
    return re.sub(r"\s", "", await terminal.scrollback("t"))


def numbers(shown: str) -> list[int]:
    return [int(number) for number in re.findall(r"bob<(\d+)>", shown)]


async def check_messages(terminal: Terminal, sent: list[str]) -> None:
    """Fail unless each of *sent* is there once, whole and in its order.

    After a size that came late the client draws again what is on the screen: until then, and no
    longer, some of it may be missing.
    """
    expected = list(range(len(sent)))
    with trio.move_on_after(WAIT_SECONDS):
        while numbers(await everything(terminal)) != expected:
            await trio.sleep(0.05)
    shown = await everything(terminal)
    counts = Counter(numbers(shown))
    assert [n for n in expected if counts[n] != 1] == [], shown
    assert numbers(shown) == expected
    for text in sent:
        assert "bob" + re.sub(r"\s", "", text) in shown


async def check_input(terminal: Terminal, typed: str) -> None:
    """Fail unless there is one input line, with what was *typed*, and one status line.

    Until the client has drawn for a size that came late there may be others.
    """
    typed = re.sub(r"\s", "", typed)

    def is_right(rows: list[str]) -> bool:
        return (
            sum(row.startswith(">") for row in rows) == 1
            and sum("alice in lobby" in row for row in rows) == 1
            and typed[-20:] in re.sub(r"\s", "", "".join(rows))
        )

    with trio.move_on_after(WAIT_SECONDS):
        while not is_right(await terminal.rows("t")):
            await trio.sleep(0.05)
    rows = await terminal.rows("t")
    assert is_right(rows), "\n".join(rows)


@pytest.mark.parametrize(
    ("sequence", "typed"), list(zip(SEQUENCES.values(), cycle(TYPED))), ids=SEQUENCES
)
async def test_resizing_loses_and_repeats_no_message(
    sequence: list[tuple[int, int]], typed: str, terminal: Terminal, tmp_path: Path
) -> None:
    async with (
        serve(tmp_path) as server,
        multichat.connect(LOOPBACK, server.port, name="bob") as bob,
    ):
        await connect_alice(terminal, server, columns=80, rows=24)
        if typed:
            await terminal.run("send-keys", "-t", "t", "-l", typed)
            await terminal.wait_for("t", f"> {typed[:20]}")
        sent: list[str] = []
        fillers = cycle(FILLERS)

        async def say(count: int) -> None:
            for _ in range(count):
                sent.append(message(len(sent), next(fillers)))
                await bob.say(sent[-1])
            with trio.fail_after(WAIT_SECONDS):
                while f"<end{len(sent) - 1}>" not in await everything(terminal):
                    await trio.sleep(0.05)

        await say(MESSAGES)
        await check_messages(terminal, sent)
        for size in sequence:
            await terminal.resize("t", *size)
            await say(1)  # which is shown when the size has settled
            await check_messages(terminal, sent)
        await terminal.resize_at_once("t", sequence * 3)  # faster than anybody can follow
        await say(3)
        await check_messages(terminal, sent)
        await check_input(terminal, typed)


async def test_no_text_can_imitate_another_line(terminal: Terminal, tmp_path: Path) -> None:
    forged = "18:11 · alice left (kicked)"
    async with (
        serve(tmp_path) as server,
        multichat.connect(LOOPBACK, server.port, name="bob") as bob,
    ):
        await connect_alice(terminal, server, columns=80, rows=24)
        start = len("18:11 bob  ")
        for columns in (80, 60, 40):
            await bob.say("x".ljust(columns - start) + forged)  # with spaces
            await bob.say("x" * (columns - start) + forged)
        await bob.say("the end")
        await terminal.wait_for("t", "bob  the end")
        for columns in (80, 60, 40, 80):
            await terminal.resize("t", columns, 24)
            await bob.say(f"at {columns}")
            await terminal.wait_for("t", f"bob  at {columns}")
            rows = await terminal.rows("t")
            assert not [row for row in rows if row.startswith("18:11 ·")], rows
        assert (await everything(terminal)).count("(kicked)") == 6


async def test_redrawing_the_screen_loses_no_row(terminal: Terminal, tmp_path: Path) -> None:
    async with (
        serve(tmp_path) as server,
        multichat.connect(LOOPBACK, server.port, name="bob") as bob,
    ):
        await connect_alice(terminal, server, columns=60, rows=11)
        sent = [message(number, "several short words " * 9) for number in range(5)]
        for text in sent:  # four rows each: the oldest on the screen has lost its beginning
            await bob.say(text)
        await terminal.wait_for("t", "<end4>")
        before = await terminal.rows("t")
        await terminal.press("t", "C-l")
        await terminal.run("send-keys", "-t", "t", "-l", "x")
        await terminal.wait_for_match("t", "^> x")
        after = await terminal.rows("t")
        assert [row.replace("> x", ">") for row in after] == [row.rstrip() for row in before]
        await check_messages(terminal, sent)
