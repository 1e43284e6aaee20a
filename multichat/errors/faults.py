"""Faults that are no misuse: at the other end of a connection, or on this machine.  Pure."""

from collections.abc import Sequence

from multichat.errors.base import MultichatError, Remedy

__all__ = [
    "BadCertificate",
    "BadPasswordFile",
    "ConnectFailed",
    "ConnectionLost",
    "InputNotText",
    "InvalidBanFile",
    "InvalidSettings",
    "JournalFailed",
    "ListenFailed",
    "NoJson",
    "OutputLost",
    "Refused",
    "ReloadFailed",
]


class Refused(MultichatError):
    """The server refused a request, or did not admit us.

    *code* is for programs, the message for people.  It is the code of the error, or of the goodbye
    that came instead of a welcome; for a goodbye without a known code it is `refused`.
    """

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code


class ConnectFailed(MultichatError):
    """No connection could be made: refused, unreachable, unresolvable or timed out.

    *lasting* means that a retry cannot succeed until the cause is repaired: the name is invalid,
    or the certificate untrusted.
    """

    def __init__(
        self,
        host: str,
        port: int | None,
        reason: str,
        *,
        lasting: bool = False,
        remedy: Remedy | None = None,
    ) -> None:
        self.remedy = remedy
        where = host if port is None else f"{host} port {port}"
        super().__init__(f"cannot connect to {where}: {reason}")
        self.host, self.port, self.reason, self.lasting = host, port, reason, lasting


class ListenFailed(MultichatError):
    """The address cannot be listened on: in use, not local, or not an address."""

    def __init__(self, host: str | None, port: int | None, reason: str) -> None:
        where = " ".join(filter(None, (host, None if port is None else f"port {port}")))
        super().__init__(f"cannot listen on {where}: {reason}")
        self.host, self.port, self.reason = host, port, reason


class InvalidSettings(MultichatError):
    """The configuration file is invalid or cannot be read."""

    def __init__(self, path: object, key: str, reason: str) -> None:
        super().__init__(": ".join(filter(None, (str(path), key, reason))))
        self.path, self.key, self.reason = path, key, reason


class InvalidBanFile(MultichatError):
    """A line of a ban file is invalid."""

    def __init__(self, file: str, line: int, reason: str) -> None:
        super().__init__(f"{file} line {line}: {reason}")
        self.file, self.line, self.reason = file, line, reason


class ReloadFailed(MultichatError):
    """Files were not reloaded, each with its reason in one of *lines*; all others were."""

    def __init__(self, lines: Sequence[str]) -> None:
        super().__init__("; ".join(lines))
        self.lines = tuple(lines)


class _FileFault(MultichatError):
    """The file at *path* cannot be used, for a *reason*."""

    def __init__(self, path: object, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path, self.reason = path, reason


class JournalFailed(_FileFault):
    """The journal file cannot be used: locked, corrupt, not a journal, or the disk is full."""


class BadCertificate(_FileFault):
    """A certificate or key cannot be used."""


class BadPasswordFile(_FileFault):
    """A password file cannot be read, or does not contain a password."""


class ConnectionLost(MultichatError):
    """The connection ended before a call was done: it broke, or the server said goodbye.

    *reason* is then that of the goodbye.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(f"connection lost: {reason}")
        self.reason = reason


class NoJson(MultichatError):
    """JSON is required, but the server does not speak it or does not answer."""

    def __init__(self, silent_seconds: float | None = None) -> None:
        if silent_seconds is None:
            super().__init__("the server does not answer in JSON")
        else:
            super().__init__(f"the server did not answer in {silent_seconds:g} s")
            self.remedy = Remedy.PERHAPS_SPEAK_TEXT


class InputNotText(MultichatError):
    """Standard input is in an unsupported encoding."""

    def __init__(self) -> None:
        super().__init__("standard input is UTF-16; convert it to UTF-8")


class OutputLost(MultichatError):
    """Standard output can no longer be written to."""

    def __init__(self, error: OSError) -> None:
        reason = (error.strerror or str(error)).lower()
        super().__init__(f"cannot write to standard output: {reason}")
