"""The file of typed lines: bounded, private, without secrets, and never fatal."""

import os
from pathlib import Path

import pytest

from multichat.terminal.input_history import MAX_LINES, History, belongs_in_history

pytestmark = pytest.mark.unit


def test_the_input_history_keeps_its_order(tmp_path: Path) -> None:
    path = tmp_path / "not" / "yet" / "there" / "history"
    history = History(path)
    assert history.load() == []
    history.append("one")
    history.append("two", "trés")
    assert History(path).load() == ["one", "two", "trés"]
    assert history.failure is None
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_the_input_history_is_private_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        History(tmp_path / "history").append("one")
    finally:
        os.umask(before)
    assert (tmp_path / "history").stat().st_mode & 0o777 == 0o600


def test_a_history_that_others_could_read_is_made_private(tmp_path: Path) -> None:
    for use in (History.load, lambda history: history.append("two")):
        path = tmp_path / "history"
        path.write_text("one\n", "utf-8")
        path.chmod(0o644)
        use(History(path))
        assert path.stat().st_mode & 0o777 == 0o600


def test_a_link_to_a_device_is_left_as_it_is() -> None:
    mode = Path(os.devnull).stat().st_mode
    history = History(Path(os.devnull))
    history.append("one")
    assert history.load() == []
    assert history.failure is None
    assert Path(os.devnull).stat().st_mode == mode


def test_rewriting_never_writes_into_a_file_that_is_there_already(tmp_path: Path) -> None:
    path, victim = tmp_path / "history", tmp_path / "victim"
    victim.write_text("precious\n", "utf-8")
    (tmp_path / f"history.{os.getpid()}").symlink_to(victim)
    path.write_text("".join(f"line {number}\n" for number in range(2 * MAX_LINES + 1)), "utf-8")
    assert len(History(path).load()) == MAX_LINES
    assert victim.read_text("utf-8") == "precious\n"
    assert len(path.read_text("utf-8").splitlines()) == MAX_LINES


def test_rewriting_keeps_a_symbolic_link(tmp_path: Path) -> None:
    path, target = tmp_path / "history", tmp_path / "elsewhere"
    path.symlink_to(target)
    target.write_text("".join(f"line {number}\n" for number in range(2 * MAX_LINES + 1)), "utf-8")
    assert len(History(path).load()) == MAX_LINES
    assert path.is_symlink()
    assert len(target.read_text("utf-8").splitlines()) == MAX_LINES


def test_a_byte_order_mark_and_windows_line_ends_are_accepted(tmp_path: Path) -> None:
    path = tmp_path / "history"
    path.write_bytes("\ufeffone\r\ntwo\r\n".encode())
    assert History(path).load() == ["one", "two"]


def test_a_history_of_twice_the_limit_is_cut_to_its_newest_lines(tmp_path: Path) -> None:
    path = tmp_path / "history"
    path.touch(0o600)
    lines = [f"line {number}" for number in range(2 * MAX_LINES + 1)]
    path.write_text("\n".join(lines[:-1]) + "\n", "utf-8")
    assert History(path).load() == lines[MAX_LINES:-1]
    assert len(path.read_text("utf-8").split("\n")) == 2 * MAX_LINES + 1, "not yet"
    History(path).append(lines[-1])
    assert History(path).load() == lines[MAX_LINES + 1 :]
    assert path.read_text("utf-8") == "\n".join(lines[MAX_LINES + 1 :]) + "\n"
    assert path.stat().st_mode & 0o777 == 0o600
    assert [each.name for each in tmp_path.iterdir()] == ["history"]


def test_the_input_history_is_bounded_in_bytes(tmp_path: Path) -> None:
    path = tmp_path / "history"
    path.write_text("".join(f"{number} {'x' * 60_000}\n" for number in range(50)), "utf-8")
    kept = History(path).load()
    assert kept[-1].startswith("49 ")
    assert 500_000 < sum(map(len, kept)) <= 1024 * 1024
    assert path.stat().st_size <= 1024 * 1024 + len(kept)


@pytest.mark.parametrize(
    ("line", "kept"),
    [
        ("hello", True),
        ("/auth", True),
        ("/author", True),
        ("/auth swordfish", False),
        ("/AUTH swordfish", False),
        ("  /auth swordfish", False),
        ("/register correct horse", False),
        ("/Register correct horse", False),
        (" /register correct horse", False),
        ("\\register correct horse", False),
        ("/regsiter correct horse", False),
        ("/login alice correct horse", False),
        ("/logn alice correct horse", False),
        ("/lgoin alice correct horse", False),
        ("/loginalice correct horse", False),
        ("/Registercorrect-horse-battery-staple", False),
        ("/login.html", True),
        ("/passphrase correct horse", False),
        ("/pasphrase correct horse", False),
        ("/account add alice correct horse", False),
        (" /account add alice correct horse", False),
        ("/pasword swordfish", False),
        ("/ login alice swordfish", False),
        ("/l\u043egin alice swordfish", False),
        ("/nickserv identify swordfish", False),
        ("login alice swordfish", False),
        ("Login alice swordfish", False),
        (" register swordfish", False),
        ("login?", True),
        ("the login alice", True),
        ("//register now", True),
        ("/logout", True),
        ("/list", True),
        ("/join kitchen", True),
        ("", False),
        ("   ", False),
    ],
)
def test_secrets_and_empty_lines_are_not_stored(line: str, kept: bool, tmp_path: Path) -> None:
    assert belongs_in_history(line) is kept
    history = History(tmp_path / "history")
    history.append(line)
    assert history.load() == [line] * kept


def test_undecodable_bytes_in_the_history_are_tolerated(tmp_path: Path) -> None:
    path = tmp_path / "history"
    path.write_bytes(b"caf\xe9\n\n\xff\n")
    assert History(path).load() == ["caf\ufffd", "\ufffd"]


def test_an_unusable_history_file_sets_failure(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    history = History(tmp_path / "file" / "history")
    history.append("one")
    assert isinstance(history.failure, NotADirectoryError | FileExistsError)
    assert History(tmp_path).load() == []
    history = History(tmp_path)
    assert history.load() == []
    assert isinstance(history.failure, IsADirectoryError)
