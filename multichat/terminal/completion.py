"""Completes commands, names and rooms, and expands `/r`, while a line is typed.  Pure."""

from collections.abc import Iterable
from typing import NamedTuple

from multichat.protocol.commands import COMMANDS, CommandTable
from multichat.protocol.names import fold_name

__all__ = ["Completion", "complete", "expand_reply"]


class Completion(NamedTuple):
    """Replace the last *length* characters before the cursor with *text*."""

    text: str
    length: int


def complete(
    before: str, names: Iterable[str], rooms: Iterable[str], table: CommandTable = COMMANDS
) -> list[Completion]:
    """Return the completions of the last word of *before*, in display order.

    Names are completed anywhere, ignoring case and Unicode variants; commands of *table* only at
    the start of a line.  An empty word is completed only after a command.
    """
    word = before.rpartition(" ")[2]
    command = table.find(before.split(" ", maxsplit=1)[0])
    first = " " not in before
    if first and word.startswith("/"):
        # A space after a command that takes an argument saves a keystroke.
        found = sorted(
            each.name + " " * bool(each.completes)
            for each in table
            if each.help and each.name.startswith(word.lower())
        )
        return [Completion(name, len(word)) for name in found]
    second = command if before.count(" ") == 1 else None
    if second is not None and second.completes == "room":
        return _matching(word.lstrip("#"), rooms, "")
    if second is not None and second.completes == "name":
        # A client without a name is shown as "Client 7" and can be addressed as 7.
        end = "" if second.is_client_only else " "
        return _matching(word.removeprefix("@"), (_address(name) for name in names), end)
    if not word:
        return []
    return _matching(word.removeprefix("@"), names, ": " if first else "")


def _matching(word: str, names: Iterable[str], end: str) -> list[Completion]:
    folded = fold_name(word)
    found = {name for name in names if fold_name(name).startswith(folded)}
    return [Completion(name + end, len(word)) for name in sorted(found, key=fold_name)]


def _address(name: str) -> str:
    """Return *name* as one word: the number for a client without a name."""
    first, _, number = name.partition(" ")
    return number if first == "Client" and number.isdecimal() else name


def expand_reply(line: str, last_sender: int | None) -> str:
    """Return *line* with a leading `/r ` replaced by `/msg` to *last_sender*.

    *last_sender* is a client's number, because the name may belong to another client by the time
    the message is sent.
    """
    word, space, rest = line.partition(" ")
    command = COMMANDS.find(word) if space else None
    if last_sender is None or command is None or command.name != "/r":
        return line
    return f"/msg {last_sender} {rest}"
