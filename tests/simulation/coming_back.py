"""Invariants of reconnecting clients and of the journal; see `invariants`.

Together they guarantee that every member gets every message once and in one order, across its
connections and kills of the server: each reconnecting client gets everything after the last
message that it received (`nothing_missed_nor_twice`); it keeps its identity (`sessions_hold`);
a message that it sends again is not published again (`nonces_are_once`); and every delivered
message is in the journal and stays there (`journal_first`), or is unknown after a restore and
reported as such (`unknown_ids_are_told`).
"""

from collections import Counter
from collections.abc import Callable, Iterator
from hashlib import sha256
from itertools import takewhile
from math import inf
from typing import Any

import msgspec

from multichat import Slow

from .chronicle import KILLED
from .history import History, Section, Visit

__all__ = ["COMING_BACK"]

# The logged reasons of disconnects that end a session, whatever token is sent later.
_FOR_GOOD = "kicked"

# From this size on, the sessions' share of the memory is enough for all sessions of a run.
_SESSIONS_BYTES = 10_000_000

# The kinds of events that answer a request for earlier messages.
_QUIT = "you asked to leave"


# --- The journal ----------------------------------------------------------------------------------


def journal_first(history: History) -> Iterator[str]:
    """No message is delivered or accepted before it is stored; what is stored is delivered."""
    yield from history.chronicle.early
    kept: dict[tuple[int, object], bool | None] = {
        (each.said.client, nonce): each.kept
        for each in history.taken
        for nonce in each.nonces
        if nonce is not None
    }
    for visit in history.visits:
        private = {each.nonce for each in visit.sent if each.to is not None}
        client = visit.server_number
        for heard in visit.told:
            if heard.kind == "welcome":
                client = heard.number
            elif (
                heard.kind == "accepted"
                and heard.nonce not in private
                and kept.get((client or 0, heard.nonce)) is not True
            ):
                yield f"{visit} had {heard.nonce} accepted, and it is not kept"


def what_is_not_kept_is_not_said(history: History) -> Iterator[str]:
    """The sender of a message that cannot be stored gets an error; no client gets the message."""
    kept = {(each.said.client, each.said.text) for each in history.taken if each.kept}
    logged = {"\n".join(each.texts) for each in history.chronicle.publishes}
    for visit in history.visits:
        told = {each.nonce for each in visit.told if each.text == "storage-failed"}
        if any(each.text.startswith("messages cannot be stored now") for each in visit.told):
            told.add(None)
        departure = history.departure(visit)
        taken = history.chronicle.taken_from.get(visit.server_number or 0, [])
        for each in taken:
            said = each.said
            if each.kept is not False:
                continue
            if said.text in logged and (said.client, said.text) not in kept:
                yield f"{visit} said {said.text[:20]}, which was not kept, and is told"
            if departure is None or (departure.reason and each is taken[-1]):
                continue  # it may have been disconnected before that was known, or before its turn
            if history.heard_until_departure(visit) and not told.issuperset(each.nonces or [None]):
                yield f"{visit} was not told that {said.text[:20]} is not kept"


# --- Reconnecting ---------------------------------------------------------------------------------


def nothing_missed_nor_twice(history: History) -> Iterator[str]:
    """A client that requests a replay gets all messages from there once, in order, or a count.

    Including the transition to live messages: from the requested message until it leaves, there is
    no gap except its own messages and those counted as missed, and no duplicate.
    """
    for visit in history.visits:
        sections = history.sections(visit)
        for i, section in enumerate(sections):
            if wrong := _follow(history, visit, section, last=i == len(sections) - 1):
                yield f"{visit} in {section.stay.room}: {wrong}"


def _follow(history: History, visit: Visit, section: Section, *, last: bool) -> str:
    """Compare the received messages with the published ones; return what is wrong, if anything."""
    chronicle, stay = history.chronicle, section.stay
    keys = chronicle.numbered.get(stay.room, [])
    own = _own(history, section)
    drops = history.plan.config.slow is Slow.DROP
    announced = sum(
        publish.speaker is None and not {heard.key for heard in section.heard} >= {*publish.keys}
        for publish in chronicle.said_during(stay)
    )
    places = _starts(history, section)
    for heard in section.heard:
        if heard.kind == "missed":
            skipped = {
                end for place in places for end in _skip(place, heard.messages, own, section.told)
            }
            if drops:  # of messages of others and of the server
                counts = {*range(max(0, heard.messages - announced), heard.messages + 1)}
                skipped |= {
                    end for place in places for count in counts for end in _skip(place, count, own)
                }
            places = skipped
        elif heard.kind == "said" and heard.id:
            told = chronicle.ids.get(heard.id)
            if told is None or told.room != stay.room:
                return f"heard {heard.key}, which was said elsewhere"
            number = told.number
            if not any(place <= number and _all_own(place, number, own) for place in places):
                return f"heard {heard.key}, number {number}, where one of {sorted(places)} is next"
            places = {number + 1}
        elif heard.kind == "said" and heard.key in chronicle.order:
            number = keys.index(heard.key) if heard.key in keys else -1
            if number < 0:
                continue  # the server's
            if not any(place <= number and _all_own(place, number, own) for place in places):
                return f"heard {heard.key}, number {number}, where one of {sorted(places)} is next"
            places = {number + 1}
    end = _must_reach(history, visit, section, last=last)
    if not any(place >= end or _all_own(place, end, own) for place in places):
        return f"heard all up to number {max(places, default=0)}, and {end} were told"
    return ""


def _starts(history: History, section: Section) -> set[int]:
    """Return the numbers at which the messages of *section* may begin."""
    start, stay, chronicle = section.start, section.stay, history.chronicle
    if start is None:
        start = chronicle.told(stay.room, stay.start)
        before = chronicle.said_before(stay)
        if before is not None and before.speaker is not None:
            return {*range(before.first, start + 1)}  # it may not have been finished
    if section.at_least and history.plan.faults.max_messages is not None:
        return {*range(start, len(chronicle.numbered.get(stay.room, [])) + 1)}
    return {start}


def _own(history: History, section: Section) -> set[int]:
    room = section.stay.room
    return {
        number
        for publish in history.chronicle.by_room.get(room, [])
        if publish.speaker == section.client
        for number in range(publish.first, publish.first + len(publish.keys))
    }


def _all_own(start: int, end: int, own: set[int]) -> bool:
    return all(number in own for number in range(start, end))


def _skip(place: int, count: int, own: set[int], told: int = 0) -> Iterator[int]:
    """Yield the possible positions of a client after it missed that many messages.

    Its own messages are not counted; those from before its connection, when *told* had been
    delivered, may be counted: the server recognizes them only by their nonces.
    """
    others = at_most = 0
    while others <= count:
        if count <= at_most:
            yield place
        others += place not in own
        at_most += place not in own or place < told
        place += 1


def _must_reach(history: History, visit: Visit, section: Section, *, last: bool) -> int:
    """Return the number up to which *visit* must have received everything in *section*."""
    chronicle, stay = history.chronicle, section.stay
    if section.until is not None:
        return section.until
    if last and not history.heard_until_departure(visit):
        return 0
    end = chronicle.told(stay.room, stay.end)
    if (reached := history.reached(stay)) is not None:
        end = min(end, reached)
    if history.plan.config.slow is Slow.DISCONNECT and history.may_be_cut_short(stay):
        publishes = [each for each in chronicle.said_during(stay) if each.speaker is not None]
        if publishes:
            end = min(end, publishes[-1].first)
    return end


def unknown_ids_are_told(history: History) -> Iterator[str]:
    """A request for the messages after an unknown id is answered by an error."""
    for visit in history.visits:
        for i, heard in enumerate(visit.told):
            since, _ = visit.wish(heard) or (None, 0)
            if since is None or history.knows(since, heard):
                continue
            rest = visit.told[i + 1 :]
            errors = [each.text for each in takewhile(lambda each: each.kind == "error", rest)]
            if "unknown-id" not in errors and len(errors) < len(rest):
                yield f"{visit} was not told that {heard.room} does not have {since}"


def sessions_hold(history: History) -> Iterator[str]:
    """A client that sends its token, and no other, has its former number, name and room.

    A token has no effect if it was never issued, belongs to another client, if its session has
    ended or expired, or was not stored when its server was killed.
    """
    issued: dict[str, int] = {}  # also in a welcome that was lost, although the session was not
    for visit in (visit for each in history.branches for visit in each.visits):
        for heard in visit.told:
            if heard.kind == "welcome" and not heard.act:
                issued[heard.text] = heard.number or 0
    for connection, client in history.chronicle.resumed.items():
        whose, who = history.person_of.get(client), history.person_of.get(connection)
        if whose != who:
            yield f"client {connection}, who is c{who}, took over client {client}, who is c{whose}"
        began = history.chronicle.stays[connection][1].start
        before = [
            each
            for each in history.visits_of(client)
            if each.server_number != connection and history.stays(each)[0].start < began
        ]
        gone = [each for each in before if _has_left(history, each, began)]
        if any(
            _left_for_good(history, each) and _kept_since(history, client, each, began) is None
            for each in gone
        ):
            yield f"client {connection} is client {client}, who had left for good"
        if before and gone == before:
            seen = max(_seen(history, client, each, began) for each in gone)
            away = history.log[began].seconds - seen
            reading = (
                history.plan.faults.slow_seconds / 2
            )  # it requests its session, and then reads
            if away > history.plan.session_seconds + reading + 1e-6:
                yield f"client {connection} is client {client}, who was away for {away:.2f} s"
    for visit in history.visits:
        welcome = next((heard for heard in visit.told if heard.kind == "welcome"), None)
        if welcome is None:
            continue
        token = visit.hello.get("session")
        known = issued.get(token) if token is not None else None
        as_whom = history.chronicle.resumed.get(visit.server_number or 0)
        if welcome.act != (as_whom is not None):
            yield f"{visit} was told {welcome.act} of coming back as {as_whom}"
        elif welcome.act and (known != as_whom or welcome.number != as_whom):
            yield f"{visit} came back as {as_whom} with the token of {known}"
        elif token and not welcome.act and known and not _is_lost(history, known, visit, token):
            yield f"{visit} was not let back as client {known}"
        stay = _first_stay(history, visit)
        if stay is not None and welcome.room.lower() != stay:
            yield f"{visit} was welcomed in {welcome.room}, and is in {stay}"


def sessions_are_kept_with_messages(history: History) -> Iterator[str]:
    """After a kill, a session is in the room of its last message, or in a later one.

    Or in the room that it requested in a hello and could not enter.
    """
    for kill in history.kills:
        last = {
            each.said.client: each
            for each in history.taken
            if each.kept and each.position <= kill.position
        }
        for client, (record, _) in kill.sessions.items():
            if client not in last:
                continue
            rooms = {last[client].said.room.lower()} | {
                stay.room
                for visit in history.visits_of(client)
                for stay in history.stays(visit)
                if stay.client == client
                and stay.end >= last[client].position
                and stay.start <= kill.position
            }
            rooms |= {each.hello.get("room", "").lower() for each in history.visits_of(client)}
            if record.rooms[-1].lower() not in rooms:
                yield f"client {client} was left in {record.rooms[-1]}, and was last in {rooms}"


def _first_stay(history: History, visit: Visit) -> str | None:
    """Return the room in which *visit* must be welcomed, if that is known."""
    stays = history.stays(visit)
    if not stays or visit.hello.get("room"):
        return None
    again = history.chronicle.resumed.get(visit.server_number or 0) is not None
    return stays[min(int(again), len(stays) - 1)].room


def _has_left(history: History, visit: Visit, position: int) -> bool:
    departure = history.departure(visit)
    return departure is not None and departure.position < position


def _seen(history: History, client: int, visit: Visit, until: float) -> float:
    """Return when *client* was last connected by *visit*, as known at position *until*."""
    departure = history.departure(visit)
    if departure is None:
        return history.seconds
    seen = 0.0 if departure.reason == KILLED else departure.seconds
    return max(seen, _kept_since(history, client, visit, until) or 0.0)


def _kept_since(history: History, client: int, visit: Visit, until: float) -> float | None:
    """Return since when *client* is disconnected for the server after the next kill after *visit*.

    That server knows only what was stored, which may not include the end of *visit*.  None if there
    was no kill before *until*, or the session was not stored.
    """
    departure = history.departure(visit)
    for kill in history.kills:
        if departure is not None and departure.position <= kill.position < until:
            return kill.sessions[client][1] if client in kill.sessions else None
    return None


def _left_for_good(history: History, visit: Visit) -> bool:
    departure = history.departure(visit)
    if departure is not None and departure.reason.startswith(_FOR_GOOD):
        return True
    return any(heard.kind == "goodbye" and _QUIT in heard.text for heard in visit.told)


def _is_lost(history: History, client: int, visit: Visit, token: str) -> bool:
    """Whether the session *token* of *client* could not be resumed at the hello of *visit*."""
    if history.plan.config.memory_bytes < _SESSIONS_BYTES:
        return True  # there is no memory for any session
    digest = sha256(token.encode()).digest()  # after a restore, another client may have the number
    for kill in history.kills:
        record, _ = kill.sessions.get(client, (None, 0.0))
        if record is None or record.digest != digest or history.plan.faults.damaged_reads:
            return True
    stays = history.stays(visit)
    seen, until = 0.0, stays[0].start if stays else inf
    for each in history.visits_of(client):
        departure = history.departure(each)
        if each is visit or departure is None:
            continue
        if _left_for_good(history, each):
            return True
        seen = max(seen, _seen(history, client, each, until))
    ended = visit.session_ended_seconds or history.seconds
    return ended - seen > history.plan.session_seconds


def nonces_are_once(history: History) -> Iterator[str]:
    """A message with a nonce is published once, however often and over how many connections."""
    said = Counter(
        (each.said.client, nonce)
        for each in history.taken
        if each.kept
        for nonce in each.nonces
        if nonce is not None
    )
    for (client, nonce), count in said.items():
        if count > 1:
            yield f"client {client} said {nonce} {count} times"
    ids: dict[tuple[int, Any], str] = {}
    for visit in history.visits:
        whose = visit.server_number or 0
        for heard in visit.told:
            if heard.kind == "welcome":
                whose = heard.number or 0
            elif heard.kind == "accepted" and heard.id:
                first = ids.setdefault((whose, heard.nonce), heard.id)
                if first != heard.id:
                    yield f"{visit} had {heard.nonce} accepted as {first} and as {heard.id}"


def history_is_what_was_said(history: History) -> Iterator[str]:
    """A page of history contains consecutive messages as they were published."""
    chronicle = history.chronicle
    for visit in history.visits:
        for heard in visit.heard:
            if heard.kind != "history":
                continue
            page: dict[str, Any] = msgspec.json.decode(heard.text)
            numbers = []
            for said in page["messages"]:
                told = chronicle.ids.get(said["id"])
                key = said["text"].partition(":")[0]
                if told is None or told.key.partition(":")[0] not in (key, said["name"]):
                    yield f"{visit} was shown {key} as {said['id']}, which it is not"
                    break
                numbers.append(told.number)
            gaps = max(numbers, default=-1) + 1 - min(numbers, default=0) - len(numbers)
            if numbers != sorted({*numbers}) or gaps > page.get("missed", 0):
                yield f"{visit} was shown {numbers}"


def short_absences_are_not_told(history: History) -> Iterator[str]:
    """A client that reconnects within `away_seconds` is not announced as left or joined.

    So other members get no more joins and leaves than there were: when it entered or left a room,
    and once more if it was away for longer, or if another client took its name.  A member that
    enters a room again does not know who was there before.
    """
    most = {client: _goings(history, client) for client in history.person_of}
    for visit in history.visits:
        heard: Counter[tuple[str, int | None]] = Counter()
        for each in visit.heard:
            if each.kind == "welcome" or (each.kind == "joined" and each.room):
                heard.clear()
            elif each.kind in ("left", "joined"):
                heard[each.kind, each.number] += 1
                count = heard[each.kind, each.number]
                if count > most.get(each.number or 0, 0):
                    yield f"{visit} heard {count} times that client {each.number} {each.kind}"


def _goings(history: History, client: int) -> int:
    """Return how often *client* entered or left a room, as seen by the others."""
    chronicle, away = history.chronicle, history.plan.config.away_seconds
    goings = 0
    last_seconds, last_room = -1e9, ""
    for visit in sorted(history.visits_of(client), key=lambda each: each.server_number or 0):
        for stay in history.stays(visit):
            if stay.client != client:
                continue
            began = history.log[stay.start].seconds
            away_too_long = began - last_seconds >= away
            if stay.room != last_room or away_too_long or stay.start in chronicle.renamed_away:
                goings += 1
            last_room = stay.room
            end = history.chronicle.departures.get(visit.server_number or 0)
            last_seconds = (
                history.log[int(stay.end)].seconds
                if stay.end < len(history.log)
                else (end.seconds if end else history.seconds)
            )
    return goings + len(history.kills)


COMING_BACK: tuple[Callable[[History], Iterator[str]], ...] = (
    journal_first,
    what_is_not_kept_is_not_said,
    nothing_missed_nor_twice,
    unknown_ids_are_told,
    sessions_hold,
    sessions_are_kept_with_messages,
    nonces_are_once,
    history_is_what_was_said,
    short_absences_are_not_told,
)
