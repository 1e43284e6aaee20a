"""The errors of a cluster's engine.  Pure.

Text that came from the engine is cleaned and shortened before it is part of a message.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Self

import msgspec

from multichat.errors import MultichatError, StorageFailed
from multichat.protocol.framing import clean

__all__ = [
    "NO_PASSWORD",
    "NO_RESP3",
    "BadReply",
    "EngineAway",
    "EngineBusy",
    "EngineRefused",
    "EngineUnavailable",
    "FateUnknown",
    "Meaning",
    "NotOurs",
    "PerhapsMade",
    "Rejected",
    "ResultNotOurs",
    "reading_answer",
    "shorten",
]

# Enough for the engine's longest useful sentence; an error of a function contains its arguments.
_MAX_REASON = 300


# How the engine ends its reply to a command that it does not know.
_QUOTES_ARGUMENTS = ", with args beginning with:"


class EngineUnavailable(MultichatError):
    """No usable connection to the engine: unreachable, another program, or access is denied.

    *reason* says what to do.  *lasting* means that a retry cannot succeed without the operator,
    *is_loading* that the engine has started and only needs time.
    """

    def __init__(
        self, where: str, reason: str, *, lasting: bool = False, is_loading: bool = False
    ) -> None:
        super().__init__(f"cannot use the engine at {where}: {reason}")
        self.where, self.reason = where, reason
        self.lasting, self.is_loading = lasting, is_loading


class EngineAway(MultichatError):
    """There is no connection to the engine: the request was not sent."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"the engine is away: {reason}")
        self.reason = reason


class EngineBusy(MultichatError):
    """Too many requests wait for the engine: this one was not sent."""

    def __init__(self) -> None:
        super().__init__("the engine does not keep up")


class FateUnknown(MultichatError):
    """The connection ended before the reply: the request may have been executed, or may still be.

    The caller repeats the request on the next connection, under the same sequence.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(f"the connection to the engine ended before its reply: {reason}")
        self.reason = reason


class Meaning(NamedTuple):
    """The meaning of an error of the engine, worded for the operator and for clients.

    *reason* is for the operator: it follows the engine's address, begins with "it" or "its", and
    says what to do.  *told* is for clients, and quotes nothing of the engine.  *lasting* means that
    a retry cannot succeed without the operator.
    """

    reason: str
    told: str = "the engine of the cluster refuses it"
    lasting: bool = False


NO_RESP3 = Meaning("it does not speak RESP3: Valkey, or Redis 7 or later, is needed", lasting=True)
NO_PASSWORD = Meaning("it asks for a password: give --cluster-password-file", lasting=True)

# By the code of the error.
_MEANINGS = {
    "OOM": Meaning(
        "its memory is full: raise its maxmemory, or keep less with --keep-mib",
        "the engine of the cluster is full",
    ),
    "MISCONF": Meaning(
        "it cannot write to its disk: see its log",
        "the engine of the cluster cannot store anything",
    ),
    "NOREPLICAS": Meaning(
        "its connected replicas are too few: see its min-replicas-to-write",
        "the engine of the cluster cannot store anything",
    ),
    "BUSY": Meaning(
        "it is busy with a script or a function: see FUNCTION STATS there",
        "the engine of the cluster does not keep up",
    ),
    "NOAUTH": NO_PASSWORD,
    "WRONGPASS": Meaning("it does not accept the user and password", lasting=True),
    "NOPROTO": NO_RESP3,
    "LOADING": Meaning("it is loading its data"),
    "READONLY": Meaning("it is a replica now"),
    "MASTERDOWN": Meaning("it is a replica without its primary"),
    "DENIED": Meaning(
        "it admits only its own machine (protected-mode): set a password there", lasting=True
    ),
}


class EngineRefused(MultichatError):
    """The engine replied with an error: *code* is its first word, such as OOM; *text* the rest.

    *is_known* tells whether its meaning is known; if not, the operator must see the original text.
    """

    def __init__(self, code: str, text: str) -> None:
        self.code, self.text = code, text
        self.is_known = code in _MEANINGS
        self.meaning = _MEANINGS.get(code) or self._meaning()
        super().__init__(_SUBJECT.sub(lambda it: _SUBJECTS[it[0]], self.meaning.reason))

    def _meaning(self) -> Meaning:
        # A function whose keys the user may not use fails with the code ERR.
        if self.code == "NOPERM" or "The user executing the script can't access" in self.text:
            return Meaning(f"its user lacks a right: {self.text}", lasting=True)
        if "unknown command" in self.text and "HELLO" in self.text.upper():
            return NO_RESP3
        return Meaning(f"it says: {self.code} {self.text}".rstrip())

    @classmethod
    def parse(cls, line: str) -> Self:
        """Parse the *line* of an error reply.

        Arguments that the engine quotes are cut off: they may be messages or passphrases.
        """
        code, _, text = shorten(line.partition(_QUOTES_ARGUMENTS)[0]).partition(" ")
        return cls(code, text)


# The beginnings of a reason where the engine's address does not precede it.
_SUBJECTS = {"it ": "the engine ", "its ": "the engine's "}
_SUBJECT = re.compile("^its? ")


class NotOurs(EngineRefused):
    """The engine's answer is not in our format: another program's functions have our names."""

    def __init__(self, reason: str) -> None:
        super().__init__("ERR", reason)

    def _meaning(self) -> Meaning:
        return Meaning(f"its answer is not ours: {shorten(self.text)}")


@contextmanager
def reading_answer() -> Iterator[None]:
    """Raise `NotOurs` if the block, which decodes an answer of the engine, finds it invalid."""
    try:
        yield
    except (
        ArithmeticError,  # an integer made of infinity
        AttributeError,
        LookupError,
        MemoryError,  # an array is announced that is larger than the answer
        RecursionError,  # lists in lists
        TypeError,
        ValueError,
        msgspec.MsgspecError,
    ) as error:
        raise NotOurs(str(error)) from None


class PerhapsMade(StorageFailed):
    """Waiting for a change that was sent was given up: it may have been made, or may still be."""


class ResultNotOurs(PerhapsMade):
    """The engine's result of one change is outside our format."""


class Rejected(Exception):
    """The directory has refused a change: *code*, and *detail* that depends on it."""

    def __init__(self, code: str, detail: Sequence[Any] = ()) -> None:
        super().__init__(code)
        self.code, self.detail = code, detail


class BadReply(MultichatError):
    """The peer sent bytes that are not a valid reply, or exceed a limit."""


def shorten(text: str) -> str:
    """Return *text* from the engine as one short line of printable characters."""
    line = clean(text[: 4 * _MAX_REASON].replace("\n", " ").replace("\r", " "))
    line = "".join(each if each.isprintable() else " " for each in line).strip()
    return line if len(line) <= _MAX_REASON else f"{line[: _MAX_REASON - 1]}…"
