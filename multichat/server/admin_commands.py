"""The operator's commands, for the console, for `ctl`, and for operators in the chat.

Parses the arguments as they are typed, acts on the server, and returns the answer.  Knows nothing
of terminals, and does not check permissions: its callers do.
"""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from multichat.errors import InvalidBan, LocalProtocolError
from multichat.protocol.commands import NAME_WORD
from multichat.protocol.counts import counted
from multichat.protocol.messages import BanInfo, room_of
from multichat.protocol.names import fold_name, parse_person_name
from multichat.server.bans import (
    Ban,
    Target,
    network_of,
    parse_duration,
    parse_target,
)
from multichat.server.client import Client, MemberInfo

if TYPE_CHECKING:  # the server imports this module
    from multichat.server.registry import Registry
    from multichat.server.server import Server
    from multichat.server.statistics import ServerStatistics

__all__ = ["AdminCommands", "RoomInfo"]


@dataclass(frozen=True, kw_only=True, slots=True)
class RoomInfo:
    """A room and its number of *clients* on this server."""

    room: str
    clients: int


class AdminCommands:
    """The commands of *server*, whose clients are in *registry*.

    They raise `MultichatError` on failure.  *clock* returns the Unix time in seconds.
    """

    def __init__(
        self, server: "Server", registry: "Registry", *, clock: Callable[[], float] = time.time
    ) -> None:
        self._server, self._registry = server, registry
        self._clock = clock

    def find(self, who: str) -> int:
        """Return the number of the client *who*; raises `LocalProtocolError` if there is none."""
        client = self._server.find(who)
        if client is None:
            nobody = "no client" if who.isdecimal() else "nobody called"
            raise LocalProtocolError(f"{nobody} {who[:40]} is connected")
        return client

    def clients(self, room: str = "") -> list[MemberInfo]:
        """Return the clients of this server, all or those in *room*."""
        members = self._server.members
        if not room:
            return members
        key = fold_name(room)
        return [each for each in members if key in map(fold_name, each.rooms)]

    def rooms(self) -> list[RoomInfo]:
        """Return the rooms that have clients of this server, sorted by name."""
        sizes = Counter(room for member in self._server.members for room in member.rooms)
        return [RoomInfo(room=room, clients=clients) for room, clients in sorted(sizes.items())]

    def summary(self) -> str:
        """Return the server's state in a few words; cheaper than `statistics`."""
        clients = counted(len(self._registry), "client")
        if self._server.shutting_down:
            return f"shutting down: {clients}"
        if self._server.draining:
            return f"draining: {clients}, {self._server.ending.seconds_left:.0f} s are left"
        rooms = counted(sum(1 for _ in self._registry.rooms), "room")
        reason = self._server.why_not_ready()
        return f"{clients} in {rooms}" + (f"; not ready: {reason}" if reason else "")

    def statistics(self) -> "ServerStatistics":
        """Return the server's statistics."""
        return self._server.statistics()

    async def send(self, client: int, text: str) -> None:
        """Send *text* to *client* alone, as the server; see `Server.tell`."""
        await self._server.tell(client, text)

    def quit(self) -> str:
        """Begin to shut the server down."""
        self._server.shutdown()
        return "the server is shutting down"

    def kick(self, who: int | str, reason: str = "") -> str:
        """Disconnect the client *who*."""
        client = self.find(str(who))
        self._server.kick(client, f"kicked: {reason}" if reason else "kicked")
        return f"client {client} was disconnected"

    def ban(
        self, what: int | str, time: str = "", reason: str = "", *, by: Client | None = None
    ) -> str:
        """Ban *what* for a *time* such as `1h`, or permanently without one.

        Addresses and `name NAME` take precedence over clients.  A ban *by* an operator in the chat
        must not match that operator, because only the console could lift it.
        """
        target = self._find_target(str(what))
        if isinstance(target, str):
            parse_person_name(target)  # an invalid name is a mistake
        seconds = parse_duration(time) if time else None
        until = None if seconds is None else self._clock() + seconds
        ban = Ban(target=target, until=until, reason=reason)
        if by is not None and ban.covers(by.address, by.name):
            raise LocalProtocolError(
                f"that would ban you, too: {ban.subject}; ban a name with /ban name NAME, or /kick"
            )
        gone = len(self._server.ban(ban))
        clients = {0: "no client was", 1: "1 client was"}.get(gone, f"{gone} clients were")
        return f"banned {ban.describe(self._clock())} ({clients} disconnected)"

    def _find_target(self, what: str) -> Target:
        if what.startswith(f"{NAME_WORD} ") or _is_network(what):
            return parse_target(what)
        if what.isdecimal() or " " in what or self._server.find(what) is not None:
            return self._target(self.find(what))
        return parse_target(what)

    def _target(self, client: int) -> Target:
        """Return the ban target for *client*: its address, or its name if it has no address."""
        here, elsewhere = self._registry.find(client), self._registry.find_elsewhere(client)
        address, name = "", ""
        if here is not None:
            address, name = here.address, here.name
        elif elsewhere is not None:
            address, name = elsewhere.address, elsewhere.name
        if (network := network_of(address)) is not None:
            return network
        try:
            return parse_target(f"name {name}")
        except InvalidBan:
            raise InvalidBan(f"{name} has neither an address nor a name; /kick it") from None

    def unban(self, text: str) -> str:
        """Lift the ban of exactly this target; raises `LocalProtocolError` if there is none."""
        subject = Ban(target=parse_target(text)).subject
        if not self._server.unban(text):
            raise LocalProtocolError(f"there is no ban of {subject}")
        return f"{subject} is no longer banned"

    def bans(self) -> list[BanInfo]:
        """Return the bans, for programs."""
        now = self._clock()
        return [
            BanInfo(
                ban.subject, None if ban.until is None else max(0.0, ban.until - now), ban.reason
            )
            for ban in self._server.bans
        ]

    def describe_bans(self) -> list[str]:
        """Return a line for each ban, for people."""
        now = self._clock()
        return [ban.describe(now) for ban in self._server.bans] or ["nobody is banned"]

    async def announce(self, text: str) -> str:
        """Send *text* to everybody as the server; return for how many clients of this server."""
        receipt = await self._server.broadcast(text)
        clients = counted(receipt.delivered + receipt.queued + receipt.lagging, "client")
        if self._registry.is_shared:
            return f"sent to {clients} of this node, and to the other nodes"
        return f"sent to {clients}"

    def drain(self, seconds: float | None = None) -> str:
        """Drain the server, for its configured time or for *seconds*; see `Server.drain`."""
        is_new = not self._server.draining
        self._server.drain(seconds)
        if not self._server.draining:
            return "the server is shutting down"
        left = f"{self._server.ending.seconds_left:.0f} s"
        if not is_new:
            return f"draining already: {left} are left"
        count = len(self._server.ending.clients)
        if not count:
            return "draining: no client is connected"
        clients = "1 client is" if count == 1 else f"{count} clients are"
        return f"draining: {clients} told to reconnect within {left}"

    async def topic(self, rest: str) -> str:
        """Show or set the topic of an open room; *rest* is its name, optionally with a topic."""
        name, _, topic = rest.partition(" ")
        rooms, room_name = self._registry.rooms, room_of(name)
        room = rooms.find(room_name) or rooms.find_elsewhere(room_name)
        if not room:
            raise LocalProtocolError(f"nobody is in {name[:40]}")
        if not topic.strip():
            now = rooms.topic_of(room)
            return f"the topic of {room.name}: {now}" if now else "it has no topic"
        await rooms.set_topic(room, topic.strip(), None)
        return f"the topic of {room.name} is set"

    async def reload(self) -> list[str]:
        """Reload the files of the running server; see `Server.reload`."""
        return await self._server.reload()

    def accounts(self) -> list[str]:
        """Return the names of all accounts, for programs."""
        return [account.name for account in self._registry.accounts]

    async def account(self, rest: str) -> list[str]:
        """Run a subcommand: *rest* is `add NAME PASSPHRASE`, `remove NAME` or `list`."""
        action, _, rest = rest.partition(" ")
        name, _, passphrase = rest.lstrip().partition(" ")
        registry = self._registry
        match action.lower():
            case "list" if not rest:
                return self.accounts() or ["there are no accounts"]
            case "add" if name and passphrase:
                account = await registry.accounts.add(name, passphrase)
                return [f"{account.name} has an account"]
            case "remove" if name and not passphrase:
                removed = await registry.logins.remove(name)
                if removed is None:
                    raise LocalProtocolError(f"there is no account {name[:40]}")
                return [f"{removed.name} has no account any more"]
        raise LocalProtocolError("usage: /account add NAME PASSPHRASE, remove NAME, or list")


def _is_network(text: str) -> bool:
    try:
        return not isinstance(parse_target(text), str)
    except InvalidBan:
        return False
