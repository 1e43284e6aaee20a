"""Follows names, logins and rooms through the log of a run; see `..chronicle`.

What an account's passphrase is follows from what the server gave to the journal.  The checker
compares passphrases itself, with argon2.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from hashlib import sha256
from math import inf
from typing import NamedTuple

from multichat.server.passphrases import is_passphrase
from tests.simulation.chronicle import (
    KILLED,
    Chronicle,
    Departure,
    Kill,
    LogEntry,
    Stay,
    _fold,
    reason_of,
)
from tests.simulation.journal import AccountSaved, Taken
from tests.simulation.replays import LagRecord

from .plan import CHEAP

__all__ = ["Credentials", "LoginState", "RoomsChronicle", "Staying", "fits", "login_digest"]

# The digits of a hash's digest in the login of a session.
_PROOF_DIGITS = 32


@cache
def fits(passphrase: str, hash_: str) -> bool:
    """Return whether *passphrase* has that hash."""
    return is_passphrase(passphrase, hash_, CHEAP)


def login_digest(hash_: str) -> str:
    """Return what the login of a session has of a hash."""
    return sha256(hash_.encode()).hexdigest()[:_PROOF_DIGITS]


class Credentials(NamedTuple):
    """What a connection has sent: to log in, or as a passphrase of its own."""

    kind: str  # login, register or passphrase
    name: str  # casefolded; empty if it is the connection's own
    passphrase: str


@dataclass
class Staying:
    """A client in a room, from and until which position in the log; *left* says how it left."""

    room: str
    start: int
    end: float = inf
    left: LagRecord | None = None


class LoginState(NamedTuple):
    """To which account a client is logged in, with which hash, and since which position."""

    account: str
    hash: str
    position: int


@dataclass
class _Session:
    """What a client that is away had: its name, and its login if it is known.

    *unsure*: the passphrase was changed while it was logged in.
    """

    name: str
    login: LoginState | None = None
    unsure: bool = False


@dataclass
class _Problems:
    names: list[str] = field(default_factory=list)
    logins: list[str] = field(default_factory=list)
    lost_logins: list[str] = field(default_factory=list)


class RoomsChronicle(Chronicle):
    """The parsed log of a run with several rooms and accounts.

    *credentials* are what each connection has sent, *records* what was watched, *given* the
    passphrases of the accounts that the operator adds.  *stayings* are the
    rooms of each connection, in the order in which they were entered.  *unnamed* has, for each
    connection, the times at which it lost its name.
    """

    def __init__(
        self,
        log: Sequence[LogEntry],
        taken: Sequence[Taken],
        kills: Sequence[Kill],
        accounts: Sequence[AccountSaved],
        records: Sequence[LagRecord],
        credentials: dict[int, list[Credentials]],
        given: dict[str, str],
    ) -> None:
        self.problems = _Problems()
        self.stayings: dict[int, list[Staying]] = {}
        self.unnamed: dict[int, list[tuple[str, float]]] = {}
        self.logins_at_end: dict[int, LoginState] = {}
        self._entries, self._accounts = log, accounts
        self._kill_positions = [kill.position for kill in kills]
        self._credentials, self._given = credentials, given
        self._named: dict[int, int] = {}  # since which position each client has its name
        self._logins: dict[int, LoginState] = {}
        self._sessions: dict[int, _Session] = {}
        self._note_stayings(records)
        super().__init__(log, taken, kills)

    def _note_stayings(self, records: Sequence[LagRecord]) -> None:
        open_: dict[tuple[int, str], Staying] = {}
        for record in records:
            key = record.connection, record.room
            if record.kind == "entered":
                open_[key] = Staying(record.room, record.position)
                self.stayings.setdefault(record.connection, []).append(open_[key])
            elif record.kind in ("left", "passed") and key in open_:
                staying = open_.pop(key)
                staying.end, staying.left = record.position, record

    # --- Accounts ---------------------------------------------------------------------------------

    def hashes(self, account: str, position: int) -> tuple[set[str], bool]:
        """Return the hashes that *account* may have had there, and whether it certainly existed."""
        killed = max((at for at in self._kill_positions if at <= position), default=-1)
        possible: set[str] = set()
        certain = False
        for saved in self._accounts:
            if saved.position > position:
                break
            if saved.key != account or (saved.kept is not True and saved.position <= killed):
                continue
            if saved.kept is True:
                possible.clear()
                certain = saved.record is not None
            if saved.record is not None:
                possible.add(saved.record.hash)
        return possible, certain

    def registered(self, name: str, position: int) -> str | None:
        """Return the account that certainly existed there and is, or looks like, *name*."""
        for key in dict.fromkeys(saved.key for saved in self._accounts):
            if _fold(key) == _fold(name) and self.hashes(key, position)[1]:
                return key
        return None

    # --- The log ----------------------------------------------------------------------------------

    def _change(self, position: int, seconds: float, client: int, what: str, rest: str) -> None:
        self._look_for_old_logins(seconds)
        if what == "connected":
            self._who[client] = client
            self.stays[client] = [Stay("", position, client)]
            self._call(client, f"Client {client}")
            return
        if what == "disconnected" and client in self._displaced:
            connection = self._displaced.pop(client)
            self.departures[connection] = Departure(position, seconds, reason_of(rest))
            return
        if client not in self._who:
            self.ghosts.append(f"client {client} {what}{rest}")
            return
        connection = self._who[client]
        if what == "disconnected":
            reason = reason_of(rest, self._names[client])
            self._go(client, position)
            self.departures[connection] = Departure(position, seconds, reason)
        elif what == "is now called":
            self._rename(position, seconds, client, rest.strip())
        elif what == "logged in as":
            self._log_in(position, client, rest.strip())
        elif what == "logged out of":
            self._logins.pop(client, None)
        elif again := re.match(r" Client (\d+) again", rest):
            self._come_back(position, client, int(again[1]))

    def _look_for_old_logins(self, seconds: float) -> None:
        """Find clients that are logged in with a passphrase that another one has changed."""
        for client, login in self._logins.items():
            for saved in self._accounts:
                if (
                    saved.key == login.account
                    and saved.kept is True
                    and saved.record is not None
                    and saved.position > login.position
                    and saved.known_seconds < seconds
                    and not self._changed_by(client, login.account, saved.record.hash)
                ):
                    what = f"client {client} is logged in as {login.account}"
                    self.problems.logins.append(f"{what}, whose passphrase was changed")
                    return

    def _rename(self, position: int, seconds: float, client: int, name: str) -> None:
        self._call(client, name)
        self._named[client] = position
        if name == f"Client {client}":
            self.unnamed.setdefault(self._who[client], []).append((name, seconds))
            return
        account = self.registered(name, position)
        if account is not None and not self._is_logged_in(client, account):
            self.problems.names.append(f"client {client} is called {name}, which is registered")

    def _is_logged_in(self, client: int, account: str) -> bool:
        return client in self._logins and self._logins[client].account == account

    def _had_name_before(self, client: int, account: str) -> bool:
        """Return whether *client* has had its name since before the operator added *account*."""
        passphrase = self._given.get(account)
        return passphrase is not None and any(
            saved.key == account
            and saved.record is not None
            and saved.position > self._named.get(client, saved.position)
            and fits(passphrase, saved.record.hash)
            for saved in self._accounts
        )

    def _log_in(self, position: int, client: int, name: str) -> None:
        account, connection = name.casefold(), self._who[client]
        hashes, _ = self.hashes(account, position)
        mine = self._credentials.get(connection, [])
        hash_ = next((h for h in hashes for c in mine if _opens(c, account, h)), None)
        session = self._sessions.pop(client, None)
        login = session.login if session is not None else None
        if hash_ is None and login is not None and login.account == account:
            by_change = {h for h in hashes if self._changed_by(client, account, h)}
            hash_ = next((h for h in hashes if h == login.hash or h in by_change), None)
        if hash_ is None:
            self.problems.logins.append(f"client {client} is logged in as {name} with no proof")
            hash_ = next(iter(hashes), "")
        for other, state in list(self._logins.items()):
            if other != client and state.account == account:
                self.problems.logins.append(f"clients {other} and {client} are logged in as {name}")
        for other, its_name in self._names.items():
            if other != client and _fold(its_name) == _fold(name):
                self.problems.names.append(
                    f"client {other} is called {its_name}, as {name} logs in"
                )
        self._logins[client] = LoginState(account, hash_, position)

    def _changed_by(self, client: int, account: str, hash_: str) -> bool:
        """Return whether one of the connections of *client* has asked for that passphrase."""
        return any(
            fits(each.passphrase, hash_)
            for connection, all_ in self._credentials.items()
            if connection == client or self.resumed.get(connection) == client
            for each in all_
            if each.kind != "login"
        )

    def _come_back(self, position: int, client: int, as_whom: int) -> None:
        connection = self._who[client]
        self._go(client, position)
        self._sessions.pop(client, None)
        if as_whom in self._who:
            self._displaced[as_whom] = self._who[as_whom]
            self._go(as_whom, position)
        if as_whom not in self._sessions:
            self.ghosts.append(f"client {client} is client {as_whom}, who cannot come back")
            return
        self.resumed[connection] = as_whom
        self._who[as_whom] = connection
        self.stays[connection].append(Stay("", position, as_whom))
        session = self._sessions[as_whom]
        logged_in = self._next_login(position, as_whom)
        login = session.login
        if login is not None and logged_in is None and self._holds(login, session, position):
            what = f"client {as_whom} came back and is not logged in as {login.account}"
            self.problems.lost_logins.append(what)
        if logged_in is None:
            self._sessions[as_whom] = _Session(session.name)
        name = session.name or f"Client {as_whom}"
        account = self.registered(name, position)
        may_have_it = account is None or (logged_in or "").casefold() == account
        free = _fold(name) not in self._numbers
        self._call(as_whom, name if may_have_it and free else f"Client {as_whom}")
        self._named[as_whom] = position

    def _next_login(self, position: int, client: int) -> str | None:
        """Return the account that *client*, which resumes, is logged in to in the same step."""
        for entry in self._entries[position + 1 :]:
            if f" Client {client} disconnected" in entry.text:
                continue
            login = re.search(rf"\[STATE\] Client {client} logged in as (.*)", entry.text)
            return None if login is None else login[1]
        return None

    def _holds(self, login: LoginState, session: _Session, position: int) -> bool:
        """Return whether *login* certainly still holds."""
        is_taken = any(state.account == login.account for state in self._logins.values())
        hashes, certain = self.hashes(login.account, position)
        return certain and hashes == {login.hash} and not is_taken and not session.unsure

    def _go(self, client: int, position: int) -> None:
        connection = self._who.pop(client)
        self.stays[connection][-1].end = position
        name = self._names.pop(client)
        self._numbers.pop(_fold(name), None)
        login = self._logins.pop(client, None)
        unsure = False
        if login is not None:
            self.logins_at_end[connection] = login
            changed = [
                saved
                for saved in self._accounts
                if saved.key == login.account and login.position < saved.position <= position
            ]
            unsure = bool(changed)
        default = f"Client {client}"
        self._sessions[client] = _Session("" if name == default else name, login, unsure)

    def _kill(self, position: int, kill: Kill) -> None:
        for client, connection in list(self._who.items()):
            self._go(client, position)
            self.departures[connection] = Departure(position, kill.seconds, KILLED)
        self._sessions = {
            client: _Session(record.name, self._login_of(record.login, position))
            for client, (record, _) in kill.sessions.items()
        }
        self._publish_rest(position)

    def _login_of(self, proof: str, position: int) -> LoginState | None:
        """Return the login of a session that is read from the disk, if it can hold."""
        digest, _, account = proof.partition(" ")
        for hash_ in self.hashes(account, position)[0] if account else ():
            if login_digest(hash_) == digest:
                return LoginState(account, hash_, position)
        return None

    def _take(self, taken: Taken) -> None:
        said = taken.said
        room, client = said.room.lower(), said.client
        self._queue_turn(taken)
        if client not in self._who:
            self.ghosts.append(f"client {client} said {said.text[:20]}")
            return
        connection = self._who[client]
        self.taken_from.setdefault(connection, []).append(taken)
        self._taken_from[id(taken)] = connection
        if taken.kept is False:
            self.busy_seconds[connection] = taken.known_seconds
        if self._names.get(client) != said.name:
            self.forged.append(f"client {client} is {self._names.get(client)}, not {said.name}")
        # One that was registered since the last line of the log may have been later.
        account = self.registered(said.name, taken.position - 1)
        if (
            account is not None
            and not self._is_logged_in(client, account)
            and not self._had_name_before(client, account)
        ):
            self.problems.names.append(f"client {client} spoke as {said.name}, without a login")
        if not any(
            each.room == room and each.start <= taken.position <= each.end
            for each in self.stayings.get(connection, [])
        ):
            self.forged.append(f"client {client} said {said.text[:20]} in {room}, and is elsewhere")


def _opens(credentials: Credentials, account: str, hash_: str) -> bool:
    is_its = credentials.name in ("", account) and credentials.kind != "passphrase"
    return is_its and fits(credentials.passphrase, hash_)


def rooms_at_end(chronicle: RoomsChronicle, connection: int) -> set[str] | None:
    """Return the rooms in which *connection* was when it left; None if it was killed."""
    departure = chronicle.departures.get(connection)
    if departure is None or departure.reason == KILLED:
        return None
    return {
        each.room
        for each in chronicle.stayings.get(connection, [])
        if each.left is not None and each.left.is_gone
    }
