"""Requests of clients, as typed values.  Pure.

Requests are imperative; a type's tag is its name in the JSON protocol.  See
`multichat.protocol.messages`.
"""

from typing import Annotated

import msgspec

from multichat.protocol.fields import HISTORY_MESSAGES, Nonce, Passphrase, Tagged, Token

__all__ = [
    "NO_SENDER",
    "Act",
    "Announce",
    "Ban",
    "Bans",
    "ChangePassphrase",
    "Credentials",
    "Direct",
    "Enter",
    "Exit",
    "Hello",
    "Help",
    "History",
    "Join",
    "Kick",
    "Login",
    "Logout",
    "Ping",
    "Quit",
    "Register",
    "Rename",
    "Reply",
    "Rooms",
    "Say",
    "SayBlock",
    "SetTopic",
    "Start",
    "Unban",
    "Who",
]


class Say(Tagged, frozen=True, tag="say"):
    """Send the message *text* to *room*, by default to the current room."""

    text: str
    room: str | None = None


class Act(Tagged, frozen=True, tag="act"):
    """Send an action in the third person, such as `waves`; see `Say`."""

    text: str
    room: str | None = None


class Direct(Tagged, frozen=True, tag="direct"):
    """Send *text* to one client only, by name or number."""

    to: int | str
    text: str


class Rename(Tagged, frozen=True, tag="name"):
    """Change the name of the client to *name*."""

    name: str


class Join(Tagged, frozen=True, tag="join"):
    """Move to *room*; with *since*, replay its messages after the one with that id."""

    room: str
    since: str | None = None


class Enter(Tagged, frozen=True, tag="enter"):
    """Enter *room* in addition to the others, and make it the current one.

    The messages after the id *since* are replayed, or the last *replay* messages.
    """

    room: str
    since: str | None = None
    replay: Annotated[int, msgspec.Meta(ge=0)] = 0


class Exit(Tagged, frozen=True, tag="exit"):
    """Leave *room*; the one that was entered last of the others becomes the current one."""

    room: str


class Who(Tagged, frozen=True, tag="who"):
    """List the members of *room*, by default of the current room."""

    room: str | None = None


class Rooms(Tagged, frozen=True, tag="rooms"):
    """List the rooms."""


class History(Tagged, frozen=True, tag="history"):
    """Return the last *limit* messages of *room*, by default of the current room.

    With *before*, those before the message with that id.
    """

    limit: Annotated[int, msgspec.Meta(ge=1)] = HISTORY_MESSAGES
    before: str | None = None
    room: str | None = None


class Ping(Tagged, frozen=True, tag="ping"):
    """Check the connection; the answer repeats *token*."""

    token: Token = ""


class Help(Tagged, frozen=True, tag="help"):
    """List the commands."""


class Quit(Tagged, frozen=True, tag="quit"):
    """End the session."""


class _Secret(Tagged, frozen=True):
    """A request with a passphrase, which `repr` does not show."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}(…)"


class Register(_Secret, frozen=True, tag="register"):
    """Register the current name as an account with this *passphrase*."""

    passphrase: Passphrase


class Login(_Secret, frozen=True, tag="login"):
    """Log in to the account *name*, and take that name."""

    name: str
    passphrase: Passphrase


class Logout(Tagged, frozen=True, tag="logout"):
    """Log out, and give up the name of the account."""


class ChangePassphrase(_Secret, frozen=True, tag="passphrase"):
    """Change the passphrase of the account, and end its other sessions."""

    passphrase: Passphrase


class Kick(Tagged, frozen=True, tag="kick"):
    """Disconnect a client: a name or a number.  For operators."""

    who: int | str
    reason: str = ""


class Ban(Tagged, frozen=True, tag="ban"):
    """Disconnect and keep out *what*, a name, an address or a number, for *time*, such as `1h`.

    For operators.  Without *time* the ban has no end.
    """

    what: int | str
    time: str = ""
    reason: str = ""


class Unban(Tagged, frozen=True, tag="unban"):
    """Lift the ban on *what*.  For operators."""

    what: str


class Bans(Tagged, frozen=True, tag="bans"):
    """List the bans.  For operators."""


class Announce(Tagged, frozen=True, tag="announce"):
    """Send *text* to everybody as the server.  For operators."""

    text: str


class SetTopic(Tagged, frozen=True, tag="topic"):
    """Set the topic of *room*, by default of the current room, to *text*; empty removes it.

    For operators.  Without *text* it returns the topic, to everybody in the room.
    """

    text: str | None = None
    room: str | None = None


class Credentials(msgspec.Struct, frozen=True):
    """The *name* and the *passphrase* of an account; `repr` does not show them."""

    name: str
    passphrase: Passphrase

    def __repr__(self) -> str:
        return "Credentials(…)"


class Start(msgspec.Struct, frozen=True, omit_defaults=True):
    """Which messages to replay on entering a room: those after *since*, or the last *replay*."""

    since: str | None = None
    replay: Annotated[int, msgspec.Meta(ge=0)] = 0


class Hello(msgspec.Struct, frozen=True, omit_defaults=True):
    """Use JSON from the next line on, with *name*, in *room*.

    *session* is the token of the session to resume.  The messages after the id *since* are
    replayed, or the last *replay* messages.  *rooms* are entered in addition, each from its own
    start; *room* is then the current one, by default the last of them.  *login* logs in to an
    account.  The only request that is a line of the text protocol.
    """

    protocol: int = 0  # not given
    name: str | None = None
    room: str | None = None
    session: str | None = None
    since: str | None = None
    replay: Annotated[int, msgspec.Meta(ge=0)] = 0
    rooms: dict[str, Start] | None = None
    login: Credentials | None = None


NO_SENDER = "nobody has sent you a private message"
"""The reason for refusing a `Reply`."""


class Reply(msgspec.Struct, frozen=True):
    """Send *text* to the sender of the last private message.

    In the text protocol only: a private message that arrives meanwhile changes the recipient.
    """

    text: str


class SayBlock(msgspec.Struct, frozen=True):
    """Several `Say` in a row, so that nothing is done per message; or one `Act`, if *act*.

    *text* is their texts in order, separated by LF; *nonces* are theirs, or empty if none has one.
    All have the same *room*, or all have none.
    """

    text: str
    nonces: tuple[Nonce | None, ...] = ()
    room: str | None = None
    act: bool = False
