"""The fields that requests and events have in common, and their bounds.  Pure."""

from typing import Annotated, TypeAlias

import msgspec

__all__ = [
    "HISTORY_MESSAGES",
    "LOBBY",
    "MAX_DECOMPOSED",
    "MAX_NAME_CHARACTERS",
    "MAX_PASSPHRASE_CHARACTERS",
    "MAX_TOKEN_CHARACTERS",
    "MAX_TOPIC_CHARACTERS",
    "MAX_UNACCEPTED",
    "MIN_PASSPHRASE_CHARACTERS",
    "PROTOCOL",
    "BanSeconds",
    "Count",
    "Limit",
    "Name",
    "Nonce",
    "Passphrase",
    "Tagged",
    "Token",
    "Topic",
    "room_of",
]

# The version of the JSON protocol.
PROTOCOL = 1

LOBBY = "lobby"
"""The room in which every client starts."""


def room_of(text: str) -> str:
    """Return the name of a room without the number sign that other chats put before it."""
    return text.lstrip("#") or text


# More than a UUID needs; the server sends it back.
MAX_TOKEN_CHARACTERS = 128

# The default of a request for the history: a screenful.
HISTORY_MESSAGES = 20

# The most messages that a client may have unacknowledged, and the number of nonces that a server
# remembers for each session, so that no message is accepted twice after a reconnect.
MAX_UNACCEPTED = 256

# A tag of 32 leaves space for text on a line of 60 columns.
MAX_NAME_CHARACTERS = 32

# The most characters of such a name in a decomposed form.
MAX_DECOMPOSED = 4 * MAX_NAME_CHARACTERS

Name: TypeAlias = Annotated[str, msgspec.Meta(max_length=MAX_DECOMPOSED)]
"""A name in an event; events with a longer name are dropped.

Comparing or drawing a name of a million marks takes quadratic time.
"""

# Numbers in events; events with other numbers are dropped.
Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
Limit = Annotated[int, msgspec.Meta(ge=1, le=2**53)]

# The time left of a ban: none ends after the year 9999.
BanSeconds = Annotated[float, msgspec.Meta(ge=0, le=253402300799)]

Token = Annotated[str, msgspec.Meta(max_length=MAX_TOKEN_CHARACTERS)]

Nonce: TypeAlias = Token | Annotated[int, msgspec.Meta(ge=-(2**53), le=2**53)]
"""A client's id for a request, repeated in the answer: a string, or a number exact in JSON."""


# Below this, guessing at the pace that a server allows takes weeks, not years.
MIN_PASSPHRASE_CHARACTERS = 8

# Enough for a sentence of a dozen words; hashing a longer one takes no longer.
MAX_PASSPHRASE_CHARACTERS = 1024

# What fits on a line of a wide terminal, with the room in front.
MAX_TOPIC_CHARACTERS = 200

Passphrase: TypeAlias = Annotated[str, msgspec.Meta(max_length=MAX_PASSPHRASE_CHARACTERS)]
"""The passphrase of an account."""

Topic: TypeAlias = Annotated[str, msgspec.Meta(max_length=MAX_DECOMPOSED + MAX_TOPIC_CHARACTERS)]
"""The topic of a room, in an event; events with a longer topic are dropped."""


class Tagged(
    msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, repr_omit_defaults=True
):
    """A request or an event; *nonce* is the client's id for the request, and in its answer."""

    nonce: Nonce | None = None
