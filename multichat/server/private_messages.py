"""Delivers an event to one client alone: a private message, or a notice of the server.

Takes only as much of a send queue as delays no room's messages, and no other client waits.

To a client on another node a notice travels as a private message whose sender has the number
`_SERVER`, which no client has; that node delivers it as a notice.
"""

import trio

from multichat.backend.base import Backend, DirectFate
from multichat.errors import DeliveryUnknown, NotDelivered
from multichat.net.send_queue import SendResult
from multichat.protocol.messages import Directed, Notice
from multichat.protocol.names import SERVER_NAME
from multichat.server.client import Client
from multichat.server.config import ServerConfig, Slow
from multichat.server.remote_clients import RemoteClient

__all__ = ["deliver", "tell", "tell_elsewhere"]

_SERVER = 0

# Private messages may take this part of what a replay may keep queued.
_REPLAY_DIVISOR = 4

_FULL, _CLOSED = SendResult.FULL, SendResult.CLOSED


async def tell(recipient: Client, event: Directed | Notice, config: ServerConfig) -> None:
    """Deliver *event* to *recipient* alone; waits for it for at most `slow_timeout_seconds`.

    Returns when it is in the send queue or the socket.  Raises `NotDelivered`, at once if the
    recipient has taken nothing since the last private message that was not delivered.
    """
    send_queue, replay_bytes = recipient.send_queue, config.replay.queue_bytes
    result = _try_send(recipient, event, replay_bytes)
    if result is _FULL and config.slow is Slow.WAIT:
        if send_queue.progress == recipient.undelivered_at:
            raise NotDelivered(recipient.name)
        with trio.move_on_after(config.slow_timeout_seconds):
            while result is _FULL:
                await send_queue.wait_for_space()
                result = _try_send(recipient, event, replay_bytes)
    if result in (_FULL, _CLOSED):
        recipient.undelivered_at = send_queue.progress
        raise NotDelivered(recipient.name)


async def tell_elsewhere(recipient: RemoteClient, text: str, backend: Backend) -> None:
    """Deliver *text* as a notice to *recipient*, whose node does it as `tell` does.

    Raises `NotDelivered`, `DeliveryUnknown` or `StorageFailed`.
    """
    message = Directed(client=_SERVER, name=SERVER_NAME, text=text)
    fate = await backend.send_direct(recipient.number, message, generation=0)
    if fate is DirectFate.UNKNOWN:
        raise DeliveryUnknown(recipient.name)
    if fate is DirectFate.NOT_DELIVERED:
        raise NotDelivered(recipient.name)


async def deliver(recipient: Client, message: Directed, config: ServerConfig) -> None:
    """Deliver a *message* that came from another node; see `tell` and `tell_elsewhere`."""
    if message.client == _SERVER:
        await tell(recipient, Notice(message.text), config)
    else:
        await tell(recipient, message, config)
        recipient.last_sender = message.client


def _try_send(recipient: Client, event: Directed | Notice, replay_bytes: int) -> SendResult:
    """Queue *event* unless that would delay the messages of the recipient's rooms.

    It may take half of the send queue, and a part of what a replay may keep there.
    """
    send_queue = recipient.send_queue
    if not recipient.lagging():
        may_be_queued = send_queue.is_half_empty()
    else:
        part = send_queue.replay_bound(replay_bytes) // _REPLAY_DIVISOR
        may_be_queued = send_queue.waiting_bytes <= part
    if send_queue.closed or may_be_queued:
        return send_queue.try_send(recipient.codec.encode(event))
    return _FULL
