"""Proposes the messages of an author to the log of a room, and notes them in the author's session.

One step, without a checkpoint.  The room delivers them when the log has decided.
"""

from typing import NamedTuple

import trio

from multichat.backend.base import Proposal, RoomLog
from multichat.protocol.messages import SaidBlock, SayBlock
from multichat.protocol.timestamps import utc_now
from multichat.server.broadcast import Delivery
from multichat.server.log_rate import ClientLog
from multichat.server.stored_session import StoredSession, Submission

__all__ = ["Author", "propose"]


class Author(NamedTuple):
    """The author of messages: with a *log* and, if they have nonces, a *session* that keeps them.

    *number* and *generation* are the client's, 0 and 1 for an author that is not a client.
    """

    name: str
    log: ClientLog
    session: StoredSession | None = None
    number: int = 0
    generation: int = 1


def propose(
    log: RoomLog, room: str, key: str, author: Author, block: SayBlock, checks: bytes
) -> tuple[Delivery, Proposal]:
    """Propose *block* from *author* to *log*, that of the room called *room* with that *key*.

    *checks* are those of its nonces, which the author's session has from now on.  Returns the
    delivery that follows if the log accepts it.  Raises `StorageFailed`, with nothing proposed.
    """
    said = SaidBlock(
        log.epoch, log.next, utc_now(), room, author.number, author.name, block.text, block.act
    )
    nonces, session = block.nonces, author.session
    if author.number:
        proposal = log.propose(said, nonces, checks, author.generation)
    else:
        proposal = log.propose(said)
    delivery = Delivery(said, log.next - said.first, log=author.log)
    if nonces and session is not None:
        delivery.submission = Submission(
            "" if log.has_feed else said.epoch,  # with a feed it is numbered later
            said.first,
            room=key,
            checks=checks,
            pending=proposal.pending,
            delivered=trio.Event(),
        )
        session.remember(nonces, delivery.submission)
    return delivery, proposal
