"""Names that belong to accounts, in the page."""

from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import WebSocket

from tests.support.browser import Line, Visitor, WebServer, wait_until

pytestmark = pytest.mark.process

Visit = Callable[..., Visitor]


def test_register_log_out_and_log_in(server: WebServer, visit: Visit) -> None:
    alice = visit().join("alice").online()
    page = alice.page
    page.click("#me")
    page.click("#menu-register")
    page.fill("#register-passphrase", "correct horse")
    page.fill("#register-again", "correct house")
    page.press("#register-again", "Enter")
    assert "not the same" in (page.text_content("#register-error") or "")
    page.fill("#register-again", "correct horse")
    page.press("#register-again", "Enter")
    page.wait_for_selector("#me >> text=Logged in")

    # Only a user who knows the passphrase can have the name.
    eve = visit().join("alice")
    eve.page.wait_for_selector("#name-dialog[open]")
    wait_until(
        lambda: (
            eve.page.text_content("#name-error")
            == "the name 'alice' is registered; if it is yours, log in"
        )
    )
    eve.page.click("#name-dialog >> text=I have an account")
    assert eve.page.input_value("#login-name") == "alice"
    eve.page.fill("#login-passphrase", "incorrect horse")
    eve.page.press("#login-passphrase", "Enter")
    wait_until(lambda: "wrong" in (eve.page.text_content("#login-error") or ""))

    page.click("#me")
    page.click("#menu-logout")
    page.wait_for_selector("#me >> text=Connected")
    assert (page.text_content("#me .title") or "").startswith("Client")

    other = visit().join("alice", "correct horse").online()
    other.page.wait_for_selector("#me >> text=Logged in")
    assert other.page.text_content("#me .title") == "alice"
    other.page.reload()
    other.page.wait_for_selector("#me >> text=Logged in")
    storage = "() => JSON.stringify([{...sessionStorage}, {...localStorage}])"
    assert "correct horse" not in other.page.evaluate(storage)


def test_wrong_passphrase_on_joining_asks_again(server: WebServer, visit: Visit) -> None:
    alice = visit().join("alice", "never registered")
    alice.page.wait_for_selector("#login-dialog[open]")
    assert "wrong" in (alice.page.text_content("#login-error") or "")


def test_name_is_changed_and_a_refused_one_explained(server: WebServer, visit: Visit) -> None:
    with Line(server.port).named("bob"):
        alice = visit().join("bob")
        alice.page.wait_for_selector("#name-dialog[open]")
        assert "taken" in (alice.page.text_content("#name-error") or "")
        alice.page.fill("#name-field", "server")
        alice.page.press("#name-field", "Enter")
        wait_until(lambda: "not allowed" in (alice.page.text_content("#name-error") or ""))
        alice.page.fill("#name-field", "alice")
        alice.page.press("#name-field", "Enter")
        alice.page.wait_for_selector("#me .title >> text=alice")
        alice.page.wait_for_selector("#name-dialog[open]", state="detached")


def test_operators_set_topics_that_everybody_sees(visit: Visit, tmp_path: Path) -> None:
    journal = str(tmp_path / "chat.db")
    with WebServer(tmp_path, "--journal", journal) as server, Line(server.port) as line:
        line.named("alice").say("/register correct horse")
        line.hears("logged in")
        server.stop()
    with WebServer(tmp_path, "--journal", journal, "--operators", "alice") as server:
        bob = visit(server.url).join("bob").online()
        alice = visit(server.url).join("alice", "correct horse").online()
        alice.say("/topic <b>tea</b> at four")
        for each in alice, bob:
            wait_until(lambda: each.page.text_content("#topic") == "<b>tea</b> at four")
        bob.page.reload()
        wait_until(lambda: bob.page.text_content("#topic") == "<b>tea</b> at four")
        bob.say("/topic mine")
        bob.page.wait_for_selector(".note.error")
        alice.say("/announce the build is green", "/kick bob enough")
        bob.page.wait_for_selector("#me .state.ended")
        assert "enough" in (bob.page.text_content("#banner-text") or "")


def test_refused_message_is_sent_again_at_once_or_discarded(visit: Visit, tmp_path: Path) -> None:
    with WebServer(tmp_path, "--require-login") as server:
        alice = visit(server.url)
        requests: list[str] = []

        def note_requests(socket: WebSocket) -> None:
            socket.on("framesent", lambda frame: requests.extend(str(frame).split("\n")))

        alice.page.on("websocket", note_requests)
        page = alice.join("alice").online().page
        alice.say("mine")
        for button in "Try again", "Discard":
            page.wait_for_selector("#login-dialog[open]")
            page.click("#login-dialog >> text=Cancel")
            page.click(f".said.failed >> text={button}")
        page.wait_for_selector(".said.failed", state="detached")
    kinds = [kind for each in requests for kind in ("say", "ping") if f'"type":"{kind}"' in each]
    assert kinds == ["say", "say"]


def test_no_passphrase_is_sent_where_others_could_read_it(server: WebServer, visit: Visit) -> None:
    alice = visit()
    # As the browser has it at an address without https that is not this machine's.
    alice.page.add_init_script(
        "Object.defineProperty(window, 'isSecureContext', {value: false, configurable: true})"
    )
    sent: list[str] = []

    def opened(socket: WebSocket) -> None:
        socket.on("framesent", lambda frame: sent.append(str(frame)))

    alice.page.on("websocket", opened)
    alice.join("alice", "correct horse")
    wait_until(lambda: "https" in (alice.page.text_content("#join-error") or ""))
    assert sent == []
    alice.page.click("#join-account")
    alice.page.click("#join-submit")
    alice.online()
    alice.page.click("#me")
    alice.page.click("#menu-register")
    alice.page.fill("#register-passphrase", "correct horse")
    alice.page.fill("#register-again", "correct horse")
    alice.page.press("#register-again", "Enter")
    wait_until(lambda: "https" in (alice.page.text_content("#register-error") or ""))
    assert sent
    assert not any("correct horse" in frame for frame in sent)
