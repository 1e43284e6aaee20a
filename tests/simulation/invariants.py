"""What has to be true of every history; each yields what it finds wrong.

Pure functions.  Each names one promise, and a test breaks the server on purpose to show that each
is able to notice (`tests/test_simulation.py`).
"""

from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice
from math import inf
from typing import NamedTuple

from multichat import Slow
from multichat.batch import MAX_BATCH_BYTES
from multichat.mailbox import MAX_WAITING_BYTES

from .history import Heard, History, Person, Publish, Sent, Stay
from .plan import HUSH, SHOUT, SHOUTED, SLEEPY, ServerEnding

__all__ = ["INVARIANTS", "Violation", "violations"]

# Of one invariant, in one run; more says nothing new.
_MOST_TOLD = 3

# How a connection breaks; whoever goes for another reason was sent away by the server.
_BROKEN = ("connection reset", "connection broken", "connection timed out")

# What the log says of who went when the server itself was cancelled: nobody is told anything then.
_CANCELLED = "the server ended the session"

# Of who had to make room in memory for the others: what waited for it was dropped.
_TOO_FAR_BEHIND = "too far behind"


class Violation(NamedTuple):
    """An invariant that a run violated, and how."""

    invariant: str
    what: str

    def __str__(self) -> str:
        return f"{self.invariant}: {self.what}"


def violations(history: History) -> list[Violation]:
    """Return what is wrong with *history*, at most a few of each kind."""
    return [
        Violation(invariant.__name__, what)
        for invariant in INVARIANTS
        for what in islice(invariant(history), _MOST_TOLD)
    ]


# --- Order ----------------------------------------------------------------------------------------


def one_order(history: History) -> Iterator[str]:
    """All members of a room, the log and the journal have its messages in the same order."""
    for told in history.chronicle.untaken:
        yield f"{told} was told, and it was not its turn in the journal"
    order = history.chronicle.order
    for person in history.people:
        last = Heard("said")
        for heard in person.heard_said:
            if heard.key in order:
                if last.key and order[heard.key] < order[last.key]:
                    yield f"{person} heard {heard.key} after {last.key}, the log before it"
                last = heard


def ids_are_in_order(history: History) -> Iterator[str]:
    """A message has one id for everybody, and ids of one room rise in the order of its messages."""
    order = history.chronicle.order
    ids: dict[str, str] = {}
    for person in history.people:
        for heard in person.heard_said:
            if heard.id and ids.setdefault(heard.key, heard.id) != heard.id:
                yield f"{heard.key} is {ids[heard.key]} and, for {person}, {heard.id}"
    by_epoch: dict[str, list[tuple[str, int]]] = {}
    for key, id_ in ids.items():
        by_epoch.setdefault(id_.split("-")[0], []).append((id_, order.get(key, -1)))
    for epoch, messages in by_epoch.items():
        positions = [position for _, position in sorted(messages)]
        if positions != sorted(positions) or len(dict(messages)) != len(messages):
            yield f"the ids of {epoch} are not in the order of what was said"


def sender_order(history: History) -> Iterator[str]:
    """What somebody says is said in the order in which it was sent, with nothing left out."""
    said = _said_by(history)
    for number, person in history.by_number.items():
        sent = iter(each for each in person.sent if each.to is None)
        for key in said.get(number, []):
            skipped: list[str] = []
            for each in sent:
                if each.key == key or _is_partial(key):
                    break
                if not _may_be_dropped(history, each):
                    skipped.append(each.key)
            else:
                yield f"{person} did not send {key} after what was said before it"
                break
            if skipped:
                yield f"{person} sent {skipped[0]} before {key}, and it was not said before it"
                break


def _said_by(history: History) -> dict[int | None, list[str]]:
    said: dict[int | None, list[str]] = {}
    for publish in history.chronicle.publishes:
        said.setdefault(publish.speaker, []).extend(publish.keys)
    return said


def _is_partial(key: str) -> bool:
    return ": " in key  # a message without a tag: the rest of a line at the end of input


def _may_be_dropped(history: History, sent: Sent) -> bool:
    return bool(history.plan.config.filters) and HUSH in sent.text


# --- Loss -----------------------------------------------------------------------------------------


class _Expected(NamedTuple):
    """What somebody should have heard: *sure*, and what it may have or not, in order."""

    sure: list[str]
    maybe: set[str]


def _expected(history: History, person: Person) -> _Expected:
    """Follow *person* through the rooms and return what was said there by others.

    A publish may wait for slow members between two of its batches, and so be going on when somebody
    comes or goes: who comes has the rest of it, who goes the beginning.
    """
    number = person.server_number
    sure: list[str] = []
    maybe: set[str] = set()
    stays = history.chronicle.stays.get(number, []) if number is not None else []
    for stay in stays:
        publishes = [each for each in history.chronicle.said_during(stay) if each.speaker != number]
        before = history.chronicle.said_before(stay)
        if history.plan.config.slow is Slow.WAIT and before is not None:
            maybe.update(before.keys[1:])
        if publishes and _may_be_cut_short(history, stay):
            maybe.update(publishes[-1].keys)
        sure += [key for publish in publishes for key in publish.keys]
    return _Expected(sure, maybe)


def _may_be_cut_short(history: History, stay: Stay) -> bool:
    return stay.end != inf and history.plan.config.slow is not Slow.DROP


def nothing_lost(history: History) -> Iterator[str]:
    """Who was there has every message; who did not read to the end, all up to some message.

    Under `drop` that is for `skips_add_up` to say.
    """
    if history.plan.config.slow is Slow.DROP:
        return
    order = history.chronicle.order
    for person in history.people:
        if person.server_number is None:
            continue
        sure, maybe = _expected(history, person)
        heard = {each.key for each in person.heard_said}
        last = max((order[key] for key in heard if key in order), default=-1)
        for key in sure:
            lost = key not in heard and key not in maybe
            if lost and (order[key] < last or _heard_until_departure(history, person)):
                yield f"{person} was there and did not hear {key}"
                break


def _heard_until_departure(history: History, person: Person) -> bool:
    departure = history.departure(person)
    return (
        history.heard_all(person)
        and departure is not None
        and departure.reason not in (_CANCELLED, _TOO_FAR_BEHIND)
    )


def skips_add_up(history: History) -> Iterator[str]:
    """Under `drop`, what somebody was told that it missed is exactly what it missed, there."""
    if history.plan.config.slow is not Slow.DROP:
        for person in history.people:
            if any(heard.kind == "missed" for heard in person.heard):
                yield f"{person} was told that it missed something"
        return
    for person in history.people:
        sure, _ = _expected(history, person)
        place = {key: i for i, key in enumerate(sure)}
        told = heard_until = 0
        for heard in person.heard:
            if heard.kind == "missed":
                told += heard.messages
            elif heard.kind == "said" and heard.key in place:
                missed = place[heard.key] - heard_until
                if missed != told:
                    yield f"{person} missed {missed} before {heard.key}, and was told of {told}"
                    break
                heard_until, told = place[heard.key] + 1, 0
        else:
            missed = len(sure) - heard_until
            if missed != told and _heard_until_departure(history, person):
                yield f"{person} missed {missed} in the end, and was told of {told}"


def all_is_said(history: History) -> Iterator[str]:
    """Who ended by its own wish and was heard out has had said all that it sent.

    From the moment of its shutdown on the server lets nobody say anything whose turn has not come.
    """
    plan = history.plan
    for taken in history.chronicle.never_told:
        yield f"{taken.said.run[:20]} was taken, and nobody was told"
    shutdown = inf if plan.server_ending is ServerEnding.OUTLIVES else plan.server_ends_seconds
    said = set(history.chronicle.order)
    for person in history.people:
        departure = history.departure(person)
        if departure is None or departure.reason or person.broke_off:
            continue
        if departure.seconds >= shutdown:
            continue
        for sent in person.sent:
            if sent.to is not None or sent.key in said or _is_partial(sent.key):
                continue
            if not _may_be_dropped(history, sent):
                yield f"{person} sent {sent.key}, which nobody was told"
                break


def accepted_is_said(history: History) -> Iterator[str]:
    """What was accepted was said, once, with that id, or is what its recipient was told."""
    order = history.chronicle.order
    ids = {
        heard.key: heard.id for person in history.people for heard in person.heard_said if heard.id
    }
    for person in history.people:
        sent = {each.nonce: each for each in person.sent if each.nonce is not None}
        accepted = Counter(each.nonce for each in person.heard if each.kind == "accepted")
        for nonce, count in accepted.items():
            if count > 1 or nonce not in sent:
                yield f"{person} had {nonce} accepted {count} times"
        for heard in person.heard:
            if heard.kind != "accepted" or heard.nonce not in sent:
                continue
            message = sent[heard.nonce]
            if message.to is None:
                if message.key not in order:
                    yield f"{person} had {message.key} accepted, which was not said"
                elif ids.get(message.key, heard.id) != heard.id:
                    yield f"{message.key} was accepted as {heard.id}, and is {ids[message.key]}"
            elif not _was_told(history, message):
                yield f"{person} had {message.key} accepted, and client {message.to} has nothing"


def _was_told(history: History, message: Sent) -> bool:
    recipient = history.by_number.get(message.to or 0)
    if recipient is None:
        return False
    return any(heard.key == message.key for heard in recipient.told) or not (
        _heard_until_departure(history, recipient)
    )


# --- Once, and to whom ----------------------------------------------------------------------------


def nothing_twice(history: History) -> Iterator[str]:
    """Nobody hears a message twice, and the log has none twice."""
    logged = Counter(key for publish in history.chronicle.publishes for key in publish.keys)
    for key, count in logged.items():
        if count > 1 and not _is_partial(key):
            yield f"{key} was said {count} times"
    for person in history.people:
        heard = Counter(each.key for each in person.heard if each.kind in ("said", "direct"))
        for key, count in heard.items():
            if count > max(1, logged[key]):
                yield f"{person} heard {key} {count} times"


def no_echo(history: History) -> Iterator[str]:
    """The sender is left out."""
    for publish in history.chronicle.publishes:
        sender = history.by_number.get(publish.speaker or 0)
        if sender is not None:
            own = {each.key for each in sender.heard_said}
            for key in publish.keys:
                if key in own:
                    yield f"{sender} heard its own {key}"


def only_members_hear(history: History) -> Iterator[str]:
    """Nobody hears what was said where it was not, and private messages reach one person."""
    for person in history.people:
        sure, maybe = _expected(history, person)
        there = maybe.union(sure)
        own = {each.key for each in person.sent}
        for heard in person.heard_said:
            if heard.key not in there and heard.key not in own:
                yield f"{person} heard {heard.key}, and was not there"
                break
    meant = {
        sent.key: sent.to
        for person in history.people
        for sent in person.sent
        if sent.to is not None
    }
    for person in history.people:
        for heard in person.heard:
            if heard.kind == "direct" and meant.get(heard.key) != person.server_number:
                yield f"{person} heard {heard.key}, which is for {meant.get(heard.key)}"


# --- What was said --------------------------------------------------------------------------------


def no_forged_tag(history: History) -> Iterator[str]:
    """A message is tagged with who said it, whatever it holds; no two people have one name.

    Its tag is its sender's name when it was taken; it may be somebody else's when it is told.
    """
    for name in history.chronicle.shared_names:
        yield f"two people are called {name}"
    yield from history.chronicle.forged
    publishes = {key: publish for publish in history.chronicle.publishes for key in publish.keys}
    for key, publish in publishes.items():
        sender = history.by_number.get(publish.speaker or 0)
        number = 0 if sender is None else sender.plan.number
        if not _is_partial(key) and key[1:].split(".")[0] != str(number):
            yield f"{key} was said as {publish.name}, who is client {publish.speaker}"
    for person in history.people:
        for heard in person.heard_said:
            said = publishes.get(heard.key)
            if said is not None and not _is_tagged_as(said, heard):
                yield f"{person} heard {heard.key} from {heard.name}; it is {said.name}'s"
                break


def _is_tagged_as(said: Publish, heard: Heard) -> bool:
    return (
        (heard.name, heard.act) == (said.name, said.act)
        and heard.number in (None, said.speaker)
        and (heard.room or said.room).lower() == said.room
    )


def texts_are_whole(history: History) -> Iterator[str]:
    """What is said is what was sent, whole, or what the filters made of it, and heard as that."""
    may_be_said = _may_be_said(history)
    texts: dict[str, str] = {}
    for publish in history.chronicle.publishes:
        for key, text in zip(publish.keys, publish.texts, strict=True):
            texts[key] = text
            may_be = may_be_said.get(key, [text] if publish.speaker is None else [])
            if not _is_partial(key) and text not in may_be:
                yield f"{key} was said as {text!r}, and can only be {may_be}"
    for person in history.people:
        for heard in person.heard:
            if heard.kind == "broken":
                yield f"{person} was told {heard.text!r}"
            elif heard.kind == "said" and heard.text != texts.get(heard.key, heard.text):
                yield f"{person} heard {heard.key} as {heard.text!r}; it is {texts[heard.key]!r}"


def _may_be_said(history: History) -> dict[str, list[str]]:
    """Return for each message that was sent what it may be said as."""
    filtered = bool(history.plan.config.filters)
    may_be: dict[str, list[str]] = {}
    for person in history.people:
        # A filter that takes too long lets through what was sent with the same read.
        in_time = filtered and not any(SLEEPY in sent.text for sent in person.sent)
        for sent in person.sent:
            may_be[sent.key] = [] if in_time else [sent.text]
            if filtered and HUSH not in sent.text:
                may_be[sent.key].append(sent.text.replace(SHOUT, SHOUTED))
    return may_be


# --- How it ends ----------------------------------------------------------------------------------


def evicted_are_told(history: History) -> Iterator[str]:
    """Whom the server sends away is told why as its last line, or could not take another byte.

    Who was reading all the time has heard it, too.
    """
    for person in history.people:
        departure = history.departure(person)
        if person.refused:
            reason = "full"
        elif departure is None or departure.reason in ("", _CANCELLED, *_BROKEN):
            continue
        else:
            reason = departure.reason
        told = person.heard if person.attentive else person.told
        if told and told[-1].kind == "goodbye" and reason in told[-1].text:
            continue
        if not (person.broke_off or history.had_its_time(person)):
            yield f"{person} had to go ({reason}) and was not told"


def nobody_goes_without_reason(history: History) -> Iterator[str]:
    """A connection is called broken only if its client broke it, a session ended if all were."""
    for person in history.people:
        departure = history.departure(person)
        if departure is None:
            if person.server_number is not None:
                yield f"{person} never left"
        elif departure.reason in _BROKEN and not person.broke_off:
            yield f"{person} was said to be gone ({departure.reason}), and was not"
        elif departure.reason == _CANCELLED and departure.seconds < history.cancelled_seconds:
            yield f"{person}'s session ended before the server was cancelled"


def gone_is_gone(history: History) -> Iterator[str]:
    """Who has left does nothing any more: it says nothing, takes no name and goes to no room.

    What was taken before is told all the same.
    """
    for what in history.chronicle.ghosts:
        yield f"{what}, after it had left"


def mailboxes_bounded(history: History) -> Iterator[str]:
    """No more waits for a client than its mailbox holds, in batches and in bytes.

    So many batches in the channel, and as many, and one, that were joined to be written.
    """
    batches = 2 * history.plan.config.mailbox_batches + 1
    most = min(batches * _largest_batch(history), max(MAX_WAITING_BYTES, _largest_batch(history)))
    for number, waiting in history.peak_bytes.items():
        if waiting > most:
            yield f"{waiting} bytes waited for client {number}, where {most} may"


def _largest_batch(history: History) -> int:
    """Return a bound for any one offer to a mailbox: of what is said, and of what is answered."""
    largest = 0
    for publish in history.chronicle.publishes:
        # In JSON a message has about 200 bytes more, and some characters take two.
        sizes = [2 * len(text.encode()) + 250 for text in publish.texts]
        largest = max(largest, min(sum(sizes), max(MAX_BATCH_BYTES, *sizes)))
    return 4096 + 64 * len(history.people) + largest


def nothing_left_behind(history: History) -> Iterator[str]:
    """When everybody is gone no task, member, room, connection or waiting byte is left."""
    for what in history.left_behind:
        yield f"{what} left"


def ends_in_time(history: History) -> Iterator[str]:
    """The run ends by itself, within what limits and patience add up to."""
    if not history.ended_in_time and not history.crash:
        yield f"it was not over, and given up after {history.seconds:.2f} virtual seconds"


def nothing_crashes(history: History) -> Iterator[str]:
    """Nothing is raised that nobody expected, in the server's boundaries or out of it."""
    if history.crash:
        yield history.crash
    for entry in history.log:
        if "crashed" in entry.text:
            yield entry.text


def counts_add_up(history: History) -> Iterator[str]:
    """The server's own figures are what happened."""
    if history.crash:
        return
    said = sum(taken.said.run.count("\n") + 1 for taken in history.taken)
    # The server's own count, too, and one that is cancelled before its turn has been counted.
    if not said <= history.messages <= said + len(history.plan.announcements):
        yield f"{history.messages} messages were counted, {said} were said"
    slow = sum(
        departure.reason in ("too slow", _TOO_FAR_BEHIND)
        for departure in history.chronicle.departures.values()
    )
    if history.too_slow < slow:
        yield f"{history.too_slow} were counted as too slow, {slow} had to go for that"


INVARIANTS: tuple[Callable[[History], Iterator[str]], ...] = (
    nothing_crashes,
    one_order,
    ids_are_in_order,
    sender_order,
    nothing_lost,
    skips_add_up,
    all_is_said,
    accepted_is_said,
    nothing_twice,
    no_echo,
    only_members_hear,
    no_forged_tag,
    texts_are_whole,
    evicted_are_told,
    nobody_goes_without_reason,
    gone_is_gone,
    mailboxes_bounded,
    nothing_left_behind,
    ends_in_time,
    counts_add_up,
)
