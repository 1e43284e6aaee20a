"""Files of text that people edit, and files of ours that are replaced as a whole.

Owns how the bytes of such a file become text, and that whoever opens one of ours finds either all
of the old contents or all of the new.  Knows nothing of what stands in them.

A name may be that of anything: opening a file here never waits, and reading one ends.  Only where
the caller allows it a FIFO or pipe is read, such as a shell's `<(command)`.
"""

import errno
import os
import select
import stat
import sys
import time
from contextlib import suppress
from pathlib import Path

__all__ = [
    "check_regular",
    "decode_text",
    "is_readable_by_others",
    "open_regular",
    "read_file",
    "replace_file",
]

_UTF_16 = (b"\xff\xfe", b"\xfe\xff")


# A FIFO is opened without waiting for its other end.  Windows has no FIFOs, but line ends.
_FLAGS = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)


def open_regular(
    path: Path, flags: int = os.O_RDONLY, mode: int = 0o600, *, or_fifo: bool = False
) -> int:
    """Return a descriptor of the regular file at *path*, or of the null device, *or_fifo*.

    Never waits.  Raises `OSError`, also for anything else: a device, a directory.
    """
    fd = os.open(path, flags | _FLAGS, mode)
    kind = os.fstat(fd).st_mode
    is_allowed = stat.S_ISREG(kind) or (or_fifo and stat.S_ISFIFO(kind))
    if is_allowed or path.resolve() == Path(os.devnull):
        return fd
    os.close(fd)
    if stat.S_ISDIR(kind):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    raise OSError(errno.EINVAL, "not a regular file", str(path))


def check_regular(path: Path) -> None:
    """Raise `OSError` as `open_regular` does: for libraries that open *path* themselves."""
    os.close(open_regular(path))


def read_file(path: Path, *, max_bytes: int, fifo_seconds: float = 0) -> bytes:
    """Return the contents of the regular file at *path*.

    With *fifo_seconds* it may also be a FIFO or pipe, which is read for at most that long.  Raises
    `OSError` as `open_regular` does, and for more than *max_bytes*.
    """
    with os.fdopen(open_regular(path, or_fifo=fifo_seconds > 0), "rb") as file:
        if stat.S_ISFIFO(os.fstat(file.fileno()).st_mode):
            data = _read_fifo(file.fileno(), max_bytes + 1, fifo_seconds)
        else:
            data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise OSError(errno.EFBIG, f"larger than {max_bytes} bytes", str(path))
    return data


def _read_fifo(fd: int, size: int, seconds: float) -> bytes:
    deadline = time.monotonic() + seconds
    data = b""
    while len(data) < size:
        if not select.select([fd], [], [], max(0.0, deadline - time.monotonic()))[0]:
            raise TimeoutError(errno.ETIMEDOUT, f"its writer did not finish in {seconds:g} s")
        piece = os.read(fd, size - len(data))
        if not piece:
            break
        data += piece
    return data


def decode_text(data: bytes) -> str:
    """Decode the UTF-8 of a file, without the byte order mark that some editors put first.

    Raises `ValueError`, whose message says what *data* is instead.
    """
    if data.startswith(_UTF_16):
        raise ValueError("UTF-16; save it as UTF-8")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError("not UTF-8") from None
    if "\0" in text:
        raise ValueError("not text: it holds null characters; save it as UTF-8")
    return text


def replace_file(path: Path, data: bytes, *, mode: int) -> None:
    """Give the file at *path* the contents *data* and the permissions *mode*, in one step.

    The target of a symbolic link is replaced, not the link.  Returns when *data* is on the disk.
    Raises `OSError`, and then has changed nothing.
    """
    import tempfile  # with a dozen modules behind it, which most commands never need

    path = path.resolve()
    # A new name that nobody can guess, opened with O_EXCL: never a file or link that is there.
    fd, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(fd)
        Path(name).chmod(mode)
        Path(name).replace(path)
        _sync_folder(path.parent)
    except BaseException:
        with suppress(OSError):
            Path(name).unlink()
        raise


def _sync_folder(folder: Path) -> None:
    with suppress(OSError):  # not every system has folders that can be opened
        fd = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def is_readable_by_others(path: Path) -> bool:
    """Return whether users who do not own the file at *path* may read it.

    A group counts only where the file is ours: a service reads another user's file by its group.
    """
    if sys.platform == "win32":  # whose permissions are not in the mode
        return False
    try:
        status = path.stat()
    except OSError:
        return False
    return bool(status.st_mode & (0o044 if status.st_uid == os.geteuid() else 0o004))
