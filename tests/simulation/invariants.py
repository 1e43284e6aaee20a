"""The invariants of every history; each yields the violations that it finds.

Pure functions.  Each checks one promise, and a test breaks the server on purpose to show that it
detects the violation (`tests/test_simulation.py`).
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from math import inf
from typing import NamedTuple

from multichat import Slow
from multichat.net.send_queue import MAX_WAITING_BYTES
from multichat.protocol.auth import UNAVAILABLE
from multichat.protocol.goodbyes import SHUTTING_DOWN
from multichat.server.broadcast import MAX_BATCH_BYTES
from multichat.server.room import Room

from .chronicle import KILLED, Publish, Stay, key_of
from .coming_back import COMING_BACK
from .history import (
    CANCELLED,
    SAME_SECONDS,
    TOO_FAR_BEHIND,
    Heard,
    History,
    Sent,
    Visit,
)
from .journal import Taken
from .plan import HUSH, SHOUT, SHOUTED, SLEEPY, ServerEnding

__all__ = ["INVARIANTS", "Invariant", "Violation", "violations"]

# Rooms check at intervals whether waiting is free, so the last part is paid late.
_LOOK_SECONDS = 0.1

# A lagging client gets only the newest notices of the server, when it is live again.
_MAX_NOTICES = 16

# The most violations of one invariant that are reported for a run.
_MOST_TOLD = 3

# The reasons of broken connections; for any other reason the server disconnected the client.
_BROKEN = ("connection reset", "connection broken", "connection timed out")


Invariant = Callable[[History], Iterator[str]]


class Violation(NamedTuple):
    """An invariant that a run violated, and how."""

    invariant: str
    what: str

    def __str__(self) -> str:
        return f"{self.invariant}: {self.what}"


def violations(history: History, invariants: Sequence[Invariant] | None = None) -> list[Violation]:
    """Return the violations in *history* and its lost histories, at most a few of each kind."""
    found = [
        Violation(invariant.__name__, what)
        for each in history.branches
        for invariant in invariants or INVARIANTS
        for what in islice(invariant(each), _MOST_TOLD)
    ]
    return [*dict.fromkeys(found)]


# --- Order ----------------------------------------------------------------------------------------


def one_order(history: History) -> Iterator[str]:
    """All members of a room, the log and the journal have the same order of messages.

    Replays have that order too.  The server's notices are not part of it: they are sent
    immediately, or to a lagging client when it is live again.
    """
    chronicle = history.chronicle
    for told in chronicle.untaken:
        yield f"{told} was told, and it was not its turn in the journal"
    yield from chronicle.misnumbered
    order = chronicle.order
    for visit in history.visits:
        parts = [
            [heard for heard in section.heard if not (section.caught_up and heard.key[:3] == "s0.")]
            for section in history.sections(visit)
        ] or [visit.heard_said]
        if any(history.lagging(stay) for stay in history.stays(visit)):
            parts = [[heard for heard in part if heard.key[:3] != "s0."] for part in parts]
        for part in parts:
            last = Heard("said")
            for heard in part:
                if heard.kind == "said" and heard.key in order:
                    if last.key and order[heard.key] < order[last.key]:
                        yield f"{visit} heard {heard.key} after {last.key}, the log before it"
                    last = heard


def ids_are_in_order(history: History) -> Iterator[str]:
    """All clients get the same id for a message: that of its room and its number there."""
    chronicle = history.chronicle
    for visit in history.visits:
        for heard in visit.heard:
            told = chronicle.ids.get(heard.id)
            if heard.kind == "said" and heard.id and (told is None or told.key != heard.key):
                yield f"{visit} heard {heard.key} as {heard.id}, which it is not"
                break
            if heard.kind in ("welcome", "joined") and heard.id and told is None:
                yield f"{visit} heard {heard.id} as the last id, which nothing has"
                break


def ids_are_unique(history: History) -> Iterator[str]:
    """No two messages have the same id, whichever backup is restored."""
    keys: dict[str, str] = {}
    for each in history.branches:
        for id_, told in each.chronicle.ids.items():
            if keys.setdefault(id_, told.key) != told.key:
                yield f"{keys[id_]} and {told.key} are both {id_}"


def sender_order(history: History) -> Iterator[str]:
    """The messages of a client are published in the order in which it sent them, without gaps.

    Except those that were published before, and those that could not be stored and were answered
    by an error.
    """
    places = {key: place for place, key in enumerate(_kept(history.taken))}
    for visit in history.visits:
        sent = iter(each for each in visit.sent if each.to is None)
        for key in _kept(history.chronicle.taken_from.get(visit.server_number or 0, [])):
            skipped: list[str] = []
            for each in sent:
                if each.key == key or _is_partial(key):
                    break
                said = places.get(each.key, inf) < places[key]
                if not (said or may_be_dropped(history, each) or was_refused(history, visit, each)):
                    skipped.append(each.key)
            else:
                yield f"{visit} did not send {key} after what was said before it"
                break
            if skipped:
                yield f"{visit} sent {skipped[0]} before {key}, and it was not said before it"
                break


def _kept(taken: list[Taken]) -> Iterator[str]:
    for each in taken:
        if each.kept:
            for text in each.said.text.split("\n"):
                yield key_of(each.said.name, text)


def _is_partial(key: str) -> bool:
    return ": " in key  # otherwise it is the rest of a line at EOF


def may_be_dropped(history: History, sent: Sent) -> bool:
    return bool(history.plan.config.filters) and HUSH in sent.text


def was_refused(history: History, visit: Visit, sent: Sent) -> bool:
    """Whether *visit* got an error for *sent*: by its nonce, or for any message.

    If not everything was delivered to it, the error may be among the rest.
    """
    plan = history.plan
    others = plan.faults.full or plan.away or any(told.text == "not-in-room" for told in visit.told)
    if others and not history.heard_until_departure(visit):
        return True
    return any(
        (
            told.kind == "error"
            and told.text in ("storage-failed", "not-in-room")
            and told.nonce == sent.nonce
        )
        or (told.kind == "server" and told.text.startswith("messages cannot be stored now"))
        for told in visit.told
    )


# --- Loss -----------------------------------------------------------------------------------------


class _Expected(NamedTuple):
    """What a client should have received, in order: *sure*, and what it may have received."""

    sure: list[str]
    maybe: set[str]


def _expected(history: History, visit: Visit) -> _Expected:
    """Return the messages of others in the rooms of *visit*.

    A publish may wait for slow members between two of its batches, so a client that joins meanwhile
    gets the rest of it, and one that leaves gets the beginning.  A client that lags when it leaves
    has what was replayed by then; at a shutdown it is told how many it missed of the others, see
    `History.accounted`.  A notice for which the room was waiting is not repeated.
    """
    sure: list[str] = []
    maybe: set[str] = set()
    for stay in history.stays(visit):
        publishes = [
            each for each in history.chronicle.said_during(stay) if each.speaker != stay.client
        ]
        before = history.chronicle.said_before(stay)
        if history.plan.config.slow is Slow.WAIT and before is not None:
            maybe.update(before.keys[1:])
        reached = history.accounted(stay)
        if publishes and history.may_be_cut_short(stay) and not _is_exact(history, stay):
            maybe.update(publishes[-1].keys)
        if publishes and publishes[-1].speaker is None and history.left_untaken(stay):
            maybe.update(publishes[-1].keys)
        lags = history.lagging(stay)
        notices = [each.position for each in publishes if each.speaker is None]
        for publish in publishes:
            if publish.speaker is None:
                # A lagging client gets it later, or never.
                until = history.chronicle.done(publish)
                late = [end for start, end in lags if publish.position <= end and start <= until]
                after = sum(publish.position < at <= late[0] for at in notices) if late else 0
                may_miss = late and (late[0] == inf or after >= _MAX_NOTICES)
                if may_miss or (late and not history.heard_until_departure(visit)):
                    maybe.update(publish.keys)
                else:
                    sure += publish.keys
            elif reached is None or history.plan.config.slow is Slow.DISCONNECT:
                sure += publish.keys
            else:
                sure += publish.keys[: max(0, reached - publish.first)]
    return _Expected(sure, maybe)


def _is_exact(history: History, stay: Stay) -> bool:
    """Whether it is known exactly what was delivered in *stay*."""
    return history.plan.config.slow is Slow.WAIT and history.reached(stay) is not None


def nothing_lost(history: History) -> Iterator[str]:
    """A member gets every message; one that did not read to the end gets all up to some message.

    `skips_add_up` checks this under `drop`, and for clients that lagged for longer than messages
    are kept; `nothing_missed_nor_twice` checks it for replays.
    """
    if history.plan.config.slow is Slow.DROP:
        return
    order = history.chronicle.order
    for visit in history.visits:
        if visit.server_number is None or history.sections(visit) or _missed(visit):
            continue
        sure, maybe = _expected(history, visit)
        heard = {each.key for each in visit.heard_said}
        last = max((order[key] for key in heard if key in order), default=-1)
        for key in sure:
            lost = key not in heard and key not in maybe
            if lost and (order[key] < last or history.heard_until_departure(visit)):
                yield f"{visit} was there and did not hear {key}"
                break


def skips_add_up(history: History) -> Iterator[str]:
    """The counts of missed messages are exact, at each place.

    Under `drop`.  A lagging client misses only messages that were deleted, cannot be read, or were
    still to be replayed when the server ended.
    """
    drops = history.plan.config.slow is Slow.DROP
    faults = history.plan.faults
    keeps_all = faults.max_messages is None and not (faults.full and faults.refuses)
    keeps_all = keeps_all and not faults.damaged_reads
    for visit in history.visits:
        if history.sections(visit) or not (drops or _missed(visit)):
            continue
        departure = history.departure(visit)
        at_shutdown = departure is not None and departure.reason == SHUTTING_DOWN
        if not drops and keeps_all and not at_shutdown:
            yield f"{visit} was told that it missed something"
            continue
        sure, _ = _expected(history, visit)
        if not drops:  # of lagging clients, to which the server reports it later
            sure = [key for key in sure if key[:3] != "s0."]
        place = {key: i for i, key in enumerate(sure)}
        told = heard_until = 0
        for heard in visit.heard:
            if heard.kind == "missed":
                told += heard.messages
            elif heard.kind == "said" and heard.key in place:
                missed = place[heard.key] - heard_until
                if missed != told:
                    yield f"{visit} missed {missed} before {heard.key}, and was told of {told}"
                    break
                heard_until, told = place[heard.key] + 1, 0
        else:
            missed = len(sure) - heard_until
            if missed != told and history.heard_until_departure(visit):
                yield f"{visit} missed {missed} in the end, and was told of {told}"


def _missed(visit: Visit) -> bool:
    return any(heard.kind == "missed" for heard in visit.heard)


# --- Slow clients ---------------------------------------------------------------------------------


def rooms_wait_within_budgets(history: History) -> Iterator[str]:
    """A room waits for slow clients within its budget, whoever they are.

    Except while it has no other client to deliver to.
    """
    full = history.plan.config.slow_timeout_seconds
    budgets: dict[Room, tuple[float, float]] = {}  # seconds left, and at which time
    for wait in history.waits:
        left, at = budgets.get(wait.room, (full, wait.start))
        left = min(full, left + (wait.end - at) / 15) - (wait.end - wait.start)
        if left < -_LOOK_SECONDS:
            yield f"{wait.room.name} waited {-left:.3f} s too long until {wait.end:.3f}"
        budgets[wait.room] = left, wait.end


def only_the_stalled_are_too_slow(history: History) -> Iterator[str]:
    """Unless the policy is `disconnect`, a client that is too slow took no byte for the timeout."""
    if history.plan.config.slow is Slow.DISCONNECT:
        return
    stall = history.plan.config.stall_timeout_seconds
    for visit in history.visits:
        departure, connection = history.departure(visit), visit.connection
        if departure is None or connection is None or departure.reason != "too slow":
            continue
        taken_at = max(
            (at for at in connection.to_client.takes if at < departure.seconds), default=0.0
        )
        if departure.seconds - taken_at < stall - SAME_SECONDS:
            yield f"{visit} had to go {departure.seconds - taken_at:.3f} s after it took something"


def lags_end(history: History) -> Iterator[str]:
    """A lagging client that reads immediately is live as soon as the journal can be read."""
    plan = history.plan
    slow = plan.faults.slow_seconds + plan.link_seconds
    away = 0.0 if plan.link is None else sum(time for _, time in plan.link.cuts)
    visits = {
        visit.server_number: visit
        for visit in history.visits
        if visit.attentive and not visit.plan.returns and not visit.broke_off
    }
    since: dict[tuple[int, str], float] = {}
    for record in history.lags:
        key = record.connection, record.room
        if record.kind == "entered":
            continue
        if record.kind == "lag":
            since.setdefault(key, record.seconds)
        elif (start := since.pop(key, None)) is not None and record.connection in visits:
            most = 0.1 + away + slow * (1 + len(history.chronicle.numbered.get(record.room, [])))
            if record.seconds - start > most:
                what = f"{visits[record.connection]} lagged for {record.seconds - start:.3f} s"
                yield f"{what} in {record.room}, and took everything at once"


def all_is_said(history: History) -> Iterator[str]:
    """If a client left by itself and everything was read, all its messages were published.

    From the start of the shutdown, the server publishes nothing that was not in progress.
    """
    plan = history.plan
    for taken in history.never_told:
        yield f"{taken.said.text[:20]} was taken, and nobody was told"
    shutdown = inf if plan.server_ending is ServerEnding.OUTLIVES else plan.server_ends_seconds
    said = set(history.chronicle.order)
    for visit in history.visits:
        departure = history.departure(visit)
        if departure is None or departure.reason or visit.broke_off:
            continue
        if departure.seconds >= shutdown:
            continue
        for sent in visit.sent:
            if sent.to is not None or sent.key in said or _is_partial(sent.key):
                continue
            if not (may_be_dropped(history, sent) or was_refused(history, visit, sent)):
                yield f"{visit} sent {sent.key}, which nobody was told"
                break


def accepted_messages_are_published(history: History) -> Iterator[str]:
    """An accepted message was published with that id, or delivered to its recipient.

    It is accepted at most as often as it was sent, always with the same id.
    """
    order = history.chronicle.order
    for visit in history.visits:
        sent = {each.nonce: each for each in visit.sent if each.nonce is not None}
        times = Counter(each.nonce for each in visit.sent if each.nonce is not None)
        accepted = Counter(each.nonce for each in visit.heard if each.kind == "accepted")
        for nonce, count in accepted.items():
            if count > times[nonce]:
                yield f"{visit} had {nonce} accepted {count} times"
        for heard in visit.heard:
            if heard.kind != "accepted" or heard.nonce not in sent:
                continue
            message = sent[heard.nonce]
            if message.to is None:
                told = history.chronicle.ids.get(heard.id)
                if message.key not in order:
                    yield f"{visit} had {message.key} accepted, which was not said"
                elif told is None or told.key != message.key:
                    yield f"{message.key} was accepted as {heard.id}, which it is not"
            elif not _was_told(history, message):
                yield f"{visit} had {message.key} accepted, and client {message.to} has nothing"


def _was_told(history: History, message: Sent) -> bool:
    recipients = history.visits_of(message.to or 0)
    return any(
        any(heard.key == message.key for heard in recipient.told)
        or not history.heard_until_departure(recipient)
        for recipient in recipients
    )


def storage_fails_only_for_a_reason(history: History) -> Iterator[str]:
    """`storage-failed` is sent only with a full or damaged disk, or without an engine."""
    plan = history.plan
    if plan.faults.full or plan.faults.damaged_reads or plan.away:
        return
    for visit in history.visits:
        for told in visit.told:
            if told.text == "storage-failed" or told.text.startswith("messages cannot be stored"):
                yield f"{visit} was told {told}"


# --- Recipients -----------------------------------------------------------------------------------


def nothing_twice(history: History) -> Iterator[str]:
    """No client gets a message twice without requesting it, and no message is logged twice.

    A private message, which is not in the journal, may be repeated after a kill of the server.
    """
    logged = Counter(key for publish in history.chronicle.publishes for key in publish.keys)
    for key, count in logged.items():
        if count > 1 and not _is_partial(key):
            yield f"{key} was said {count} times"
    directs: Counter[str] = Counter()
    for visit in history.visits:
        directs.update(each.key for each in visit.heard if each.kind == "direct")
        for part in [section.heard for section in history.sections(visit)] or [visit.heard]:
            heard = Counter(each.key for each in part if each.kind == "said")
            for key, count in heard.items():
                if count > max(1, logged[key]):
                    yield f"{visit} heard {key} {count} times"
    for key, count in directs.items():
        if count > 1 + len(history.kills):
            yield f"{key} was heard {count} times"


def no_echo(history: History) -> Iterator[str]:
    """A sender does not get its own messages, even after a reconnect."""
    speakers = {
        key: publish.speaker for publish in history.chronicle.publishes for key in publish.keys
    }
    for visit in history.visits:
        client = visit.server_number
        for heard in visit.heard:
            if heard.kind == "welcome":
                client = heard.number
            elif heard.kind == "said" and speakers.get(heard.key, 0) == client:
                yield f"{visit} heard its own {heard.key}"
                break


def only_members_hear(history: History) -> Iterator[str]:
    """Only members get a room's messages, and private messages reach one client.

    For replays, `nothing_missed_nor_twice` checks that.
    """
    for visit in history.visits:
        if history.sections(visit):
            continue
        sure, maybe = _expected(history, visit)
        there = maybe.union(sure)
        own = {each.key for each in visit.sent}
        for heard in visit.heard_said:
            if heard.key not in there and heard.key not in own:
                yield f"{visit} heard {heard.key}, and was not there"
                break
    meant = {
        sent.key: sent.to for visit in history.visits for sent in visit.sent if sent.to is not None
    }
    for visit in history.visits:
        for heard in visit.heard:
            clients = {stay.client for stay in history.stays(visit)}
            if heard.kind == "direct" and meant.get(heard.key) not in clients:
                yield f"{visit} heard {heard.key}, which is for {meant.get(heard.key)}"


# --- Contents -------------------------------------------------------------------------------------


def no_forged_tag(history: History) -> Iterator[str]:
    """A message has its sender's tag, whatever its text is; no two clients have the same name.

    The tag is the sender's name when the journal took the message; on delivery, another client may
    have that name.
    """
    for name in history.chronicle.shared_names:
        yield f"two people are called {name}"
    yield from history.chronicle.forged
    publishes = {key: publish for publish in history.chronicle.publishes for key in publish.keys}
    for key, publish in publishes.items():
        number = history.person_of.get(publish.speaker or 0, 0)
        if not _is_partial(key) and key[1:].split(".")[0] != str(number):
            yield f"{key} was said as {publish.name}, who is client {publish.speaker}"
    for visit in history.visits:
        for heard in visit.heard_said:
            said = publishes.get(heard.key)
            if said is not None and not _is_tagged_as(said, heard):
                yield f"{visit} heard {heard.key} from {heard.name}; it is {said.name}'s"
                break


def _is_tagged_as(said: Publish, heard: Heard) -> bool:
    return (
        (heard.name, heard.act) == (said.name, said.act)
        and heard.number in (None, said.speaker)
        and (heard.room or said.room).lower() == said.room
    )


def texts_are_whole(history: History) -> Iterator[str]:
    """Messages are published and received whole, as they were sent or as filters changed them."""
    may_be_said = _may_be_said(history)
    texts: dict[str, str] = {}
    for publish in history.chronicle.publishes:
        for key, text in zip(publish.keys, publish.texts, strict=True):
            texts[key] = text
            may_be = may_be_said.get(key, [text] if publish.speaker is None else [])
            if not _is_partial(key) and text not in may_be:
                yield f"{key} was said as {text!r}, and can only be {may_be}"
    for visit in history.visits:
        for heard in visit.heard:
            if heard.kind == "broken":
                yield f"{visit} was told {heard.text!r}"
            elif heard.kind == "said" and heard.text != texts.get(heard.key, heard.text):
                yield f"{visit} heard {heard.key} as {heard.text!r}; it is {texts[heard.key]!r}"


def _may_be_said(history: History) -> dict[str, list[str]]:
    """Return, for each sent message, the texts as which it may be published."""
    filtered = bool(history.plan.config.filters)
    may_be: dict[str, list[str]] = {}
    # A filter that takes too long passes the messages of the same read unchanged, on any connection
    # of the sender.
    too_late = {
        visit.plan.number
        for visit in history.visits
        if any(SLEEPY in sent.text for sent in visit.sent)
    }
    for visit in history.visits:
        in_time = filtered and visit.plan.number not in too_late
        for sent in visit.sent:
            may_be[sent.key] = [] if in_time else [sent.text]
            if filtered and HUSH not in sent.text:
                may_be[sent.key].append(sent.text.replace(SHOUT, SHOUTED))
    return may_be


# --- The end --------------------------------------------------------------------------------------


def evicted_are_told(history: History) -> Iterator[str]:
    """A client that the server disconnects gets the reason as its last line, or takes no bytes.

    A client that was reading all the time has received it.
    """
    for visit in history.visits:
        departure = history.departure(visit)
        if visit.refused:
            reason = UNAVAILABLE if _is_unavailable(visit) else "full"
        elif departure is None or departure.reason in ("", KILLED, CANCELLED, *_BROKEN):
            continue
        else:
            reason = departure.reason
        told = visit.heard if visit.attentive else visit.told
        if told and told[-1].kind == "goodbye" and reason in told[-1].text:
            continue
        if reason == TOO_FAR_BEHIND:
            continue  # there may be no memory for the goodbye
        if not (visit.broke_off or visit.killed or history.had_its_time(visit)):
            yield f"{visit} had to go ({reason}) and was not told"


def _is_unavailable(visit: Visit) -> bool:
    return bool(visit.told) and UNAVAILABLE in visit.told[-1].text


def nobody_goes_without_reason(history: History) -> Iterator[str]:
    """Only connections that a client broke are logged as broken; sessions end all together."""
    for visit in history.visits:
        departure = history.departure(visit)
        if departure is None:
            ended = visit.session_ended_seconds
            if visit.server_number is None or visit.killed or ended == history.cancelled_seconds:
                continue  # it was connecting
            yield f"{visit} never left"
        elif departure.reason in _BROKEN and not (visit.broke_off or visit.killed):
            yield f"{visit} was said to be gone ({departure.reason}), and was not"
        elif departure.reason == CANCELLED and departure.seconds < history.cancelled_seconds:
            yield f"{visit}'s session ended before the server was cancelled"


def gone_is_gone(history: History) -> Iterator[str]:
    """A client that has left does nothing: it sends nothing, takes no name and joins no room.

    Messages that the journal took before are still delivered.
    """
    for what in history.chronicle.ghosts:
        yield f"{what}, after it had left"


def send_queues_bounded(history: History) -> Iterator[str]:
    """A send queue never exceeds its limits, in batches and in bytes.

    That is one limit of batches in the channel, and one plus a batch joined for the writer.
    """
    batches = 2 * history.plan.config.send_queue_batches + 1
    most = min(batches * _largest_batch(history), max(MAX_WAITING_BYTES, _largest_batch(history)))
    for number, waiting in history.peak_bytes.items():
        if waiting > most:
            yield f"{waiting} bytes waited for client {number}, where {most} may"


def _largest_batch(history: History) -> int:
    """Return the upper bound of a batch: of messages and of answers."""
    largest = total = 0
    for publish in history.chronicle.publishes:
        # In JSON a message has about 200 more bytes, and some characters take two.
        sizes = [2 * len(text.encode()) + 250 for text in publish.texts]
        largest = max(largest, min(sum(sizes), max(MAX_BATCH_BYTES, *sizes)))
        total += sum(sizes)
    if any(history.sections(visit) or b'"history"' in visit.sent_bytes for visit in history.visits):
        largest = max(largest, min(total, 2 * MAX_BATCH_BYTES))  # a page of history
    return 4096 + 64 * len(history.visits) + largest


def nothing_left_behind(history: History) -> Iterator[str]:
    """At the end no task, member, room, connection or queued byte is left."""
    for what in history.left_behind:
        yield f"{what} left"


def ends_in_time(history: History) -> Iterator[str]:
    """The run ends by itself, within the sum of its time limits."""
    if not history.ended_in_time and not history.crash:
        yield f"it was not over, and given up after {history.seconds:.2f} virtual seconds"


def nothing_crashes(history: History) -> Iterator[str]:
    """No unexpected exception is logged or raised by the server."""
    if history.crash:
        yield history.crash
    for entry in history.log:
        if "crashed" in entry.text:
            yield entry.text


def counts_add_up(history: History) -> Iterator[str]:
    """The server's statistics are correct."""
    if history.crash:
        return
    publishes = [each for each in history.chronicle.publishes if each.speaker is not None]
    kills = [kill.position for kill in history.kills]
    said = sum(len(each.keys) for each in publishes if each.position not in kills)
    # A publish is logged as a whole but counted in batches, and the server may be killed meanwhile.
    rooms = history.chronicle.by_room.values()
    open_ = sum(len(each.keys) for each in _last_before(rooms, kills))
    # The server's notices count too, including one that was cancelled before its turn.
    if not said - open_ <= history.messages <= said + len(history.plan.announcements):
        yield f"{history.messages} messages were counted, {said} were said"
    slow = sum(
        departure.reason in ("too slow", TOO_FAR_BEHIND)
        for departure in history.chronicle.departures.values()
    )
    if history.too_slow < slow:
        yield f"{history.too_slow} were counted as too slow, {slow} had to go for that"


def _last_before(rooms: Iterable[list[Publish]], kills: list[int]) -> Iterator[Publish]:
    for room in rooms:
        for kill in kills:
            before = [each for each in room if each.position < kill and len(each.keys) > 1]
            yield from before[-1:]


INVARIANTS: tuple[Invariant, ...] = (
    nothing_crashes,
    one_order,
    ids_are_in_order,
    ids_are_unique,
    sender_order,
    nothing_lost,
    skips_add_up,
    rooms_wait_within_budgets,
    only_the_stalled_are_too_slow,
    lags_end,
    all_is_said,
    accepted_messages_are_published,
    storage_fails_only_for_a_reason,
    nothing_twice,
    no_echo,
    only_members_hear,
    no_forged_tag,
    texts_are_whole,
    evicted_are_told,
    nobody_goes_without_reason,
    gone_is_gone,
    send_queues_bounded,
    nothing_left_behind,
    ends_in_time,
    counts_add_up,
    *COMING_BACK,
)
