"""Fair share of the event loop: schedules connections by measured time.  Pure; has no clock.

Before a connection's input is decoded, the connection takes a turn.  If no other connection waits,
the turn begins immediately; otherwise this module decides who is next, from the duration of earlier
turns.  It does not estimate the cost of a line or a request.

- *Short* turns are those of a connection whose turns take at most `Shares.short_seconds` on
  average.  The connection that has used least goes first, and the sockets are polled in between.
- *Long* turns go through a lane: one at a time, round robin over addresses and then over the
  connections of each.  While other connections take short turns, each long turn is followed by a
  pause proportional to its length, so that a lane takes a bounded share of the time.

There are two lanes: one for accepting connections and for new connections, and one for the others.
A connection that takes an occasional long turn, such as for a line in a large room, pays for it
from a credit, and is scheduled among the short turns.

Invariants:

1. A short turn waits for at most one long turn, and for other short turns.
2. A lane pauses only while others take short turns: a single active connection gets all the time.
3. While others take short turns, each lane gets at most its share of the time, and so do all
   credits together.  New connections pause only for short turns of established connections.
"""

import heapq
import math
from collections.abc import Hashable
from dataclasses import dataclass

__all__ = ["NO_PAUSES", "Account", "FairShare", "Shares"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Shares:
    """Parameters of the scheduling of the event loop."""

    # More than a line takes in a room of twenty; in one of a hundred it takes 0.5 ms.
    short_seconds: float = 0.00025
    # How far a connection's turns may exceed that, in all, before they are long: eight short turns.
    excess_seconds: float = 0.002
    # The lanes still pause for this long after a short turn: two clients that exchange messages
    # spend most of the time waiting for each other.
    hold_seconds: float = 0.1
    # After this much time in turns, the sockets are polled before the next turn.
    poll_seconds: float = 0.00025
    # Each lane's share of the time.  The work of trio for new tasks and of the kernel for new
    # connections is not measured and takes about as much again.
    long_lane: float = 0.1
    new_lane: float = 0.2
    # A connection is new until it has used its credit.  After that the credit grows again, at these
    # rates for each connection and for all of them together.
    credit_seconds: float = 0.02
    credit_per_second: float = 0.02
    credits_per_second: float = 0.1
    # A turn is counted as at most this long, and the next long turn waits at most this long for its
    # end, because it may be waiting for a disk or a slow member.
    longest_seconds: float = 0.025


# For tests that examine a server as soon as all its tasks are blocked.
NO_PAUSES = Shares(long_lane=1.0, new_lane=1.0, longest_seconds=0.0)


class Account:
    """The time used by one connection from *address*; with *accepts*, by a listener.

    Belongs to the `FairShare` that it is passed to.
    """

    __slots__ = (
        "accepts",
        "address",
        "credit",
        "credit_at",
        "excess",
        "has_turn",
        "is_long",
        "is_new",
        "last",
        "rank",
        "waits",
    )

    def __init__(self, address: Hashable, shares: Shares, *, accepts: bool = False) -> None:
        self.address = address
        self.accepts = accepts
        self.has_turn = False
        self.waits = False
        self.last = 0.0  # the duration of its last turn
        self.excess = shares.excess_seconds  # assumed until turns are measured
        self.is_long = True  # whether its next turn is long
        self.rank = 0.0  # the time it has used; being idle gives no advantage
        self.is_new = True
        self.credit = math.inf if accepts else shares.credit_seconds
        self.credit_at = 0.0


class _Lane:
    """A queue of connections that wait for long turns, and when the next may begin."""

    def __init__(self, share: float) -> None:
        self._pause = 1 / share - 1
        self.waiting: dict[Hashable, dict[Account, None]] = {}  # by address
        self.free_at = -math.inf

    def push(self, account: Account) -> None:
        """Add *account* as the last of its address."""
        self.waiting.setdefault(account.address, {})[account] = None

    @property
    def first(self) -> Account:
        """The next account."""
        return next(iter(next(iter(self.waiting.values()))))

    def pop(self) -> Account:
        """Remove and return the next account, and move its address to the end."""
        account = self.first
        address = next(iter(self.waiting))
        accounts = self.waiting.pop(address)
        del accounts[account]
        if accounts:
            self.waiting[address] = accounts
        return account

    def remove(self, account: Account) -> None:
        """Remove *account* if it is waiting."""
        accounts = self.waiting.get(account.address, {})
        if account in accounts:
            del accounts[account]
            if not accounts:
                del self.waiting[account.address]

    def charge(self, seconds: float, now: float) -> None:
        """Pause in proportion to a turn of *seconds*."""
        self.free_at = max(self.free_at, now) + self._pause * seconds


class _ShortTurns:
    """Until when the short turns of others hold up an account: *seconds* after the last of them."""

    __slots__ = ("_at", "_latest", "_others_at", "_seconds")

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._latest: Account | None = None  # the account of the last short turn
        self._at = self._others_at = -math.inf  # when that was, and the last of any other account

    def note(self, account: Account, now: float) -> None:
        """Record a short turn of *account*."""
        if account is not self._latest:
            self._latest, self._others_at = account, self._at
        self._at = now

    def lasts_until(self, account: Account) -> float:
        """Return the time until which *account* is held up."""
        return (self._others_at if account is self._latest else self._at) + self._seconds


class FairShare:
    """The scheduler of one server's connections.

    To take a turn, a connection calls `ask`; if that returns False, it waits until `next` returns
    it.  At the end of the turn it calls `end`.  The caller sets `asked_at` to None after each poll
    of the sockets.  `now` is the time of a monotonic clock in seconds.
    """

    def __init__(self, shares: Shares | None = None) -> None:
        self.shares = shares or Shares()
        self._new_lane = _Lane(self.shares.new_lane)
        self._long_lane = _Lane(self.shares.long_lane)
        self._short: list[tuple[float, int, Account]] = []  # a heap
        self._asked = self._asked_before_long = 0  # the number of requests for short turns
        self._floor = 0.0  # the rank of the last short turn
        self._short_turns = _ShortTurns(self.shares.hold_seconds)
        self._established_short_turns = _ShortTurns(self.shares.hold_seconds)
        self.asked_at: float | None = None  # the first request since the last poll
        self._in_lane: Account | None = None  # the account that has a long turn now
        self._in_lane_until = -math.inf
        self._lane_was_last = False
        self._credits = self._credits_at = 0.0  # for accounts that have used theirs

    @property
    def has_waiting(self) -> bool:
        """Whether `next` will return any account, now or later."""
        return bool(self._short or self._new_lane.waiting or self._long_lane.waiting)

    def others_are_active(self, account: Account, now: float) -> bool:
        """Return whether another account took a short turn within `Shares.hold_seconds`."""
        return now <= self._short_turns.lasts_until(account)

    def ask(self, account: Account, now: float) -> bool:
        """Request a turn; return whether it begins immediately."""
        if self.asked_at is None:
            self.asked_at = now
        may_begin = now - self.asked_at <= self.shares.poll_seconds and not self._short
        lane = self._lane_of(account, now) if account.is_long else None
        if lane is None:
            account.rank = max(account.rank, self._floor)
            if may_begin:
                account.has_turn = True
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
        """Return when to poll the sockets and call `next`; infinity if no account waits."""
        if self._short:
            return now
        return min(
            (self._due_at(lane, lane.first) for lane in self._lanes if lane.waiting),
            default=math.inf,
        )

    def next(self, now: float) -> list[Account]:
        """Return the accounts whose turns begin now: one long turn, or several short ones."""
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
                account.waits, account.has_turn = False, True
                self._floor = max(self._floor, rank)
                left -= account.last
                begin.append(account)
        return begin

    def _owes_short_turns(self) -> bool:
        """Return whether a short turn has been waiting since before the last long one began."""
        return any(
            asked <= self._asked_before_long and account.waits for _, asked, account in self._short
        )

    def withdraw(self, account: Account) -> None:
        """Stop waiting for a turn of *account*."""
        account.waits = False  # `next` skips it in the heap
        for lane in self._lanes:
            lane.remove(account)

    def end(self, account: Account, seconds: float, now: float) -> None:
        """End the turn of *account*, which took *seconds*."""
        shares = self.shares
        was_long = account.is_long
        account.has_turn = False
        account.last = seconds = min(seconds, shares.longest_seconds)
        account.rank += seconds
        excess = account.excess + seconds - shares.short_seconds
        account.excess = min(shares.excess_seconds, max(0.0, excess))
        account.is_long = account.accepts or account.excess >= shares.excess_seconds
        if not (account.is_long or was_long):
            self._short_turns.note(account, now)
            if not account.is_new:
                self._established_short_turns.note(account, now)
        # Charged by the actual duration: a turn that began as a short one may have become long.
        # Short turns of new connections are charged too, which slows down accepting.
        if account.is_new:
            self._new_lane.charge(seconds, now)
            account.credit -= seconds
            account.is_new = account.credit > 0
        elif account.is_long:
            if self._credit_of(account, now) > 0:
                account.credit -= seconds
            else:
                self._long_lane.charge(seconds, now)
        if self._in_lane is account:
            self._in_lane = None

    def _lane_of(self, account: Account, now: float) -> _Lane | None:
        """Return the lane for the next, long turn of *account*; None if it has credit."""
        if account.is_new:
            return self._new_lane
        return None if self._credit_of(account, now) > 0 else self._long_lane

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
        return self._new_lane, self._long_lane

    def _due_at(self, lane: _Lane, account: Account) -> float:
        """Return when *account*, which is next in *lane*, may begin its turn."""
        # Many new connections at once hold up the lane of long turns, but not each other.
        talk = self._established_short_turns if lane is self._new_lane else self._short_turns
        paused_until = min(lane.free_at, talk.lasts_until(account))
        return paused_until if self._in_lane is None else max(paused_until, self._in_lane_until)

    def _begin_long(self, lane: _Lane, account: Account, now: float) -> None:
        account.waits, account.has_turn = False, True
        lane.free_at = min(lane.free_at, now)  # the rest of an unneeded pause is not made up for
        self._in_lane, self._in_lane_until = account, now + self.shares.longest_seconds
        self._lane_was_last = True
        self._asked_before_long = self._asked
