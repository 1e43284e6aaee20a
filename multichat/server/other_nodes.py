"""Applies what other nodes did, in order: one task of the server, a synchronous step per event.

Texts are cleaned, because others than multichat may have written to the backend.
"""

from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from logging import WARNING

import msgspec

from multichat.backend.base import Backend
from multichat.backend.events import (
    AccountChanged,
    Announced,
    AvailabilityChanged,
    BanAdded,
    BanRefused,
    BanRemoved,
    ClientGone,
    ClientPut,
    ClientRecord,
    DirectReceived,
    DisconnectAsked,
    Event,
    NameLost,
    NodeAdded,
    NodeFenced,
    NodeRemoved,
    Replaced,
    TopicChanged,
)
from multichat.errors import NotDelivered
from multichat.log import Log
from multichat.protocol import messages
from multichat.protocol.framing import clean, clean_lines
from multichat.protocol.goodbyes import FENCED, GOODBYES, TAKEN_OVER
from multichat.protocol.messages import Goodbye
from multichat.server.ban_keeper import BanKeeper
from multichat.server.client import Client
from multichat.server.config import ServerConfig
from multichat.server.private_messages import deliver, tell
from multichat.server.registry import Registry

__all__ = ["OtherNodes"]

_AWAY = "the server cannot reach its storage: messages are not accepted until it can"


class OtherNodes:
    """Applies the events of *backend* to *registry* and *bans*.

    *start_soon* starts tasks that outlive the call.
    """

    def __init__(
        self,
        backend: Backend,
        registry: Registry,
        bans: BanKeeper,
        config: ServerConfig,
        log: Log,
        start_soon: Callable[[Callable[[], Awaitable[None]]], None],
    ) -> None:
        self._backend, self._registry, self._bans = backend, registry, bans
        self._config, self._log, self._start_soon = config, log, start_soon

    def load(self) -> None:
        """Load the clients of other nodes and the bans from the backend, which is open."""
        for record in self._backend.clients:
            self._registry.elsewhere.put(_cleaned(record))
        self._bans.load(self._backend.bans)

    async def follow(self) -> None:
        """Apply what happens until cancelled; one task calls this, once."""
        while True:
            self.apply(await self._backend.receive())

    def apply(self, event: Event) -> None:
        """Apply *event* in one step."""
        registry = self._registry
        match event:
            case ClientPut(record):
                own = registry.find(record.client)
                if own is not None:
                    if record.generation <= own.generation:
                        return  # it has resumed here since
                    self._replace(own)
                registry.elsewhere.put(_cleaned(record))
            case ClientGone(client, generation, reason, away):
                registry.elsewhere.remove(client, generation, clean(reason), away=away)
            case Replaced(client, generation):
                own = registry.find(client)
                if own is not None and own.generation <= generation:
                    self._replace(own)
            case NodeFenced():
                self._log.line("STATE", f"This node was taken for dead: {FENCED}")
                for each in registry.clients:
                    registry.disconnect(each, Goodbye.of("draining", FENCED))
            case NodeAdded(node):
                self._log.line("STATE", f"Node {node} has joined the cluster")
            case NodeRemoved(node, in_order=True):
                self._log.line("STATE", f"Node {node} has left the cluster")
            case NodeRemoved(node):
                self._log.line("STATE", f"Node {node} was taken for dead: its lease has ended")
            case NameLost(client, generation, name, login):
                own = registry.find(client)
                if own is not None and own.generation == generation:
                    registry.logins.lose(own, name, login=login)
            case AccountChanged(key, name, hash_):
                registry.logins.put_account(key, clean(name), hash_)
            case TopicChanged(key, topic, client, name):
                changed = messages.TopicChanged(key, clean(topic), client, clean(name))
                registry.rooms.put_topic(key, changed, registry.find(client))
            case BanAdded(ban):
                self._bans.put(ban)
            case BanRemoved(target):
                self._bans.take(target)
            case BanRefused(target, limit):
                self._tell_operators(self._bans.take_back(target, limit))
            case DisconnectAsked(client, code, reason):
                if code in GOODBYES:
                    registry.kick(client, Goodbye.of(code, clean(reason)))
            case Announced(text):
                self._tell_all(clean_lines(text))
            case DirectReceived():
                self._start_soon(partial(self._deliver, event))
            case AvailabilityChanged(available=True):
                self._log.line("STATE", "Messages are accepted again")
            case AvailabilityChanged(_, reason, refusal, is_away):
                self._log.line("STATE", f"Messages are not accepted: {reason}", WARNING)
                refused = f"messages are not accepted now: {refusal}"
                self._tell_all(_AWAY if is_away else refused)

    def _replace(self, client: Client) -> None:
        """Disconnect *client*, whose session was resumed on another node."""
        words = client.codec.encode(Goodbye.of("replaced", TAKEN_OVER))
        session = client.stored_session
        self._registry.leave(client, TAKEN_OVER, last_words=words, code="replaced", taken_over=True)
        if session is not None:
            self._registry.session_store.drop(session)

    def _tell_operators(self, text: str) -> None:
        notice = messages.Notice(text)
        for client in self._registry.clients:
            if self._registry.accounts.is_operator(client.account):
                self._start_soon(partial(self._tell, client, notice))

    async def _tell(self, client: Client, notice: messages.Notice) -> None:
        with suppress(NotDelivered):
            await tell(client, notice, self._config)

    def _tell_all(self, text: str) -> None:
        async def tell_all() -> None:
            await self._registry.broadcast(text)

        self._start_soon(tell_all)

    async def _deliver(self, received: DirectReceived) -> None:
        recipient = self._registry.find(received.to)
        delivered = False
        try:
            if recipient is not None:
                message = msgspec.structs.replace(
                    received.message,
                    name=clean(received.message.name),
                    text=clean_lines(received.message.text),
                )
                await deliver(recipient, message, self._config)
                delivered = True
        except NotDelivered:
            pass
        finally:
            self._backend.answer_direct(received, delivered=delivered)


def _cleaned(record: ClientRecord) -> ClientRecord:
    """Return *record* with clean texts; itself, if they are, as those of other nodes always are."""
    texts = (record.name, record.account, record.address, record.origin, *record.rooms)
    if all(clean(text) == text for text in texts):
        return record
    name, account, address, origin, *rooms = map(clean, texts)
    return msgspec.structs.replace(
        record, name=name, account=account, address=address, origin=origin, rooms=tuple(rooms)
    )
