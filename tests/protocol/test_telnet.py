"""Telnet clients get the answers that they wait for, and their commands are never text."""

import re
import socket
from itertools import pairwise
from pathlib import Path

import pytest
import trio
from hypothesis import example, given
from hypothesis import strategies as st
from trio.testing import MockClock

from multichat import ServerConfig
from multichat.protocol.framing import LineDecoder
from multichat.protocol.telnet import TelnetResponder
from multichat.testing import memory_server
from tests.support.processes import LOOPBACK, connect, program, serve, tcp
from tests.support.terminals import Terminal

pytestmark = pytest.mark.unit

CTRL_C = b"\xff\xf4\xff\xfd\x06"
HERE = b"[Server] yes\n"


@pytest.mark.parametrize(
    ("data", "answer"),
    [
        (b"hello\r\n", b""),
        (b"caf\xc3\xa9\n", b""),
        (CTRL_C, b"\xff\xfb\x06"),
        (b"\xff\xfd\x06\xff\xfd\x06", b"\xff\xfb\x06\xff\xfb\x06"),
        (b"\xff\xfd\x01\xff\xfd\x03", b"\xff\xfc\x01\xff\xfc\x03"),
        (b"\xff\xfb\x1f\xff\xfb\x18", b"\xff\xfe\x1f\xff\xfe\x18"),
        (b"\xff\xfc\x06\xff\xfe\x01", b""),  # to a refusal there is no answer
        (b"\xff\xf6", HERE),
        (b"\xff\xf6\xff\xf6\xff\xfd\x06", b"\xff\xfb\x06" + HERE),
        (b"\xff\xff\xfd\x06", b""),  # an escaped 255
        (b"\xff\xff\xff\xfd\x06", b"\xff\xfb\x06"),
        (b"\xff\xfd\n\x06", b""),  # no command reaches past the end of its line
        (b"\xff\xfa\x18\x00xterm\xff\xf0\xff\xfd\x06", b"\xff\xfb\x06"),
        (b"\xff\xfa\x18\xff\xfd\x06\xff\xf0", b""),
        (b"\xff\xfa\x18\xff\xff\xf0\xff\xfd\x06", b""),  # not ended: 255 is data there
        (b"\xff\xfa never ended\n\xff\xfd\x06", b"\xff\xfb\x06"),
        (b"\xff\xfa\xff\n\xff\xfd\x06", b"\xff\xfb\x06"),
        (b"\xffx\xff\xfd\x06", b"\xff\xfb\x06"),
        (b"\xff\n\xff\xfd\x06", b"\xff\xfb\x06"),
    ],
    ids=repr,
)
def test_telnet_commands_are_answered_however_they_are_split(data: bytes, answer: bytes) -> None:
    assert TelnetResponder().answer(data) == answer
    for cut in range(len(data) + 1):
        cut_up = TelnetResponder()
        assert answered(cut_up.answer(data[:cut]) + cut_up.answer(data[cut:])) == answered(answer)
    one_by_one = TelnetResponder()
    assert answered(b"".join(one_by_one.answer(bytes([b])) for b in data)) == answered(answer)


def answered(answers: bytes) -> tuple[bytes, bool]:
    """Return the answers without "yes", which is sent once for each read, and whether it was."""
    return answers.replace(HERE, b""), HERE in answers


commands = st.lists(
    st.sampled_from(
        [b"\xff", b"\xfa", b"\xf0", b"\xf4", b"\xf6", b"\xfb", b"\xfc", b"\xfd", b"\xfe", b"\x06",
         b"\n", b"\r\n", b"x", b"\x01", CTRL_C, b"\xff\xfa\x18", b"\xff\xf0"]
    )
).map(b"".join)  # fmt: skip


def plainly_answered(data: bytes) -> tuple[bytes, bool]:
    """The answers, by a reading of the commands that is slow and plain."""
    pattern = (
        rb"\xff\xff|\xff\xfa(?:[^\xff\n]|\xff(?!\xf0)[^\n]?)*(?:\xff\xf0)?|"
        rb"\xff(?P<verb>[\xfb-\xfe])(?P<option>[^\n])|\xff(?P<here>\xf6)|\xff[^\xff\n]?"
    )
    answers, here = b"", False
    for found in re.finditer(pattern, data):
        here = here or found["here"] is not None
        if found["verb"] == b"\xfd":
            answers += b"\xff" + (b"\xfb" if found["option"] == b"\x06" else b"\xfc")
            answers += found["option"]
        elif found["verb"] == b"\xfb":
            answers += b"\xff\xfe" + found["option"]
    return answers, here


@given(commands | st.binary(max_size=100), st.lists(st.integers(0, 200)))
@example(b"\xff\xfa\xff", [])
@example(b"\xff\xfa\xff\xff\xf0\xff\xfd\x06", [3])
def test_telnet_answers_do_not_depend_on_how_the_input_is_split(
    data: bytes, cuts: list[int]
) -> None:
    edges = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    responder, decoder = TelnetResponder(), LineDecoder(1000)
    answers, replies = b"", b""
    for start, end in pairwise(edges):
        answers += responder.answer(data[start:end])
        decoder.feed(data[start:end])
        replies += decoder.reply
    assert answered(answers) == plainly_answered(data)
    assert replies == answers


@given(commands)
def test_two_telnet_responders_stop_answering_each_other(data: bytes) -> None:
    ours, theirs = TelnetResponder(), TelnetResponder()
    said = ours.answer(data)
    for _ in range(3):
        said = theirs.answer(said)
        ours, theirs = theirs, ours
    assert said == b""


async def test_a_telnet_command_is_answered_at_once_and_removed_from_the_text(
    autojump_clock: MockClock,
) -> None:
    async with memory_server() as network:
        telnet, other = await network.join(), await network.join()
        await telnet.stream.send_all(b"hel" + CTRL_C[:4])
        await telnet.stream.send_all(CTRL_C[4:])
        assert await telnet.stream.receive_some() == b"\xff\xfb\x06"
        await telnet.stream.send_all(b"\xff\xf2lo\r\n")
        assert await other.line() == "[Client 1] hello"


async def test_a_command_is_answered_while_a_password_is_required(
    autojump_clock: MockClock,
) -> None:
    async with memory_server(ServerConfig(password="swordfish")) as network:
        telnet = await network.join()
        assert await telnet.line() == "[Server] a password is required: /auth PASSWORD"
        await telnet.stream.send_all(CTRL_C)
        assert await telnet.stream.receive_some() == b"\xff\xfb\x06"
        await telnet.stream.send_all(b"/auth swordfish\r\n")
        assert await telnet.line() == "[Server] password accepted"


async def test_telnet_commands_are_not_answered_in_json(autojump_clock: MockClock) -> None:
    async with memory_server() as network:
        client = await network.join()
        await client.send("/json")
        assert (await client.line()).startswith('{"type":"welcome"')
        await client.stream.send_all(CTRL_C + b'{"type":"ping"}\n')
        assert await client.line() == '{"type":"pong","token":""}'


@pytest.mark.process
async def test_a_data_mark_sent_as_urgent_data_is_removed_from_the_text(tmp_path: Path) -> None:
    async with (
        serve(tmp_path) as server,
        connect(tmp_path, server, "--name", "alice") as alice,
        tcp(server) as stream,
    ):
        await alice.wait_for("you are alice")
        await stream.send_all(CTRL_C + b"\xff")
        await stream.socket.send(b"\xf2", socket.MSG_OOB)
        await stream.send_all(b"hello\r\n")
        await alice.wait_for("hello")
        assert alice.lines[-1].endswith("] hello")


@pytest.mark.process
async def test_the_real_telnet_client_receives_after_ctrl_c(
    terminal: Terminal, tmp_path: Path
) -> None:
    async with (
        serve(tmp_path) as server,
        connect(tmp_path, server, "--name", "alice") as alice,
    ):
        await alice.wait_for("you are alice")
        await terminal.open("t", program("telnet"), LOOPBACK, str(server.port))
        await terminal.wait_for("t", "Escape character is")
        await terminal.type("t", "hello from telnet")
        await alice.wait_for("hello from telnet")
        await alice.type("before\n")
        await terminal.wait_for("t", "[alice] before")
        await terminal.press("t", "C-c")
        await terminal.type("t", "still here")
        await alice.wait_for("] still here")  # and nothing before it
        await alice.type("after\n")
        await terminal.wait_for("t", "[alice] after")
        for _ in range(3):
            await terminal.press("t", "C-c")
        await terminal.type("t", "and here")  # what comes before the answers it discards
        await alice.wait_for("] and here")
        await alice.type("again\n")
        await terminal.wait_for("t", "[alice] again")
        await terminal.press("t", "C-]")
        await terminal.type("t", "send ayt")
        await terminal.wait_for("t", "[Server] yes")
        with trio.fail_after(60):
            await terminal.press("t", "C-]")
            await terminal.type("t", "quit")
            await alice.wait_for("Client")
