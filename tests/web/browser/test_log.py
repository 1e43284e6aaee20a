"""The message log: history without a jump, reading while others write, ten thousand messages."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from tests.support.browser import Line, Switch, Visitor, WebServer, wait_until

pytestmark = pytest.mark.process

Visit = Callable[..., Visitor]

# The message in view and its place, which must not change when rows are added above or below.
IN_VIEW = """() => {
  const log = document.getElementById("log");
  const top = log.getBoundingClientRect().top;
  const rows = [...log.querySelectorAll(".said .text")];
  const row = rows.find((each) => each.getBoundingClientRect().top >= top);
  return [row.textContent, Math.round(row.getBoundingClientRect().top - top)];
}"""
PLACE_OF = """text => {
  const log = document.getElementById("log");
  const row = [...log.querySelectorAll(".said .text")].find((each) => each.textContent === text);
  return Math.round(row.getBoundingClientRect().top - log.getBoundingClientRect().top);
}"""
PLACE_ON_SCREEN = """text => {
  const rows = [...document.querySelectorAll("#log .said .text")];
  return rows.find((each) => each.textContent === text).getBoundingClientRect().top;
}"""
ROWS = "() => document.querySelectorAll('#rows > *').length"

# More rows are never in the page, whatever the room has.
MAX_ROWS = 300


def fill(server: WebServer, many: int, name: str = "bob") -> None:
    """Have *name* send *many* messages, numbered, of different heights."""
    with Line(server.port).named(name) as line:
        line.say(*(f"message {number}{' and more' * (number % 40)}" for number in range(many)))
        line.say("/ping done")
        line.hears("pong done")


def number_of(text: str) -> int:
    return int(text.split()[1])


def test_history_comes_on_scrolling_up_and_nothing_jumps(server: WebServer, visit: Visit) -> None:
    with Line(server.port):
        fill(server, 450)
        alice = visit().join("alice").online()
        alice.page.wait_for_function("() => document.querySelectorAll('.said').length > 50")
        page = alice.page
        seen: list[int] = []
        for _ in range(60):
            place = page.evaluate(
                "() => new Promise((done) => { const log = document.getElementById('log');"
                "log.scrollTop = Math.max(0, log.scrollTop - 900);"
                f"requestAnimationFrame(() => done(({IN_VIEW})())); }})"
            )
            page.wait_for_timeout(60)
            assert abs(page.evaluate(PLACE_OF, place[0]) - place[1]) <= 2
            seen.append(number_of(place[0]))
            assert page.evaluate(ROWS) <= MAX_ROWS
            if page.locator(".beginning").count():
                break
        assert page.locator(".beginning").count() == 1
        numbers = [number_of(text) for text in alice.texts()]
        assert numbers == list(range(len(numbers)))
        assert all(earlier >= later for earlier, later in pairwise(seen))
        # And down again, to the newest.
        page.click("#newest")
        page.wait_for_function(
            "() => document.querySelector('#rows').textContent.includes('message 449')"
        )


def test_new_messages_do_not_scroll_a_reader(server: WebServer, visit: Visit) -> None:
    with Line(server.port).named("carol") as carol:
        fill(server, 150)
        alice = visit().join("alice").online()
        page = alice.page
        page.wait_for_function("() => document.querySelectorAll('.said').length > 50")
        page.wait_for_function(
            "() => { const log = document.getElementById('log');"
            "return log.scrollHeight - log.scrollTop - log.clientHeight < 3; }"
        )
        page.evaluate("() => { document.getElementById('log').scrollTop -= 1500; }")
        page.wait_for_selector("#newest")
        page.wait_for_timeout(200)
        text, place = page.evaluate(IN_VIEW)
        carol.say(*(f"new {number}" for number in range(20)))
        page.wait_for_selector("#newest >> text=20 new messages")
        assert abs(page.evaluate(PLACE_OF, text) - place) <= 2
        assert page.title().startswith("(20)")
        page.click("#newest")
        alice.hears("new 19")
        wait_until(lambda: not page.title().startswith("("), "all is read")
        carol.say("the last one")
        alice.hears("the last one")
        page.wait_for_function(
            "() => { const log = document.getElementById('log');"
            "return log.scrollHeight - log.scrollTop - log.clientHeight < 3; }"
        )


def test_scrolling_up_counts_before_its_event(server: WebServer, visit: Visit) -> None:
    fill(server, 150)
    alice = visit().join("alice").online()
    page = alice.page
    page.wait_for_function("() => document.querySelectorAll('.said').length > 50")
    page.wait_for_function(
        "() => { const log = document.getElementById('log');"
        "return log.scrollHeight - log.scrollTop - log.clientHeight < 3; }"
    )
    page.evaluate(
        "() => { document.getElementById('log').scrollTop -= 1500;"
        "document.querySelector('.open').click(); }"  # draws at once
    )
    page.wait_for_selector("#newest")


def test_a_lost_connection_does_not_scroll_a_reader(visit: Visit, tmp_path: Path) -> None:
    with WebServer(tmp_path) as server, Switch(server.web) as switch, Line(server.port) as bob:
        bob.say(*(f"message {number}" for number in range(150)), "/ping done")
        bob.hears("pong done")
        alice = visit(switch.url).join("alice").online()
        page = alice.page
        alice.hears("message 149")
        page.evaluate("() => { document.getElementById('log').scrollTop -= 1500; }")
        page.wait_for_selector("#newest")
        text, _ = page.evaluate(IN_VIEW)
        place = page.evaluate(PLACE_ON_SCREEN, text)
        switch.off()
        page.wait_for_selector("#banner")
        assert abs(page.evaluate(PLACE_ON_SCREEN, text) - place) <= 2
        switch.on()
        page.click("#banner-button")
        page.wait_for_selector("#banner", state="hidden")
        assert abs(page.evaluate(PLACE_ON_SCREEN, text) - place) <= 2


# How long frames take while a user scrolls and types.
FRAMES = """() => new Promise((done) => {
  const log = document.getElementById("log");
  const field = document.getElementById("field");
  const times = [];
  let last = performance.now();
  let frames = 0;
  const frame = (now) => {
    times.push(now - last);
    last = now;
    log.scrollTop += frames % 20 < 10 ? -150 : 150;
    field.value += "x";
    field.dispatchEvent(new InputEvent("input", {bubbles: true}));
    if (++frames < 90) requestAnimationFrame(frame);
    else {
      field.value = "";
      field.dispatchEvent(new InputEvent("input", {bubbles: true}));
      done(times.slice(10).sort((a, b) => a - b));
    }
  };
  requestAnimationFrame(frame);
})"""


def test_ten_thousand_messages_do_not_make_the_page_slow(server: WebServer, visit: Visit) -> None:
    with Line(server.port) as bob:
        alice = visit().join("alice").online()
        page = alice.page
        bob.say(*(f"before {number}" for number in range(60)))
        alice.hears("before 59")
        few = page.evaluate(FRAMES)
        page.keyboard.press("Escape")
        for start in range(0, 10_000, 1000):
            bob.say(*(f"message {start + number}" for number in range(1000)))
        alice.hears("message 9999")
        assert page.evaluate(ROWS) <= MAX_ROWS
        usual, usual_slow = few[len(few) // 2], few[len(few) * 9 // 10]
        for _ in range(3):  # other tests start and end on this machine
            many = page.evaluate(FRAMES)
            median, slow = many[len(many) // 2], many[len(many) * 9 // 10]
            is_fast = median <= 2 * usual + 17 and slow <= 3 * usual_slow + 34
            if is_fast:
                break
        frames = f"median {usual:.1f} → {median:.1f} ms, p90 {usual_slow:.1f} → {slow:.1f} ms"
        assert is_fast, frames
        # Older messages return on scrolling up, in order.
        page.evaluate("() => { document.getElementById('log').scrollTop -= 4000; }")
        page.wait_for_timeout(300)
        numbers = [number_of(text) for text in alice.texts() if text.startswith("message")]
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
        assert page.evaluate(ROWS) <= MAX_ROWS
