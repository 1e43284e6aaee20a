"""Parses what a connection requested and received; see `..history`."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import msgspec

from multichat.protocol.framing import clean

from .chronicle import Credentials

__all__ = ["Request", "Talk"]


@dataclass
class Request:
    """One request; *index* is its place among those of its connection."""

    index: int
    fields: dict[str, Any]

    @property
    def kind(self) -> str:
        """The type of the request."""
        return str(self.fields["type"])

    @property
    def nonce(self) -> object:
        """Its nonce, None if it has none."""
        return self.fields.get("nonce")

    @property
    def room(self) -> str | None:
        """The room that it names, folded."""
        room = self.fields.get("room")
        return None if room is None else str(room).lower()


@dataclass
class Talk:
    """All requests of a connection, and all events for it from its welcome on.

    *told* is how many of the *events* were read by the client.
    """

    hello: dict[str, Any] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    credentials: list[Credentials] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def of(cls, sent: list[bytes], told: bytes, cache: dict[bytes, dict[str, Any]]) -> "Talk":
        """Parse the lines that were *sent* and the bytes that were *told*."""
        talk = cls()
        for line in sent:
            talk._read(line)
        for line in told.split(b"\n")[:-1]:
            if line.startswith(b"{"):
                if line not in cache:
                    cache[line] = msgspec.json.decode(line)
                talk.events.append(cache[line])
        return talk

    @property
    def speaks_json(self) -> bool:
        """Whether it has sent a hello."""
        return bool(self.hello)

    def _read(self, line: bytes) -> None:
        if not self.hello:
            if line.startswith(b"/json "):
                try:
                    self.hello = {"type": "hello", **msgspec.json.decode(line[6:])}
                except msgspec.DecodeError:  # the connection broke in the middle of it
                    return
                if login := self.hello.get("login"):
                    self._note("login", login["name"], login["passphrase"])
            else:
                self._read_text(line.decode("utf-8", "replace"))
            return
        try:
            fields = msgspec.json.decode(line)
        except msgspec.DecodeError:  # the connection broke in the middle of it
            return
        self.requests.append(Request(len(self.requests), fields))
        if "text" in fields:
            fields["text"] = clean(fields["text"])
        match fields:
            case {"type": "login", "name": name, "passphrase": passphrase}:
                self._note("login", name, passphrase)
            case {"type": "register" | "passphrase" as kind, "passphrase": passphrase}:
                self._note(kind, "", passphrase)

    def _read_text(self, line: str) -> None:
        command, _, rest = line.partition(" ")
        match command:
            case "/login":
                name, _, passphrase = rest.partition(" ")
                self._note("login", name, passphrase)
            case "/register" | "/passphrase":
                self._note(command[1:], "", rest)

    def _note(self, kind: str, name: str, passphrase: str) -> None:
        self.credentials.append(Credentials(kind, name.casefold(), passphrase))

    def answers(self) -> Iterator[tuple[dict[str, Any], Request | None]]:
        """Yield each event with the request that it answers, if it answers one."""
        waiting: dict[object, list[Request]] = {}
        for request in self.requests:
            if request.kind != "quit":
                waiting.setdefault(request.nonce, []).append(request)
        answers = Counter(event["nonce"] for event in self.events if event.get("nonce") is not None)
        is_shut_down = any(event.get("code") == "shutdown" for event in self.events)
        skips = {
            nonce for nonce, each in waiting.items() if is_shut_down and answers[nonce] < len(each)
        }
        for event in self.events:
            nonce = event.get("nonce")
            of_nonce = waiting.get(nonce) if nonce is not None else None
            if not of_nonce or event["type"] == "goodbye":
                yield event, None
            else:
                yield event, of_nonce.pop(_place(event, of_nonce) if nonce in skips else 0)


def _place(event: dict[str, Any], waiting: list[Request]) -> int:
    """Return which of the requests *waiting*, which have one nonce, *event* answers.

    That is the first, unless the server shuts down: it publishes nothing more and leaves those
    messages unanswered, and may still answer a later one that it refuses.
    """
    if event.get("code") == "not-in-room" and waiting[0].room is None:
        room = event["text"].rpartition(" ")[2]
        return next((at for at, each in enumerate(waiting) if each.room == room), 0)
    return 0
