"""Rate limits: what a client may send a second, and how many rooms and accounts it may make.

A client above its limit is read more slowly; nothing that it sent is lost.
"""

import math
from collections.abc import Hashable

import trio

from multichat.protocol.counts import counted
from multichat.protocol.messages import Notice
from multichat.server.client import Client
from multichat.server.config import ServerConfig
from multichat.server.token_bucket import TokenBucket

__all__ = ["ClientRateLimit", "HourlyLimit"]

# How often a client that stays above its rate limit gets a notice.
_NOTICE_SECONDS = 60.0


class HourlyLimit:
    """How many each creator may create: *hourly* at once, and as many again in an hour."""

    # More than connect within an hour; after an hour without a new one the bucket is full again.
    MAX_CREATORS = 10_000

    __slots__ = ("_buckets", "_hourly")

    def __init__(self, hourly: int) -> None:
        self._hourly = hourly
        self._buckets: dict[Hashable, TokenBucket] = {}  # the latest is last

    def take(self, creator: Hashable, now: float) -> float:
        """Count one more of *creator* and return 0, or return how many seconds it has to wait."""
        bucket = self._buckets.pop(creator, None) or TokenBucket(self._hourly / 3600, self._hourly)
        self._buckets[creator] = bucket
        if len(self._buckets) > self.MAX_CREATORS:
            del self._buckets[next(iter(self._buckets))]
        return 0.0 if bucket.take(1, now) else bucket.seconds_until_one()


class ClientRateLimit:
    """The rate limits of one *client*: messages and bytes a second, as configured.

    Waiting delays only that client: it is not read meanwhile, and gets a notice now and then.
    *limits_messages* and *limits_bytes* say whether there is a limit at all.
    """

    __slots__ = (
        "_bytes",
        "_client",
        "_config",
        "_messages",
        "_told_at",
        "limits_bytes",
        "limits_messages",
    )

    def __init__(self, config: ServerConfig, client: Client, *, burst_bytes: int) -> None:
        rate, byte_rate = config.rate, config.byte_rate
        self._client, self._config = client, config
        self._messages = TokenBucket(rate, config.burst) if rate else None
        self._bytes = TokenBucket(byte_rate, max(byte_rate, burst_bytes)) if byte_rate else None
        self.limits_messages = self._messages is not None
        self.limits_bytes = self._bytes is not None
        self._told_at = -math.inf

    async def acquire(self, wanted: int) -> int:
        """Wait until at least one of *wanted* messages or requests are allowed; return how many.

        No checkpoint if it need not wait.
        """
        if self._messages is None:
            return wanted
        while not (granted := self._messages.take(wanted, trio.current_time())):
            limit = counted(self._config.rate or 0, "message")
            await self._wait(self._messages.seconds_until_one(), limit)
        return granted

    async def spend_bytes(self, count: int) -> None:
        """Wait as long as *count* bytes that were read are above the limit."""
        if self._bytes is not None and (seconds := self._bytes.spend(count, trio.current_time())):
            await self._wait(seconds, counted(self._config.byte_rate or 0, "byte"))

    async def _wait(self, seconds: float, limit: str) -> None:
        now = trio.current_time()
        if now - self._told_at >= _NOTICE_SECONDS:
            self._told_at = now
            await self._client.send(
                Notice(f"slowed down: {limit} per second is the limit for each client")
            )
        await trio.sleep(seconds)
