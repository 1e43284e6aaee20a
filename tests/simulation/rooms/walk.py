"""Follows one JSON connection through its rooms, request by request and event by event.

The server carries out the requests of a connection one after the other, and answers each in that
step.  So the answers say in which rooms it is at each event, and which one is the current one.
Collects what contradicts that, by invariant, and the sections: what it got in each room, from
entering it until it left.
"""

from collections import defaultdict
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any

from multichat import Slow
from tests.simulation.chronicle import key_of
from tests.simulation.coming_back import _all_own, _skip
from tests.simulation.history import Visit

from .history import RoomsHistory
from .plan import Guest, Speaks
from .wire import Request, Talk

__all__ = ["RoomSection", "Walk"]


@dataclass
class RoomSection:
    """What a client got in one *room*, from entering it on.

    *starts* are the numbers with which it may begin, *told* is how many messages had been delivered
    in the room then.  *items* are numbers of messages, and counts of missed ones as negative
    numbers.  *stay* is its place among the stays of the connection in that room.  *is_over*: an
    answer said that it has left.  *is_continued*: another section is the rest of this stay.
    """

    room: str
    starts: set[int]
    told: int
    stay: int
    items: list[int] = field(default_factory=list)
    is_over: bool = False
    is_continued: bool = False


class Walk:
    """One connection, *visit*, in *history*; *problems* are by the name of the invariant."""

    def __init__(self, history: RoomsHistory, visit: Visit) -> None:
        self.problems: dict[str, list[str]] = defaultdict(list)
        self.sections: list[RoomSection] = []
        self.client = visit.server_number or 0
        self.welcomed_in: set[str] | None = None  # None without a welcome
        self.refused_rooms: set[str] = set()
        self.has_all_errors = False  # it has received everything about the rooms of its hello
        self.is_resumed = False
        self.answered: set[int] = set()  # the indices of requests
        self._history, self._visit, self._chronicle = history, visit, history.chronicle
        self._open: dict[str, RoomSection] = {}  # the current one last
        self._stays: dict[str, int] = {}
        self._known: set[object] = set()  # nonces of messages without a room
        self._names_rooms = False
        self._refused: str | None = None  # `sure` or `maybe`: the current room was refused
        assert isinstance(visit.plan, Guest)
        self._is_in_several = visit.plan.speaks is Speaks.SEVERAL
        talk = history.talk(visit)
        if talk.speaks_json:
            self._follow(talk)
            for section in self.sections:
                if wrong := self._compare(section):
                    self._problem("nothing_missed_nor_twice", f"in {section.room}: {wrong}")

    def _problem(self, invariant: str, what: str) -> None:
        self.problems[invariant].append(f"{self._visit} {what}")

    # --- Events -----------------------------------------------------------------------------------

    def _follow(self, talk: Talk) -> None:
        is_welcomed = False
        last_answered = -1
        for i, (event, request) in enumerate(talk.answers()):
            if event["type"] == "welcome":
                is_welcomed = True
                self._welcome(talk, event, talk.events[i + 1 :])
                continue
            if not is_welcomed:
                continue
            if request is not None:
                if request.index < last_answered:
                    self._problem("requests_are_answered", f"got {event}, which is late")
                last_answered = max(last_answered, request.index)
                self.answered.add(request.index)
                self._answer(request, event, talk.events[i + 1 :])
            else:
                self._hear(event)

    def _welcome(self, talk: Talk, welcome: dict[str, Any], rest: list[dict[str, Any]]) -> None:
        hello = talk.hello
        self.client, self.is_resumed = welcome["client"], welcome["resumed"]
        self._names_rooms = "rooms" in hello
        if ("rooms" in welcome) != self._names_rooms:
            self._problem("rooms_are_named", "was welcomed as one that knows other rooms")
        following = [*takewhile(lambda each: each["type"] in ("error", "logged-out"), rest)]
        self.has_all_errors = len(following) < len(rest)
        errors = [each for each in following if each["type"] == "error" and "nonce" not in each]
        current = welcome["room"].lower()
        last = {current: welcome["last"]}
        if self._names_rooms:
            last = {name.lower(): each["last"] for name, each in welcome["rooms"].items()}
            if [*last][-1:] != [current]:
                self._problem("rooms_are_named", f"is in {[*last]}, and in {current}")
        wanted = [name.lower() for name in hello.get("rooms", {})]
        if "room" in hello:
            name = hello["room"].lower()
            wanted = [each for each in wanted if each != name] + [name]
        starts = {name.lower(): dict(each) for name, each in hello.get("rooms", {}).items()}
        bare = {key: hello[key] for key in ("since", "replay") if key in hello}
        full = any(each["code"] == "too-many-rooms" for each in errors)
        if wanted:
            start = starts.setdefault(wanted[-1], {})
            starts[wanted[-1]] = {**bare, **start}
        else:
            starts[current] = bare  # unless the session's current room was refused, see below
        for room in last:
            start = starts.get(room, {})
            # The bare `since` may be about the session's current room, which was refused again.
            is_known = self.has_all_errors and not (full and not wanted)
            self._begin(room, last[room], start, errors if is_known else None)
            if full and not wanted:
                self._open[room].starts.add(self._open[room].told)
        no_entry = ("too-many-rooms", "invalid-name")
        refused = [each.get("room", "").lower() for each in errors if each["code"] in no_entry]
        if self._names_rooms and wanted and wanted[-1] in refused and not self.is_resumed:
            self._refused = "sure"
        elif full or not self.has_all_errors:
            self._refused = "maybe"
        self.welcomed_in = {*last}
        self.refused_rooms = {*refused}

    def _begin(
        self,
        room: str,
        last: str | None,
        start: dict[str, Any],
        errors: list[dict[str, Any]] | None,
    ) -> None:
        """Begin a section of *room*, whose last message has the id *last*.

        *errors* followed the answer; None if not all of them are known.
        """
        chronicle, told = self._chronicle, self._chronicle.number_of(last) + 1
        if last is not None and (known := chronicle.ids.get(last)) is not None:
            if known.room != room:
                self._problem("ids_are_in_order", f"heard {last} as the last id of {room}")
        elif last is not None:
            self._problem("ids_are_in_order", f"heard {last} as the last id, which nothing has")
        starts = {told}
        since = start.get("since")
        if since is not None:
            of = chronicle.ids.get(since)
            if of is not None and of.room == room and of.number < told:
                starts = {of.number + 1}
            elif errors is not None and not any(
                each["code"] == "unknown-id" and each.get("room", room).lower() == room
                for each in errors
            ):
                self._problem("unknown_ids_are_told", f"has {since} in {room}, without an error")
        elif replay := start.get("replay", 0):
            starts = {max(0, told - replay)}
            if self._history.plan.faults.max_messages is not None:
                starts |= {*range(min(starts), told + 1)}
        stay = self._stays.get(room, 0)
        if (old := self._open.pop(room, None)) is not None:
            old.is_continued = True
        section = RoomSection(room, starts, told, stay)
        self._open[room] = section
        self.sections.append(section)

    def _close(self, room: str) -> None:
        section = self._open.pop(room)
        section.is_over = True
        self._stays[room] = section.stay + 1

    def _answer(self, request: Request, event: dict[str, Any], rest: list[dict[str, Any]]) -> None:
        kind, code = request.kind, event.get("code", "")
        if kind == "enter":
            self._names_rooms = True
        match kind:
            case "say" | "act":
                self._said(request, event)
            case "enter" | "join" if event["type"] == "joined":
                self._entered(request, event, rest)
            case "enter" | "join" if code == "too-many-rooms":
                config = self._history.plan.config
                is_full = len(self._open) >= config.max_rooms_per_client and kind == "enter"
                if config.max_rooms > 100 and not is_full:
                    self._problem("requests_are_answered", f"in {[*self._open]} got {event}")
            case "exit":
                self._exited(request, event)
            case "history":
                self._check_room(request, event, "history")
            case "who" if event["type"] == "members":
                room = request.room or self._current
                listed = {each["client"] for each in event["members"]}
                if event["room"].lower() != room:
                    self._problem("rooms_are_named", f"asked who is in {room}, got {event}")
                elif (self.client in listed) != (room in self._open):
                    self._problem("only_members_hear", f"in {[*self._open]} got {event}")

    @property
    def is_refused(self) -> bool:
        """Whether it may be that its current room was refused, at the end."""
        return self._refused is not None

    @property
    def _current(self) -> str:
        return next(reversed(self._open), "")

    def _entered(self, request: Request, event: dict[str, Any], rest: list[dict[str, Any]]) -> None:
        room = event["room"].lower()
        if room != request.room:
            self._problem("rooms_are_named", f"wanted {request.room}, got {event}")
        if self._refused:
            self._refused = None
        if request.kind == "join":
            for other in [each for each in self._open if each != room]:
                self._close(other)
        wishes = ("since", "replay")
        start = {key: value for key, value in request.fields.items() if key in wishes}
        if room in self._open and (request.kind == "enter" or not start):
            self._open[room] = self._open.pop(room)
            return
        errors = [*takewhile(lambda each: each["type"] == "error" and "nonce" not in each, rest)]
        is_cut = len(errors) == len(rest)
        self._begin(room, event.get("last"), start, None if is_cut else errors)

    def _exited(self, request: Request, event: dict[str, Any]) -> None:
        room = request.room or ""
        code = event.get("code", "")
        expected = ""
        if room not in self._open:
            expected = "not-in-room"
        elif len(self._open) == 1:
            expected = "last-room"
        if code != expected or (not code and event["type"] != "left"):
            self._problem("requests_are_answered", f"in {[*self._open]} asked to exit, got {event}")
        if event["type"] == "left" and room in self._open:
            self._close(room)

    def _check_room(self, request: Request, event: dict[str, Any], kind: str) -> None:
        room = request.room or self._current
        code = event.get("code", "")
        if event["type"] == kind:
            if self._names_rooms and event.get("room", "").lower() != room:
                self._problem("rooms_are_named", f"asked for {room}, got {str(event)[-80:]}")
            if room not in self._open:
                self._problem("only_members_hear", f"saw the history of {room}")
            self._check_page(room, event, request)
        elif code == "not-in-room" and room in self._open and not self._refused:
            self._problem("requests_are_answered", f"in {[*self._open]} got {event}")

    def _check_page(self, room: str, event: dict[str, Any], request: Request) -> None:
        numbers = []
        for said in event["messages"]:
            told = self._chronicle.ids.get(said["id"])
            if told is None or told.room != room or said["room"].lower() != room:
                self._problem("history_is_what_was_said", f"was shown {said} in {room}")
                return
            numbers.append(told.number)
        gaps = max(numbers, default=-1) + 1 - min(numbers, default=0) - len(numbers)
        if numbers != sorted({*numbers}) or gaps > event.get("missed", 0):
            self._problem("history_is_what_was_said", f"was shown {numbers} of {room}")
        before = self._chronicle.ids.get(request.fields.get("before", ""))
        if before is not None and numbers and numbers[-1] >= before.number:
            self._problem("history_is_what_was_said", f"was shown {numbers} before {before}")

    # --- Messages ---------------------------------------------------------------------------------

    def _said(self, request: Request, event: dict[str, Any]) -> None:
        """Check where a message was published, or why it was not."""
        here = request.room or self._current
        key = key_of("", request.fields["text"])
        code = event.get("code", "")
        if event["type"] == "accepted":
            told = self._chronicle.ids.get(event["id"])
            if told is None or told.key != key:
                self._problem(
                    "accepted_messages_are_published", f"had {key} accepted as {event['id']}"
                )
            elif request.room is not None and told.room != request.room:
                self._problem("said_where_it_is_meant", f"said {key} in {here}: {told}")
            elif request.room is not None or not self._is_new(request):
                return
            elif self._refused == "sure":
                self._problem("said_where_it_is_meant", f"said {key} where it is not: {told}")
            elif told.room != here:
                self._problem("said_where_it_is_meant", f"said {key}, and is in {here}: {told}")
        elif code == "not-in-room":
            if here in self._open and not (request.room is None and self._refused):
                self._problem("requests_are_answered", f"in {[*self._open]} got {event}")
        elif code == "nonce-reused":
            self._check_reused(request)
        elif code != "storage-failed":
            self._problem("requests_are_answered", f"said {key} and got {event}")

    def _is_new(self, request: Request) -> bool:
        """Return whether this request, and no earlier one, has published that message."""
        if request.nonce in self._known:
            return False
        self._known.add(request.nonce)
        mine = self._chronicle.taken_from.get(self._visit.server_number or 0, [])
        return any(request.nonce in each.nonces for each in mine)

    def _check_reused(self, request: Request) -> None:
        for taken in self._history.taken:
            if taken.said.client == self.client and request.nonce in taken.nonces:
                texts = taken.said.text.split("\n")
                text = texts[taken.nonces.index(request.nonce)] if len(texts) > 1 else texts[0]
                is_act = taken.said.act == (request.kind == "act")
                same_room = request.room in (None, taken.said.room.lower())
                if text != request.fields["text"] or not same_room or not is_act:
                    return
        self._problem("nonces_are_once", f"was refused {request.fields}, which is no other message")

    def _hear(self, event: dict[str, Any]) -> None:
        kind = event["type"]
        room = event.get("room", "").lower()
        if kind == "said":
            self._hear_said(event, room)
        elif kind in ("joined", "left", "presence", "missed"):
            if self._names_rooms and not room:
                self._problem("rooms_are_named", f"got {event}")
            elif not self._is_in_several and room:
                self._problem("rooms_are_named", f"knows one room, and got {event}")
            elif room and room not in self._open:
                self._problem("only_members_hear", f"is in {[*self._open]}, and got {event}")
            elif kind == "missed":
                if not room and len(self._open) == 1:
                    room = self._current
                if room:
                    self._open[room].items.append(-event["count"])

    def _hear_said(self, event: dict[str, Any], room: str) -> None:
        chronicle = self._chronicle
        told = chronicle.ids.get(event["id"])
        key = key_of(event["name"], event["text"])
        if told is None or told.key != key:
            self._problem("ids_are_in_order", f"heard {key} as {event['id']}, which it is not")
        elif told.room != room:
            self._problem("rooms_are_named", f"heard {key} in {room}, it is {told}")
        elif room not in self._open:
            self._problem("only_members_hear", f"is in {[*self._open]}, and heard {key} of {room}")
        else:
            self._open[room].items.append(told.number)
            if told.number in self._history.own.get((room, self.client), ()):
                self._problem("no_echo", f"heard its own {key}")

    # --- What must have come ----------------------------------------------------------------------

    def _compare(self, section: RoomSection) -> str:
        """Compare what was received in *section* with what was published; return what is wrong."""
        history = self._history
        own = history.own.get((section.room, self.client), set())
        places = section.starts
        for item in section.items:
            if item < 0:
                places = {end for place in places for end in _skip(place, -item, own, section.told)}
                continue
            if not any(place <= item and _all_own(place, item, own) for place in places):
                return f"heard number {item}, where one of {sorted(places)[:5]} is next"
            places = {item + 1}
        end = self._must_reach(section)
        if not any(place >= end or _all_own(place, end, own) for place in places):
            return f"heard all up to number {max(places, default=0)}, and {end} were told"
        return ""

    def _must_reach(self, section: RoomSection) -> int:
        history, visit = self._history, self._visit
        if section.is_continued:
            return 0
        if not section.is_over and not history.heard_until_departure(visit):
            return 0
        stays = [
            each.left
            for each in self._chronicle.stayings.get(visit.server_number or 0, [])
            if each.room == section.room and each.left is not None and each.left.kind == "left"
        ]
        if section.stay >= len(stays):
            return 0
        left = stays[section.stay]
        departure = history.departure(visit)
        end = left.reached
        if history.plan.config.slow is Slow.DISCONNECT and departure and not section.is_over:
            publishes = [
                each
                for each in self._chronicle.by_room.get(section.room, [])
                if each.speaker is not None and each.position <= departure.position
            ]
            if publishes:
                end = min(end, publishes[-1].first)
        return end
