"""Misuse of the protocol: by our caller, or by the peer, which gets an error.  Pure."""

import math
from typing import Self

from multichat.errors.base import MultichatError, Remedy

__all__ = [
    "Banned",
    "DeliveryUnknown",
    "EmptyText",
    "Insecure",
    "InvalidBan",
    "InvalidName",
    "InvalidRequest",
    "LastRoom",
    "LineTooLong",
    "LocalProtocolError",
    "LoginRequired",
    "NameAssigned",
    "NameTaken",
    "NobodyThere",
    "NonceReused",
    "NotDelivered",
    "NotInRoom",
    "NotOperator",
    "NotPrivate",
    "NotRead",
    "RegistrationClosed",
    "Rejected",
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
]


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
    """The journal or the engine cannot store *what* was to be stored, so it was not published.

    While messages cannot be stored, names and rooms cannot be decided either.
    """

    code = "storage-failed"

    def __init__(self, reason: str, what: str = "messages") -> None:
        super().__init__(f"{what} cannot be stored now: {reason}")
        self.reason = reason

    def about(self, what: str) -> Self:
        """Return the same error for *what*, such as "the topic"."""
        return type(self)(self.reason, what)


class NotRead(RemoteProtocolError):
    """The journal cannot be read."""

    code = "storage-failed"

    def __init__(self, reason: str) -> None:
        super().__init__(f"the history cannot be read: {reason}")
        self.reason = reason
