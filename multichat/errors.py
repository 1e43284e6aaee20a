"""Every exception that multichat raises on purpose.

The tree::

    MultichatError
    ├── LocalProtocolError      our caller asked for what the protocol cannot say
    │   ├── UnknownClient       … of a client that is not there
    │   ├── InvalidBan          … a ban of what cannot be banned
    │   └── TooManyBans         … one ban more than there may be
    ├── RemoteProtocolError     the peer asked for what it cannot have; it is told, and stays
    │   ├── LineTooLong         … with a line above our limit
    │   ├── InvalidRequest      … with something that is no request
    │   ├── UnknownRequest      … with a request of a kind that we don't know
    │   ├── EmptyText           … to say nothing
    │   ├── InvalidName         … a name that nobody can have
    │   ├── NameTaken           … a name that somebody has
    │   ├── TooManyRooms        … one room more than there may be
    │   ├── NobodyThere         … to reach who is not there
    │   ├── NotDelivered        … to reach who is there and takes nothing
    │   ├── NotLetThrough       … to say what the server's own filter does not let through
    │   ├── Banned              … a name that the operator does not allow
    │   ├── UnknownId           … what was said after something that nobody said there
    │   ├── NotInRoom           … to say something in a room that it is not in
    │   ├── NonceReused         … to say something with the nonce of another message
    │   ├── NotKept             … to say something when the journal cannot keep it
    │   └── NotRead             … for messages when the journal cannot be read
    ├── Refused                 the server refused what we asked for, and said why
    ├── ConnectFailed           nobody could be reached at that address
    ├── ListenFailed            the system does not let us listen there
    ├── InvalidSettings         our own configuration file has something that it cannot have
    ├── InvalidBanFile          a file of bans has a line that cannot be understood
    ├── JournalFailed           a file that is to be a journal cannot be used
    ├── BadCertificate          … or not with that certificate, or trust that one
    ├── ConnectionLost          the conversation ended without a goodbye
    ├── NoJson                  the other side speaks text only, or does not answer
    ├── InputNotText            our own standard input cannot be decoded
    └── OutputLost              our own standard output is gone

Any other exception out of a decoder or a session is our own bug.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = [
    "BadCertificate",
    "Banned",
    "ConnectFailed",
    "ConnectionLost",
    "EmptyText",
    "InputNotText",
    "InvalidBan",
    "InvalidBanFile",
    "InvalidName",
    "InvalidRequest",
    "InvalidSettings",
    "JournalFailed",
    "LineTooLong",
    "ListenFailed",
    "LocalProtocolError",
    "MultichatError",
    "NameAssigned",
    "NameTaken",
    "NoJson",
    "NobodyThere",
    "NonceReused",
    "NotDelivered",
    "NotInRoom",
    "NotRead",
    "OutputLost",
    "Refused",
    "Rejected",
    "RemoteProtocolError",
    "StorageFailed",
    "TooManyBans",
    "TooManyRooms",
    "UnknownClient",
    "UnknownId",
    "UnknownRequest",
    "lone_exception",
]


class MultichatError(Exception):
    """The root of multichat's own exceptions."""


class LocalProtocolError(MultichatError):
    """Our caller asked for something that the protocol has no way to say."""


class UnknownClient(LocalProtocolError):
    """Our caller named a client that is not connected (any more)."""

    def __init__(self, client: int) -> None:
        super().__init__(f"no client {client} is connected")
        self.client = client


class InvalidBan(LocalProtocolError):
    """Our caller, or an operator, wanted to ban what cannot be banned, or for no possible time."""


class TooManyBans(LocalProtocolError):
    """Our caller wanted one ban more than there may be."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"there are as many bans as there may be: {limit}")
        self.limit = limit


class RemoteProtocolError(MultichatError):
    """The peer broke the protocol, or asked for what it cannot have; the connection goes on.

    *code* is what programs are told, the message what people are.
    """

    code = "invalid-request"


class LineTooLong(RemoteProtocolError):
    """The peer sent a line above our limit; the decoder dropped it up to its end."""

    code = "line-too-long"

    def __init__(self, limit_bytes: int) -> None:
        super().__init__(f"the line was longer than {limit_bytes} bytes and was dropped")
        self.limit_bytes = limit_bytes


class InvalidRequest(RemoteProtocolError):
    """The peer sent something that is no request."""


class UnknownRequest(RemoteProtocolError):
    """The peer sent a request of a kind that we don't know."""

    code = "unknown-request"


class EmptyText(RemoteProtocolError):
    """The peer wanted to say nothing."""

    code = "empty-text"

    def __init__(self) -> None:
        super().__init__("an empty message cannot be said")


class InvalidName(RemoteProtocolError):
    """The peer wanted a name, for itself or a room, that `multichat.protocol.names` refuses."""

    code = "invalid-name"


class NameTaken(RemoteProtocolError):
    """The peer wanted a name that somebody else has, or that looks like *holder*'s."""

    code = "name-taken"

    def __init__(self, name: str, holder: str = "") -> None:
        looks = f" looks like {holder}, which" if holder else ""
        super().__init__(f"the name {name}{looks} is taken")
        self.name, self.holder = name, holder


class NameAssigned(RemoteProtocolError):
    """The peer wanted another name than the one that the server's `authenticate` gave it."""

    code = "name-assigned"

    def __init__(self, name: str) -> None:
        super().__init__(f"your name on this server is {name}")
        self.name = name


class TooManyRooms(RemoteProtocolError):
    """The peer wanted a new room when there, or it, may have no more of them."""

    code = "too-many-rooms"

    def __init__(self, limit: int, seconds: float = 0) -> None:
        super().__init__(
            f"there are as many rooms as there may be: {limit}"
            if not seconds
            else f"you may open {limit} new rooms an hour; the next one in {math.ceil(seconds)} s"
        )
        self.limit = limit


class NobodyThere(RemoteProtocolError):
    """The peer wanted to reach somebody who is not connected."""

    code = "nobody-there"

    def __init__(self, to: str | int) -> None:
        if isinstance(to, str):
            room = to[:40].lstrip("#")
            hint = f"; a room is talked in after /join {room}" if to.startswith("#") else ""
            super().__init__(f"nobody here is called {to[:40]}{hint}")
        else:
            super().__init__(f"there is no client {to}")
        self.to = to


class NotDelivered(RemoteProtocolError):
    """The peer wanted to reach somebody who is connected and takes nothing."""

    code = "not-delivered"

    def __init__(self, name: str) -> None:
        super().__init__(f"{name} is too slow: the message was not delivered")
        self.name = name


class Rejected(RemoteProtocolError):
    """A filter of the server rejected a message, a room or a name of the peer's."""

    code = "rejected"

    def __init__(self, messages: int = 1) -> None:
        what = "that was" if messages == 1 else f"{messages} messages were"
        super().__init__(f"{what} not let through")
        self.messages = messages


class Banned(RemoteProtocolError):
    """The peer wanted a name that the operator has banned."""

    code = "banned"

    def __init__(self, name: str) -> None:
        super().__init__(f"the name {name} is banned")
        self.name = name


class UnknownId(RemoteProtocolError):
    """The peer named a message that its room has not, or not any more, any idea of."""

    code = "unknown-id"

    def __init__(self) -> None:
        super().__init__("no message of this room has that id")


class NotInRoom(RemoteProtocolError):
    """The peer wanted to say or read something in a room that it is not in."""

    code = "not-in-room"

    def __init__(self, room: str) -> None:
        where = f"the room {room[:40]}" if room else "the room that you asked for"
        super().__init__(f"not done: you are not in {where}")
        self.room = room


class NonceReused(RemoteProtocolError):
    """The peer said something with a nonce with which it had said something else."""

    code = "nonce-reused"

    def __init__(self, nonce: str | int) -> None:
        super().__init__(f"not said: the nonce {nonce} was used for another message; use a new one")
        self.nonce = nonce


class StorageFailed(RemoteProtocolError):
    """The peer said something that the journal cannot keep, so that it was not said."""

    code = "storage-failed"

    def __init__(self, reason: str) -> None:
        super().__init__(f"nothing can be said now: {reason}")
        self.reason = reason


class NotRead(RemoteProtocolError):
    """The peer asked for what the journal has, and the journal cannot be read."""

    code = "storage-failed"

    def __init__(self, reason: str) -> None:
        super().__init__(f"the history cannot be read: {reason}")
        self.reason = reason


class Refused(MultichatError):
    """The server refused a request of ours; *code* is why for programs, the message for people."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code


class ConnectFailed(MultichatError):
    """Nobody could be reached: refused, unreachable, unresolvable or silent.

    *lasting* says that it would be no use to try again: nobody can be called that, or whoever is
    there cannot be trusted.
    """

    def __init__(self, host: str, port: int | None, reason: str, *, lasting: bool = False) -> None:
        where = host if port is None else f"{host} port {port}"
        super().__init__(f"cannot connect to {where}: {reason}")
        self.host, self.port, self.reason, self.lasting = host, port, reason, lasting


class ListenFailed(MultichatError):
    """The system does not let us listen: the address is in use, not ours, or no address at all."""

    def __init__(self, host: str | None, port: int | None, reason: str) -> None:
        where = " ".join(filter(None, (host, None if port is None else f"port {port}")))
        super().__init__(f"cannot listen on {where}: {reason}")
        self.host, self.port, self.reason = host, port, reason


class InvalidSettings(MultichatError):
    """Our configuration file holds something that it cannot hold, or cannot be read."""

    def __init__(self, path: object, key: str, reason: str) -> None:
        super().__init__(": ".join(filter(None, (str(path), key, reason))))
        self.path, self.key, self.reason = path, key, reason


class InvalidBanFile(MultichatError):
    """A line of a file of bans cannot be understood."""

    def __init__(self, file: str, line: int, reason: str) -> None:
        super().__init__(f"{file} line {line}: {reason}")
        self.file, self.line, self.reason = file, line, reason


class JournalFailed(MultichatError):
    """A file that is to be a journal cannot be used: locked, corrupt, somebody else's, no room."""

    def __init__(self, path: object, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path, self.reason = path, reason


class BadCertificate(MultichatError):
    """A certificate, or a key, that we were given cannot be used."""

    def __init__(self, path: object, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path, self.reason = path, reason


class ConnectionLost(MultichatError):
    """The conversation ended without a goodbye from the other side."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"connection lost: {reason}")
        self.reason = reason


class NoJson(MultichatError):
    """The other side does not speak JSON where nothing else will do, or does not answer at all."""

    def __init__(self, silent_seconds: float | None = None) -> None:
        if silent_seconds is None:
            super().__init__("the server does not answer in JSON")
        else:
            super().__init__(
                f"the server did not answer in {silent_seconds:g} s; "
                "use --plain for one that only speaks plain text"
            )


class InputNotText(MultichatError):
    """Our standard input is in an encoding that we do not read."""

    def __init__(self) -> None:
        super().__init__("standard input is UTF-16; convert it to UTF-8")


class OutputLost(MultichatError):
    """Our standard output cannot be written to any more."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"cannot write to standard output: {reason}")
        self.reason = reason


@contextmanager
def lone_exception() -> Iterator[None]:
    """Give back as itself the only exception of a group that leaves the block.

    For round nurseries whose tasks are nobody's business: their caller sees `OSError`, not a
    group of one.  Of several errors of ours, as when both directions of a connection are lost, it
    is the first; any other group passes as it is.
    """
    try:
        yield
    except BaseExceptionGroup as group:
        error: BaseException = group
        all_ours = group.split(MultichatError)[1] is None
        while isinstance(error, BaseExceptionGroup) and (all_ours or len(error.exceptions) == 1):
            error = error.exceptions[0]
        if error is group:
            raise
        raise error from error.__cause__
