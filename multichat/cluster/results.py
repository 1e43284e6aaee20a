"""Decodes the engine's answers to the changes of a batch; no other module does.  Pure.

Anybody who can reach the engine can make it answer anything.  An answer that is invalid as a whole
raises `NotOurs`, and the caller repeats the request on another connection.  A result that does not
fit its change becomes a refusal, so that it affects only the caller that requested that change.

Invariant: each result that `read_results` returns is a refusal, or has the fields and types that
the docstring of its change in `multichat.cluster.changes` describes.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Final

import msgspec

from multichat.cluster.changes import (
    Change,
    ClaimRoom,
    ReadSession,
    SendDirect,
    TakeNumbers,
    TakeSession,
    read_number,
)
from multichat.cluster.errors import EngineRefused, NotOurs, reading_answer
from multichat.protocol.fields import Limit, Name

__all__ = [
    "read_renewal",
    "read_results",
    "refusal_of",
]

# The id of a private message: a node's run and a number.
_Id = Annotated[str, msgspec.Meta(max_length=100)]

_Age = Annotated[float, msgspec.Meta(ge=0)]

# What follows `ok`, where anything does.
_MADE: Final[dict[type[Change], Any]] = {
    TakeNumbers: tuple[Limit],
    ClaimRoom: tuple[Name],
    SendDirect: tuple[_Id, bool],
    TakeSession: tuple[Limit, Limit, str, list[str]],
    ReadSession: tuple[Limit, Limit, str, list[str], _Age],
}

# What follows the code of a refusal, where anything does: the holder of a name, and whether it is
# an account's; the room that looks alike.
_REFUSED: Final[dict[str, Any]] = {"name-taken": tuple[Name, bool], "looks-like": tuple[Name]}

# A refusal that no engine sends: the result was not ours, for that reason.
_NOT_OURS = "not-ours"

_MAX_CODE = 40

_RESULTS = msgspec.msgpack.Decoder(list[list[Any]])


def read_results(reply: Any, changes: Sequence[Change]) -> tuple[int, list[list[Any]]]:
    """Return the number of the last event, and the result of each of *changes*.

    A result is `["ok", …]` or `["refused", CODE, …]`; see also `refusal_of`.  Raises `NotOurs`.
    """
    with reading_answer():
        number, packed = reply
        results = _RESULTS.decode(packed)
        if len(results) != len(changes):
            raise ValueError(f"{len(results)} results instead of {len(changes)}")
        return read_number(number), list(map(_checked, changes, results))


def read_renewal(reply: Any) -> tuple[int, bool]:
    """Return the number of the last event, and whether to renew again; raises `NotOurs`."""
    with reading_answer():
        number, again = msgspec.convert(reply, tuple[int, int])
        return read_number(number), again != 0


def _checked(change: Change, result: list[Any]) -> list[Any]:
    try:
        with reading_answer():
            return _typed(change, result)
    except NotOurs as error:
        return ["refused", _NOT_OURS, error.text]


def _typed(change: Change, result: list[Any]) -> list[Any]:
    kind, *rest = result
    if kind == "ok":
        wanted = _MADE.get(type(change))
        return ["ok"] if wanted is None else ["ok", *msgspec.convert(rest, wanted)]
    code = rest[0]
    if kind != "refused" or not isinstance(code, str) or len(code) > _MAX_CODE:
        raise ValueError("a result is neither ok nor refused")
    if isinstance(change, TakeNumbers) and code != "error":
        raise ValueError("numbers are refused")
    if code == "error":
        return ["refused", code, str(rest[-1])]
    wanted = _REFUSED.get(code)
    return ["refused", code, *(() if wanted is None else msgspec.convert(rest[1:], wanted))]


def refusal_of(result: Sequence[Any]) -> EngineRefused | None:
    """Return the error of the engine in the *result* of a change, if that is what it is."""
    match result:
        case ["refused", "error", text]:
            return EngineRefused.parse(text)
        case ["refused", code, text] if code == _NOT_OURS:
            return NotOurs(text)
    return None
