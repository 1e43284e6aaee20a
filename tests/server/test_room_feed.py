"""A room whose log is decided elsewhere: the outcomes of proposals, for all that wait."""

import pytest
import trio

from multichat.backend.base import Proposal
from multichat.backend.local import LocalLog
from multichat.journal.base import PendingWrite
from multichat.journal.memory import MemoryJournal
from multichat.protocol.messages import SaidBlock, SayBlock
from multichat.server.broadcast import Delivery
from multichat.server.room_feed import RoomFeed

pytestmark = pytest.mark.unit


def _proposal() -> Proposal:
    return Proposal(None, PendingWrite())


async def _apply(_: Delivery) -> None:
    raise AssertionError("nothing comes")


@pytest.mark.parametrize("is_cancelled", [False, True])
async def test_messages_that_the_log_has_already_keep_no_room_waiting(is_cancelled: bool) -> None:
    async with trio.open_nursery() as nursery:
        log = MemoryJournal().room("lobby")  # which `follow` alone would use
        feed = RoomFeed(LocalLog(log), _apply, lambda _: None, nursery.start_soon)
        said = SaidBlock("", 0, "", "lobby", 1, "alice", "one\ntwo", False)
        proposal, delivery = _proposal(), Delivery(said, 0)
        feed.note(proposal, delivery)
        with trio.CancelScope() as scope:
            if is_cancelled:
                scope.cancel(reason="the client has disconnected")
            else:
                nursery.start_soon(_decide, proposal)
            await feed.wait(proposal, delivery, SayBlock("one\ntwo", ("a", "b")), None)
        assert scope.cancelled_caught == is_cancelled
        if is_cancelled:
            assert feed.is_waiting
            await _decide(proposal)
        with trio.fail_after(60):
            await feed.wait_applied()
        assert not feed.is_waiting


async def _decide(proposal: Proposal) -> None:
    proposal.earlier = {0: "0000000000a-5", 1: "0000000000a-6"}
    assert proposal.pending is not None
    proposal.pending.resolve()
    await trio.lowlevel.checkpoint()
