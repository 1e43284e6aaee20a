"""Asks Sentinels for the address of the primary.

Every Sentinel is asked, because one that was away during a failover still has the old address.  The
answer with the latest configuration counts: each failover has a higher number.
"""

from dataclasses import dataclass

import trio

from multichat.cluster.address import format_host
from multichat.cluster.errors import EngineUnavailable
from multichat.cluster.handshake import NotUsable
from multichat.cluster.link import EngineTimeouts, Login, ask, open_stream
from multichat.cluster.resp import ReplyDecoder, ReplyLimits, Value, Word
from multichat.net import transport
from multichat.protocol.address import parse_port

__all__ = ["Primary", "find_primary"]

# A Sentinel describes the primary in about 40 short fields.
_LIMITS = ReplyLimits(bytes=64 * 1024, elements=1000)

# The longest name in the DNS.
_MAX_HOST = 253


@dataclass(frozen=True, order=True, slots=True)
class Primary:
    """The address of a primary, according to the Sentinels' configuration number *epoch*."""

    epoch: int
    host: str
    port: int


async def find_primary(
    sentinels: tuple[tuple[str, int], ...], name: str, login: Login, timeouts: EngineTimeouts
) -> Primary:
    """Ask *sentinels* for the primary called *name*; the latest configuration counts.

    Each has `EngineTimeouts.sentinel_answer` seconds to answer.  A Sentinel that requires a
    password gets the engine's.  Raises `EngineUnavailable` with the first reason if none knows it.
    """
    answers: list[Primary] = []
    failures: dict[int, EngineUnavailable] = {}

    async def ask_one(index: int) -> None:
        host, port = sentinels[index]
        where = format_host(host, port)
        try:
            with trio.fail_after(timeouts.sentinel_answer):
                answers.append(await _ask(host, port, name, login, timeouts))
        except EngineUnavailable as error:
            failures[index] = error
        except NotUsable as error:
            failures[index] = EngineUnavailable(where, error.reason, lasting=error.lasting)
        except trio.TooSlowError:
            reason = f"no answer in {timeouts.sentinel_answer:g} s"
            failures[index] = EngineUnavailable(where, reason)

    async with trio.open_nursery() as nursery:
        for index in range(len(sentinels)):
            nursery.start_soon(ask_one, index)
    if answers:
        return max(answers)
    first = failures[min(failures)]
    lasting = all(error.lasting for error in failures.values())
    raise EngineUnavailable(f"Sentinel {first.where}", first.reason, lasting=lasting)


async def _ask(host: str, port: int, name: str, login: Login, timeouts: EngineTimeouts) -> Primary:
    stream = await open_stream(host, port, login, timeouts)
    question: tuple[Word, ...] = ("SENTINEL", "MASTER", name)
    try:
        decoder = ReplyDecoder(_LIMITS)
        try:
            [reply] = await ask(stream, decoder, [question], timeouts.answer)
        except NotUsable as error:
            if error.code != "NOAUTH" or not login.password:
                raise _explain(error, name) from None
            words: tuple[Word, ...] = ("AUTH", login.password)
            _, reply = await ask(stream, decoder, [words, question], timeouts.answer)
    finally:
        await transport.close(stream)
    return _read(reply)


def _explain(error: NotUsable, name: str) -> NotUsable:
    if "No such master" in error.reason:
        return NotUsable(f"it knows no primary with the name {name}", lasting=True)
    if "unknown command" in error.reason:
        return NotUsable("it is not a Sentinel: write valkey:// for an engine", lasting=True)
    return error


def _read(reply: Value) -> Primary:
    """Decode the answer to SENTINEL MASTER; raises `NotUsable`."""
    try:
        if isinstance(reply, list):  # RESP2
            reply = dict(zip(reply[::2], reply[1::2], strict=True))
        host = reply[b"ip"].decode("ascii")
        port = parse_port(reply[b"port"].decode("ascii"))
        primary = Primary(int(reply[b"config-epoch"]), host, port)
    except (AttributeError, KeyError, TypeError, ValueError):
        raise NotUsable("it sends an invalid description of the primary") from None
    if not host.isprintable() or not 0 < len(host) <= _MAX_HOST:
        raise NotUsable("it sends an invalid address of the primary")
    return primary
