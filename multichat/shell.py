"""What the commands share with whoever calls them: descriptors, secrets, and how they fail.

An expected failure is one line on standard error and exit status 1; a usage error is status 2.
"""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, TextIO

import typer

from multichat.errors import MultichatError
from multichat.files import decode_text

__all__ = ["PasswordFile", "checked_password", "fileno", "one_line_errors", "read_password_file"]

PasswordFile = Annotated[
    Path | None,
    typer.Option(
        help="The password is in this file; or in the variable MULTICHAT_PASSWORD.",
        envvar="MULTICHAT_PASSWORD_FILE",
    ),
]


def read_password_file(file: Path | None) -> str | None:
    """Return the password that *file*, or the environment, holds; raises `ValueError`."""
    if file is None:
        return os.environ.get("MULTICHAT_PASSWORD") or None
    try:
        password = decode_text(file.read_bytes()).rstrip("\r\n")
    except OSError as error:
        raise ValueError(f"{file}: {(error.strerror or '').lower()}") from None
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
    if "\n" in password or "\r" in password:
        raise ValueError(f"{file}: a password has one line")
    return password


def checked_password(file: Path | None) -> str | None:
    """Return the password, or end with a usage error that says why it cannot be read."""
    try:
        return read_password_file(file)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn what can be expected to go wrong into one line on standard error and status 1."""
    # Where trio does not listen for them, before and after its run, these are a quiet end too.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if sys.platform != "win32" and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:  # before trio took over, or after it let go
        raise typer.Exit from None
    except MultichatError as error:
        reason = str(error)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        if error.filename:
            reason = f"{error.filename}: {reason}"
    else:
        return
    typer.echo(f"multichat: {reason}", err=True)
    raise typer.Exit(1)


def fileno(stream: TextIO | None) -> int:
    """Return the descriptor of a standard stream, or of nothing if it was closed before us."""
    return os.open(os.devnull, os.O_RDWR) if stream is None else stream.fileno()
