"""The files that options of `serve` name, and a reload reads again.

Reads them, at the start and at each reload in the same way, and adds them to `Server.reloading`.
Values of the command line and of variables stay as they were at the start.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import msgspec

from multichat.cli.process import read_secret_file
from multichat.errors import InvalidName
from multichat.files import decode_text, is_readable_by_others, read_file
from multichat.protocol.names import parse_person_name
from multichat.web.config import WebConfig

if TYPE_CHECKING:
    from multichat.log import LogWriter
    from multichat.server.server import Server

__all__ = ["ServerFiles", "split_names"]

T = TypeVar("T")

_MAX_LIST_BYTES = 1024 * 1024

# A reload waits for a program at the other end of a FIFO, which has nobody to ask for a passphrase.
_FIFO_SECONDS = 5.0


class ServerFiles(msgspec.Struct, frozen=True, kw_only=True):
    """The files of one server; None is one that the options do not name.

    *operators* are those that the command line names itself.
    """

    certificate: Path | None = None
    key: Path | None = None
    password: Path | None = None
    operators: tuple[str, ...] = ()
    operator_list: Path | None = None
    tokens: Path | None = None
    log: Path | None = None
    engine_password: Path | None = None

    def read_operators(self) -> tuple[str, ...]:
        """Return the names of all operators; raises `ValueError`, which names the line."""
        names = list(self.operators)
        for number, line in _read_lines(self.operator_list):
            if not (name := line.partition("#")[0].strip()):
                continue
            try:
                parse_person_name(name)
            except InvalidName as error:
                raise ValueError(f"{self.operator_list} line {number}: {error}") from None
            names.append(name)
        return tuple(names)

    def read_tokens(self) -> tuple[str, ...]:
        """Return the tokens of the webhook, which are valid.

        Raises `ValueError`, which names the line, and does not quote it.
        """
        if self.tokens is None:
            return ()
        lines = _read_lines(self.tokens)
        found = tuple((number, line) for number, line in lines if not line.startswith("#"))
        if not found:
            raise ValueError(f"{self.tokens}: it contains no token")
        for number, token in found:
            try:
                WebConfig(webhook_tokens=(token,))
            except ValueError as error:
                raise ValueError(f"{self.tokens} line {number}: {error}") from None
        return WebConfig(webhook_tokens=tuple(token for _, token in found)).webhook_tokens

    def exposed(self) -> list[str]:
        """Return a line of advice for each file of secrets that other users can read."""
        key = self.certificate and (self.key or self.certificate)
        secrets = (self.password, self.tokens, self.engine_password, key)
        return [advice for each in secrets if each is not None and (advice := _exposed(each))]

    def add_to(
        self,
        server: "Server",
        writer: "LogWriter",
        change_engine_password: Callable[[str], None] | None = None,
    ) -> None:
        """Let *server* reload them; *writer* is that of the log file.

        *change_engine_password* is called with the password of a cluster's engine.
        """
        settings = server.settings
        if self.log is not None and writer.file is not None:
            # It changes the log in the thread: one that a disk delays is as good, only later.
            reopen = partial(writer.file.reopen, self.log)
            server.reloading.add("log file", reopen, lambda _: None)
        if (certificate := self.certificate) is not None:
            from multichat.net.certificates import server_tls

            read_pair = partial(server_tls, certificate, self.key)
            part = _secret(self.key or certificate, read_pair, settings.change_certificate)
            server.reloading.add("certificate", *part)
        if self.password is not None:
            part = _secret(self.password, _password(self.password), settings.change_password)
            server.reloading.add("password", *part)
        if self.operator_list is not None:
            server.reloading.add("operators", self.read_operators, settings.change_operators)
        if self.tokens is not None:
            part = _secret(self.tokens, self.read_tokens, settings.change_webhook_tokens)
            server.reloading.add("webhook tokens", *part)
        if (file := self.engine_password) is not None and change_engine_password is not None:
            part = _secret(file, _password(file), change_engine_password)
            server.reloading.add("cluster password", *part)


def _password(file: Path) -> Callable[[], str]:
    return partial(read_secret_file, file, fifo_seconds=_FIFO_SECONDS)


def _secret(
    file: Path, read: Callable[[], T], change: Callable[[T], str | None]
) -> tuple[Callable[[], Callable[[], str]], Callable[[Callable[[], str]], str]]:
    """Return *read* and *change* for a *file* of secrets, with advice if others can read it."""

    def read_and_look() -> Callable[[], str]:
        value, advice = read(), _exposed(file)
        return lambda: "; ".join(filter(None, (change(value), advice)))

    return read_and_look, lambda change_and_advise: change_and_advise()


def _exposed(file: Path) -> str:
    if not is_readable_by_others(file):
        return ""
    return f"{file} can be read by other users: chmod 600 {file}"


def split_names(names: str | None) -> tuple[str, ...]:
    """Return the names in *names*, which has commas between them."""
    return () if names is None else tuple(filter(None, map(str.strip, names.split(","))))


def _read_lines(file: Path | None) -> tuple[tuple[int, str], ...]:
    """Return the lines in *file* that are not blank, each after its number, from 1 on.

    Raises `ValueError`, which names the file.
    """
    if file is None:
        return ()
    try:
        lines = decode_text(read_file(file, max_bytes=_MAX_LIST_BYTES)).splitlines()
    except OSError as error:
        raise ValueError(f"{file}: {(error.strerror or '').lower()}") from None
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
    return tuple((number, text) for number, line in enumerate(lines, 1) if (text := line.strip()))
