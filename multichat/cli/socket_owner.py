"""Checks which user listens on a Unix socket, so that no other user's program gets a secret.

Anybody can create a socket in a folder such as /tmp, under the name that an operator expects there.
"""

import socket
import struct
from pathlib import Path

__all__ = ["is_trusted", "listening_user", "user_name"]

_ROOT = 0

# `struct ucred`: the process, the user and the group.
_CREDENTIALS = struct.Struct("3i")


def listening_user(connection: socket.socket, path: Path) -> int:
    """Return the id of the user that listens at the other end of *connection*, made to *path*.

    Where the system does not report it, return the owner of the file.  Raises `OSError`.
    """
    if (option := getattr(socket, "SO_PEERCRED", None)) is None:
        return path.stat().st_uid
    data = connection.getsockopt(socket.SOL_SOCKET, option, _CREDENTIALS.size)
    _, user, _ = _CREDENTIALS.unpack(data)
    return int(user)


def is_trusted(user: int, path: Path, *, us: int, top: Path = Path("/")) -> bool:
    """Return whether a process of the user *us* may trust *user*, who listens at *path*.

    Root and *us* are trusted.  So is any other user if no folder down to *path* is writable by
    everybody: then the owner of the folder has allowed it.  Folders above *top* do not count.
    Raises `OSError`.
    """
    if user in (_ROOT, us):
        return True
    path = path.absolute()
    folders = {*path.parents, *path.resolve().parents}
    return not any(
        folder.stat().st_mode & 0o002 for folder in folders if folder.is_relative_to(top)
    )


def user_name(user: int) -> str:
    """Return the name of *user*, or the number without one."""
    import pwd  # not on Windows, which has no such sockets either

    try:
        return pwd.getpwuid(user).pw_name
    except KeyError:
        return str(user)
