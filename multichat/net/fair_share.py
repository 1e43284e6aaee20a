"""Fair share of the event loop, by measured time: whose turn it is.  Pure: no clock of its own.

Before what a connection sent is decoded, the connection takes a turn.  Where nobody else wants the
loop it gets it at once; this module decides the rest, from how long earlier turns took.  It knows
nothing of what a line or a request costs.

- *Short* turns are those of a connection whose turns take at most `Shares.short_seconds` on
  average.  The connection that has used least goes first, and the sockets are polled in between.
- *Long* turns go through a lane: one at a time, round robin over the addresses and then over the
  connections of each.  While anybody takes short turns, each is followed by a pause in proportion
  to its length, so that all turns of a lane together take a bounded share of the time.

There are two lanes: one for new connections, and for accepting them, and one for the rest.  Who
takes a long turn now and then, as for a line in a large room, has a credit for that and goes among
the short ones.

Invariants:

1. A short turn waits for at most one long turn, and for short turns.
2. Without short turns of others nobody pauses: one who talks alone has all of the time.
3. While there are short turns of others, each lane has at most its share of the time, and so have
   all credits together.  New connections pause only for short turns of connections that are not.
"""

import heapq
import math
from collections.abc import Hashable
from dataclasses import dataclass

__all__ = ["NO_PAUSES", "Account", "FairShare", "Shares"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Shares:
    """How the time of the event loop is shared."""

    # More than a line takes in a room of twenty; in one of a hundred it takes 0.5 ms.
    short_seconds: float = 0.00025
    # What a connection's turns may take above that before they are long: as much as eight.
    excess_seconds: float = 0.002
    # So long after a short turn the lanes still pause: those who talk with each other wait for each
    # other most of the time.
    talk_seconds: float = 0.1
    # When turns have taken so long, the sockets are polled before the next.
    poll_seconds: float = 0.00025
    # What the lanes have of the time.  About as much again is not measured: trio's own work for new
    # tasks, and the kernel's for new connections.
    slow_lane: float = 0.1
    new_lane: float = 0.2
    # A connection is new until it has used its credit; then the credit grows again, so fast for
    # each, and for all together.
    credit_seconds: float = 0.02
    credit_per_second: float = 0.02
    credits_per_second: float = 0.1
    # A turn counts as no longer than this, and the next long turn waits no longer for its end: it
    # may be waiting for a disk or a slow member.
    longest_seconds: float = 0.025


# For tests that look at a server as soon as nothing more happens.
NO_PAUSES = Shares(slow_lane=1.0, new_lane=1.0, longest_seconds=0.0)


class Account:
    """What one connection from *place* has used; with *accepts*, it is a listener.

    Belongs to the `FairShare` that it is passed to.
    """

    __slots__ = (
        "accepts",
        "credit",
        "credit_at",
        "excess",
        "is_long",
        "is_new",
        "last",
        "place",
        "rank",
        "turn",
        "waits",
    )

    def __init__(self, place: Hashable, shares: Shares, *, accepts: bool = False) -> None:
        self.place = place
        self.accepts = accepts
        self.turn = False  # whether it has one
        self.waits = False
        self.last = 0.0  # how long its last turn was
        self.excess = shares.excess_seconds  # until it is known better
        self.is_long = True  # whether its next turn is
        self.rank = 0.0  # what it has used; whoever was idle has no advantage by it
        self.is_new = True
        self.credit = math.inf if accepts else shares.credit_seconds
        self.credit_at = 0.0


class _Lane:
    """Long turns: who waits for one, and when the next may begin."""

    def __init__(self, share: float) -> None:
        self._pause = 1 / share - 1
        self.waiting: dict[Hashable, dict[Account, None]] = {}  # by address
        self.free_at = -math.inf

    def push(self, account: Account) -> None:
        """Have *account* wait, as the last from its address."""
        self.waiting.setdefault(account.place, {})[account] = None

    @property
    def first(self) -> Account:
        """Who is next."""
        return next(iter(next(iter(self.waiting.values()))))

    def pop(self) -> Account:
        """Return who is next; its address comes last from here on."""
        account = self.first
        place = next(iter(self.waiting))
        accounts = self.waiting.pop(place)
        del accounts[account]
        if accounts:
            self.waiting[place] = accounts
        return account

    def remove(self, account: Account) -> None:
        """Have *account* not wait any more, if it does."""
        accounts = self.waiting.get(account.place, {})
        if account in accounts:
            del accounts[account]
            if not accounts:
                del self.waiting[account.place]

    def charge(self, seconds: float, now: float) -> None:
        """Pause for a turn that took so long."""
        self.free_at = max(self.free_at, now) + self._pause * seconds


class _Talk:
    """Until when an account is held up by the short turns of others: *seconds* after the last."""

    __slots__ = ("_at", "_others_at", "_seconds", "_talker")

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._talker: Account | None = None  # who had the last one
        self._at = self._others_at = -math.inf  # when that was, and when the last of anybody else

    def note(self, account: Account, now: float) -> None:
        """Note that *account* has had a short turn."""
        if account is not self._talker:
            self._talker, self._others_at = account, self._at
        self._at = now

    def lasts_until(self, account: Account) -> float:
        """Return until when *account* is held up."""
        return (self._others_at if account is self._talker else self._at) + self._seconds


class FairShare:
    """The connections of one server, and whose turn it is.

    Whoever wants a turn calls `ask`, and waits if that returns False until `next` returns it.  When
    there is nothing more to do in that turn, it calls `end`.  `asked_at` is set to None after each
    poll of the sockets.  `now` is a clock that does not go back, in seconds.
    """

    def __init__(self, shares: Shares | None = None) -> None:
        self.shares = shares or Shares()
        self._new_lane = _Lane(self.shares.new_lane)
        self._slow_lane = _Lane(self.shares.slow_lane)
        self._short: list[tuple[float, int, Account]] = []  # a heap
        self._asked = self._asked_before_long = 0  # how many have, for a short turn
        self._floor = 0.0  # the rank of who had the last short turn
        self._talk = _Talk(self.shares.talk_seconds)
        self._known_talk = _Talk(self.shares.talk_seconds)  # without that of new connections
        self.asked_at: float | None = None  # when somebody first did since that poll
        self._in_lane: Account | None = None  # who has a long turn now
        self._in_lane_until = -math.inf
        self._lane_was_last = False
        self._credits = self._credits_at = 0.0  # to be given to those who have used theirs

    @property
    def anybody_waits(self) -> bool:
        """Whether there is anybody for `next` to return, now or later."""
        return bool(self._short or self._new_lane.waiting or self._slow_lane.waiting)

    def others_talk(self, account: Account, now: float) -> bool:
        """Whether anybody but *account* took a short turn just now."""
        return now <= self._talk.lasts_until(account)

    def ask(self, account: Account, now: float) -> bool:
        """Ask for a turn; return whether it begins at once."""
        if self.asked_at is None:
            self.asked_at = now
        may_begin = now - self.asked_at <= self.shares.poll_seconds and not self._short
        lane = self._lane_of(account, now) if account.is_long else None
        if lane is None:
            account.rank = max(account.rank, self._floor)
            if may_begin:
                account.turn = True
                return True
            self._asked += 1
            heapq.heappush(self._short, (account.rank, self._asked, account))
        else:
            if may_begin and not lane.waiting and self._due_at(lane, account) <= now:
                self._begin_long(lane, account, now)
                return True
            lane.push(account)
        account.waits = True
        return False

    def next_at(self, now: float) -> float:
        """Return when to poll the sockets and then call `next`; infinity if nobody waits."""
        if self._short:
            return now
        return min(
            (self._due_at(lane, lane.first) for lane in self._lanes if lane.waiting),
            default=math.inf,
        )

    def next(self, now: float) -> list[Account]:
        """Return whose turns begin now: one long one, or as many short ones as fit."""
        due = [
            lane for lane in self._lanes if lane.waiting and self._due_at(lane, lane.first) <= now
        ]
        if due and not (self._short and (self._lane_was_last or self._owes_short_turns())):
            lane = min(due, key=lambda lane: lane.free_at)
            account = lane.pop()
            self._begin_long(lane, account, now)
            return [account]
        self._lane_was_last = False
        begin: list[Account] = []
        left = self.shares.poll_seconds
        while self._short and (not begin or self._short[0][2].last <= left):
            rank, _, account = heapq.heappop(self._short)
            if account.waits:
                account.waits, account.turn = False, True
                self._floor = max(self._floor, rank)
                left -= account.last
                begin.append(account)
        return begin

    def _owes_short_turns(self) -> bool:
        """Return whether somebody waits for a short turn since before the last long one began."""
        return any(
            asked <= self._asked_before_long and account.waits for _, asked, account in self._short
        )

    def withdraw(self, account: Account) -> None:
        """Note that *account* does not wait any more."""
        account.waits = False  # which is enough for the heap
        for lane in self._lanes:
            lane.remove(account)

    def end(self, account: Account, seconds: float, now: float) -> None:
        """Note that the turn of *account* is over, and that it took so long."""
        shares = self.shares
        was_long = account.is_long
        account.turn = False
        account.last = seconds = min(seconds, shares.longest_seconds)
        account.rank += seconds
        excess = account.excess + seconds - shares.short_seconds
        account.excess = min(shares.excess_seconds, max(0.0, excess))
        account.is_long = account.accepts or account.excess >= shares.excess_seconds
        if not (account.is_long or was_long):
            self._talk.note(account, now)
            if not account.is_new:
                self._known_talk.note(account, now)
        # By what the turn has turned out to be: one that began as a short one is paid for, too, and
        # so are the short ones of new connections, which are not accepted so fast then.
        if account.is_new:
            self._new_lane.charge(seconds, now)
            account.credit -= seconds
            account.is_new = account.credit > 0
        elif account.is_long:
            if self._credit_of(account, now) > 0:
                account.credit -= seconds
            else:
                self._slow_lane.charge(seconds, now)
        if self._in_lane is account:
            self._in_lane = None

    def _lane_of(self, account: Account, now: float) -> _Lane | None:
        """Return the lane for the next turn of *account*, a long one; None for none."""
        if account.is_new:
            return self._new_lane
        return None if self._credit_of(account, now) > 0 else self._slow_lane

    def _credit_of(self, account: Account, now: float) -> float:
        shares = self.shares
        grown = (now - self._credits_at) * shares.credits_per_second
        self._credits = min(shares.credit_seconds, self._credits + grown)
        self._credits_at = now
        grown = min(
            self._credits,
            (now - account.credit_at) * shares.credit_per_second,
            shares.credit_seconds - account.credit,
        )
        self._credits -= grown
        account.credit += grown
        account.credit_at = now
        return account.credit

    @property
    def _lanes(self) -> tuple[_Lane, _Lane]:
        return self._new_lane, self._slow_lane

    def _due_at(self, lane: _Lane, account: Account) -> float:
        """Return when *account*, which is next in *lane*, may begin its turn."""
        # Many that connect at once and say hello hold up the slow lane, but not each other.
        talk = self._known_talk if lane is self._new_lane else self._talk
        paused_until = min(lane.free_at, talk.lasts_until(account))
        return paused_until if self._in_lane is None else max(paused_until, self._in_lane_until)

    def _begin_long(self, lane: _Lane, account: Account, now: float) -> None:
        account.waits, account.turn = False, True
        lane.free_at = min(lane.free_at, now)  # nobody waits later for what disturbed nobody
        self._in_lane, self._in_lane_until = account, now + self.shares.longest_seconds
        self._lane_was_last = True
        self._asked_before_long = self._asked
