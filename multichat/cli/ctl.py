"""The command `ctl`: the operator's commands for a running server, over its admin socket.

Synchronous, without trio: it has one connection, and must answer quickly on a busy machine.
"""

import errno
import os
import shutil
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Self

import msgspec
import typer

from multichat.cli.account import ask_passphrase
from multichat.cli.config_file import load_settings, path_in, settings_path
from multichat.cli.notices import tell
from multichat.cli.option_rules import described
from multichat.cli.process import (
    UsageMistake,
    are_terminals,
    one_line_errors,
    read_input_secret,
    read_secret_file,
)
from multichat.cli.socket_owner import is_trusted, listening_user, user_name
from multichat.errors import (
    ConnectFailed,
    ConnectionLost,
    InvalidRequest,
    InvalidSettings,
    Refused,
)
from multichat.protocol.commands import ADMIN_COMMANDS, shortened
from multichat.protocol.control import (
    Code,
    ControlAnswer,
    ControlRequest,
    decode_answer,
    encode_request,
)
from multichat.protocol.framing import clean
from multichat.protocol.json_lines import clean_json

__all__ = ["ctl"]

# Longer than the time limit for reloading a file.
_SECONDS = 60.0

# 64 MiB: the list of 100,000 clients.
_MAX_ANSWER_BYTES = 64 * 1024 * 1024
_READ_BYTES = 64 * 1024

# The longest timeout that the system supports; a longer one means no timeout.
_MAX_SECONDS = 1e6

# The pause between attempts while the server's queue of connections is full.
_RETRY_SECONDS = 0.02

_WATCH_SECONDS = 1.0
_UP, _CLEAR_LINE, _CLEAR_BELOW = "\x1b[{}A", "\x1b[K", "\x1b[J"
_LEAST_COLUMNS = 40

_WATCH = "watch"

# The first word, and the number of words.
_ACCOUNT_FORMS = (["remove"], 2), (["list"], 1)

_ENDED = "the server has ended"


def _completions(incomplete: str) -> list[str]:
    names = [_WATCH, *(each.name.removeprefix("/") for each in ADMIN_COMMANDS)]
    return [name for name in names if name.startswith(incomplete)]


def ctl(
    context: typer.Context,
    command: Annotated[
        str,
        typer.Argument(
            help="What to do.",
            show_default=False,
            autocompletion=_completions,
        ),
    ],
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[ARGS]...",
            help="Its arguments; put -- before a text that begins with a dash.",
            show_default=False,
        ),
    ] = None,
    socket_: Annotated[
        Path | None,
        typer.Option(
            "--socket",
            envvar="MULTICHAT_ADMIN",
            help="The socket of the server, as given to serve --admin.",
            show_default="admin in [serve] of the configuration file",
        ),
    ] = None,
    json: Annotated[
        bool, typer.Option("--json", help="Print the answer as JSON, for programs.")
    ] = False,
    passphrase_file: Annotated[
        Path | None,
        typer.Option(
            help="Read the passphrase of a new account from this file; by default the command asks "
            "for it, or reads a line of standard input if that is no terminal.",
            show_envvar=False,
        ),
    ] = None,
    timeout: Annotated[float, typer.Option(help="Seconds to wait for the answer.")] = _SECONDS,
) -> None:
    """Run an operator's command on a running server.

    The server must run with `serve --admin SOCKET`, as the same user. Exits with 0 if the command
    was carried out, 1 if the server refused it or cannot be reached, 2 if the usage is wrong.

    {commands}

    `stats watch` shows the statistics every second until Ctrl+C. WHO is a client's number or name.
    WHAT is a client, whose address is then banned, or an address, a network such as
    203.0.113.0/24, or: name NAME. TIME is 90s, 10m, 2h, 1d, 3w or forever, which is the default; a
    plain number means minutes.
    """
    if not timeout > 0:
        raise UsageMistake(f"{described(context, 'timeout')} must be more than 0 seconds")
    name, words = command.lower().removeprefix("/"), arguments or []
    watches = name == _WATCH or (name == "stats" and words == [_WATCH])
    if name == _WATCH and words:
        raise UsageMistake(f"usage: {_WATCH}")
    if watches:
        name, words = "stats", []
    with one_line_errors():
        known = ADMIN_COMMANDS.find(f"/{name}")
        if known is None:
            raise UsageMistake(_unknown(name))
        if known.name == "/help":  # needs no server
            _print([msgspec.json.encode(_HELP).decode()] if json else _HELP)
            return
        is_new_account = known.name == "/account" and words[:1] == ["add"]
        if passphrase_file is not None and not is_new_account:
            raise UsageMistake("--passphrase-file is for account add")
        if is_new_account:
            words = _with_passphrase(words, passphrase_file)
        elif known.name == "/account" and (words[:1], len(words)) not in _ACCOUNT_FORMS:
            raise UsageMistake("usage: account add NAME, remove NAME, or list")
        request = ControlRequest(known.name.removeprefix("/"), " ".join(words))
        path = socket_ or _configured_socket()
        with _Connection(path, timeout).open() as connection:
            if watches:
                with suppress(KeyboardInterrupt):
                    _watch(connection, request, json=json)
            else:
                _print(_format(connection.ask(request), known.name, json=json))


# A passphrase must not be an argument.
_HELP = [line.replace(" PASSPHRASE", "") for line in ADMIN_COMMANDS.plain_help_lines()]
_LINES = "\n".join(f"      {line}" for line in _HELP)
# Typer shows the docstring as the help.
ctl.__doc__ = str(ctl.__doc__).replace("    {commands}", f"    \b\n    Commands:\n{_LINES}")


def _unknown(name: str) -> str:
    similar = ADMIN_COMMANDS.closest(f"/{name}")
    hint = f"did you mean {similar.removeprefix('/')}?" if similar else "ctl --help lists them"
    return f"unknown command {shortened(name)}; {hint}"


def _configured_socket() -> Path:
    """Return the socket that the configuration file names; raises `UsageMistake` without one."""
    settings = load_settings(settings_path())
    value = settings.serve.get("admin")
    if value is None:
        raise UsageMistake(
            f"give --socket, the path of serve --admin, or set admin in [serve] of {settings.path}"
        )
    if not isinstance(value, str):
        raise InvalidSettings(settings.path, "serve.admin", "expected a path")
    try:
        return path_in(settings.path, value)
    except (ValueError, RuntimeError) as error:
        raise InvalidSettings(settings.path, "serve.admin", str(error)) from None


def _with_passphrase(words: list[str], file: Path | None) -> list[str]:
    """Return *words*, `add NAME`, with the passphrase, which is never an argument."""
    if len(words) != 2:  # add, NAME
        raise UsageMistake(
            "usage: account add NAME; the passphrase is asked for, or read from --passphrase-file: "
            "other users could read it in an argument"
        )
    if file is not None:
        return [*words, read_secret_file(file, "passphrase")]
    if are_terminals(sys.stdin, sys.stderr):
        with one_line_errors("interrupted: nothing was changed"):
            return [*words, ask_passphrase(words[1])]
    return [*words, read_input_secret("passphrase")]


class _Connection:
    """A connection to the admin socket at *path*; each answer may take *seconds*."""

    def __init__(self, path: Path, seconds: float) -> None:
        self._path, self._seconds = path, min(seconds, _MAX_SECONDS)
        self._buffer = bytearray()

    @contextmanager
    def open(self) -> Iterator[Self]:
        """Connect, and close at the end of the block.

        Raises `ConnectFailed`, also if the user that listens there is not trusted.
        """
        family = getattr(socket, "AF_UNIX", None)
        if family is None:
            raise ConnectFailed(str(self._path), None, "this system has no Unix sockets")
        with socket.socket(family, socket.SOCK_STREAM) as self._socket:
            self._socket.settimeout(self._seconds)
            try:
                self._connect()
                user = listening_user(self._socket, self._path)
                trusted = is_trusted(user, self._path, us=os.geteuid())
            except OSError as error:
                raise ConnectFailed(str(self._path), None, _why_not(error)) from error
            if not trusted:
                reason = (
                    f"the user {clean(user_name(user))} listens there, and is neither you nor "
                    "root; put the socket of --admin into a folder where others cannot make files"
                )
                raise ConnectFailed(str(self._path), None, reason)
            yield self

    def _connect(self) -> None:
        deadline = time.monotonic() + self._seconds
        while True:
            try:
                return self._socket.connect(str(self._path))
            except BlockingIOError:  # connecting does not wait while the server's queue is full
                if time.monotonic() > deadline:
                    raise TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT)) from None
                time.sleep(_RETRY_SECONDS)

    def ask(self, request: ControlRequest) -> ControlAnswer:
        """Return the answer to *request*.

        Raises `Refused` if the server refused it, `typer.Exit` after printing what failed if it was
        carried out in part, `UsageMistake` if the request is invalid, and `ConnectionLost` if no
        answer came.
        """
        deadline = time.monotonic() + self._seconds
        self._socket.settimeout(self._seconds)
        try:
            self._socket.sendall(encode_request(request))
            answer = decode_answer(self._read_line(deadline))
        except TimeoutError:
            reason = f"the server did not answer in {self._seconds:g} s"
            raise ConnectionLost(reason) from None
        except (BrokenPipeError, ConnectionResetError):
            raise ConnectionLost(_ENDED) from None
        except OSError as error:
            raise ConnectionLost(_describe(error)) from None
        except InvalidRequest as error:
            raise ConnectFailed(str(self._path), None, str(error)) from None
        if answer.ok:
            return answer
        if answer.code is Code.USAGE:
            raise UsageMistake(answer.error)
        if answer.lines:  # the error is a summary of these
            for line in answer.lines:
                tell(clean(line))
            raise typer.Exit(1)
        raise Refused("refused" if answer.code is None else answer.code.value, answer.error)

    def _read_line(self, deadline: float) -> str:
        seen = 0
        while self._buffer.find(b"\n", seen) < 0:
            seen = len(self._buffer)
            left = deadline - time.monotonic()
            if left <= 0:  # even if data keeps arriving
                raise TimeoutError
            self._socket.settimeout(left)
            data = self._socket.recv(_READ_BYTES)
            if not data:
                raise ConnectionLost(_ENDED)
            self._buffer += data
            if len(self._buffer) > _MAX_ANSWER_BYTES:
                raise ConnectionLost(f"an answer of more than {_MAX_ANSWER_BYTES} bytes")
        line, _, rest = self._buffer.partition(b"\n")
        self._buffer = rest
        return line.decode("utf-8", "replace")


def _describe(error: OSError) -> str:
    from multichat.net.transport import describe_error  # imports trio, which is needed only here

    return describe_error(error)


def _why_not(error: OSError) -> str:
    reason = _describe(error)
    if isinstance(error, ConnectionRefusedError):
        return f"{reason}; no server uses it any more"
    if isinstance(error, FileNotFoundError):
        return f"{reason}; start the server with --admin"
    if isinstance(error, PermissionError):
        return f"{reason}; only the user of the server may"
    return reason


def _format(answer: ControlAnswer, command: str, *, json: bool) -> list[str]:
    """Return the lines to print, which are clean."""
    if json:
        shown = answer.lines if answer.result is None else answer.result
        return [clean(clean_json(msgspec.json.encode(shown).decode()))]
    from multichat.terminal.admin_answers import format_answer

    columns = None
    if sys.stdout is not None and sys.stdout.isatty():
        columns = max(_LEAST_COLUMNS, shutil.get_terminal_size().columns)
    try:
        lines = format_answer(command, answer.lines, answer.result, columns=columns)
    except msgspec.ValidationError:
        raise Refused("refused", "the server's answer cannot be shown; try --json") from None
    return list(map(clean, lines))


def _print(lines: list[str]) -> None:
    for line in lines:
        typer.echo(line)


def _watch(connection: _Connection, request: ControlRequest, *, json: bool) -> None:
    """Show the answer to *request* every second, in place on a terminal, until interrupted."""
    in_place = not json and sys.stdout is not None and sys.stdout.isatty()
    shown = 0  # lines above the cursor
    while True:
        lines = _format(connection.ask(request), "/stats", json=json)
        if in_place:
            columns, rows = shutil.get_terminal_size()
            lines = [f"{line[: columns - 1]}{_CLEAR_LINE}\n" for line in lines[: rows - 1]]
            up = _UP.format(shown) if shown else ""
            typer.echo(f"{up}{''.join(lines)}{_CLEAR_BELOW}", nl=False)
            shown = len(lines)
        else:
            _print(lines if json else [*lines, ""])
        sys.stdout.flush()
        time.sleep(_WATCH_SECONDS)
