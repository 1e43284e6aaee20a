"""Reads text files that people edit, and replaces files atomically.

Owns the decoding of such files, and the guarantee that readers see either the old contents or the
new, never a mixture.  Does not interpret the contents.

A path may name anything, so opening never blocks and reading is bounded.  FIFOs and pipes, such as
a shell's `<(command)`, are read only if the caller allows it.
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
    "missing_folder",
    "open_regular",
    "read_file",
    "replace_file",
]

_UTF_16 = (b"\xff\xfe", b"\xfe\xff")


# O_NONBLOCK: do not wait for the other end of a FIFO.  O_BINARY: no translation of line ends.
_FLAGS = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)


def open_regular(
    path: Path, flags: int = os.O_RDONLY, mode: int = 0o600, *, or_fifo: bool = False
) -> int:
    """Return a descriptor of the regular file at *path*; also accept the null device.

    With *or_fifo*, also accept a FIFO.  Never blocks.  Raises `OSError`, also for any other kind of
    file, such as a device or a directory.
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
    """Raise the errors of `open_regular`, for libraries that open *path* themselves."""
    os.close(open_regular(path))


def read_file(path: Path, *, max_bytes: int, fifo_seconds: float = 0) -> bytes:
    """Return the contents of the regular file at *path*.

    With *fifo_seconds* it may also be a FIFO or pipe, which is read for at most that long.  Raises
    the errors of `open_regular`, and `OSError` if there are more than *max_bytes*.
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
            raise TimeoutError(errno.ETIMEDOUT, f"its writer did not finish within {seconds:g} s")
        piece = os.read(fd, size - len(data))
        if not piece:
            break
        data += piece
    return data


def decode_text(data: bytes) -> str:
    """Decode a UTF-8 file, and remove the byte order mark that some editors add.

    Raises `ValueError`, whose message describes *data*.
    """
    if data.startswith(_UTF_16):
        raise ValueError("UTF-16; save it as UTF-8")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError("not UTF-8") from None
    if "\0" in text:
        raise ValueError("not text: it contains null characters; save it as UTF-8")
    return text


def replace_file(path: Path, data: bytes, *, mode: int) -> None:
    """Atomically replace the file at *path* by one with the contents *data* and the mode *mode*.

    For a symbolic link, replaces the target.  Returns when *data* is on the disk.  Raises
    `OSError`; the file is unchanged then.
    """
    import tempfile  # imports a dozen modules, which most commands do not need

    path = path.resolve()
    # A random name, opened with O_EXCL: never an existing file or link.
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
    with suppress(OSError):  # some systems cannot open directories
        fd = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def missing_folder(path: Path) -> str:
    """Return a few words if the folder that *path* is in does not exist; otherwise nothing.

    For an error of the system, which does not say whether the file or its folder is missing.
    """
    folder = path.absolute().parent
    return "" if folder.is_dir() else f"there is no directory {folder}"


def is_readable_by_others(path: Path) -> bool:
    """Return whether users other than the owner may read the file at *path*.

    Group permissions count only if we own the file: a service may read another user's file through
    its group.
    """
    if sys.platform == "win32":  # where the mode does not contain the permissions
        return False
    try:
        status = path.stat()
    except OSError:
        return False
    return bool(status.st_mode & (0o044 if status.st_uid == os.geteuid() else 0o004))
