"""The beginning and the upkeep of one connection: hello, password, pings.

`multichat.client.negotiation` interprets the server's answers; this module owns what is sent, and
how long the client waits.
"""

from collections.abc import Callable
from contextlib import suppress

import trio

from multichat.client.connection import Connection
from multichat.client.event_queue import Condition
from multichat.client.negotiation import PROBE
from multichat.client.session import ClientSession
from multichat.client.timeouts import ClientTimeouts
from multichat.errors import ConnectionLost, NotPrivate
from multichat.net import transport
from multichat.protocol.auth import encode_password
from multichat.protocol.json_codec import encode_hello
from multichat.protocol.messages import Ping

__all__ = ["abort_after_goodbye", "keep_alive", "negotiate"]


async def negotiate(
    connection: Connection,
    session: ClientSession,
    *,
    password: str | None,
    timeouts: ClientTimeouts,
    answer_seconds: float,
) -> None:
    """Send the hello, and the *password* if the server requires it; wait for the answer.

    In plain text no hello is sent, and the client waits only for a server that requires the
    password.  A hello with a passphrase is sent only to a server that has answered `PROBE`, or
    requires the password.  Returns when the answer has come, when it has not come within
    *answer_seconds*, or when the connection is over.
    Raises `RemoteProtocolError` for a welcome that is not valid, `NotPrivate` for a login over a
    connection that others can read.
    """
    negotiation = session.negotiation
    if negotiation.hello.login is not None and not transport.is_private(connection.stream):
        raise NotPrivate
    plain = negotiation.plain

    async def wait_for(condition: Callable[[], bool]) -> None:
        # A server of ours may take a while to compare the passphrase.
        limit = max(answer_seconds, timeouts.password) if negotiation.is_ours else answer_seconds
        with trio.move_on_after(limit):
            await connection.wait_for(lambda: condition() or negotiation.chatting)
        if negotiation.chatting:
            with trio.move_on_after(timeouts.lobby):
                await connection.wait_for(condition)

    with suppress(ConnectionLost):  # the receiving task reports it
        if negotiation.asks_first:
            await connection.send(PROBE)
            await wait_for(lambda: negotiation.is_ours or negotiation.answered)
        if not plain and (negotiation.is_ours or not negotiation.asks_first):
            await connection.send(encode_hello(negotiation.hello))
            await wait_for(lambda: negotiation.answered)
        if plain and password is not None:
            await wait_for(lambda: negotiation.answered)
        if negotiation.password_asked and password is not None:
            negotiation.password_sent = True
            line = encode_password(password)
            with trio.move_on_after(timeouts.password) as scope:
                await connection.send(
                    line if plain else f"{line}\n{encode_hello(negotiation.hello)}"
                )
                await connection.wait_for(lambda: negotiation.password_answered)
            if scope.cancelled_caught:
                connection.abort(f"the password was not accepted in {timeouts.password:g} s")
                await connection.wait_for(lambda: False)
        if negotiation.may_be_refused:  # the refusals come before the answer to a ping
            await connection.send(session.encode_unanswered(Ping()))
            with trio.move_on_after(answer_seconds):
                await connection.wait_for(lambda: not negotiation.may_be_refused)
    if negotiation.failure is not None:
        raise negotiation.failure


async def keep_alive(
    connection: Connection, session: ClientSession, changed: Condition, timeouts: ClientTimeouts
) -> None:
    """Ping a silent server, and abort the connection if it does not answer.

    Any input shows that the server is alive.  While messages of ours are unacknowledged, the server
    may have stopped reading for a slow client, and gets more time to answer.  While our own program
    does not receive events, nothing is read, and silence means nothing.
    """
    while connection.can_send:
        received_at = connection.received_at
        await trio.sleep_until(received_at + timeouts.ping)
        if connection.finishing:  # `Connection.finish` has its own time limit
            return
        if connection.received_at > received_at:
            continue
        if connection.receiving:
            connection.try_send(session.encode_unanswered(Ping()))
        seconds = connection.stuck_seconds if session.outbox else timeouts.pong
        with trio.move_on_after(seconds) as answer:
            while connection.received_at <= received_at:
                await changed.wait()
        if answer.cancelled_caught and connection.receiving:
            connection.abort(f"no answer in {seconds:g} s")


async def abort_after_goodbye(connection: Connection, timeouts: ClientTimeouts) -> None:
    """Abort a connection that the server does not close after its goodbye."""
    with trio.move_on_after(timeouts.finish) as timeout:
        await connection.wait_for(lambda: False)
    if timeout.cancelled_caught:
        connection.abort("the server has said goodbye")
