"""Connections that are lost, servers that restart, reloads, duplicated tabs, the password."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Route

from tests.support.browser import Line, Switch, Visitor, WebServer, open_visitor, wait_until
from tests.support.processes import LOOPBACK

pytestmark = pytest.mark.process

Visit = Callable[..., Visitor]

# So often is the connection cut while people talk.
CUTS = 8


@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
def test_cut_connections_lose_nothing_and_repeat_nothing(
    server: WebServer, visit: Visit, reset: bool
) -> None:
    dice = random.Random(7)
    with Switch(server.web) as proxy, Line(server.port).named("bob") as bob:
        alice = visit(proxy.url).join("alice").online()
        for cut in range(CUTS):
            bob.say(*(f"bob {cut} {number}" for number in range(5)))
            alice.say(f"alice {cut}")
            if dice.random() < 0.5:
                alice.page.wait_for_timeout(dice.uniform(0, 400))
            proxy.cut(reset=reset)
            alice.say(f"alice {cut} offline")
            alice.try_now()
        alice.hears(f"alice {CUTS - 1} offline")
        alice.hears(f"bob {CUTS - 1} 4")
        mine = [f"alice {cut}{how}" for cut in range(CUTS) for how in ("", " offline")]
        for text in mine:
            bob.hears(f"[alice] {text}\n")
        alice.page.reload()
        alice.hears(f"alice {CUTS - 1} offline")
        texts = alice.texts()
        assert [text for text in texts if text.startswith("alice")] == mine
        theirs = [f"bob {cut} {number}" for cut in range(CUTS) for number in range(5)]
        assert [text for text in texts if text.startswith("bob")] == theirs
        bob.say("/ping end")
        bob.hears("pong end")


def test_lines_typed_offline_survive_a_reload_and_arrive_once(
    server: WebServer, visit: Visit
) -> None:
    with Switch(server.web) as proxy, Line(server.port).named("bob") as bob:
        alice = visit(proxy.url).join("alice").online()
        alice.say("before")
        bob.hears("[alice] before")
        alice.hears("before")
        proxy.off()
        alice.page.wait_for_selector("#me .state.waiting")
        alice.say("offline one", "offline two")
        assert alice.page.locator(".said.pending").count() == 2
        assert "Offline" in (alice.page.text_content("#banner-text") or "")
        proxy.on()
        alice.page.reload()
        alice.hears("offline two")
        assert alice.texts() == ["before", "offline one", "offline two"]
        for text in "offline one", "offline two":
            bob.hears(f"[alice] {text}\n")
        alice.page.reload()
        alice.hears("offline two")
        bob.say("/history")
        bob.hears("3 messages")
        assert alice.page.text_content("#me .title") == "alice"


def test_reload_in_the_middle_of_a_paste_loses_nothing(server: WebServer, visit: Visit) -> None:
    with Line(server.port).named("bob") as bob:
        alice = visit().join("alice").online()
        pasted = [f"line {number}" for number in range(600)]
        alice.page.fill("#field", "\n".join(pasted))
        alice.page.press("#field", "Enter")
        alice.page.reload()
        for text in pasted:
            bob.hears(f"[alice] {text}\n")
        alice.hears(pasted[-1])
        bob.say("/say end")
        alice.hears("end")
        assert alice.page.locator(".said.pending").count() == 0
        texts = [text for text in alice.texts() if text != "end"]
        assert texts == pasted[-len(texts) :]


def test_restart_of_the_server_and_of_the_journal(browser: Browser, tmp_path: Path) -> None:
    options = "--journal", str(tmp_path / "chat.db")
    with (
        WebServer(tmp_path, *options) as first,
        Switch(first.web) as proxy,
        open_visitor(browser.new_context(), proxy.url) as alice,
    ):
        alice.join("alice").online()
        alice.say("one")
        alice.hears("one")
        first.stop()
        alice.page.wait_for_selector("#me .state.waiting")
        alice.say("two")
        with WebServer(tmp_path, *options) as second:
            proxy.target = second.web
            alice.try_now()
            alice.online()
            alice.hears("two")
            second.end()
            alice.say("three")
            with WebServer(tmp_path, *options) as third:
                proxy.target = third.web
                alice.hears("three")
                alice.page.reload()
                alice.hears("three")
                assert alice.texts() == ["one", "two", "three"]
                assert alice.page.text_content("#me .title") == "alice"


def test_duplicated_tab_has_a_session_of_its_own(server: WebServer, visit: Visit) -> None:
    alice = visit().join("alice").online()
    with alice.page.context.expect_page() as opened:
        # As "duplicate tab" does: the new page has a copy of the storage of the tab.
        alice.page.evaluate("() => void window.open(location.href)")
    copy = Visitor(opened.value, alice.url)
    copy.page.wait_for_function("() => sessionStorage.getItem('multichat') !== null")
    copy.page.wait_for_selector("#join-dialog[open]")
    assert copy.page.input_value("#join-name") == ""  # the name is the first tab's
    copy.page.fill("#join-name", "alice-2")
    copy.page.click("#join-submit")
    copy.online()
    alice.say("from the first")
    copy.say("from the second")
    for each in alice, copy:
        each.hears("from the first")
        each.hears("from the second")
        each.page.reload()
        each.hears("from the second")
    assert alice.page.text_content("#me .title") == "alice"
    assert copy.page.text_content("#me .title") == "alice-2"
    assert copy.complaints == []


def test_duplicated_tab_is_found_without_web_locks(server: WebServer, visit: Visit) -> None:
    """Pages that were not loaded over HTTPS have none."""
    alice = visit()
    alice.page.context.add_init_script(
        "Object.defineProperty(navigator, 'locks', {value: undefined})"
    )
    alice.join("alice").online()
    alice.page.reload()
    alice.online()
    assert alice.page.text_content("#me .title") == "alice"
    with alice.page.context.expect_page() as opened:
        alice.page.evaluate("() => void window.open(location.href)")
    opened.value.wait_for_selector("#join-dialog[open]")
    alice.say("still here")
    alice.hears("still here")


def test_page_says_why_the_server_refuses_the_connection(visit: Visit, tmp_path: Path) -> None:
    with WebServer(tmp_path) as server:
        alice = visit(server.url).join("alice").online()
        ports = {"port": server.port, "web": server.web}
    bans = tmp_path / "bans.txt"
    bans.write_text("127.0.0.0/8 because maintenance\n", "utf-8")
    with WebServer(tmp_path, "--ban-file", str(bans), **ports):
        alice.page.wait_for_selector("#me .state.waiting", state="attached")
        alice.try_now()
        alice.page.wait_for_selector("#banner-text:has-text('maintenance')")
        refused = "the server responded with a status of 403"
        assert all(refused in each for each in alice.complaints)
        alice.complaints.clear()


def test_visitor_who_left_stays_away_until_the_button(server: WebServer, visit: Visit) -> None:
    alice = visit().join("alice").online()
    alice.say("/quit")
    alice.page.wait_for_selector("#me .state.ended")
    assert "you asked to leave" in (alice.page.text_content("#banner-text") or "")
    alice.page.wait_for_timeout(1500)
    assert alice.page.locator("#me .state.ended").count() == 1
    alice.page.click("#banner-button")
    alice.online()


def test_page_works_under_a_prefix(server: WebServer, visit: Visit) -> None:
    alice = visit(f"{server.url}chat/")

    def strip(route: Route) -> None:
        """Pass on without the prefix, as a proxy does."""
        path = route.request.url.removeprefix(alice.url)
        assert not path.startswith("http"), "the page asks for something outside its prefix"
        route.fulfill(response=route.fetch(url=server.url + path))

    alice.page.route("**/*", strip)
    with alice.page.expect_websocket() as opened:
        alice.join("alice")
    assert opened.value.url == f"ws://{LOOPBACK}:{server.web}/chat/ws"


def test_page_asks_for_the_password_and_a_wrong_one_can_be_corrected(
    visit: Visit, tmp_path: Path
) -> None:
    (tmp_path / "password").write_text("swordfish")
    (tmp_path / "password").chmod(0o600)
    options = "--password-file", str(tmp_path / "password")
    with WebServer(tmp_path, *options) as server, Switch(server.web) as proxy:
        alice = visit(proxy.url).join("alice")
        page = alice.page
        page.fill("#password-field", "letmein")
        page.press("#password-field", "Enter")
        wait_until(lambda: "not the password" in (page.text_content("#password-error") or ""))
        page.fill("#password-field", "swordfish")
        page.press("#password-field", "Enter")
        alice.online()
        alice.say("I am in")
        alice.hears("I am in")
        proxy.cut()
        alice.say("and again")
        alice.hears("and again")  # the page knows the password until it is closed
        storage = "() => JSON.stringify([{...sessionStorage}, {...localStorage}])"
        assert "swordfish" not in page.evaluate(storage)
