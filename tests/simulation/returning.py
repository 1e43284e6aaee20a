"""How clients reconnect, generated from a run's seed, and what they remember.

A `Return` is a plan: how the previous connection is abandoned, and what the next hello contains.
A `Notebook` is what a client keeps between connections: its token, the ids that it received, and
its unaccepted messages.  It parses received lines like any client.
"""

import enum
import json
from dataclasses import dataclass, field
from random import Random
from typing import Any

__all__ = ["LeftBehind", "Notebook", "Return", "Since", "Token", "make_returns"]

# How many messages a client may repeat: the server remembers that many nonces of each session.
_MAX_UNACCEPTED = 256


class LeftBehind(enum.Enum):
    """What happens to a connection when its client reconnects."""

    RESET = "it is reset"
    RESET_IN_MID_LINE = "it is reset in the middle of a line"
    CLOSED = "it is closed without reading the rest"
    HALF_CLOSED = "it is half-closed, and read to its end"
    STALLED = "it is there, and nobody reads it"
    OPEN = "it is there, and read"


class Token(enum.Enum):
    """Which session token is sent."""

    OWN = "the last that was given"
    NONE = "none"
    GUESSED = "some other that looks like one"
    GARBAGE = "no token at all"


class Since(enum.Enum):
    """From where on a replay is requested."""

    LAST = "the last message heard in that room"
    OLDER = "one that was heard before"
    NONE = "nothing is said about it"
    GARBAGE = "no id at all"
    NEVER = "an id that there will never be"
    ELSEWHERE = "an id of another room"


@dataclass(frozen=True, kw_only=True)
class Return:
    """One reconnect."""

    left: LeftBehind
    pause_seconds: float
    token: Token
    since: Since
    replay: int
    repeats_accepted: bool
    wishes_room: bool
    actions: int


_PATIENT = [0.0, 0.05, 0.5, 2.0, 4.9, 5.1, 12.0]


def make_returns(rng: Random, *, most: int) -> tuple[Return, ...]:
    """Generate how often, and how, a client reconnects."""
    return tuple(_make_return(rng) for _ in range(rng.randint(0, most)))


def _make_return(rng: Random) -> Return:
    return Return(
        left=rng.choices(list(LeftBehind), [4, 1, 2, 2, 3, 2])[0],
        pause_seconds=rng.choice(_PATIENT),
        token=rng.choices(list(Token), [16, 1, 1, 1])[0],
        since=rng.choices(list(Since), [14, 4, 3, 1, 1, 1])[0],
        replay=rng.choice([0, 0, 0, 3, 50]),
        repeats_accepted=rng.random() < 0.3,
        wishes_room=rng.random() < 0.15,
        actions=rng.randint(0, 6),
    )


@dataclass
class Notebook:
    """What a client remembers; several of its connections may write into it."""

    said: int = 0
    joins: int = 0
    token: str = ""
    resumed: bool = False
    client: int = 0
    room: str = ""
    ids: dict[str, list[str]] = field(default_factory=dict)  # by room
    unaccepted: dict[int, bytes] = field(default_factory=dict)  # by nonce
    accepted: list[bytes] = field(default_factory=list)

    def wrote(self, nonce: int, line: bytes) -> None:
        """Record a sent message that is to be accepted."""
        self.unaccepted[nonce] = line
        if len(self.unaccepted) > _MAX_UNACCEPTED:
            del self.unaccepted[next(iter(self.unaccepted))]
            self.accepted.clear()  # the server may remember none of these nonces

    def hear(self, event: dict[str, Any]) -> None:
        """Record what is needed later."""
        match event:
            case {"type": "welcome", "session": token, "room": room, "resumed": resumed}:
                self.token, self.client = token, event["client"]
                self.resumed = resumed
                self.room = room.lower()
            case {"type": "joined", "client": client, "room": room} if client == self.client:
                self.room = room.lower()
            case {"type": "said", "id": id_, "room": room}:
                self.ids.setdefault(room.lower(), []).append(id_)
            case {"type": "accepted", "nonce": nonce}:
                self._answered(nonce, said=True)
            case {"type": "error", "nonce": nonce, "code": code} if code != "storage-failed":
                self._answered(nonce, said=False)

    def _answered(self, nonce: object, *, said: bool) -> None:
        if isinstance(nonce, int) and nonce in self.unaccepted:
            line = self.unaccepted.pop(nonce)
            if said:
                self.accepted = [*self.accepted[-_MAX_UNACCEPTED:], line]

    def hello(self, coming: Return, rng: Random, rooms: tuple[str, ...]) -> bytes:
        """Encode the hello of that reconnect."""
        wishes: dict[str, object] = {}
        match coming.token:
            case Token.OWN if self.token:
                wishes["session"] = self.token
            case Token.GUESSED:
                wishes["session"] = rng.randbytes(16).hex()
            case Token.GARBAGE:
                wishes["session"] = rng.choice(["", "x", self.token[:-1], self.token + "0", "é"])
        if (since := self.since(coming.since, rng)) is not None:
            wishes["since"] = since
        elif coming.replay:
            wishes["replay"] = coming.replay
        if coming.wishes_room:
            wishes["room"] = rng.choice(rooms)
        return f"/json {json.dumps(wishes)}\n".encode()

    def since(self, kind: Since, rng: Random) -> str | None:
        """Return the `since` of a request for a replay."""
        ids = self.ids.get(self.room, [])
        others = [each[-1] for room, each in self.ids.items() if room != self.room]
        epoch = ids[-1].partition("-")[0] if ids else ""
        match kind:
            case Since.LAST if ids:
                return ids[-1]
            case Since.OLDER if ids:
                return rng.choice(ids)
            case Since.GARBAGE:
                return rng.choice(["", "-", "1", "x-1000000000", "0-é", f"{epoch}-1"])
            case Since.NEVER if ids:
                return f"{epoch}-{int(ids[-1].partition('-')[2]) + 1_000_000}"
            case Since.ELSEWHERE if others:
                return rng.choice(others)
        return None

    def again(self, coming: Return, rng: Random) -> list[bytes]:
        """Return the messages to send again, in their original order."""
        if not self.resumed:  # it is unknown whether they were published
            self.unaccepted.clear()
            self.accepted.clear()
        known = max(0, _MAX_UNACCEPTED - len(self.unaccepted))
        accepted = self.accepted[len(self.accepted) - min(known, len(self.accepted)) :]
        repeated = [line for line in accepted if rng.random() < 0.5]
        return [*(repeated if coming.repeats_accepted else []), *self.unaccepted.values()]
