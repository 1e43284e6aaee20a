"""axe-core finds nothing in any state of the page: light and dark, desktop and phone."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe  # type: ignore[import-untyped]

from tests.support.browser import Line, Switch, Visitor, WebServer, wait_until

pytestmark = pytest.mark.process

Visit = Callable[..., Visitor]

DARK = {"color_scheme": "dark"}
PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True}
LAYOUTS: dict[str, dict[str, Any]] = {
    "light": {},
    "dark": DARK,
    "light phone": PHONE,
    "dark phone": DARK | PHONE,
}


def violations(visitor: Visitor) -> list[str]:
    """Return what axe has found on the page as it is now."""
    page = visitor.page
    page.wait_for_timeout(250)  # transitions of the drawers
    if not page.evaluate("() => 'axe' in window"):
        page.evaluate(Axe().axe_script)
    found = page.evaluate("() => axe.run({resultTypes: ['violations']})")["violations"]
    return [
        f"{each['id']}: {node['html'][:200]} {node['failureSummary']}"
        for each in found
        for node in each["nodes"]
    ]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_axe_finds_no_violation_in_any_state(server: WebServer, visit: Visit, layout: str) -> None:
    with ExitStack() as stack:
        proxy = stack.enter_context(Switch(server.web))
        bob = stack.enter_context(Line(server.port)).named("bob")
        visitor = visit(proxy.url, **LAYOUTS[layout])
        found = {
            state: problems
            for state in states(visitor, proxy, bob, is_phone="phone" in layout)
            if (problems := violations(visitor))
        }
    assert found == {}


def states(visitor: Visitor, proxy: Switch, bob: Line, *, is_phone: bool) -> Iterator[str]:
    """Bring the page into one state after the other; yield their names."""
    page = visitor.page

    def click(selector: str) -> None:
        page.click(selector)

    visitor.open()
    page.wait_for_selector("#join-dialog[open]")
    yield "joining"
    click("#join-account")
    yield "joining with an account"
    click("#join-account")
    page.fill("#join-name", "alice")
    click("#join-submit")
    visitor.online()
    yield "an empty room"

    visitor.say("/join kitchen")
    page.wait_for_function("() => document.getElementById('title').textContent === 'kitchen'")
    bob.say("hello", "alice: see https://example.org/", "/me waves", "/msg alice psst")
    wait_until(lambda: visitor.badge("bob") == "1")
    wait_until(lambda: visitor.badge("lobby") == "@3")
    if is_phone:
        click("#menu")
        yield "conversations"
        page.mouse.click(375, 400)  # beside the drawer
        page.wait_for_selector(".show-sidebar", state="detached")
    else:
        page.hover(".open[data-key='#lobby']")
        yield "conversations"
    page.keyboard.press("Alt+1")
    visitor.hears("hello")
    visitor.say("/who", "/topic", "/topic not allowed", "/nothing")
    page.wait_for_selector(".note.error")
    yield "messages, notices, an error"
    page.fill("#field", "/")
    page.wait_for_selector(".completion")
    yield "completions"
    page.fill("#field", "x" * 70_000)
    page.wait_for_selector("#rest.over")
    yield "a message that is too long"
    page.fill("#field", "")

    bob.say(*(f"line {number}" for number in range(40)))
    visitor.hears("line 39")
    page.evaluate("() => document.getElementById('log').scrollTo(0, 0)")
    page.wait_for_selector("#newest")
    page.wait_for_timeout(100)  # until the page has noted that the end is not read
    bob.say("newer")
    page.wait_for_selector("#newest:has-text('1 new message')")
    yield "reading old messages while new ones come"
    click("#newest")
    visitor.hears("newer")
    visitor.say("/msg nobody-here hello")
    if is_phone:
        click("#menu")
    visitor.show("nobody-here")
    page.wait_for_selector(".failure")
    yield "a message that could not be sent"
    page.keyboard.press("Alt+1")
    if is_phone:
        click("#people-toggle")
        yield "people"
        page.keyboard.press("Escape")

    def dialog(name: str, *, menu: str = "") -> str:
        if menu:
            visitor.say(menu)
        page.wait_for_selector(f"#{name}-dialog[open]")
        return name

    for name, command in {
        "help": "/help",
        "rooms": "/rooms",
        "register": "/register",
        "login": "/login",
        "passphrase": "/passphrase",
    }.items():
        yield dialog(name, menu=command)
        page.keyboard.press("Escape")
    if is_phone:
        click("#menu")
    click("#me")
    yield dialog("me")
    click("#menu-name")
    page.fill("#name-field", "server")
    page.press("#name-field", "Enter")
    wait_until(lambda: page.text_content("#name-error"))
    yield dialog("name")
    page.keyboard.press("Escape")
    if is_phone:
        page.keyboard.press("Escape")

    paste = """() => {
      const data = new DataTransfer();
      data.setData("text/plain", "one\\ntwo");
      const init = {clipboardData: data, bubbles: true, cancelable: true};
      document.getElementById("field").dispatchEvent(new ClipboardEvent("paste", init));
    }"""
    page.evaluate(paste)
    yield dialog("paste")
    page.keyboard.press("Escape")

    proxy.off()
    page.wait_for_selector("#me .state.waiting", state="attached")
    visitor.say("typed offline")
    yield "offline, a pending message"
    page.evaluate("() => document.getElementById('password-dialog').showModal()")
    yield "the password"
    page.keyboard.press("Escape")
    proxy.on()
    visitor.try_now()
    visitor.online()
    visitor.say("/quit")
    page.wait_for_selector("#banner:has-text('Disconnected')")
    yield "after leaving"


def test_log_is_announced_politely_and_history_is_not(server: WebServer, visit: Visit) -> None:
    with Line(server.port).named("bob") as bob:
        bob.say("old", "/ping x")
        bob.hears("pong x")
        alice = visit().join("alice").online()
        alice.hears("old")
        assert alice.page.get_attribute("#log", "role") == "log"
        assert alice.page.get_attribute("#log", "aria-live") == "off"
        bob.say("new")
        wait_until(lambda: alice.page.text_content("#spoken") == "bob: new")
        bob.say(*(f"line {number}" for number in range(9)))
        wait_until(lambda: alice.page.text_content("#spoken") == "9 new messages")


def test_everything_is_reached_by_keyboard(server: WebServer, visit: Visit) -> None:
    alice = visit()
    alice.open()
    page = alice.page
    page.wait_for_selector("#join-name:focus")  # the page's scripts have opened the dialog
    page.keyboard.type("alice")
    page.keyboard.press("Enter")
    alice.online()
    with Line(server.port).named("bob"):
        page.wait_for_selector("#people-list >> text=bob")
        focused: list[str] = []
        for _ in range(40):
            page.keyboard.press("Tab")
            script = "() => document.activeElement.id || document.activeElement.className"
            focused.append(page.evaluate(script))
        needed = {"add-room", "open", "me", "help", "people-toggle", "log", "field", "person"}
        assert needed <= set(focused)
        page.focus("#help")
        page.keyboard.press("Enter")
        page.wait_for_selector("#help-dialog[open]")
        page.keyboard.press("Escape")
        wait_until(lambda: page.evaluate("() => document.activeElement.id") == "help")
