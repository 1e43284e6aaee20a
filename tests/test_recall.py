"""The file of what was typed: bounded, private, without secrets, and nobody's problem."""

import os
from pathlib import Path

import pytest

from multichat.recall import MAX_LINES, History, keeps

pytestmark = pytest.mark.unit


def test_what_was_typed_comes_back_in_its_order(tmp_path: Path) -> None:
    path = tmp_path / "not" / "yet" / "there" / "history"
    history = History(path)
    assert history.load() == []
    history.append("one")
    history.append("two", "trés")
    assert History(path).load() == ["one", "two", "trés"]
    assert history.failure is None
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_who_may_read_it_does_not_depend_on_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        History(tmp_path / "history").append("one")
    finally:
        os.umask(before)
    assert (tmp_path / "history").stat().st_mode & 0o777 == 0o600


def test_it_is_cut_down_to_its_newest_lines_when_it_has_twice_as_many(tmp_path: Path) -> None:
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


def test_it_is_bounded_in_bytes_too(tmp_path: Path) -> None:
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
        ("", False),
        ("   ", False),
    ],
)
def test_secrets_and_nothing_are_not_kept(line: str, kept: bool, tmp_path: Path) -> None:
    assert keeps(line) is kept
    history = History(tmp_path / "history")
    history.append(line)
    assert history.load() == [line] * kept


def test_bytes_that_are_no_text_are_no_reason_to_fail(tmp_path: Path) -> None:
    path = tmp_path / "history"
    path.write_bytes(b"caf\xe9\n\n\xff\n")
    assert History(path).load() == ["caf\ufffd", "\ufffd"]


def test_a_place_that_cannot_be_is_remembered_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    history = History(tmp_path / "file" / "history")
    history.append("one")
    assert isinstance(history.failure, NotADirectoryError | FileExistsError)
    assert History(tmp_path).load() == []
    history = History(tmp_path)
    assert history.load() == []
    assert isinstance(history.failure, IsADirectoryError)
