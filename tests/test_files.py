"""Text files: encodings, special files, and atomic replacement."""

import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multichat.cli.config_file import load_settings
from multichat.cli.process import read_password_file
from multichat.client.connect import client_tls
from multichat.errors import BadCertificate, BadPasswordFile, InvalidBanFile, InvalidSettings
from multichat.files import (
    check_regular,
    decode_text,
    is_readable_by_others,
    open_regular,
    read_file,
    replace_file,
)
from multichat.net.certificates import server_tls
from multichat.server.ban_file import load_bans
from multichat.server.bans import read_bans
from multichat.terminal.input_history import History

pytestmark = pytest.mark.unit

TEXT = 'name = "Jürgen"\n'


@given(st.text(st.characters(blacklist_characters="\0\ufeff", blacklist_categories=["Cs"])))
def test_utf_8_is_read_with_and_without_a_byte_order_mark(text: str) -> None:
    assert decode_text(text.encode("utf-8")) == decode_text(text.encode("utf-8-sig")) == text


@given(st.binary())
def test_any_bytes_are_text_or_an_error_with_a_reason(data: bytes) -> None:
    with suppress(ValueError):
        assert data.removeprefix(b"\xef\xbb\xbf").decode() == decode_text(data)


@pytest.mark.parametrize(
    ("encoding", "reason"),
    [
        ("utf-16", "UTF-16; save it as UTF-8"),
        ("utf-16-le", "not UTF-8"),
        ("utf-32", "UTF-16; save it as UTF-8"),
        ("latin-1", "not UTF-8"),
    ],
)
def test_each_kind_of_file_reports_a_wrong_encoding(
    encoding: str, reason: str, tmp_path: Path
) -> None:
    file = tmp_path / "file"
    file.write_bytes(TEXT.encode(encoding))
    with pytest.raises(BadPasswordFile, match=f"{reason}$"):
        read_password_file(file)
    with pytest.raises(InvalidSettings, match=f"{reason}$"):
        load_settings(file)
    with pytest.raises(InvalidBanFile):
        read_bans(file.read_bytes(), "bans")


def test_null_characters_are_not_text() -> None:
    with pytest.raises(ValueError, match=r"null characters; save it as UTF-8$"):
        decode_text("secret".encode("utf-16-le"))


@pytest.mark.parametrize("start", ["", "\ufeff"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_an_editor_may_leave_a_byte_order_mark_and_its_line_ends(
    start: str, end: str, tmp_path: Path
) -> None:
    file = tmp_path / "file"
    file.write_bytes(f"{start}pässwörd{end}".encode())
    assert read_password_file(file) == "pässwörd"
    file.write_bytes(f'{start}name = "al"{end}[servers.work]{end}unix = "chat"{end}'.encode())
    settings = load_settings(file)
    assert settings.preferences.name == "al"
    assert settings.servers["work"].unix == tmp_path / "chat"
    bans = f"{start}# Mine{end}203.0.113.0/24 because of spam{end}".replace("because of", "because")
    [ban] = read_bans(bans.encode(), "bans")
    assert ban.reason == "spam"


def test_a_file_is_replaced_with_its_mode_and_through_a_link(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    replace_file(target, b"one", mode=0o640)
    link.symlink_to(target)
    replace_file(link, b"two", mode=0o600)
    assert (target.read_bytes(), link.is_symlink()) == (b"two", True)
    assert target.stat().st_mode & 0o777 == 0o600
    with pytest.raises(FileNotFoundError):
        replace_file(tmp_path / "none" / "file", b"", mode=0o600)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["link", "target"]


@pytest.mark.parametrize(
    ("mode", "readable"),
    [(0o600, False), (0o640, True), (0o644, True), (0o604, True), (0o622, False)],
)
def test_whether_other_users_can_read_a_file(mode: int, readable: bool, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    file.chmod(mode)
    assert is_readable_by_others(file) is readable


def test_a_missing_file_is_not_readable_by_others(tmp_path: Path) -> None:
    assert not is_readable_by_others(tmp_path / "file")
    assert not is_readable_by_others(Path(os.devnull, "file"))


def make_special(kind: str, folder: Path) -> tuple[Path, str]:
    """Create a file that is not regular; return the error message for it."""
    path = folder / "special"
    match kind:
        case "a FIFO":
            os.mkfifo(path)
        case "a FIFO behind a link":
            os.mkfifo(folder / "fifo")
            path.symlink_to(folder / "fifo")
        case "a directory":
            path.mkdir()
            return path, "is a directory"
        case "a device":
            path = Path("/dev/zero")
    return path, "not a regular file"


@pytest.mark.parametrize("kind", ["a FIFO", "a FIFO behind a link", "a directory", "a device"])
def test_a_file_that_is_not_regular_is_refused_without_waiting(kind: str, tmp_path: Path) -> None:
    path, reason = make_special(kind, tmp_path)
    with pytest.raises(OSError, match=f"(?i){reason}"):
        check_regular(path)
    with pytest.raises(OSError, match=f"(?i){reason}"):
        load_bans(path)
    with pytest.raises(InvalidSettings, match=f": {reason}$"):
        load_settings(path)
    if "FIFO" not in kind:
        with pytest.raises(BadPasswordFile, match=f": {reason}$"):
            read_password_file(path)
    for use in (server_tls, client_tls):
        with pytest.raises(BadCertificate, match=f": {reason}$"):
            use(path)
    history = History(path)
    assert history.load() == []
    assert history.failure is not None
    assert history.failure.strerror is not None
    assert history.failure.strerror.lower() == reason
    history.failure = None
    history.append("hello")
    assert history.failure is not None


def test_a_fifo_that_is_being_read_gets_nothing_of_the_history(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    reader = os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    try:
        history = History(tmp_path / "fifo")
        history.append("secret")
        assert history.failure is not None
        assert os.read(reader, 100) == b""
    finally:
        os.close(reader)


def test_a_password_is_read_from_a_pipe(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)

    def write() -> None:
        with fifo.open("wb", buffering=0) as writer:
            writer.write(b"sword")
            writer.write(b"fish\n")

    with ThreadPoolExecutor() as executor:
        written = executor.submit(write)
        assert read_password_file(fifo) == "swordfish"
        written.result()


def test_a_password_that_does_not_come_from_its_pipe_is_not_waited_for_long(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    message = r"fifo: its writer did not finish within 0\.01 s$"
    with pytest.raises(BadPasswordFile, match=message):
        read_password_file(fifo, fifo_seconds=0.01)
    writer = os.open(fifo, os.O_RDWR)
    try:
        os.write(writer, b"swordfish\n")
        with pytest.raises(BadPasswordFile, match=message):
            read_password_file(fifo, fifo_seconds=0.01)
    finally:
        os.close(writer)


def test_the_null_device_is_an_empty_file(tmp_path: Path) -> None:
    assert read_file(Path(os.devnull), max_bytes=1) == b""
    link = tmp_path / "link"
    link.symlink_to(os.devnull)
    os.close(open_regular(link, os.O_WRONLY))


def test_a_file_is_read_up_to_its_limit(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"x" * 100)
    assert len(read_file(file, max_bytes=100)) == 100
    with pytest.raises(OSError, match="larger than 99 bytes"):
        read_file(file, max_bytes=99)
    os.truncate(file, 1 << 40)  # sparse
    with pytest.raises(OSError, match="larger than"):
        load_bans(file)
    with pytest.raises(InvalidSettings, match="larger than"):
        load_settings(file)
    with pytest.raises(BadPasswordFile, match="larger than"):
        read_password_file(file)


def test_a_ban_file_without_a_directory_is_refused(tmp_path: Path) -> None:
    assert load_bans(tmp_path / "none") == []
    with pytest.raises(FileNotFoundError):
        load_bans(tmp_path / "none" / "none")
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "none" / "none")
    with pytest.raises(FileNotFoundError):
        load_bans(link)


def test_only_the_end_of_a_huge_input_history_is_read(tmp_path: Path) -> None:
    file = tmp_path / "history"
    file.touch()
    os.truncate(file, 1 << 40)
    with file.open("ab") as end:
        end.write(b"\none\ntwo\n")
    assert History(file).load()[-2:] == ["one", "two"]
    assert file.stat().st_size < 1 << 24
