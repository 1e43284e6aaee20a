"""Reloading the parts of a running server: invalid files change nothing, the others do."""

import json
import os
import ssl
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from multichat import (
    Ban,
    Refused,
    ReloadFailed,
    Server,
    ServerConfig,
    WebConfig,
    open_chat,
    parse_target,
)
from multichat.errors import MultichatError
from multichat.log import Log, open_log
from multichat.protocol.lookalikes import lookalike_keys
from multichat.protocol.messages import Goodbye
from multichat.server.bans import Bans, changes_of, merge_bans, read_bans
from multichat.server.reloading import Reloading
from multichat.testing import ScriptedClient, memory_server
from tests.support.hub import Hub
from tests.support.log import LogRecorder

pytestmark = pytest.mark.unit


def failing(error: Exception) -> Callable[[], None]:
    def read() -> None:
        raise error

    return read


# --- Any parts -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(13, "Permission denied", "a/file"), "a/file: permission denied"),
        (MultichatError("a/file: no\x1b[31m good"), "a/file: no␛[31m good"),
        (ValueError("it is wrong"), "it is wrong"),
        (TimeoutError("took long"), "took long"),
        (ZeroDivisionError("a bug"), "internal error; see the log"),
    ],
    ids=["system", "ours", "value", "no strerror", "bug"],
)
@pytest.mark.parametrize("where", ["read", "change"])
async def test_a_part_that_fails_stays_and_the_others_are_reloaded(
    error: Exception, reason: str, where: str, log: LogRecorder
) -> None:
    reloading, changed = Reloading(Log("server")), list[object]()
    reloading.add("first", lambda: 1, changed.append)
    if where == "read":
        reloading.add("second", failing(error), changed.append)
    else:
        reloading.add("second", lambda: 2, lambda _: failing(error)())
    reloading.add("third", lambda: 3, changed.append)
    with pytest.raises(ReloadFailed) as caught:
        await reloading.reload()
    assert set(changed) == {1, 3}
    failed, done = caught.value.lines
    assert failed == f"Could not reload the second (unchanged): {reason}"
    assert done == "Reloaded: first, third"
    assert f"[ERROR] [server] [reload] {failed}" in log.lines
    assert f"[INFO] [server] [reload] {done}" in log.lines


async def test_programs_find_in_the_log_what_was_reloaded() -> None:
    read, write = os.pipe()
    with open(read, encoding="utf-8") as lines:  # noqa: PTH123
        with open_log(write, json=True):
            reloading = Reloading(Log("server"))
            reloading.add("bans", failing(ValueError("no")), lambda _: None)
            reloading.add("log file", lambda: 1, lambda _: None)
            with pytest.raises(ReloadFailed):
                await reloading.reload()
        os.close(write)
        first, second = map(json.loads, lines)
    assert (first["event"], first["part"]) == ("not-reloaded", "bans")
    assert (second["event"], second["parts"]) == ("reloaded", "log file")


async def test_advice_is_logged_and_returned(log: LogRecorder) -> None:
    reloading = Reloading(Log("server"))
    reloading.add("certificate", lambda: 0, lambda _: "it expires soon")
    assert await reloading.reload() == ["Reloaded: certificate", "it expires soon"]
    assert "[WARNING] [server] [reload] it expires soon" in log.lines


async def test_without_parts_nothing_is_reloaded() -> None:
    assert await Reloading(Log("server")).reload() == ["Reloaded: nothing"]


async def test_reloads_at_once_follow_each_other() -> None:
    reloading, running, most = Reloading(Log("server")), [0], [0]
    versions = iter(range(100))

    def read() -> int:
        running[0] += 1
        most[0] = max(most[0], running[0])
        threading.Event().wait(0.005)
        running[0] -= 1
        return next(versions)

    seen: list[int] = []
    reloading.add("file", read, seen.append)
    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(reloading.reload)
    assert most == [1]
    assert seen == list(range(10))


async def test_a_file_that_cannot_be_read_in_time_does_not_stop_the_reload_of_others(
    thread_clock: trio.testing.MockClock,
) -> None:
    reloading, changed = Reloading(Log("server"), seconds=30), list[object]()
    end = threading.Event()
    reloading.add("hanging", lambda: end.wait(60), changed.append)
    reloading.add("other", lambda: "read", changed.append)
    started = trio.current_time()
    try:
        with pytest.raises(ReloadFailed) as caught:
            await reloading.reload()
    finally:
        end.set()
    assert trio.current_time() - started == pytest.approx(30)
    assert changed == ["read"]
    assert caught.value.lines == (
        "Could not reload the hanging (unchanged): its file was not read in 30 s",
        "Reloaded: other",
    )


async def test_a_cancelled_reload_does_not_keep_the_next_one() -> None:
    reloading, changed = Reloading(Log("server")), list[object]()
    started, end = threading.Event(), threading.Event()

    def read() -> None:
        started.set()
        end.wait(60)

    reloading.add("file", read, changed.append)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(reloading.reload)
        await trio.to_thread.run_sync(started.wait)
        nursery.cancel_scope.cancel(reason="the server ends")
    end.set()
    assert changed == []
    assert await reloading.reload() == ["Reloaded: file"]
    assert changed == [None]


# --- The settings of a server --------------------------------------------------------------------


async def test_a_new_password_is_for_new_clients_and_connected_ones_stay() -> None:
    async with memory_server(ServerConfig(password="old")) as memory:
        connect = memory.connect
        async with open_chat(connect(), name="a", password="old") as a:
            memory.server.settings.change_password("new")
            with pytest.raises(Refused, match="password"):
                async with open_chat(connect(), name="b", password="old"):
                    pass
            async with open_chat(connect(), name="b", password="new") as b:
                await b.send("hello")
                assert "hello" in [getattr(await anext(a), "text", "") for _ in range(2)]


async def test_a_client_that_is_asked_for_the_old_password_needs_the_new_one() -> None:
    async with memory_server(ServerConfig(password="old")) as memory:
        client = ScriptedClient(memory.connect())
        assert "password" in await client.line()
        memory.server.settings.change_password("new")
        await client.send("/auth old")
        assert "wrong password" in await client.line()
        await client.send("/auth new")
        assert "accepted" in await client.line()


@pytest.mark.parametrize("password", ["", "two\nlines", "x" * 100_000])
async def test_an_impossible_password_changes_nothing(password: str) -> None:
    server = Server(ServerConfig(password="old"))
    with pytest.raises(ValueError, match="password"):
        server.settings.change_password(password)
    assert server.settings.config.password == "old"


async def test_without_tls_there_is_no_certificate_to_change() -> None:
    server = Server()
    with pytest.raises(ValueError, match="without TLS"):
        server.settings.change_certificate(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))


@pytest.mark.parametrize("tokens", [(), ("short",), ("with a space in it",)])
async def test_impossible_tokens_change_nothing(tokens: tuple[str, ...]) -> None:
    before = ("0123456789abcdef",)
    server = Server(ServerConfig(web=WebConfig(webhook_tokens=before)))
    with pytest.raises(ValueError, match="token"):
        server.settings.change_webhook_tokens(tokens)
    assert server.settings.config.web.webhook_tokens == before


async def test_a_server_without_a_webhook_gets_none() -> None:
    with pytest.raises(ValueError, match="without a webhook"):
        Server().settings.change_webhook_tokens(["0123456789abcdef"])


async def test_operators_change_and_advice_names_those_without_an_account() -> None:
    async with Server(ServerConfig(operators=("alice",))).open() as server:
        accounts = server.admin._registry.accounts
        await accounts.add("bob", "a passphrase of bob")
        assert accounts.is_operator("alice")
        assert server.settings.change_operators(["bob"]) == ""
        assert accounts.is_operator("bob")
        assert not accounts.is_operator("alice")
        assert "carol" in server.settings.change_operators(["bob", "carol"])
        with pytest.raises(ValueError, match="operator"):
            server.settings.change_operators(["not\na name"])
        assert server.settings.config.operators == ("bob", "carol")


# --- Bans ----------------------------------------------------------------------------------------


def ban(target: str, reason: str = "") -> Ban:
    return Ban(target=parse_target(target), reason=reason)


def test_changes_of_a_file() -> None:
    before = [ban("192.0.2.1"), ban("name Bob"), ban("192.0.2.2")]
    now = [ban("name bob", "spam"), ban("192.0.2.2"), ban("192.0.2.3")]
    assert changes_of(before, now) == ([now[0], now[2]], [before[0]])


def test_bans_that_a_thread_has_read_are_put_in_force_without_looking_at_their_letters() -> None:
    """That takes the most time, and the event loop would wait for it."""
    data = b"".join(b"name spammer%d\n" % number for number in range(3000))
    before = lookalike_keys.cache_info()
    found, bans = read_bans(data, "the file"), Bans()
    was_read = lookalike_keys.cache_info()
    assert was_read.misses >= before.misses + 3000
    bans.change(*changes_of([], found), now=0)
    assert all(bans.has(each, now=0) for each in found)
    bans.change(*changes_of(found, []), now=0)
    assert not bans.known()
    assert lookalike_keys.cache_info() == was_read


async def reload_after(server: Server, path: Path, text: str) -> None:
    path.write_text(text, "utf-8")
    await server.reload()


async def test_bans_that_are_added_to_the_file_disconnect_and_removed_ones_are_lifted(
    tmp_path: Path, log: LogRecorder
) -> None:
    path = tmp_path / "bans"
    path.write_text("# mine\nname bob\n192.0.2.7\n", "utf-8")
    async with memory_server() as memory:
        server = memory.server
        server.keep_bans(path)
        async with memory.chat(name="mallory") as mallory:
            await reload_after(server, path, "# mine\n192.0.2.7\nname mallory because spam\n")
            events = [event async for event in mallory]
            assert isinstance(events[-1], Goodbye)
            assert events[-1].code == "banned"
        assert [each.subject for each in server.bans] == ["192.0.2.7", "name mallory"]
        async with memory.chat(name="bob"):
            pass
    assert any("Unbanned name bob" in line for line in log.lines)
    assert any("Banned name mallory" in line for line in log.lines)
    assert path.read_text("utf-8") == "# mine\n192.0.2.7\nname mallory because spam\n"


async def test_a_ban_of_the_console_and_an_edited_file_are_merged(tmp_path: Path) -> None:
    path = tmp_path / "bans"
    async with Server().open() as server:
        server.keep_bans(path)
        server.ban(ban("192.0.2.1"))  # its save runs when the file is read, or after it
        await server.reload()
        with trio.fail_after(60):
            while not path.exists() or "192.0.2.1" not in path.read_text("utf-8"):
                await trio.sleep(0.01)
        assert [each.subject for each in server.bans] == ["192.0.2.1"]
        with trio.fail_after(60):  # a save that is under way replaces what is written meanwhile
            while len(server.bans) < 2:
                await reload_after(server, path, "192.0.2.1\n192.0.2.2\n")
        assert [each.subject for each in server.bans] == ["192.0.2.1", "192.0.2.2"]


@pytest.mark.parametrize("edited", [False, True])
async def test_bans_that_are_saved_while_the_file_is_reloaded_stay_as_they_are(
    edited: bool, tmp_path: Path, log: LogRecorder
) -> None:
    path = tmp_path / "bans"
    path.write_text("192.0.2.1\n", "utf-8")
    async with Server().open() as server:
        server.keep_bans(path)
        if edited:
            path.write_text("192.0.2.1\n192.0.2.2\n", "utf-8")
        read = server._ban_keeper.read_again()
        server.ban(ban("192.0.2.3"))
        server.unban("192.0.2.1")
        await saved(path, *["192.0.2.2"] * edited, "192.0.2.3")
        server._ban_keeper.merge(read)
        wanted = {"192.0.2.3", *["192.0.2.2"] * edited}
        assert {each.subject for each in server.bans} == wanted
        await server.reload()
        assert {each.subject for each in server.bans} == wanted
        await saved(path, *["192.0.2.2"] * edited, "192.0.2.3")
    assert [line.rpartition(" ")[2] for line in log.lines if "] Unbanned" in line] == ["192.0.2.1"]


async def saved(path: Path, *lines: str) -> None:
    """Wait until the file has exactly these *lines*."""
    with trio.fail_after(60):
        while path.read_text("utf-8").split() != list(lines):
            await trio.sleep(0.01)


async def test_a_ban_at_the_console_keeps_edits_of_the_file_that_were_not_reloaded_yet(
    tmp_path: Path,
) -> None:
    path = tmp_path / "bans"
    path.write_text("# mine\n192.0.2.1\n192.0.2.2\n", "utf-8")
    async with Server().open() as server:
        server.keep_bans(path)
        path.write_text("# mine\n192.0.2.2\n192.0.2.3 because by hand\n", "utf-8")
        server.ban(ban("192.0.2.4"))
        with trio.fail_after(60):
            while "192.0.2.4" not in path.read_text("utf-8"):
                await trio.sleep(0.01)
        edited = "# mine\n192.0.2.2\n192.0.2.3 because by hand\n192.0.2.4\n"
        assert path.read_text("utf-8") == edited
        assert {each.subject for each in server.bans} == {"192.0.2.1", "192.0.2.2", "192.0.2.4"}
        await server.reload()
        assert {each.subject for each in server.bans} == {"192.0.2.2", "192.0.2.3", "192.0.2.4"}
        server.unban("192.0.2.3")
        with trio.fail_after(60):
            while "192.0.2.3" in path.read_text("utf-8"):
                await trio.sleep(0.01)
        assert path.read_text("utf-8") == "# mine\n192.0.2.2\n192.0.2.4\n"


TARGETS = st.sampled_from(["192.0.2.1", "192.0.2.2", "192.0.2.0/24", "name bob", "name Bob"])
SAMPLES = st.lists(
    st.builds(ban, TARGETS, st.sampled_from(["", "spam"])),
    unique_by=lambda each: each.subject.lower(),
)


@given(SAMPLES, SAMPLES, SAMPLES)
def test_merged_bans_have_the_changes_of_both_sides(
    before: list[Ban], ours: list[Ban], theirs: list[Ban]
) -> None:
    def by_target(bans: list[Ban]) -> dict[str, Ban]:
        return {each.subject.lower(): each for each in bans}

    old, mine, yours = by_target(before), by_target(ours), by_target(theirs)
    merged = by_target(merge_bans(ours, before, theirs))
    for target in {*old, *mine, *yours}:
        is_changed = mine.get(target) != old.get(target)
        assert merged.get(target) == (mine if is_changed else yours).get(target)


async def test_a_ban_that_could_not_be_saved_stays(tmp_path: Path, log: LogRecorder) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    path = folder / "bans"
    path.write_text("192.0.2.1\n", "utf-8")
    async with Server().open() as server:
        server.keep_bans(path)
        path.write_text("this is no ban\n", "utf-8")  # which no save replaces
        server.ban(ban("192.0.2.2"))
        with trio.fail_after(60):
            while not any("were not saved" in line for line in log.lines):
                await trio.sleep(0.01)
        with pytest.raises(ReloadFailed, match="bans line 1"):
            await server.reload()
        await reload_after(server, path, "192.0.2.1\n192.0.2.3\n")
        found = {each.subject for each in server.bans}
        assert found == {"192.0.2.1", "192.0.2.2", "192.0.2.3"}
        with trio.fail_after(60):
            while "192.0.2.2" not in path.read_text("utf-8"):
                await trio.sleep(0.01)


async def test_a_file_of_bans_that_has_disappeared_lifts_none(tmp_path: Path) -> None:
    path = tmp_path / "bans"
    path.write_text("192.0.2.1\n", "utf-8")
    async with Server().open() as server:
        server.keep_bans(path)
        path.unlink()
        with pytest.raises(ReloadFailed, match="no such file"):
            await server.reload()
        assert [each.subject for each in server.bans] == ["192.0.2.1"]


@pytest.mark.parametrize("is_node", [False, True], ids=["alone", "node"])
async def test_too_many_bans_in_the_file_change_nothing(is_node: bool, tmp_path: Path) -> None:
    path, hub = tmp_path / "bans", Hub()
    path.write_text("name bob\n", "utf-8")
    async with Server(backend=hub.node("one") if is_node else None).open() as server:
        server.keep_bans(path)
        many = "".join(f"10.0.{n // 256}.{n % 256}\n" for n in range(10_001))
        with pytest.raises(ReloadFailed, match="bans"):
            await reload_after(server, path, many)
        assert [each.subject for each in server.bans] == ["name bob"]
        assert not hub.bans
        await reload_after(server, path, many.partition("\n")[2])
        assert len(server.bans) == 10_000
        assert len(hub.bans) == 10_000 * is_node
