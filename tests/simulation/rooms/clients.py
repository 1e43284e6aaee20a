"""Clients that are in several rooms, and have accounts; see `..clients`.

Every JSON request has a nonce, so that its answer is known: messages have a number, other requests
`r7`.  Every passphrase contains `PASSPHRASE`, so that it is found wherever it is sent.
"""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from random import Random
from typing import Any

import trio

from tests.simulation.clients import Client
from tests.simulation.plan import GivenAccount
from tests.simulation.returning import Notebook, Return, Since

from .plan import NAMES, PASSPHRASE, Guest, Speaks

__all__ = ["GuestClient", "Keys", "RoomsNotebook"]

# How many earlier messages a client may repeat with another text or in another room.
_USED = 20


class Keys:
    """The passphrases that anybody has chosen, by the folded name: people may know each other's.

    And those of the accounts that are *given* to them by operators, sooner or later.
    """

    def __init__(self, given: Iterable[GivenAccount] = ()) -> None:
        self.chosen = {each.name.casefold(): [each.passphrase] for each in given}
        self._count = 0

    def choose(self, name: str) -> str:
        """Return a new passphrase for the account *name*."""
        self._count += 1
        passphrase = f"{PASSPHRASE} {self._count}"
        self.chosen.setdefault(name.casefold(), []).append(passphrase)
        return passphrase

    def guess(self, name: str, rng: Random) -> str:
        """Return one: mostly the newest, sometimes an older or a wrong one."""
        chosen = self.chosen.get(name.casefold(), [])
        if not chosen or rng.random() < 0.15:
            return f"{PASSPHRASE} wrong"
        return chosen[-1] if rng.random() < 0.7 else rng.choice(chosen)


@dataclass
class RoomsNotebook(Notebook):
    """What a client remembers; *rooms* are those that it believes to be in, the current one last.

    *used* are messages that were sent, by nonce, with their rooms.
    """

    keys: Keys = field(default_factory=Keys)
    name: str = ""
    requests: int = 0
    rooms: dict[str, None] = field(default_factory=dict)
    used: dict[int, tuple[str, str | None]] = field(default_factory=dict)

    def hear(self, event: dict[str, Any]) -> None:
        """Record what is needed later."""
        super().hear(event)
        match event:
            case {"type": "welcome", "room": room, "name": name}:
                rooms = event.get("rooms") or [room]
                self.rooms = dict.fromkeys(each.lower() for each in rooms)
                self.name = name
            case {"type": "joined", "client": client, "room": room} if client == self.client:
                self.rooms.pop(room.lower(), None)
                self.rooms[room.lower()] = None
            case {"type": "left", "client": client, "room": room} if client == self.client:
                self.rooms.pop(room.lower(), None)
            case {"type": "renamed", "client": client, "name": name} if client == self.client:
                self.name = name
            case {"type": "logged-in", "name": name} | {"type": "logged-out", "name": name}:
                self.name = name


class GuestClient(Client):
    """One connection of a guest; see `Client`."""

    def __init__(self, plan: Guest, *args: Any, **kwargs: Any) -> None:
        super().__init__(plan, *args, **kwargs)
        self._guest = plan
        more: dict[str, Callable[[], bytes]] = {
            "flood": lambda: self._many(self._rng.randint(20, 60)),
            "enter": self._enter,
            "exit": self._exit,
            "join": self._join,
            "history": self._ask_history,
            "who": lambda: self._request("who", **self._maybe_room()),
            "rooms": lambda: self._request("rooms"),
            "ping": lambda: self._request("ping"),
            "rename": lambda: self._request("name", name=self._rng.choice(NAMES)),
            "register": self._register,
            "login": lambda: self._request("login", **self._credentials()),
            "logout": lambda: self._request("logout"),
            "passphrase": self._change_passphrase,
            "reuse": self._reuse,
        }
        self._actions.update(more)

    @property
    def _is_in_several(self) -> bool:
        return self._guest.speaks is Speaks.SEVERAL

    @property
    def _notes(self) -> RoomsNotebook:
        """The notebook, or an empty one if another connection has it."""
        notebook = self._notebook
        return notebook if isinstance(notebook, RoomsNotebook) else RoomsNotebook()

    async def _talk(self) -> None:
        rng = self._rng
        kinds, weights = zip(*self._guest.inclinations, strict=True)
        try:
            actions = self._guest.actions
            if self._coming is not None:
                actions = self._coming.actions
                if not await self._come_back(self._coming):
                    return
            elif self._guest.speaks_json:
                await self._send(self._first_hello())
                with trio.move_on_after(1):  # rooms are known then
                    await self._welcomed.wait()
            for _ in range(actions):
                await trio.sleep(rng.uniform(0, 2 * self._guest.talkativeness_seconds))
                await self._send(self._actions[rng.choices(kinds, weights)[0]]())
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass

    async def _come_back(self, coming: Return) -> bool:
        notebook = self._notebook
        if not isinstance(notebook, RoomsNotebook):
            return False
        await self._send(self._second_hello(coming, notebook))
        with trio.move_on_after(30):
            await self._welcomed.wait()
            if again := b"".join(notebook.again(coming, self._rng)):
                await self._send(again)
            return True
        return False

    # --- Hellos -----------------------------------------------------------------------------------

    def _first_hello(self) -> bytes:
        rng = self._rng
        wishes: dict[str, object] = {"name": rng.choice(NAMES)} if rng.random() < 0.4 else {}
        if rng.random() < 0.4:
            wishes["room"] = rng.choice(self._rooms)
        if self._is_in_several and rng.random() < 0.8:
            some = rng.sample(self._rooms, rng.randint(0, len(self._rooms)))
            wishes["rooms"] = {
                room: {"replay": rng.choice([1, 10])} if rng.random() < 0.3 else {} for room in some
            }
        if rng.random() < 0.15:
            wishes["login"] = self._credentials()
        return f"/json {json.dumps(wishes)}\n".encode()

    def _second_hello(self, coming: Return, notebook: RoomsNotebook) -> bytes:
        rng = self._rng
        first = notebook.hello(coming, rng, self._rooms)
        wishes = json.loads(first.removeprefix(b"/json "))
        if self._is_in_several:
            wishes.pop("replay", None)
            if rng.random() < 0.9:
                wishes.pop("since", None)
            wishes["rooms"] = {
                room: self._start(coming.since if rng.random() < 0.8 else Since.LAST, room)
                for room in notebook.rooms
                if rng.random() < 0.85
            }
            if rng.random() < 0.1:
                wishes["rooms"].setdefault(rng.choice(self._rooms), {})
        if rng.random() < 0.2:
            wishes["login"] = self._credentials()
        return f"/json {json.dumps(wishes)}\n".encode()

    def _start(self, kind: Since, room: str) -> dict[str, object]:
        """Return where *room* is to start."""
        notebook, rng = self._notes, self._rng
        ids = notebook.ids.get(room, [])
        others = [each[-1] for key, each in notebook.ids.items() if key != room and each]
        match kind:
            case Since.LAST if ids:
                return {"since": ids[-1]}
            case Since.OLDER if ids:
                return {"since": rng.choice(ids)}
            case Since.ELSEWHERE if others:
                return {"since": rng.choice(others)}
            case Since.NEVER if ids:
                epoch, _, number = ids[-1].partition("-")
                return {"since": f"{epoch}-{int(number) + 1_000_000}"}
            case Since.GARBAGE:
                return {"since": "x-1000000000"}
        return {"replay": rng.choice([1, 5])} if rng.random() < 0.3 else {}

    # --- Actions ----------------------------------------------------------------------------------

    def _request(self, kind: str, **fields: Any) -> bytes:
        if not self._guest.speaks_json:
            kind = "join" if kind == "exit" else kind
            return self._ask(kind, **fields)
        self._notes.requests += 1
        nonce = f"r{self._notes.requests}"
        return self._line(json.dumps({"type": kind, "nonce": nonce, **fields}))

    def _some_room(self) -> str:
        """Return mostly a room that the client is in, and sometimes any."""
        rooms = [*self._notes.rooms]
        return self._rng.choice(rooms if rooms and self._rng.random() < 0.85 else self._rooms)

    def _maybe_room(self) -> dict[str, str]:
        return {"room": self._some_room()} if self._rng.random() < 0.6 else {}

    def _tell(self, kind: str) -> bytes:
        if not self._guest.speaks_json or self._notebook is None:
            return self._ask(kind, text=self._text())
        text, room = self._text(), self._maybe_room() if self._is_in_several else {}
        nonce, notes = self._said, self._notes
        line = self._line(json.dumps({"type": kind, "nonce": nonce, "text": text, **room}))
        notes.wrote(nonce, line)
        notes.used[nonce] = text, room.get("room")
        while len(notes.used) > _USED:
            del notes.used[next(iter(notes.used))]
        return line

    def _say(self) -> bytes:
        return self._tell("say")

    def _act(self) -> bytes:
        return self._tell("act")

    def _reuse(self) -> bytes:
        """Send another message with the nonce of an earlier one."""
        if not self._notes.used or not self._guest.speaks_json:
            return self._say()
        nonce = self._rng.choice([*self._notes.used])
        text, room = self._notes.used[nonce]
        if self._rng.random() < 0.5:
            text = self._text()
        elif self._is_in_several:
            room = self._rng.choice(self._rooms)
        where = {} if room is None else {"room": room}
        return self._line(json.dumps({"type": "say", "nonce": nonce, "text": text, **where}))

    def _enter(self) -> bytes:
        room = self._rng.choice(self._rooms)
        if not self._is_in_several:
            return self._request("join", room=room)
        start: dict[str, Any] = {}
        if self._rng.random() < 0.7:
            start = self._start(self._rng.choice(list(Since)[:3]), room)
        return self._request("enter", room=room, **start)

    def _exit(self) -> bytes:
        """Exit a room, mostly the current one; then another one is."""
        if not self._is_in_several or self._rng.random() < 0.5:
            return self._request("exit", room=self._some_room())
        room = next(reversed(self._notes.rooms), self._rooms[0])
        return self._request("exit", room=room) + self._say_here()

    def _say_here(self) -> bytes:
        """Say something in the current room, without naming it."""
        text, nonce = self._text(), self._said
        line = self._line(json.dumps({"type": "say", "nonce": nonce, "text": text}))
        self._notes.wrote(nonce, line)
        return line

    def _join(self) -> bytes:
        room = self._rng.choice(self._rooms)
        start = self._start(Since.LAST, room) if self._rng.random() < 0.5 else {}
        start.pop("replay", None)
        return self._request("join", room=room, **start)

    def _ask_history(self) -> bytes:
        fields: dict[str, Any] = {"limit": self._rng.choice((1, 3, 20))}
        if self._guest.speaks_json:
            room = self._some_room()
            ids = self._notes.ids.get(room)
            if ids and self._rng.random() < 0.5:
                fields["before"] = self._rng.choice(ids)
            if self._is_in_several:
                fields["room"] = room
        return self._request("history", **fields)

    # --- Accounts ---------------------------------------------------------------------------------

    def _credentials(self) -> dict[str, str]:
        known = [*self._notes.keys.chosen] if self._rng.random() < 0.8 else []
        name = self._rng.choice(known or NAMES)
        return {"name": name, "passphrase": self._notes.keys.guess(name, self._rng)}

    def _register(self) -> bytes:
        """Register the present name, or take one first."""
        name = self._notes.name
        if name.startswith("Client") or not name:
            name = self._rng.choice(NAMES)
            first = self._request("name", name=name)
            return first + self._request("register", passphrase=self._notes.keys.choose(name))
        return self._request("register", passphrase=self._notes.keys.choose(name))

    def _change_passphrase(self) -> bytes:
        name = self._notes.name or self._rng.choice(NAMES)
        return self._request("passphrase", passphrase=self._notes.keys.choose(name))
