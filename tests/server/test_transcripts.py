"""Every command in both protocols: the same request has the same effect."""

import re

import pytest
import trio
import trio.testing

from multichat import ServerConfig
from multichat.protocol.json_codec import JSON
from multichat.protocol.messages import (
    Entered,
    Error,
    Event,
    Joined,
    Left,
    Presence,
    Renamed,
    Welcome,
)
from multichat.protocol.text_codec import TEXT
from multichat.testing import ScriptedClient, memory_server

pytestmark = pytest.mark.unit

# Typed requests and their JSON counterparts.  Client 1 sends them; alice uses text, bob JSON; carol
# is in the room dev.
TWINS = [
    ("Hello everyone!", '{"type":"say","text":"Hello everyone!"}'),
    ("//usr is full", '{"type":"say","text":"/usr is full"}'),
    ('a "quoted" \\ one', '{"type":"say","text":"a \\"quoted\\" \\\\ one"}'),
    ("안녕 👋", '{"type":"say","text":"안녕 👋"}'),
    ("\x1b[2J", '{"type":"say","text":"\\u001b[2J"}'),
    ("/me waves", '{"type":"act","text":"waves"}'),
    ("/msg alice psst", '{"type":"direct","to":"alice","text":"psst"}'),
    ("/msg BOB psst", '{"type":"direct","to":"BOB","text":"psst"}'),
    ("/msg 3 psst", '{"type":"direct","to":3,"text":"psst"}'),
    ("/msg carol psst", '{"type":"direct","to":"carol","text":"psst"}'),
    ("/msg Client 1 to myself", '{"type":"direct","to":"Client 1","text":"to myself"}'),
    ("/msg nobody psst", '{"type":"direct","to":"nobody","text":"psst"}'),
    ("/msg 99 psst", '{"type":"direct","to":99,"text":"psst"}'),
    ("/name dave", '{"type":"name","name":"dave"}'),
    ("/nick dave", '{"type":"name","name":"dave"}'),
    ("/name Alice", '{"type":"name","name":"Alice"}'),
    ("/name Server", '{"type":"name","name":"Server"}'),
    ("/name 7", '{"type":"name","name":"7"}'),
    ("/join dev", '{"type":"join","room":"dev"}'),
    ("/join lobby", '{"type":"join","room":"lobby"}'),
    ("/join no such", '{"type":"join","room":"no such"}'),
    ("/who", '{"type":"who"}'),
    ("/rooms", '{"type":"rooms"}'),
    ("/ping", '{"type":"ping"}'),
    ("/ping 42", '{"type":"ping","token":"42"}'),
    ("/help", '{"type":"help"}'),
    ("/quit", '{"type":"quit"}'),
]


async def received(client: ScriptedClient) -> list[str]:
    """Return everything received until all tasks are blocked."""
    lines: list[str] = []
    with trio.move_on_after(5), pytest.raises(EOFError):
        while True:
            lines.append(await client.line())
    return lines


def shown(events: list[Event]) -> str:
    return "\n".join(filter(None, map(TEXT.format, events)))


def told(lines: list[str]) -> list[str]:
    """Return lines of JSON without values that vary between runs."""
    return [re.sub(r'"(id|time)":"[^"]*"', r'"\1":""', line) for line in lines]


async def transcript(asked: str, *, json: bool) -> tuple[str, list[str], list[str], list[str]]:
    """Return what the sender receives, as text, and what alice, bob and carol receive."""
    async with memory_server() as network:
        asker, alice, bob, carol = [await network.join() for _ in range(4)]
        await alice.send("/name alice")
        await bob.send('/json {"name":"bob"}')
        await carol.send('/json {"name":"carol","room":"dev"}')
        if json:
            await asker.send("/json")
        for client in (asker, alice, bob, carol):
            await received(client)
        await asker.send(asked)
        answers = await received(asker)
        if json:
            events: list[Event] = []
            for line in answers:
                events += map(_entered, JSON.parse_events(line))
            # Only JSON clients get joins and leaves.
            news = (Left, Renamed, Presence)
            others = [e for e in events if not isinstance(e, news) or _own(e)]
            answers = shown(others).split("\n") if others else []
        return (
            "\n".join(answers),
            await received(alice),
            told(await received(bob)),
            told(await received(carol)),
        )


def _entered(event: Event) -> Event:
    """Return the answer to a join as a client shows it."""
    if isinstance(event, Joined) and event.client == 1:
        return Entered(event.room, event.members, event.last)
    return event


def _own(event: Event) -> bool:
    return isinstance(event, Renamed) and event.client == 1


@pytest.mark.parametrize(("typed", "twin"), TWINS, ids=[typed for typed, _ in TWINS])
async def test_a_request_has_the_same_effect_in_both_protocols(
    typed: str, twin: str, autojump_clock: trio.testing.MockClock
) -> None:
    assert await transcript(typed, json=False) == await transcript(twin, json=True)


async def test_each_request_has_an_effect(autojump_clock: trio.testing.MockClock) -> None:
    for typed, _ in TWINS:
        assert any(await transcript(typed, json=False)), typed


async def test_an_unknown_request_is_an_error_in_both_protocols(
    autojump_clock: trio.testing.MockClock,
) -> None:
    assert (await transcript("/dance", json=False))[0].startswith("[Server] unknown command /dance")
    answer, *others = await transcript('{"type":"dance"}', json=True)
    assert answer == "[Server] there is no request dance"
    assert others == [[], [], []]


async def test_unrequested_events_are_the_same_in_both_protocols(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with memory_server() as network:
        text, json = [await network.join() for _ in range(2)]
        await json.send("/json")
        [welcome] = JSON.parse_events(await json.line())
        assert isinstance(welcome, Welcome)
        await network.server.broadcast("Dinner is ready")
        line = await json.line()
        assert line == '{"type":"notice","text":"Dinner is ready"}'
        assert await text.line() == shown(list(JSON.parse_events(line)))
        await text.send("x" * 70_000)
        await json.send("x" * 70_000)
        [error] = JSON.parse_events(await json.line())
        assert isinstance(error, Error)
        assert error.code == "line-too-long"
        assert await text.line() == shown([error])
        for client in (1, 2):
            network.server.kick(client, "enough")
        assert await text.rest() == ["[Server] goodbye: enough"]
        assert (await json.rest())[-1] == (
            '{"type":"goodbye","reason":"enough","code":"kicked","reconnect":false}'
        )


async def test_presence_is_sent_to_programs_and_with_announce_to_everybody(
    autojump_clock: trio.testing.MockClock,
) -> None:
    for announce in (False, True):
        async with memory_server(ServerConfig(announce=announce)) as network:
            text, json = [await network.join() for _ in range(2)]
            await json.send("/json")
            await trio.sleep(5)
            await received(text)
            await received(json)
            guest = await network.join()
            await trio.sleep(5)
            await guest.send("/name guest")
            await trio.sleep(5)
            await guest.finish()
            await trio.sleep(5)
            events = [event for line in await received(json) for event in JSON.parse_events(line)]
            assert events == [
                Joined(3, "Client 3", members=3),
                Renamed(3, "Client 3", "guest"),
                Left(3, "guest", "", members=2),
            ]
            lines = ["Client 3 joined", "Client 3 is now guest", "guest left"]
            assert await received(text) == [f"[Server] {line}" for line in lines] * announce
