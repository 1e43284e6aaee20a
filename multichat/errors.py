"""Every exception that multichat raises on purpose.  Pure.

The tree::

    MultichatError
    │
    │   misuse of the protocol
    ├── LocalProtocolError      by our caller
    │   ├── UnknownClient       no client has that number
    │   ├── NotPrivate          a passphrase, over a connection that others can read
    │   ├── InvalidBan          not a valid ban
    │   └── TooManyBans         the limit of bans is reached
    ├── RemoteProtocolError     by the peer: it gets an error and stays connected
    │   ├── LineTooLong         a line above the limit
    │   ├── InvalidRequest      not a valid request
    │   ├── UnknownRequest      an unknown type of request
    │   ├── EmptyText           a message without text
    │   ├── InvalidName         not a valid name
    │   ├── NameTaken           the name is in use, or belongs to an account
    │   ├── WrongPassphrase     no account has that name and passphrase
    │   ├── TooManyAttempts     too many logins are tried from there
    │   ├── LoginRequired       only accounts may speak
    │   ├── Insecure            a passphrase was sent in plain text
    │   ├── RegistrationClosed  accounts are made by operators only
    │   ├── TooManyRegistrations  a limit of accounts is reached
    │   ├── NotOperator         only operators may do that
    │   ├── TooManyRooms        the limit of rooms is reached
    │   ├── NobodyThere         the recipient is not connected
    │   ├── NotDelivered        the recipient's send queue is full
    │   ├── DeliveryUnknown     a private message may have been delivered or not
    │   ├── Rejected            a filter rejected a message, room or name
    │   ├── Banned              the name is banned
    │   ├── UnknownId           no message has that id
    │   ├── NotInRoom           the client is not in that room
    │   ├── LastRoom            the client is in no other room
    │   ├── NonceReused         the nonce belongs to another message
    │   ├── StorageFailed       the journal cannot store the message
    │   └── NotRead             the journal cannot be read
    │
    │   faults at the other end of a connection
    ├── Refused                 the server refused a request, or did not admit us
    ├── ConnectFailed           no connection could be made
    ├── ConnectionLost          the connection ended before a call was done
    ├── NoJson                  the server does not speak JSON, or does not answer
    │
    │   faults on this machine
    ├── ListenFailed            the address cannot be listened on
    ├── InvalidSettings         an invalid configuration file
    ├── InvalidBanFile          an invalid line in a ban file
    ├── ReloadFailed            a file was not reloaded
    ├── JournalFailed           the journal file cannot be used
    ├── BadCertificate          a certificate or key cannot be used
    ├── BadPasswordFile         a password file cannot be used
    ├── InputNotText            standard input cannot be decoded
    └── OutputLost              standard output cannot be written to

Any other exception out of a decoder or a session is a bug in multichat.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import Enum, auto

__all__ = [
    "BadCertificate",
    "BadPasswordFile",
    "Banned",
    "ConnectFailed",
    "ConnectionLost",
    "DeliveryUnknown",
    "EmptyText",
    "InputNotText",
    "Insecure",
    "InvalidBan",
    "InvalidBanFile",
    "InvalidName",
    "InvalidRequest",
    "InvalidSettings",
    "JournalFailed",
    "LastRoom",
    "LineTooLong",
    "ListenFailed",
    "LocalProtocolError",
    "LoginRequired",
    "MultichatError",
    "NameAssigned",
    "NameTaken",
    "NoJson",
    "NobodyThere",
    "NonceReused",
    "NotDelivered",
    "NotInRoom",
    "NotOperator",
    "NotPrivate",
    "NotRead",
    "OutputLost",
    "Refused",
    "RegistrationClosed",
    "Rejected",
    "ReloadFailed",
    "Remedy",
    "RemoteProtocolError",
    "StorageFailed",
    "TooManyAttempts",
    "TooManyBans",
    "TooManyRegistrations",
    "TooManyRooms",
    "UnknownClient",
    "UnknownId",
    "UnknownRequest",
    "WrongPassphrase",
    "lone_exception",
]


class Remedy(Enum):
    """What may help against an error; a front end says how it is done there."""

    USE_TLS = auto()
    OMIT_TLS = auto()
    PERHAPS_OMIT_TLS = auto()
    TRUST_ISSUER = auto()
    NAME_CERTIFICATE = auto()
    PERHAPS_SPEAK_TEXT = auto()
    SPEAK_TEXT = auto()


class MultichatError(Exception):
    """The base class of all exceptions of multichat; *remedy* is what may help, if known."""

    remedy: Remedy | None = None


class LocalProtocolError(MultichatError):
    """The caller misused the API: the protocol cannot express the request."""


class UnknownClient(LocalProtocolError):
    """No client with that number is connected."""

    def __init__(self, client: int) -> None:
        super().__init__(f"no client {client} is connected")
        self.client = client


class NotPrivate(LocalProtocolError):
    """A passphrase is not sent in plain text over a network, nor kept while not *connected*.

    Nor is it sent to a server that *has_accounts* not, which might show it to others.
    """

    def __init__(
        self, where: str = "the server", *, connected: bool = True, has_accounts: bool = True
    ) -> None:
        if not connected:
            text = (
                "not connected: a passphrase is not kept to be sent later; try again when connected"
            )
        elif not has_accounts:
            text = "not sent: this server has no accounts, and might show a passphrase to others"
        else:
            text = f"passphrases are not sent to {where} in plain text, where others can read them"
            self.remedy = Remedy.USE_TLS
        super().__init__(text)


class InvalidBan(LocalProtocolError):
    """The subject or the duration of a ban is invalid."""


class TooManyBans(LocalProtocolError):
    """The limit of bans is reached."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"too many bans (limit: {limit})")
        self.limit = limit


class RemoteProtocolError(MultichatError):
    """The peer sent something invalid or not allowed; the connection stays open.

    *code* is for programs, the message for people.
    """

    code = "invalid-request"


class LineTooLong(RemoteProtocolError):
    """The peer sent a line above the limit; the decoder dropped all of it."""

    code = "line-too-long"

    def __init__(self, limit_bytes: int) -> None:
        super().__init__(f"the line was longer than {limit_bytes} bytes and was dropped")
        self.limit_bytes = limit_bytes


class InvalidRequest(RemoteProtocolError):
    """The peer sent something that is not a valid request."""


class UnknownRequest(RemoteProtocolError):
    """The peer sent an unknown type of request."""

    code = "unknown-request"


class EmptyText(RemoteProtocolError):
    """The peer sent a message without text."""

    code = "empty-text"

    def __init__(self) -> None:
        super().__init__("an empty message cannot be sent")


class InvalidName(RemoteProtocolError):
    """The name of a client or room is not valid; see `multichat.protocol.names`."""

    code = "invalid-name"


class NameTaken(RemoteProtocolError):
    """The name is in use, or looks like the name of *holder*; *registered*: it is an account's."""

    code = "name-taken"

    def __init__(self, name: str, holder: str = "", *, registered: bool = False) -> None:
        looks = f" looks like '{holder}', which" if holder else ""
        how = "registered" if registered else "taken"
        hint = f"; if it is yours, log in: /login {holder or name} PASSPHRASE" if registered else ""
        super().__init__(f"the name '{name}'{looks} is {how}{hint}")
        self.name, self.holder, self.registered = name, holder, registered


class WrongPassphrase(RemoteProtocolError):
    """No account has that name and passphrase; the error does not say which of the two is wrong."""

    code = "wrong-passphrase"

    def __init__(self) -> None:
        super().__init__("the name or the passphrase is wrong")


class TooManyAttempts(RemoteProtocolError):
    """Too many login attempts, from the peer's address or in all; this one was not checked."""

    code = "too-many-attempts"

    def __init__(self) -> None:
        super().__init__("too many logins were tried; try again in a minute")


class LoginRequired(RemoteProtocolError):
    """Only clients that are logged in to an account may send messages."""

    code = "login-required"

    def __init__(self) -> None:
        super().__init__("only accounts may speak here: /login NAME PASSPHRASE")


class Insecure(RemoteProtocolError):
    """A passphrase came over a connection that others can read."""

    code = "insecure"

    def __init__(self) -> None:
        super().__init__(
            "passphrases are accepted over TLS only, and this one was sent in plain text: "
            "do not use it any more"
        )


class RegistrationClosed(RemoteProtocolError):
    """Only operators can create accounts, or the account called *name*."""

    code = "registration-closed"

    def __init__(self, name: str = "") -> None:
        what = f"the name {name} is" if name else "accounts are"
        super().__init__(f"{what} registered by the server's operator only")
        self.name = name


class TooManyRegistrations(RemoteProtocolError):
    """The limit of accounts is reached, or for *seconds* that of the peer's address."""

    code = "too-many-registrations"

    def __init__(self, limit: int, seconds: float = 0) -> None:
        super().__init__(
            f"too many accounts (limit: {limit})"
            if not seconds
            else f"too many new accounts from your address (limit: {limit} an hour); "
            f"try again in {(n := math.ceil(seconds / 60))} minute{'s' * (n != 1)}"
        )
        self.limit = limit


class NotOperator(RemoteProtocolError):
    """The request is for operators, who are logged in to their accounts."""

    code = "not-operator"

    def __init__(self) -> None:
        super().__init__(
            "only an operator of the server can do that; if you are one: /login NAME PASSPHRASE"
        )


class NameAssigned(RemoteProtocolError):
    """The peer wanted another name than the one that the server's `authenticate` gave it."""

    code = "name-assigned"

    def __init__(self, name: str) -> None:
        super().__init__(f"your name on this server is '{name}'")
        self.name = name


class TooManyRooms(RemoteProtocolError):
    """A limit of rooms is reached: of the server, of one client, or of new rooms an hour."""

    code = "too-many-rooms"

    def __init__(self, limit: int, seconds: float = 0, *, of_client: bool = False) -> None:
        super().__init__(
            f"too many new rooms (limit: {limit} an hour); try again in {math.ceil(seconds)} s"
            if seconds
            else f"you are in too many rooms (limit: {limit}); leave one first"
            if of_client
            else f"too many rooms (limit: {limit})"
        )
        self.limit, self.seconds = limit, seconds


class NobodyThere(RemoteProtocolError):
    """The recipient is not connected."""

    code = "nobody-there"

    def __init__(self, to: str | int) -> None:
        if isinstance(to, str):
            room = to[:40].lstrip("#")
            hint = f"; to talk in a room, first type /join {room}" if to.startswith("#") else ""
            super().__init__(f"nobody here is called '{to[:40]}'{hint}")
        else:
            super().__init__(f"there is no client {to}")
        self.to = to


class NotDelivered(RemoteProtocolError):
    """The recipient is connected, but its send queue is full."""

    code = "not-delivered"

    def __init__(self, name: str) -> None:
        super().__init__(f"{name} is too slow: the message was not delivered")
        self.name = name


class DeliveryUnknown(RemoteProtocolError):
    """A private message may have been delivered or not: the recipient's server does not answer.

    Only with several servers.  If it is sent again with its nonce, it is not delivered twice.
    """

    code = "delivery-unknown"

    def __init__(self, name: str) -> None:
        super().__init__(f"it is not known whether {name} got the message: their server is away")
        self.name = name


class Rejected(RemoteProtocolError):
    """A filter of the server rejected a message, a room or a name of the peer's."""

    code = "rejected"

    def __init__(self, messages: int = 1) -> None:
        what = "this was" if messages == 1 else f"{messages} messages were"
        super().__init__(f"{what} rejected by the server")
        self.messages = messages


class Banned(RemoteProtocolError):
    """The operator has banned the name."""

    code = "banned"

    def __init__(self, name: str) -> None:
        super().__init__(f"the name '{name}' is banned")
        self.name = name


class UnknownId(RemoteProtocolError):
    """The room has no message with that id, or no longer knows it."""

    code = "unknown-id"

    def __init__(self) -> None:
        super().__init__("no message of this room has that id")


class NotInRoom(RemoteProtocolError):
    """The client is not in the room that it wants to talk in or read."""

    code = "not-in-room"

    def __init__(self, room: str) -> None:
        where = f"the room {room[:40]}" if room else "the room that you asked for"
        super().__init__(f"you are not in {where}")
        self.room = room


class LastRoom(RemoteProtocolError):
    """The client is in no other room: it would be in none."""

    code = "last-room"

    def __init__(self, room: str) -> None:
        super().__init__(f"{room} is your only room; join another one first")
        self.room = room


class NonceReused(RemoteProtocolError):
    """The client has used the nonce for another message."""

    code = "nonce-reused"

    def __init__(self, nonce: str | int) -> None:
        super().__init__(
            f"not sent: the nonce {nonce} was already used for another message; use a new one"
        )
        self.nonce = nonce


class StorageFailed(RemoteProtocolError):
    """The journal cannot store the message, so it was not published."""

    code = "storage-failed"

    def __init__(self, reason: str) -> None:
        super().__init__(f"messages cannot be stored now: {reason}")
        self.reason = reason


class NotRead(RemoteProtocolError):
    """The journal cannot be read."""

    code = "storage-failed"

    def __init__(self, reason: str) -> None:
        super().__init__(f"the history cannot be read: {reason}")
        self.reason = reason


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

    *lasting* means that a retry cannot succeed until somebody mends the cause: the name is invalid,
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
    """The connection broke, or the server said goodbye for *reason*, before a call was done."""

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


@contextmanager
def lone_exception() -> Iterator[None]:
    """Replace an exception group that leaves the block by its only exception.

    For nurseries that are an implementation detail: the caller sees `OSError`, not a group of one.
    Of several `MultichatError`s, as when both directions of a connection are lost, it raises the
    first; any other group passes unchanged.
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
