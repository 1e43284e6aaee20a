"""What the word that somebody has begun to type may become: commands, names, rooms.  Pure."""

from collections.abc import Iterable
from typing import NamedTuple

from multichat.names import fold_name

__all__ = ["COMMANDS", "LOCAL_COMMANDS", "Completion", "complete"]

LOCAL_COMMANDS = {
    "/quit": "leave when all is said",
    "/exit": "the same",
    "/status": "where we are, and since when",
    "/clear": "an empty screen",
    "/ignore NAME": "hide what NAME says, or show it again",
    "/ignore": "who is hidden",
    "/help": "this list, and the server's",
}
"""What the client does itself on a terminal, and what for."""

# Of what our server knows; another one may know others, which can be typed.
_SERVER_COMMANDS = ("/history", "/join", "/me", "/msg", "/name", "/nick", "/ping", "/rooms", "/who")

COMMANDS = tuple(sorted({*_SERVER_COMMANDS, *(name.split()[0] for name in LOCAL_COMMANDS)}))

_TAKE_NAME = frozenset(("/msg", "/ignore"))
_TAKE_ROOM = frozenset(("/join",))
# Followed by something: a space saves one key.
_TAKE_MORE = _TAKE_NAME | _TAKE_ROOM | {"/me", "/name", "/nick"}


class Completion(NamedTuple):
    """*text* for the last *length* characters before the cursor."""

    text: str
    length: int


def complete(before: str, names: Iterable[str], rooms: Iterable[str]) -> list[Completion]:
    """Return what the last word of *before* may become, in the order in which to offer it.

    Names are found anywhere, and by any spelling that is the same to people; commands only where a
    line begins.  A word that is not begun yet becomes anything only behind a command.
    """
    word = before.rpartition(" ")[2]
    command = before.split(" ", maxsplit=1)[0].lower()
    first = " " not in before
    if first and word.startswith("/"):
        found = [name for name in COMMANDS if name.startswith(word.lower())]
        ends = {name: " " if name in _TAKE_MORE else "" for name in found}
        return [Completion(name + ends[name], len(word)) for name in found]
    second = before.count(" ") == 1 and command.startswith("/")
    if second and command in _TAKE_ROOM:
        return _matching(word, rooms, "")
    if second and command in _TAKE_NAME:
        # Who has no name is called "Client 7"; a message to 7 arrives.
        return _matching(word, (_addressed(name) for name in names), " " * (command == "/msg"))
    if not word:
        return []
    return _matching(word.removeprefix("@"), names, ": " if first else "")


def _matching(word: str, names: Iterable[str], end: str) -> list[Completion]:
    folded = fold_name(word)
    found = {name for name in names if fold_name(name).startswith(folded)}
    return [Completion(name + end, len(word)) for name in sorted(found, key=fold_name)]


def _addressed(name: str) -> str:
    first, _, number = name.partition(" ")
    return number if first == "Client" and number.isdecimal() else name
