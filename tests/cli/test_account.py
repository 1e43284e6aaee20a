"""`multichat account` on the journal of a stopped server."""

import subprocess
from pathlib import Path

import pytest

from multichat.journal.sqlite.journal import SqliteJournal
from tests.support.journals import running, write
from tests.support.processes import MULTICHAT, serve
from tests.support.terminals import Terminal

pytestmark = pytest.mark.process

PASSPHRASE = "correct horse  battery"


def account(*words: str | Path) -> tuple[int, str, str]:
    """Run the command; return its exit status, and the output on both streams."""
    argv = [MULTICHAT, "account", *map(str, words)]
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    file = tmp_path / "secret"
    file.write_text(f"{PASSPHRASE}\n")
    return file


async def test_accounts_are_added_listed_and_removed(tmp_path: Path, secret: Path) -> None:
    path = tmp_path / "chat.db"
    await write(path, "hello")
    for name in ("bob", "Alice"):
        done = account("add", path, name, "--passphrase-file", secret)
        assert done == (0, f"{name} has an account in {path}\n", "")
    assert account("list", path) == (0, "Alice\nbob\n", "")
    assert account("remove", path, "ALICE")[0] == 0
    assert account("list", path) == (0, "bob\n", "")
    async with running(SqliteJournal(path)) as journal:
        assert [each.name for each in journal.accounts] == ["bob"]
        assert journal.room("lobby").next == 1


async def test_a_refused_account_command_prints_one_line(tmp_path: Path, secret: Path) -> None:
    path, short = tmp_path / "chat.db", tmp_path / "short"
    short.write_text("1234567")
    account("add", path, "alice", "--passphrase-file", secret)
    for words, status, text in (
        (("add", path, "aIice", "--passphrase-file", secret), 1, "alice has an account; remove it"),
        (("add", path, "Client 7", "--passphrase-file", secret), 1, "a name consists of"),
        (("add", path, "carol", "--passphrase-file", short), 1, "has at least 8 characters"),
        (("add", path, "carol"), 2, "use --passphrase-file"),
        (("add", path), 2, "NAME is missing"),
        (("remove", path), 2, "NAME is missing"),
        (("remove", path, "carol"), 1, "it has no account carol"),
        (("list", path, "carol"), 2, "list takes no NAME"),
        (("list", path, "--passphrase-file", secret), 2, "has no effect with list"),
        (("list", tmp_path / "other.db"), 1, "no such file"),
        (("remove", tmp_path / "other.db", "alice"), 1, "no such file"),
        (("list", secret), 1, "not a journal"),
        (("add", "carol", path), 2, f"JOURNAL comes before NAME: add {path} carol"),
    ):
        done = account(*words)
        assert (done[0], done[1], done[2].count("\n")) == (status, "", 1)
        assert text in done[2]
        assert PASSPHRASE not in done[2]
    assert account("list", path)[1] == "alice\n"
    assert not (tmp_path / "other.db").exists()
    assert not Path("carol").exists()


async def test_the_journal_of_a_running_server_is_left_alone(tmp_path: Path, secret: Path) -> None:
    path = tmp_path / "chat.db"
    async with serve(tmp_path, "--journal", str(path)):
        for words in (("add", path, "bob", "--passphrase-file", secret), ("list", path)):
            status, out, err = account(*words)
            assert (status, out, err.count("\n")) == (1, "", 1)
            assert err.endswith("stop it first, or type /account at its console\n")


async def test_the_prompt_requires_the_passphrase_twice_and_does_not_show_it(
    tmp_path: Path,
) -> None:
    terminal = Terminal(tmp_path)
    try:
        await terminal.open_shell("shell")
        for name, second in (("bob", "another one"), ("alice", PASSPHRASE)):
            await terminal.type("shell", f"clear; multichat account add chat.db {name}")
            await terminal.wait_for("shell", f"Passphrase for {name}:")
            await terminal.type("shell", PASSPHRASE)
            await terminal.wait_for("shell", "Again:")
            await terminal.type("shell", second)
            answer = "alice has an account" if name == "alice" else "the two passphrases differ"
            await terminal.wait_for("shell", answer)
            assert PASSPHRASE not in await terminal.screen("shell")
        for name, key, said, status in (
            ("eve", "C-c", "interrupted: nothing was changed", 1),
            ("dan", "C-d", "no passphrase was typed: nothing was changed", 2),
        ):
            await terminal.type("shell", f"clear; multichat account add chat.db {name}; echo is $?")
            await terminal.wait_for("shell", f"Passphrase for {name}:")
            await terminal.press("shell", key)
            await terminal.wait_for("shell", said)
            await terminal.wait_for("shell", f"is {status}")
    finally:
        terminal.end()
    assert account("list", tmp_path / "chat.db")[1] == "alice\n"
