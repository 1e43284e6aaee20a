"""The webhook: publishes messages that scripts post, in a room without a member for them.

deduplicate → rate limit → filter → check the name → publish

What holds for a client's messages holds for these: filters, bans of names, the journal, the order
of a room, the log and its rate.  The client of such a message is 0, so it cannot be answered.
"""

from collections.abc import Iterable, Sequence

import trio

from multichat.errors import (
    Banned,
    InvalidName,
    NameTaken,
    NonceReused,
    Rejected,
    RemoteProtocolError,
    StorageFailed,
    TooManyRooms,
)
from multichat.journal.base import SessionRecord
from multichat.protocol.messages import Said, SayBlock, room_of
from multichat.protocol.names import fold_name, parse_person_name, parse_room_name
from multichat.server.config import ServerConfig
from multichat.server.filters import Filters
from multichat.server.log_rate import ClientLog
from multichat.server.origin import Origin
from multichat.server.proposals import Author
from multichat.server.registry import Registry
from multichat.server.room_claims import RoomGrants, WantedRooms
from multichat.server.stored_session import StoredSession, checks_of
from multichat.server.token_bucket import TokenBucket
from multichat.web.http import HttpError, Request, Response
from multichat.web.webhook import Posted, Tokens, answer, retry_after

__all__ = ["Poster", "Webhook"]

# How soon a message may be tried again that the journal could not store: as a client's.
_STORAGE_SECONDS = 3

# How long until a client leaves a room is unknown.
_ROOM_SECONDS = 60

_STATUS: dict[type[RemoteProtocolError], int] = {
    InvalidName: 409,
    NameTaken: 409,
    Banned: 403,
    Rejected: 403,
    NonceReused: 409,
    StorageFailed: 503,
    TooManyRooms: 503,
}


class Webhook:
    """Publishes what is posted; any task may call any method."""

    def __init__(self, config: ServerConfig, registry: Registry, filters: Filters) -> None:
        self._config, self._registry, self._filters = config, registry, filters
        self._posters: dict[str, Poster] = {}
        self._tokens_ever = 0
        self.change_tokens(config.web.webhook_tokens)

    def change_tokens(self, tokens: Iterable[str]) -> None:
        """Accept exactly these *tokens*, which are valid, from now on.

        A token that stays keeps its rate limit and its nonces.  A request whose token was accepted
        before is completed.
        """
        former, self._posters = self._posters, {}
        for token in tokens:
            self._posters[token] = former.get(token) or self._poster()
        self._tokens = Tokens(self._posters)

    def _poster(self) -> "Poster":
        self._tokens_ever += 1
        log = self._registry.log_rates.open(0, f"webhook {self._tokens_ever}")
        return Poster(self._config, log)

    def authorize(self, request: Request) -> "Poster | None":
        """Return the poster to which the token of *request* belongs; None without a right one."""
        number = self._tokens.find(request)
        return None if number is None else list(self._posters.values())[number]

    async def post(
        self, poster: "Poster", room: str, posted: Posted, origin: Origin | None
    ) -> Response:
        """Publish *posted* in *room* for *poster*; raises `HttpError`."""
        try:
            return await self._post(poster, room, posted, origin)
        except RemoteProtocolError as error:
            status = _STATUS.get(type(error), 400)
            wait = 0.0
            if isinstance(error, TooManyRooms):
                status, wait = (429, error.seconds) if error.seconds else (503, _ROOM_SECONDS)
            elif isinstance(error, StorageFailed):
                wait = _STORAGE_SECONDS
            headers = retry_after(wait) if wait else {}
            raise HttpError(status, str(error), headers, code=error.code) from None

    async def _post(
        self, poster: "Poster", room: str, posted: Posted, origin: Origin | None
    ) -> Response:
        registry = self._registry
        name_of_room = self._room(room)
        nonces = () if posted.nonce is None else (posted.nonce,)
        checks = checks_of(f"{posted.name}\n{posted.text}".replace("\n", "␊")) if nonces else b""
        if posted.nonce is not None:
            key = fold_name(name_of_room)
            earlier = await poster.session.answer(posted.nonce, checks, key)
            if earlier is not None and earlier.id is not None:
                return answer(earlier.id)
        poster.take()
        name = parse_person_name(posted.name)
        registry.check_author(name)
        text = await self._filter(name_of_room, name, posted.text)
        grants: RoomGrants = {}
        try:
            await registry.rooms.prepare(WantedRooms(names=[name_of_room]), grants)
            if posted.nonce is not None and posted.nonce in poster.session.window:
                return await self._post(poster, room, posted, origin)  # the same came meanwhile
            # From here on nothing waits until the message has its number.
            registry.check_author(name)  # a client may have taken it meanwhile
            opener = None if origin is None or origin.is_loopback else origin.address
            target = registry.rooms.open(name_of_room, opener=opener or "webhook", grants=grants)
        finally:
            registry.rooms.settle(grants)
        try:
            block = SayBlock(text, nonces)
            receipt = await target.post(Author(name, poster.log, poster.session), block, checks)
        finally:
            registry.rooms.close_if_empty(target)
        if not receipt.epoch:
            raise HttpError(503, "the server is shutting down", retry_after(_ROOM_SECONDS))
        return answer(receipt.id_of(0))

    def _room(self, room: str) -> str:
        """Return the name of a room; raises `HttpError` if there can be none of that name."""
        name = room_of(room)
        if self._registry.rooms.find(name) is not None:
            return name
        try:
            return parse_room_name(name)
        except InvalidName as error:
            raise HttpError(404, str(error), code=error.code) from None

    async def _filter(self, room: str, name: str, text: str) -> str:
        """Return *text* as the filters leave it; raises `Rejected`."""
        if not self._filters:
            return text
        results: Sequence[object] = await self._filters.apply(
            [Said(room=room, client=0, name=name, text=text)]
        )
        [result] = results
        if not isinstance(result, Said):
            raise Rejected
        return result.text


class Poster:
    """The user of one token: its rate limit, its log, and the nonces that it has used."""

    def __init__(self, config: ServerConfig, log: ClientLog) -> None:
        self.log = log
        self.session = StoredSession(SessionRecord(digest=b"", client=0, name="", rooms=()))
        self._bucket = TokenBucket(config.rate, config.burst) if config.rate else None

    def take(self) -> None:
        """Count one message; raises `HttpError` if it is one too many now."""
        if self._bucket is not None and not self._bucket.take(1, trio.current_time()):
            headers = retry_after(self._bucket.seconds_until_one())
            raise HttpError(429, "too many messages; try again later", headers)
