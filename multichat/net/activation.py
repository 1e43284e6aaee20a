"""Socket activation: listeners that the service manager opened and passes to this process.

In systemd's protocol they are the descriptors from 3 on.  LISTEN_FDS is their number, if
LISTEN_PID is this process, and LISTEN_FDNAMES are their names, which give the purpose of each.  Our
copies are closed like other listeners, but the service manager keeps its own, so that connections
wait until the next start.  This module never removes the file of such a Unix socket.
"""

import os
import re
import socket
import stat
from collections.abc import MutableMapping
from dataclasses import dataclass, fields
from pathlib import Path

import trio

from multichat.errors import ListenFailed
from multichat.net.transport import format_address
from multichat.protocol.commands import shortened
from multichat.protocol.framing import clean

__all__ = ["PassedSockets", "describe", "is_unix", "take_passed_sockets"]

_FDS = "LISTEN_FDS"
_PID = "LISTEN_PID"
_NAMES = "LISTEN_FDNAMES"

_FIRST = 3

# No process has more open files, and a list of this length fits into memory.
_COUNT = re.compile(r"[0-9]{1,6}")

# The name that systemd gives a descriptor without FileDescriptorName=, or without a unit.
_UNNAMED = "unknown"
_UNIT = ".socket"

_PASSED = "what systemd passes"


@dataclass(frozen=True, kw_only=True, slots=True)
class PassedSockets:
    """Listening sockets by purpose; the owner closes them, at the latest with `close`."""

    chat: tuple[socket.socket, ...] = ()
    web: tuple[socket.socket, ...] = ()
    admin: tuple[socket.socket, ...] = ()
    metrics: tuple[socket.socket, ...] = ()

    def close(self) -> None:
        """Close all; idempotent."""
        for purpose in fields(self):
            for each in getattr(self, purpose.name):
                each.close()

    @property
    def chat_tcp(self) -> tuple[socket.socket, ...]:
        """The TCP sockets of the chat."""
        return tuple(each for each in self.chat if not is_unix(each))

    @property
    def chat_unix(self) -> tuple[socket.socket, ...]:
        """The Unix sockets of the chat."""
        return tuple(filter(is_unix, self.chat))


_PURPOSES = tuple(each.name for each in fields(PassedSockets))


def is_unix(listener: socket.socket | trio.socket.SocketType) -> bool:
    """Return whether *listener* is a Unix socket."""
    return not isinstance(listener.getsockname(), tuple)


def take_passed_sockets(
    environ: MutableMapping[str, str] = os.environ, pid: int | None = None
) -> PassedSockets:
    """Return the sockets that were passed to this process, *pid*, according to *environ*.

    Removes the variables from *environ*, and makes the sockets non-inheritable.  Sockets that were
    passed to another process are left alone.  Raises `ListenFailed` if a descriptor or a name is
    invalid; all descriptors then stay open.
    """
    count, owner = environ.pop(_FDS, ""), environ.pop(_PID, "")
    names = environ.pop(_NAMES, None)
    if not count or owner != str(os.getpid() if pid is None else pid):
        return PassedSockets()
    if _COUNT.fullmatch(count) is None:
        raise ListenFailed(_PASSED, None, f"{_FDS} is not a number of sockets")
    fds = range(_FIRST, _FIRST + int(count))
    words = [_UNNAMED] * len(fds) if names is None else names.split(":")
    if len(words) != len(fds):
        reason = f"{_NAMES} has {len(words)} names, but {_FDS} is {len(fds)}"
        raise ListenFailed(_PASSED, None, reason)
    found: dict[str, list[socket.socket]] = {name: [] for name in _PURPOSES}
    for fd, name in zip(fds, words, strict=True):
        is_default = name == _UNNAMED or name.endswith(_UNIT)
        purpose = _PURPOSES[0] if is_default else name
        if purpose not in found:
            known = ", ".join(_PURPOSES)
            reason = f"FileDescriptorName={shortened(clean(name))} is none of {known}"
            raise ListenFailed(f"descriptor {fd}", None, reason)
        found[purpose].append(_listener(fd, purpose))
    return PassedSockets(**{name: tuple(sockets) for name, sockets in found.items()})


def _listener(fd: int, purpose: str) -> socket.socket:
    """Return the descriptor as a socket that listens for *purpose*; raises `ListenFailed`."""
    what = f"descriptor {fd} ({purpose})"
    try:
        os.set_inheritable(fd, False)
        passed = socket.socket(fileno=fd)
    except OSError:
        raise ListenFailed(what, None, "it is no socket") from None
    reason = _mistake(passed, purpose)
    if reason:
        passed.detach()  # it is not ours
        raise ListenFailed(what, None, reason)
    if not is_unix(passed):  # accepted connections inherit this option
        passed.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
    return passed


def _mistake(passed: socket.socket, purpose: str) -> str:
    families = (socket.AF_INET, socket.AF_INET6, getattr(socket, "AF_UNIX", None))
    if passed.family not in families:
        return "it is neither a TCP nor a Unix socket"
    if passed.type != socket.SOCK_STREAM:
        return "it is a socket for datagrams: use ListenStream="
    if not passed.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        return "it is a connection, and does not listen: set Accept=no"
    if purpose == "admin":
        if not is_unix(passed):
            return "it is no Unix socket: anybody on the network could be the operator"
        name = passed.getsockname()
        if not name or isinstance(name, bytes):
            return (
                "it is an abstract socket, which everybody on the machine can use: give it a path"
            )
        if _is_open_to_others(Path(name)):
            return f"it can be used by others, at {name}: set SocketMode=0600"
    return ""


def _is_open_to_others(path: Path) -> bool:
    try:
        return bool(path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO))
    except OSError:  # no client can connect to it
        return False


def describe(listener: socket.socket | trio.socket.SocketType) -> str:
    """Return the address of *listener*: `0.0.0.0:9000`, a path, or `@` and an abstract name."""
    name = listener.getsockname()
    if isinstance(name, bytes):
        return "@" + name[1:].decode("utf-8", "backslashreplace")
    return format_address(name)
