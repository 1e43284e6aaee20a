"""The names of keys and channels in the engine, which all begin with `multichat:`.  Pure.

The function library builds most names itself: see the lists at the top of `library.lua`, and of
`directory.lua` for those of the directory.
"""

__all__ = ["LOG", "NODES", "PREFIX", "channel_room", "lease_of", "room_channel"]

PREFIX = "multichat:"

# A hash: the era, the primary that it belongs to, and the bytes of all rooms.
LOG = f"{PREFIX}log"

# A hash: each node's run.
NODES = f"{PREFIX}nodes"

_ROOM_CHANNEL = f"{PREFIX}room:"


def lease_of(node: str) -> str:
    """Return the key that exists while *node* runs."""
    return f"{PREFIX}lease:{node}"


def room_channel(room: str) -> str:
    """Return the channel of the room with that key; the room's hash has the same name."""
    return f"{_ROOM_CHANNEL}{room}"


def channel_room(channel: str) -> str | None:
    """Return the key of the room whose channel that is, or None if it is no room's."""
    return channel.removeprefix(_ROOM_CHANNEL) if channel.startswith(_ROOM_CHANNEL) else None
