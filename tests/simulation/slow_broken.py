"""Deliberately broken servers with a backend that decides late; see `broken`.

Each lacks one of the protections that only such a backend needs: of the engine and its link, and of
the rooms and sessions that stand on it.
"""

from typing import Any

import pytest

from multichat.server.room import Room
from multichat.server.room_feed import RoomFeed

from .broken import Break, edited
from .link import Link
from .local_engine import LocalEngine
from .slow_backend import SlowBackend

__all__ = ["SLOW_MUTATIONS"]

# --- The engine and its link ----------------------------------------------------------------------

store_again_what_is_sent_again = edited(
    "store_again_what_is_sent_again",
    LocalEngine,
    "execute",
    "self._executed.get(call.number)",
    "None",
)
forget_calls_without_an_answer = edited(
    "forget_calls_without_an_answer",
    Link,
    "_come_back",
    "for call in self._unanswered.values():",
    "for call in ():",
)
refuse_as_soon_as_the_link_is_cut = edited(
    "refuse_as_soon_as_the_link_is_cut",
    SlowBackend,
    "_check",
    "not self.available",
    "self.link.away_since is not None",
)

# --- Rooms ----------------------------------------------------------------------------------------

accept_before_it_is_delivered = edited(
    "accept_before_it_is_delivered",
    RoomFeed,
    "wait",
    "await proposed.applied.wait()",
    "pass",
)


def close_a_room_with_proposals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Room, "is_delivering", property(lambda room: room._order.locked()))


echo_what_comes_back = edited(
    "echo_what_comes_back",
    Room,
    "_apply_in_turn",
    "self.members.get(delivery.said.client)",
    "None",
)
number_nothing_in_the_session = edited(
    "number_nothing_in_the_session",
    RoomFeed,
    "_delivery_of",
    "delivery.submission.number(said.epoch, said.first)",
    "pass",
)
settle_nothing_that_failed = edited(
    "settle_nothing_that_failed",
    RoomFeed,
    "_wait_decided",
    "self._settle(proposal)",
    "pass",
)
watch_nothing_after_a_cancel = edited(
    "watch_nothing_after_a_cancel",
    RoomFeed,
    "wait",
    "self._start_soon(partial(self._watch, proposal))",
    "pass",
)

# Short cuts, so that nothing may be refused, and a disk that is full for a while.
_CUT = {"cuts": tuple((float(start), 2.9) for start in range(1, 200, 5))}
_FULL = {"full": True}

# As `broken.MUTATIONS`; with `cuts`, the link has these, and with `full`, only plans in which the
# disk is full for a while.
SLOW_MUTATIONS: list[tuple[Break, str, dict[str, Any]]] = [
    (store_again_what_is_sent_again, "nothing_twice", _CUT),
    (forget_calls_without_an_answer, "ends_in_time", _CUT),
    (refuse_as_soon_as_the_link_is_cut, "storage_fails_only_for_a_reason", _CUT),
    (accept_before_it_is_delivered, "accepted_messages_are_published", {}),
    (close_a_room_with_proposals, "all_is_said", {}),
    (echo_what_comes_back, "no_echo", {}),
    (number_nothing_in_the_session, "accepted_messages_are_published", {}),
    (settle_nothing_that_failed, "nothing_left_behind", _FULL),
    (watch_nothing_after_a_cancel, "nothing_left_behind", _FULL),
]
