"""The process around a command: standard streams, passwords, errors and exit statuses.

An expected error is one line on standard error and exit status 1; a usage error is status 2.
"""

import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from io import StringIO, TextIOWrapper
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NoReturn, TextIO, TypeVar

import typer

from multichat.cli.notices import tell, warn, write_notice
from multichat.errors import (
    BadPasswordFile,
    ConnectFailed,
    MultichatError,
    OutputLost,
    Refused,
    Remedy,
)
from multichat.files import decode_text, missing_folder, read_file
from multichat.protocol.address import is_loopback
from multichat.protocol.framing import clean, clean_lines
from multichat.signals import ending_signals

if TYPE_CHECKING:
    from multichat.client.connect import Endpoint
    from multichat.client.options import ChatOptions

__all__ = [
    "PASSPHRASE_VARIABLE",
    "PASSWORD_VARIABLE",
    "UsageMistake",
    "are_terminals",
    "ask_secret",
    "command_line",
    "fileno",
    "is_terminal",
    "one_line_errors",
    "read_input_secret",
    "read_password_file",
    "read_secret_file",
    "run_with_password",
    "utf8_text",
]

# There are no such options: other users can list the command lines of processes.
PASSWORD_VARIABLE = "MULTICHAT_PASSWORD"  # noqa: S105 - the variable's name
PASSPHRASE_VARIABLE = "MULTICHAT_PASSPHRASE"  # noqa: S105 - the variable's name

# A password has one line.
_MAX_PASSWORD_FILE_BYTES = 64 * 1024

# It may come from a program that asks for a passphrase first.
_PASSWORD_FIFO_SECONDS = 60.0

# A server accepts as many on one connection.
_MAX_TRIES = 3

_T = TypeVar("_T")

# What the options do about an error; the library does not know them.
_REMEDIES: dict[Remedy | None, str] = {
    Remedy.USE_TLS: ": use TLS (--tls)",
    Remedy.OMIT_TLS: ": omit --tls",
    Remedy.PERHAPS_OMIT_TLS: "; if the server does not use TLS, omit --tls",
    Remedy.TRUST_ISSUER: "; trust it with --tls-ca FILE",
    Remedy.NAME_CERTIFICATE: "; expect another name in it with --tls-name NAME",
    Remedy.PERHAPS_SPEAK_TEXT: "; use --plain for one that only speaks plain text",
    Remedy.SPEAK_TEXT: "; use --plain to speak plain text",
}

# Typer does not export it.
_UsageError: Any = typer.BadParameter.__base__


class UsageMistake(typer.BadParameter):
    """A command was used wrongly: one line, and exit status 2."""

    def show(self, file: IO[Any] | None = None) -> None:
        """Write the line to *file*, by default standard error."""
        typer.echo(f"multichat: {clean(self.message)}", file=file, err=True)


def utf8_text(value: str, name: str) -> str:
    """Return the text of *value*, an argument or a variable; raises `UsageMistake`.

    It is decoded as UTF-8 if that is possible, else with the encoding of the locale.
    """
    try:
        return os.fsencode(value).decode()
    except UnicodeError:
        # A surrogate is in neither encoding.
        if any("\ud800" <= character <= "\udfff" for character in value):
            raise UsageMistake(f"{name} is not UTF-8") from None
        return value


def read_password_file(
    file: Path | None, *, fifo_seconds: float = _PASSWORD_FIFO_SECONDS
) -> str | None:
    """Return the password in *file*, or in the environment.

    It is one line without its line break; spaces are part of it.  A FIFO or pipe is read for at
    most *fifo_seconds*.

    Raises `BadPasswordFile`, or `UsageMistake` if it is the variable that is invalid.
    """
    if file is not None:
        return read_secret_file(file, fifo_seconds=fifo_seconds)
    variable = utf8_text(os.environ.get(PASSWORD_VARIABLE, ""), PASSWORD_VARIABLE)
    try:
        return _secret(variable, "password") if variable else None
    except ValueError as error:
        raise UsageMistake(f"{PASSWORD_VARIABLE}: {error}") from None


def read_secret_file(
    file: Path, what: str = "password", *, fifo_seconds: float = _PASSWORD_FIFO_SECONDS
) -> str:
    """Return *what* is in *file*: one line without its line break; raises `BadPasswordFile`."""
    try:
        data = read_file(file, max_bytes=_MAX_PASSWORD_FILE_BYTES, fifo_seconds=fifo_seconds)
        return _secret(decode_text(data), what)
    except OSError as error:
        raise BadPasswordFile(file, (error.strerror or "").lower()) from None
    except ValueError as error:
        raise BadPasswordFile(file, str(error)) from None


def read_input_secret(what: str) -> str:
    """Return *what* is on standard input, which is no terminal: one line; raises `UsageMistake`."""
    data = b"" if sys.stdin is None else sys.stdin.buffer.read(_MAX_PASSWORD_FILE_BYTES + 1)
    if len(data) > _MAX_PASSWORD_FILE_BYTES:
        raise UsageMistake(f"standard input: more than {_MAX_PASSWORD_FILE_BYTES} bytes")
    try:
        return _secret(decode_text(data), what)
    except ValueError as error:
        raise UsageMistake(f"standard input: {error}") from None


def _secret(text: str, what: str) -> str:
    text = text.rstrip("\r\n")
    if not text.strip():
        raise ValueError(f"it contains no {what}")
    if "\n" in text or "\r" in text:
        raise ValueError(f"a {what} must be one line")
    return text


def run_with_password(
    run: "Callable[[ChatOptions], _T]", endpoint: "Endpoint", options: "ChatOptions"
) -> _T:
    """Call *run* with *options*; on a terminal, ask for a password if required, and run again.

    Warns before a password is sent in plain text.  The typed password is not shown; after a wrong
    one the user may try again.  Raises as *run* does.
    """
    in_plain_text = (
        endpoint.unix is None and endpoint.tls is None and not is_loopback(endpoint.host)
    )
    warning = (
        f"the password is sent to {endpoint} in plain text, where others can read it: add --tls"
    )
    if options.password is not None and in_plain_text:
        warn(warning)
    try:
        return run(options)
    except Refused as refused:
        if refused.code != "password-required":
            raise
        missing = Refused(refused.code, f"{refused} (--password-file, {PASSWORD_VARIABLE})")
        if not are_terminals(sys.stdin, sys.stderr):
            raise missing from None
    if in_plain_text:
        warn(warning)
    for left in reversed(range(_MAX_TRIES)):
        typed = ask_secret(f"Password for {clean(str(endpoint))}: ")
        if not typed:
            raise missing
        try:
            return run(replace(options, password=typed))
        except Refused as refused:
            if refused.code != "wrong-password" or not left:
                raise
            tell(str(refused))
    raise AssertionError  # the last try returns or raises


def are_terminals(*streams: TextIO | None) -> bool:
    """Return whether all *streams* are terminals; None where one was closed."""
    return all(stream is not None and stream.isatty() for stream in streams)


def ask_secret(prompt: str) -> str:
    """Return what is typed without showing it; empty at the end of input."""
    from getpass import getpass
    from locale import getpreferredencoding

    try:
        typed = getpass(prompt)  # decodes with the locale, not as UTF-8
        with suppress(UnicodeError):
            typed = typed.encode(getpreferredencoding(do_setlocale=False)).decode()
    except UnicodeError:
        raise UsageMistake("what you typed is not UTF-8") from None
    except BaseException as error:
        write_notice("\n")  # the cursor is still after the prompt
        if isinstance(error, EOFError):
            return ""
        raise
    return typed


class _Terminated(KeyboardInterrupt):
    """A signal other than that of Ctrl+C, which ends a command in the same way."""


def _terminate(*_: object) -> NoReturn:
    raise _Terminated


@contextmanager
def one_line_errors(interrupted: str | None = None, *, hang_up: bool = True) -> Iterator[None]:
    """Report an expected error as one line on standard error and exit with status 1.

    A signal that ends the command, SIGHUP only if *hang_up*, is reported in the same way if
    *interrupted* says what it means; otherwise Ctrl+C exits with a shell's status for it, and
    another signal with 0.  That is before and after trio's run, in which `receive_ending_signals`
    has the signals.
    """
    handlers: dict[signal.Signals, Callable[..., object]] = {}
    for number in ending_signals(hang_up=hang_up):
        if signal.getsignal(number) is not signal.SIG_IGN:
            is_ctrl_c = number == signal.SIGINT
            handlers[number] = signal.default_int_handler if is_ctrl_c else _terminate
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    except KeyboardInterrupt as error:
        if interrupted is None:
            is_quiet = isinstance(error, _Terminated)
            raise typer.Exit(0 if is_quiet else 128 + signal.SIGINT) from None
        reason = interrupted
    except MultichatError as error:
        reason = str(error) + _REMEDIES.get(error.remedy, "") + _about_servers(error)
    except OSError as error:
        reason = _reason_of(error)
    else:
        return
    finally:
        for number, handler in handlers.items():
            if signal.getsignal(number) is handler:
                signal.signal(number, before[number])
    tell(reason)
    raise typer.Exit(1)


def _about_servers(error: MultichatError) -> str:
    """Return what to add to *error* if HOST may have been meant as a server of the file."""
    is_unknown = isinstance(error.__cause__, socket.gaierror)
    if isinstance(error, ConnectFailed) and is_unknown and error.host.isidentifier():
        from multichat.cli.config_file import settings_path

        return f"; there is no server {error.host!r} in {settings_path()}"
    return ""


def _reason_of(error: OSError) -> str:
    reason = (error.strerror or str(error)).lower()
    if isinstance(error, FileNotFoundError) and isinstance(error.filename, str | Path):
        reason = missing_folder(Path(error.filename)) or reason
    return f"{error.filename}: {reason}" if error.filename else reason


class _Output(TextIOWrapper):
    """A standard output that raises `OutputLost` if it cannot be written to."""

    def write(self, text: str) -> int:
        """Write *text*, or the part of it that fits in the buffer."""
        with self._failures():
            return super().write(text)

    def flush(self) -> None:
        """Write the buffer."""
        with self._failures():
            super().flush()

    @contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            # Otherwise flushing the buffer would fail again when Python exits.
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())
            raise OutputLost(error) from error


@contextmanager
def command_line() -> Iterator[None]:
    """Prepare the standard streams, and report the errors of the command line itself.

    The streams are UTF-8 whatever the locale, as are the wire, the log and pipes.
    """
    for stream in (sys.stdin, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # not None, where it was closed
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    if isinstance(sys.stdout, TextIOWrapper):
        line_buffering = sys.stdout.line_buffering
        sys.stdout = _Output(
            sys.stdout.detach(),
            encoding="utf-8",
            errors="backslashreplace",
            line_buffering=line_buffering,
        )
    try:
        yield
    except _UsageError as error:  # may quote an argument, or a variable
        error.message = clean_lines(error.message)
        shown = StringIO()
        error.show(shown)
        write_notice(shown.getvalue())
        sys.exit(error.exit_code)
    except MultichatError as error:
        tell(str(error))
        sys.exit(1)
    except OSError as error:
        tell(_reason_of(error))
        sys.exit(1)


def fileno(stream: TextIO | None) -> int:
    """Return the descriptor of a standard stream, or of the null device if it was closed."""
    return os.open(os.devnull, os.O_RDWR) if stream is None else stream.fileno()


def is_terminal() -> bool:
    """Return whether standard input and output are a terminal whose cursor can be moved."""
    moves = sys.platform == "win32" or os.environ.get("TERM", "dumb") not in ("dumb", "")
    return moves and are_terminals(sys.stdin, sys.stdout)
