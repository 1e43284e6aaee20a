"""The private messages of a run, and whether their outcomes were reported rightly.  Pure.

Imports nothing from multichat: the reference is docs/protocol.md.  A message is identified by its
text, which is unique.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

__all__ = ["Direct", "Directs", "Fate", "check_directs"]

Fate = Literal["open", "accepted", "refused", "unknown"]

# An accepted message is on its way to its recipient: one that disconnects within this time of it,
# and could have lost it with its connection, need not have it.
_ON_ITS_WAY_SECONDS = 20.0

_SHOWN = 5


@dataclass
class Direct:
    """A private message to the member *to*, sent *tries* times; *times* are of its first and last.

    *retry_at* is when it is sent again, None if its answer is waited for.
    """

    text: str
    to: str
    times: tuple[float, float]
    fate: Fate = "open"
    tries: int = 1
    retry_at: float | None = None


@dataclass
class Directs:
    """What a member sent, by nonce, and received, and the times when its connections ended."""

    sent: dict[str, Direct] = field(default_factory=dict)
    heard: list[str] = field(default_factory=list)
    cuts: list[float] = field(default_factory=list)


def check_directs(members: Mapping[str, Directs], *, lossy: bool = False) -> list[str]:
    """Return the violations: each message is delivered once, or not, as its answer says.

    With *lossy* the engine may have lost what it knew of a message.
    """
    return list(_check(members, lossy=lossy))


def _check(members: Mapping[str, Directs], *, lossy: bool) -> Iterator[str]:
    sent = {each.text: each for one in members.values() for each in one.sent.values()}
    for name, directs in members.items():
        heard = Counter(directs.heard)
        wrong = [text for text in heard if text not in sent or sent[text].to != name]
        yield from _few(f"{name} heard what is not for it", wrong)
        if not lossy:
            yield from _few(
                f"{name} heard twice", [text for text, count in heard.items() if count > 1]
            )
            refused = [text for text in heard if text in sent and sent[text].fate == "refused"]
            yield from _few(f"told as not delivered, and {name} has it", refused)
        missing = [
            each.text
            for each in sent.values()
            if each.to == name and each.fate == "accepted" and each.text not in heard
        ]
        lost = [text for text in missing if not _may_be_lost(sent[text], directs)]
        yield from _few(f"accepted, and {name} has not got it", lost)
    yield from _few("never answered", [each.text for each in sent.values() if each.fate == "open"])


def _may_be_lost(direct: Direct, recipient: Directs) -> bool:
    first, last = direct.times
    return any(first <= cut <= last + _ON_ITS_WAY_SECONDS for cut in recipient.cuts)


def _few(what: str, found: list[str]) -> Iterator[str]:
    if found:
        more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        yield f"private messages: {what}: {', '.join(found[:_SHOWN])}{more}"
