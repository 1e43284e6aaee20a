"""Filters change and reject messages, and a faulty filter does not harm the chat."""

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import msgspec
import pytest
import trio
import trio.lowlevel

from multichat import Error, Refused, Said, ServerConfig
from multichat.log import Log
from multichat.server.config import Filter, Message
from multichat.server.filters import Filters, load_filter
from multichat.testing import memory_server
from tests.support.log import LogRecorder
from tests.support.processes import (
    LOOPBACK,
    MULTICHAT,
    WAIT_SECONDS,
    Command,
    ServerCommand,
    connect,
)

pytestmark = pytest.mark.unit


def shout(message: Message) -> Message:
    return msgspec.structs.replace(message, text=message.text.upper())


async def no_spam(message: Message) -> Message | None:
    await trio.lowlevel.checkpoint()
    return None if "spam" in message.text.lower() else message


async def loudly(message: Message) -> Message:
    await trio.lowlevel.checkpoint()
    return shout(message)  # async, because threads do not work with the mock clock


def broken(message: Message) -> Message:
    raise LookupError(f"no {message.text}")


def said(text: str) -> Said:
    return Said(name="alice", text=text)


async def run(*filters: Filter, texts: list[str], seconds: float = 1.0) -> list[str | None]:
    results = await Filters(filters, seconds, Log("server")).apply([said(t) for t in texts])
    return [None if result is None else result.text for result in results]


async def test_plain_and_async_functions_work_one_after_the_other() -> None:
    assert await run(shout, no_spam, texts=["hello", "Spam", "bye"]) == ["HELLO", None, "BYE"]
    assert await run(no_spam, shout, texts=["hello", "Spam", "bye"]) == ["HELLO", None, "BYE"]


async def test_the_result_of_a_filter_is_cleaned() -> None:
    def hostile(message: Message) -> Message:
        return msgspec.structs.replace(message, text="\x1b[2J\n[Server] forged")

    def silence(message: Message) -> Message:
        return msgspec.structs.replace(message, text="")

    assert await run(hostile, texts=["x"]) == ["␛[2J␊[Server] forged"]
    assert await run(silence, texts=["x"]) == [None]


async def test_only_the_text_of_a_filters_result_is_used() -> None:
    def forge(message: Message) -> Message:
        return Said(name="Server", room="elsewhere", client=7, text=message.text + "!")

    [result] = await Filters([forge], 1, Log("server")).apply([said("x")])
    assert result == said("x!")


async def test_a_raising_filter_drops_nothing_and_is_logged_once_per_error_type(
    log: LogRecorder,
) -> None:
    def moody(message: Message) -> Message:
        raise (KeyError if message.text == "a" else SystemExit)("no")

    filters = Filters([broken, moody, shout], 1, Log("server"))
    for _ in range(3):
        results = await filters.apply([said("a"), said("b")])
        assert [result and result.text for result in results] == ["A", "B"]
    faults = [line for line in log.lines if line.endswith("; messages pass unchanged")]
    assert len(faults) == 3
    assert "broken raised LookupError('no a')" in faults[0]
    assert "raised KeyError('no')" in faults[1]
    assert "raised SystemExit('no')" in faults[2]
    assert all(line.startswith("[WARNING] [server] [FILTER] ") for line in log.lines)
    assert sum("Traceback (most recent call last)" in line for line in log.lines) == 3
    assert any(line.endswith(", in broken") for line in log.lines)


@pytest.mark.parametrize("result", [7, "text", ...])
async def test_a_filter_result_that_is_not_a_message_is_an_error(
    result: object, log: LogRecorder
) -> None:
    assert await run(lambda _: result, texts=["a"]) == ["a"]  # type: ignore[arg-type, return-value]
    assert "which is not a message" in log.lines[0]


async def test_an_async_filter_that_hangs_is_abandoned(
    autojump_clock: trio.testing.MockClock, log: LogRecorder
) -> None:
    async def slow(message: Message) -> Message:
        await trio.sleep(9 if message.text == "hang" else 0.4)
        return shout(message)

    started = trio.current_time()
    # The time limit is per message; the message on which it hangs passes unchanged to the next
    # filter.
    filters = Filters([slow, no_spam], 1, Log("server"))
    results = await filters.apply([said(text) for text in ("a", "hang", "b", "c", "d")])
    assert [result and result.text for result in results] == ["A", "hang", "B", "C", "D"]
    assert trio.current_time() - started == pytest.approx(4 * 0.4 + 1)
    await filters.apply([said("hang")])
    [line] = log.lines
    assert "slow took more than 1 s; messages pass unchanged" in line


async def test_many_messages_at_once_do_not_bypass_a_filter(log: LogRecorder) -> None:
    def slow(message: Message) -> Message | None:
        time.sleep(0.05)
        return None if message.text == "bad" else message

    filters = Filters([slow], 2, Log("server"))  # per message; all together take longer
    results = await filters.apply([said(text) for text in ["ok"] * 40 + ["bad"] * 5])
    assert [result and result.text for result in results] == ["ok"] * 40 + [None] * 5
    assert log.lines == []


class UnusualObject(BaseException):
    """An unusual object as the result of a filter."""

    def __repr__(self) -> str:
        raise ValueError("not even that")


@pytest.mark.parametrize("error", [UnusualObject, GeneratorExit, SystemExit, KeyboardInterrupt])
async def test_whatever_a_plain_filter_raises_ends_nothing(
    error: type[BaseException], log: LogRecorder
) -> None:
    def broken(message: Message) -> Message:
        raise error

    async def broken_too(message: Message) -> Message:
        raise error

    filters = [broken] if error is KeyboardInterrupt else [broken, broken_too]
    results = await Filters(filters, 1, Log("server")).apply([said("a")])
    assert [result and result.text for result in results] == ["a"]
    faults = [line for line in log.lines if line.endswith("; messages pass unchanged")]
    assert len(faults) == len(filters)


async def test_plain_filters_that_hang_are_abandoned(log: LogRecorder) -> None:
    release = threading.Event()

    def hang(message: Message) -> Message:
        if message.text.startswith("hang"):
            release.wait(WAIT_SECONDS)
        return shout(message)

    filters = Filters([hang], 0.05, Log("server"))
    try:
        assert await run(hang, texts=["a", "hang", "c"]) == ["A", "hang", "C"]
        for n in range(20):  # more than there are threads
            results = await filters.apply([said("a"), said(f"hang {n}"), said("c")])
            texts = [result and result.text for result in results]
            assert [str(text).lower() for text in texts] == ["a", f"hang {n}", "c"]
            assert texts[1] == f"hang {n}"
    finally:
        release.set()
    assert len(log.lines) == 2  # one for each object
    while (await run(hang, texts=["b"])) != ["B"]:
        await trio.sleep(0.01)


async def test_a_plain_filter_that_is_slow_does_not_stop_the_loop() -> None:
    working, turned = threading.Event(), threading.Event()

    def slow(message: Message) -> Message:
        working.set()
        assert turned.wait(WAIT_SECONDS)
        return message

    async def turn() -> None:
        while not working.is_set():
            await trio.lowlevel.checkpoint()
        turned.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(turn)
        assert await run(slow, texts=["a"], seconds=WAIT_SECONDS) == ["a"]


# --- In a room ------------------------------------------------------------------------------------


async def test_a_room_gets_the_filtered_messages(autojump_clock: trio.testing.MockClock) -> None:
    config = ServerConfig(filters=(no_spam, loudly))
    async with memory_server(config) as server:
        alice, bob = await server.join(), await server.join()
        await alice.send("one", "spam", "SPAM again", "/me waves", "/me spams", "two")
        assert await bob.lines(3) == ["[Client 1] ONE", "* Client 1 WAVES", "[Client 1] TWO"]
        assert await alice.lines(2) == [
            "[Server] 2 messages were rejected by the server",
            "[Server] this was rejected by the server",
        ]
        await alice.send("/msg 2 psst", "/msg 2 spam", "/ping")
        assert await bob.line() == "[Client 1 → you] PSST"
        assert await alice.lines(2) == ["[Server] this was rejected by the server", "[Server] pong"]


async def test_every_nonce_is_answered(autojump_clock: trio.testing.MockClock) -> None:
    async with memory_server(ServerConfig(filters=(no_spam,))) as server:
        bob = await server.join()
        async with server.chat(name="alice") as alice:
            await alice.send("one", "spam", "two", "spam")
            assert await bob.lines(2) == ["[alice] one", "[alice] two"]
            for _ in range(2):
                event = await anext(alice)
                assert isinstance(event, Error)
                assert event.code == "rejected"
            with pytest.raises(Refused, match="rejected by the server"):
                await alice.direct(1, "spam")
            assert not alice.unaccepted


async def test_a_slow_filter_delays_its_sender_only(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def slow_for_alice(message: Message) -> Message:
        if message.name == "alice":
            await trio.sleep(0.9)
        return message

    async with memory_server(ServerConfig(filters=(slow_for_alice,))) as server:
        alice, bob, carol = [await server.join() for _ in range(3)]
        await alice.send("/name alice")
        await alice.line()
        started = trio.current_time()
        await alice.send("first")
        await bob.send("second")
        assert await carol.line() == "[Client 2] second"
        assert trio.current_time() == started
        assert await carol.line() == "[alice] first"
        assert trio.current_time() == started + 0.9


async def test_a_message_of_a_client_that_leaves_during_a_filter_is_not_published(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def slow(message: Message) -> Message:
        await trio.sleep(0.5)
        return message

    async with memory_server(ServerConfig(filters=(slow,))) as server:
        alice, bob = await server.join(), await server.join()
        await alice.send("too late")
        await trio.testing.wait_all_tasks_blocked()
        server.server.kick(1)
        await trio.sleep(1)
        await server.server.broadcast("done")
        assert await bob.line() == "[Server] done"


# --- On the command line --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("nothing", "a filter is named as package.module:function"),
        ("os:", "a filter is named as package.module:function"),
        ("no.such:module", "no.such:module: no module no$"),
        (".rules:check", ".rules:check: a filter is named as package.module:function$"),
        ("os:nothing", "os has no function nothing"),
        ("os:sep", r"os has no function sep; it is \S+os\.py$"),
        ("sys:maxsize", "sys has no function maxsize; it is a part of Python$"),
        ("os:getcwd", "os:getcwd: a filter takes one argument, the message$"),
        ("operator:add", "operator:add: a filter takes one argument, the message$"),
        ("decimal:Decimal", "decimal:Decimal: a class is not a filter$"),
        ("ast:walk", "a generator is not a filter: a filter returns a message or None$"),
    ],
)
def test_an_invalid_filter_is_one_line(name: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        load_filter(name)
    assert load_filter("os.path:join").__name__ == "join"


@pytest.mark.process
@pytest.mark.parametrize("module", ["sqlite3", "typer", "trio", "json"])
async def test_a_file_in_the_working_directory_does_not_shadow_a_module(
    module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / f"{module}.py").write_text("raise SystemExit('a file of mine was run')\n")
    (tmp_path / "house_rules.py").write_text("def polite(message):\n    return message\n")
    monkeypatch.chdir(tmp_path)
    options = "--journal", str(tmp_path / "journal"), "--filter", "house_rules:polite"
    for program in ([MULTICHAT], [sys.executable, "-m", "multichat"]):
        argv = [*program, "serve", "0", "--host", LOOPBACK, *options]
        async with ServerCommand(tmp_path, *argv) as server:
            server.signal(signal.SIGINT)
            assert await server.wait() == 0
            assert server.err == ""


# The modules that `python -m` itself imports from the working directory, before multichat.
BEFORE_US = "import runpy, sys; print(*{name.split('.')[0] for name in sys.modules})"


@pytest.mark.process
def test_python_m_runs_no_file_of_the_working_directory_but_what_python_itself_imports(
    tmp_path: Path,
) -> None:
    shown = subprocess.run([sys.executable, "-c", BEFORE_US], capture_output=True, text=True)
    for name in sys.stdlib_module_names.difference(shown.stdout.split()):
        (tmp_path / f"{name}.py").write_text(f"raise SystemExit('my {name} was run')\n")
    for arguments in (["--version"], ["config"], ["serve", "--help"]):
        argv = [sys.executable, "-m", "multichat", *arguments]
        shown = subprocess.run(argv, capture_output=True, text=True, cwd=tmp_path)
        assert (shown.returncode, shown.stderr) == (0, "")


@pytest.mark.process
async def test_filters_of_the_folder_in_which_one_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "house_rules.py").write_text(
        "import msgspec\n"
        "def polite(message):\n"
        "    return msgspec.structs.replace(message, text=message.text.replace('damn', 'oh'))\n"
    )
    monkeypatch.chdir(tmp_path)
    options = "serve", "0", "--host", LOOPBACK, "--filter", "house_rules:polite"
    async with (
        ServerCommand(tmp_path, MULTICHAT, *options) as server,
        connect(tmp_path, server) as alice,
        connect(tmp_path, server) as bob,
    ):
        await server.wait_for("connected\n", 2)
        await bob.wait_for("you are")
        await alice.type("damn it\n")
        await bob.wait_for("] oh it\n")
        assert "damn" not in server.out

    (tmp_path / "script.py").write_text("raise SystemExit(0)\n")
    async with Command(tmp_path, MULTICHAT, "serve", "0", "--filter", "script:main") as script:
        assert await script.wait() == 2
        assert "SystemExit(0)" in script.err

    async with Command(tmp_path, MULTICHAT, "serve", "0", "--filter", "house_rules:rude") as wrong:
        assert await wrong.wait() == 2
        assert "house_rules has no function rude" in wrong.err
        assert "Traceback" not in wrong.err
