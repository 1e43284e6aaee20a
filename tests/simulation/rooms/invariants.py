"""The invariants of every history with several rooms and accounts; see `..invariants`.

Each yields the violations that it finds.  Most are found by following each connection (`walk`) or
the log (`chronicle`); here they have their names.
"""

from collections.abc import Iterator
from typing import cast

from multichat.protocol.goodbyes import SHUTTING_DOWN
from tests.simulation import coming_back, invariants
from tests.simulation.chronicle import key_of
from tests.simulation.history import History, Visit
from tests.simulation.invariants import Invariant, Violation
from tests.simulation.plan import ServerEnding

from .chronicle import fits, rooms_at_end
from .history import RoomsHistory
from .plan import PASSPHRASE, Guest, Speaks
from .walk import Walk

__all__ = ["ROOMS_INVARIANTS", "rooms_violations"]


def rooms_violations(history: History) -> list[Violation]:
    """Return the violations in *history* and its lost histories."""
    return invariants.violations(history, ROOMS_INVARIANTS)


def _walks(history: History) -> list[tuple[Visit, Walk]]:
    rooms = cast("RoomsHistory", history)
    found: list[tuple[Visit, Walk]] | None = rooms.__dict__.get("_walks")
    if found is None:
        found = [
            (visit, Walk(rooms, visit)) for visit in rooms.visits if visit.server_number is not None
        ]
        rooms.__dict__["_walks"] = found
    return found


def _of_walks(name: str, doc: str) -> Invariant:
    """Return the invariant *name*, whose violations `walk` finds."""

    def invariant(history: History) -> Iterator[str]:
        for _, walk in _walks(history):
            yield from walk.problems.get(name, ())

    invariant.__name__ = invariant.__qualname__ = name
    invariant.__doc__ = doc
    return invariant


nothing_missed_nor_twice = _of_walks(
    "nothing_missed_nor_twice",
    "In each room, a member gets all messages from its start on once and in order, or a count.",
)
only_members_hear = _of_walks(
    "only_members_hear", "Nobody is told anything of a room that it is not in."
)
rooms_are_named = _of_walks(
    "rooms_are_named",
    "Events name their room for whom knows several, and no room for whom knows one.",
)
ids_are_in_order = _of_walks(
    "ids_are_in_order", "All get the same id for a message: that of its room and number."
)
unknown_ids_are_told = _of_walks(
    "unknown_ids_are_told", "A `since` that its room does not have is answered by an error."
)
said_where_it_is_meant = _of_walks(
    "said_where_it_is_meant",
    "A message is published in the room that it names, or in the sender's current one.",
)
requests_are_answered = _of_walks(
    "requests_are_answered", "Answers come in order, and an error is true."
)
accepted_messages_are_published = _of_walks(
    "accepted_messages_are_published", "An accepted message has that id."
)
no_echo = _of_walks("no_echo", "A sender does not get its own messages.")
history_is_what_was_said = _of_walks(
    "history_is_what_was_said", "A page of history has the messages of its room, in order."
)
nonces_of_others = _of_walks(
    "nonces_are_once", "A nonce is refused only if it was another message's."
)


def nonces_are_once(history: History) -> Iterator[str]:
    """A message with a nonce is published once, and refused only if it is another message."""
    yield from coming_back.nonces_are_once(history)
    yield from nonces_of_others(history)


def one_order(history: History) -> Iterator[str]:
    """The log and the journal have the same order of messages, numbered without gaps."""
    for told in history.chronicle.untaken:
        yield f"{told} was told, and it was not its turn in the journal"
    yield from history.chronicle.misnumbered


def sender_order(history: History) -> Iterator[str]:
    """The messages of a connection are published in the order in which it sent them."""
    for visit, _ in _walks(history):
        talk = cast("RoomsHistory", history).talk(visit)
        if not talk.speaks_json:
            continue
        sent = [
            key_of("", each.fields["text"])
            for each in talk.requests
            if each.kind in ("say", "act") and each.fields["text"]
        ]
        places: dict[str, list[int]] = {}
        for place, key in enumerate(sent):
            places.setdefault(key, []).append(place)
        at = -1
        for taken in history.chronicle.taken_from.get(visit.server_number or 0, []):
            for text in taken.said.text.split("\n"):
                key = key_of("", text)
                later = [place for place in places.get(key, []) if place > at]
                if not later:
                    yield f"{visit} did not send {key} after what was said before it"
                    return
                at = later[0]


def all_is_said(history: History) -> Iterator[str]:
    """If a client left by itself and everything was read, all its requests were answered."""
    plan = history.plan
    for taken in history.never_told:
        yield f"{taken.said.text[:20]} was taken, and nobody was told"
    for visit, walk in _walks(history):
        departure = history.departure(visit)
        if departure is None or departure.reason or not history.heard_until_departure(visit):
            continue
        if (
            plan.server_ending is not ServerEnding.OUTLIVES
            and departure.seconds >= plan.server_ends_seconds
        ):
            continue
        talk = cast("RoomsHistory", history).talk(visit)
        for request in talk.requests if talk.events else ():
            if request.kind == "quit":
                break
            if request.nonce is not None and request.index not in walk.answered:
                yield f"{visit} got no answer to {str(request.fields)[:80]}"
                break


def texts_are_whole(history: History) -> Iterator[str]:
    """Messages are received as they were published: text, sender, name and action."""
    said = {
        f"{taken.said.epoch}-{1_000_000_000 + taken.said.first + i}": (taken.said, text)
        for taken in history.taken
        if taken.kept
        for i, text in enumerate(taken.said.text.split("\n"))
    }
    for visit, _ in _walks(history):
        for event in cast("RoomsHistory", history).talk(visit).events:
            if event["type"] != "said" or event["id"] not in said:
                continue
            block, text = said[event["id"]]
            told = event["text"], event["client"], event["name"], event.get("act", False)
            if told != (text, block.client, block.name, block.act):
                yield f"{visit} heard {event}; it is {text!r} of {block.name}"


def no_forged_tag(history: History) -> Iterator[str]:
    """A message has its sender's name, and its room is one that the sender is in."""
    for name in history.chronicle.shared_names:
        yield f"two people are called {name}"
    yield from history.chronicle.forged


# --- Sessions -------------------------------------------------------------------------------------


def sessions_keep_rooms(history: History) -> Iterator[str]:
    """A resumed session has all rooms that it had, and no other; a failure is an error."""
    rooms_history = cast("RoomsHistory", history)
    chronicle = rooms_history.chronicle
    plan = history.plan
    remembered: dict[int, set[str]] = {}  # rooms that each client may have been refused
    refused: set[int] = set()  # the clients whose current room may have been refused
    for visit, walk in sorted(_walks(history), key=lambda each: each[0].server_number or 0):
        connection, hello = visit.server_number or 0, rooms_history.talk(visit).hello
        client = chronicle.resumed.get(connection, connection)
        wishes = {room.lower() for room in hello.get("rooms", {})}
        wishes |= {hello["room"].lower()} if "room" in hello else set()
        before = remembered.setdefault(client, {"lobby"})
        may_be_there = before | wishes
        # A client that knows one room gets the error, which does not name the room.
        before |= walk.refused_rooms
        if not walk.has_all_errors or "" in walk.refused_rooms:
            before |= wishes
        was_refused = client in refused
        refused.discard(client)
        if walk.is_refused:
            refused.add(client)
        if not walk.is_resumed or connection not in chronicle.resumed:
            continue
        had, is_known = _rooms_before(rooms_history, client, connection)
        if had is None or not (rooms := walk.welcomed_in):
            continue
        assert isinstance(visit.plan, Guest)
        if "rooms" in hello:
            lost = had - rooms - {"lobby"}
            # What it was in comes before what was refused, except for its current room.
            if plan.config.max_rooms <= 100 or was_refused or not is_known:
                lost -= walk.refused_rooms
                lost = lost if walk.has_all_errors else set()
            if lost:
                yield f"{visit} came back and is not in {lost}"
            if more := rooms - had - may_be_there:
                yield f"{visit} came back and is in {more}, too"
        elif (
            visit.plan.speaks is Speaks.ONE
            and "room" not in hello
            and len(had) == 1
            and not walk.refused_rooms
            and rooms != had
            # A room that was refused is the session's, and may be open now: see
            # `Client.refused_room`.  The lobby is never refused.
            and not (was_refused and rooms <= before - {"lobby"})
        ):
            yield f"{visit} came back to {rooms}, and was in {had}"


def _rooms_before(
    history: RoomsHistory, client: int, connection: int
) -> tuple[set[str] | None, bool]:
    """Return the rooms that the session of *client* has when *connection* resumes it.

    And whether it was in all of them: after a kill some may be those that it could not enter.
    """
    chronicle = history.chronicle
    began = chronicle.stays[connection][1].start
    before = [
        each
        for each in chronicle.stays
        if each != connection
        and (each == client or chronicle.resumed.get(each) == client)
        and chronicle.stays[each][-1].start < began
    ]
    if not before:
        return None, False
    latest = max(before, key=lambda each: chronicle.stays[each][-1].start)
    departure = chronicle.departures.get(latest)
    killed = [
        kill
        for kill in history.kills
        if kill.position < began and (departure is None or departure.position <= kill.position)
    ]
    if killed:
        record, _ = killed[-1].sessions.get(client, (None, 0.0))
        return None if record is None else {room.lower() for room in record.rooms}, False
    return rooms_at_end(chronicle, latest), True


def sessions_hold(history: History) -> Iterator[str]:
    """A client that sends its token has its number; no other client has."""
    chronicle = history.chronicle
    issued: dict[str, int] = {}
    rooms_history = cast("RoomsHistory", history)
    for branch in history.branches:
        for visit in branch.visits:
            for event in cast("RoomsHistory", branch).talk(visit).events:
                if event["type"] == "welcome" and not event["resumed"]:
                    issued[event["session"]] = event["client"]
    for connection, client in chronicle.resumed.items():
        whose, who = history.person_of.get(client), history.person_of.get(connection)
        if whose != who:
            yield f"client {connection}, who is c{who}, took over client {client}, who is c{whose}"
    for visit, walk in _walks(history):
        as_whom = chronicle.resumed.get(visit.server_number or 0)
        token = rooms_history.talk(visit).hello.get("session")
        if walk.is_resumed and (as_whom is None or issued.get(token or "") != as_whom):
            yield f"{visit} came back as {as_whom} with the token of {issued.get(token or '')}"


# --- Accounts -------------------------------------------------------------------------------------


def registered_names_are_owned(history: History) -> Iterator[str]:
    """A registered name, or one like it, is on no connection without a login to that account.

    A client that had the name when the operator added the account keeps it until the owner logs in.
    """
    yield from cast("RoomsHistory", history).chronicle.problems.names


def logins_have_a_proof(history: History) -> Iterator[str]:
    """A logged-in client has sent the current passphrase, or resumed a session that had."""
    yield from cast("RoomsHistory", history).chronicle.problems.logins


def sessions_stay_logged_in(history: History) -> Iterator[str]:
    """A resumed session is logged in as before, unless that login holds no longer."""
    yield from cast("RoomsHistory", history).chronicle.problems.lost_logins


def right_passphrases_open(history: History) -> Iterator[str]:
    """A right passphrase is not refused, if the account was there all the time unchanged."""
    chronicle = cast("RoomsHistory", history).chronicle
    for visit, _ in _walks(history):
        talk = cast("RoomsHistory", history).talk(visit)
        began = chronicle.stays.get(visit.server_number or 0)
        departure = history.departure(visit)
        if not began or departure is None:
            continue
        for event, request in talk.answers():
            if (
                request is None
                or request.kind != "login"
                or event.get("code") != "wrong-passphrase"
            ):
                continue
            name = request.fields["name"].casefold()
            changes = [each for each in history.accounts if each.key == name]
            if len(changes) != 1 or changes[0].position > began[0].start:
                continue
            hashes, certain = chronicle.hashes(name, began[0].start)
            if certain and all(fits(request.fields["passphrase"], each) for each in hashes):
                yield f"{visit} was refused the right passphrase of {name}"


def the_unnamed_are_told(history: History) -> Iterator[str]:
    """A client that loses its name to the owner, or its login to another, gets an event."""
    chronicle = cast("RoomsHistory", history).chronicle
    for visit, walk in _walks(history):
        departure = history.departure(visit)
        talk = cast("RoomsHistory", history).talk(visit)
        if departure is None or not history.heard_until_departure(visit) or not talk.events:
            continue
        times = [
            seconds
            for _, seconds in chronicle.unnamed.get(visit.server_number or 0, [])
            if seconds < departure.seconds
        ]
        told = sum(
            (event["type"] == "renamed" and event["client"] == walk.client)
            or event["type"] == "logged-out"
            for event in talk.events
            if event.get("name", "").startswith("Client ")
        )
        if told < len(times) and departure.reason != SHUTTING_DOWN:
            yield f"{visit} lost its name {len(times)} times, and was told {told} times"


def no_passphrase_is_told(history: History) -> Iterator[str]:
    """No passphrase is in the log, or in anything that a client receives."""
    for entry in history.log:
        if PASSPHRASE in entry.text:
            yield f"the log has {entry.text}"
    for visit in history.visits:
        told = b"" if visit.connection is None else visit.connection.to_client.written
        if PASSPHRASE.encode() in told:
            yield f"{visit} was told a passphrase"


ROOMS_INVARIANTS: tuple[Invariant, ...] = (
    invariants.nothing_crashes,
    one_order,
    ids_are_in_order,
    invariants.ids_are_unique,
    sender_order,
    nothing_missed_nor_twice,
    only_members_hear,
    rooms_are_named,
    unknown_ids_are_told,
    said_where_it_is_meant,
    requests_are_answered,
    accepted_messages_are_published,
    no_echo,
    history_is_what_was_said,
    nonces_are_once,
    all_is_said,
    texts_are_whole,
    no_forged_tag,
    invariants.storage_fails_only_for_a_reason,
    invariants.rooms_wait_within_budgets,
    invariants.only_the_stalled_are_too_slow,
    invariants.evicted_are_told,
    invariants.nobody_goes_without_reason,
    invariants.gone_is_gone,
    invariants.nothing_left_behind,
    invariants.ends_in_time,
    invariants.counts_add_up,
    coming_back.journal_first,
    sessions_keep_rooms,
    sessions_hold,
    registered_names_are_owned,
    logins_have_a_proof,
    sessions_stay_logged_in,
    right_passphrases_open,
    the_unnamed_are_told,
    no_passphrase_is_told,
)
