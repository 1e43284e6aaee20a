"""Answers a hello: resumes or begins a session, enters its rooms, and changes to JSON.

All in one step: what filters and the journal say about the hello is known before.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from multichat import __version__
from multichat.errors import InvalidName, RemoteProtocolError
from multichat.protocol.messages import (
    PROTOCOL,
    Error,
    Hello,
    Invalid,
    Limits,
    LoggedOut,
    RoomState,
    Start,
    Welcome,
)
from multichat.protocol.names import fold_name
from multichat.server.accounts import Account
from multichat.server.client import Client
from multichat.server.filters import passed
from multichat.server.member import Member
from multichat.server.registry import Refusal, Registry
from multichat.server.stored_session import StoredSession

__all__ = ["WantedRoom", "greet", "start_from", "wanted_rooms"]

_LOST = "somebody has logged in elsewhere, or the passphrase was changed"


@dataclass(slots=True)
class WantedRoom:
    """A room that a hello asks for: its *name* there, and the *start* of its replay.

    *passed* is the name as the filters have changed it; None if they rejected it.
    """

    name: str
    start: Start
    passed: str | None = None


def wanted_rooms(hello: Hello) -> list[WantedRoom]:
    """Return the rooms that *hello* names, the current one last."""
    wanted: dict[str, WantedRoom] = {}
    for name, start in (hello.rooms or {}).items():
        wanted.pop(fold_name(name), None)
        wanted[fold_name(name)] = WantedRoom(name, start)
    if hello.room is not None:
        key = fold_name(hello.room)
        wanted[key] = wanted.pop(key, WantedRoom(hello.room, Start()))
    rooms = list(wanted.values())
    if rooms:  # a bare `since` belongs to the current room
        current, start = rooms[-1], rooms[-1].start
        current.start = Start(start.since or hello.since, start.replay or hello.replay)
    return rooms


def greet(
    client: Client,
    registry: Registry,
    hello: Hello,
    *,
    rooms: list[WantedRoom],
    excess: list[WantedRoom],
    name: str | None,
    login: Account | RemoteProtocolError | None,
    stored: StoredSession | None,
    limits: Limits,
) -> list[Welcome | Error | LoggedOut]:
    """Carry out *hello*, and return the answer.

    The client asks for these *rooms* and this *name*, which a filter has rejected if it is None
    and *hello* has one.  It does not enter rooms in *excess* of what a hello may name, but where it
    is in one, by its session or as in the lobby, it gets the replay that it asks for.  *login* is
    the account to which it logs in, or why it cannot.  *stored* is the session to resume, if there
    is one.
    """
    refusals: list[Refusal] = []
    was_logged_in = stored is not None and bool(stored.login)
    if stored is not None:
        token = hello.session or ""
        refusals += registry.resume(client, stored)
    else:
        token = registry.give_session(client)
    if hello.rooms is None:
        refusals += _join(client, registry, rooms, is_resumed=stored is not None)
    else:
        client.names_rooms = True
        refusals += _enter_all(client, registry, rooms, is_resumed=stored is not None)
    if isinstance(login, Account):
        try:
            registry.logins.log_in(client, login)
        except RemoteProtocolError as error:
            refusals.append(Refusal(error))
    elif login is not None:
        refusals.append(Refusal(login))
    if hello.name is not None or name:
        try:
            registry.rename(client, passed(name))
        except RemoteProtocolError as error:
            refusals.append(Refusal(error))
    client.set_codec(client.codecs.json)
    # If the hello asks for the session's name, there is one error for both.
    errors = list(dict.fromkeys(_error(client, refusal) for refusal in refusals))
    named = [(wanted.name, wanted.start) for wanted in excess]
    named += [(wanted.passed or "", wanted.start) for wanted in rooms]
    members = client.memberships
    starts = [(members[key], start) for name, start in named if (key := fold_name(name)) in members]
    if not rooms and client.refused_room is None:  # else `since` is about that room
        starts.append((client.current, Start(hello.since, hello.replay)))
    # In a room in which it was before, it may still get earlier messages.
    lasts = {member: member.last_id for member in members.values()}
    for member, start in starts:
        refused = start_from(member, start)
        errors += refused
        if start != Start() and not refused:
            lasts[member] = member.room.last_id
    room = client.room
    welcome = Welcome(
        PROTOCOL,
        client.number,
        client.name,
        room.name,
        room.presence.count_for(client.number),
        limits,
        lasts[client.current],
        f"multichat {__version__}",
        resumed=stored is not None,
        session=token,
        rooms=None if hello.rooms is None else _states(lasts, client),
        account="" if (account := registry.logins.account_of(client)) is None else account.name,
    )
    lost = [LoggedOut(client.name, _LOST)] if was_logged_in and not client.account else []
    return [welcome, *lost, *errors]


def _join(
    client: Client, registry: Registry, rooms: list[WantedRoom], *, is_resumed: bool
) -> list[Refusal]:
    """Let *client* join the one room of its hello; it keeps those of its session if it is there."""
    for wanted in rooms:
        try:
            name = passed(wanted.passed)
            if is_resumed and fold_name(name) in client.memberships:
                registry.enter(client, name)
            else:
                registry.move(client, name)
        except RemoteProtocolError as error:
            client.current.is_stand_in = len(client.memberships) == 1
            registry.refuse_room(client, _remembered(error, wanted))
            registry.note_change(client)
            return [Refusal(error)]
    return []


def _enter_all(
    client: Client, registry: Registry, rooms: list[WantedRoom], *, is_resumed: bool
) -> list[Refusal]:
    """Let *client* enter *rooms*; it leaves those that are neither in its session nor wanted."""
    keys = {fold_name(wanted.passed or "") for wanted in rooms}
    members = client.memberships.values()
    others = [each for each in members if each.room.key not in keys]
    leaving = [each for each in others if each.is_stand_in or not is_resumed]
    refusals: list[Refusal] = []
    for member in leaving if rooms else ():
        member.is_stand_in = True
    for wanted in rooms:
        try:
            registry.enter(client, passed(wanted.passed), leaving=leaving)
        except RemoteProtocolError as error:
            refusals.append(Refusal(error, wanted.name))
            is_current = wanted is rooms[-1]
            registry.refuse_room(client, _remembered(error, wanted), is_current=is_current)
    for member in leaving:
        if len(client.memberships) > 1:
            registry.leave_room(member, f"joined {client.room.name}")
    registry.note_change(client)
    return refusals


def _remembered(error: RemoteProtocolError, wanted: WantedRoom) -> str:
    return "" if isinstance(error, InvalidName) else wanted.name


def _error(client: Client, refusal: Refusal) -> Error:
    room = refusal.room if client.names_rooms else ""
    return Invalid.because(refusal.error, room=room).error


def start_from(member: Member, start: Start) -> list[Error]:
    """Replay to *member* the messages after *since*, or the last *replay* ones.

    They follow the answer that is queued in the same step.

    Returns an error if *since* is not an id of the room.
    """
    room = member.room
    if start.since is not None:
        try:
            position = room.number_of(start.since) + 1
        except RemoteProtocolError as error:
            return [Invalid.because(error, room=member.named_room).error]
        room.replay_from(member, position)
    elif start.replay:
        room.replay_from(member, room.number_of_last(start.replay))
    return []


def _states(lasts: Mapping[Member, str | None], client: Client) -> dict[str, RoomState]:
    number = client.number
    return {
        each.room.name: RoomState(each.room.presence.count_for(number), last, each.room.topic)
        for each, last in lasts.items()
    }
