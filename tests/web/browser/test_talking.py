"""People in browsers, terminals and `nc` talk to each other."""

import subprocess
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.browser import Line, Visitor, WebServer, wait_until
from tests.support.processes import ENDS_WITH_US, LOOPBACK, MULTICHAT, program
from tests.support.web import TOKEN

pytestmark = pytest.mark.process

Visit = Callable[..., Visitor]


def test_two_pages_a_terminal_client_and_nc_talk(
    server: WebServer, visit: Visit, tmp_path: Path
) -> None:
    alice, bob = visit().join("alice").online(), visit().join("bob").online()
    connect = [MULTICHAT, "connect", LOOPBACK, str(server.port), "--name", "carol"]
    nc = [program("nc"), LOOPBACK, str(server.port)]
    with (tmp_path / "carol").open("wb") as out, (tmp_path / "nc").open("wb") as nc_out:
        processes = [
            subprocess.Popen([*ENDS_WITH_US, *argv], stdin=subprocess.PIPE, stdout=to)
            for argv, to in ((connect, out), (nc, nc_out))
        ]
    try:
        wait_until(lambda: server.log.count(" connected") >= 4, "all four are there")
        wait_until(lambda: "Connected" in (tmp_path / "carol").read_text(), "carol is in")
        for process, line in zip(processes, ("from a terminal", "from nc"), strict=True):
            assert process.stdin is not None
            process.stdin.write(f"{line}\n".encode())
            process.stdin.flush()
        alice.say("from alice’s page 🎉")
        bob.say("from bob’s page")
        for visitor in alice, bob:
            for text in "from a terminal", "from nc", "from alice’s page 🎉", "from bob’s page":
                visitor.hears(text)
            assert len(visitor.texts()) == 4
        wait_until(lambda: "[alice] from alice’s page 🎉" in (tmp_path / "nc").read_text())
        wait_until(lambda: "[bob] from bob’s page" in (tmp_path / "carol").read_text())
    finally:
        for process in processes:
            assert process.stdin is not None
            process.stdin.close()
            process.kill()
            process.wait()


def test_rooms_count_unread_messages_and_mentions(server: WebServer, visit: Visit) -> None:
    alice = visit().join("alice").online()
    alice.say("/join kitchen")
    alice.page.wait_for_selector(".shown [data-key='#kitchen']")
    alice.page.wait_for_selector(".open[data-key='#kitchen']:not(.out)")
    with Line(server.port).named("bob") as bob:
        bob.say("one", "alice: two", "three")
        wait_until(lambda: alice.badge("lobby") == "@3", "two unread, one for us")
        bob.say("/msg alice psst")
        wait_until(lambda: alice.badge("bob") == "1", "a private message")
        wait_until(lambda: alice.page.title().startswith("(4!) #kitchen"), "the title counts")
        assert alice.page.get_attribute("#icon", "href") == "icon-mention.svg"
        alice.page.keyboard.press("Alt+1")
        alice.hears("three")
        assert alice.page.locator(".divider + .said .text").text_content() == "one"
        assert alice.page.locator(".said.mention mark").text_content() == "alice"
        wait_until(lambda: alice.badge("lobby") == "", "it is read")
        alice.page.keyboard.press("Alt+3")
        alice.hears("psst")
        alice.say("and to you")
        bob.hears("[alice → you] and to you")
    wait_until(lambda: alice.page.title() == "bob · multichat")


def test_enter_of_an_input_method_sends_nothing(server: WebServer, visit: Visit) -> None:
    alice = visit().join("alice").online()
    page = alice.page
    page.focus("#field")
    cdp = page.context.new_cdp_session(page)
    cdp.send("Input.imeSetComposition", {"text": "にほん", "selectionStart": 3, "selectionEnd": 3})
    # The two ways in which browsers say that a key belongs to the input method.
    for init in "{isComposing: true}", "{keyCode: 229}":
        page.evaluate(
            "() => document.getElementById('field').dispatchEvent(new KeyboardEvent('keydown', "
            f"{{key: 'Enter', bubbles: true, cancelable: true, ...{init}}}))"
        )
    assert page.input_value("#field") == "にほん"
    cdp.send("Input.insertText", {"text": "日本"})
    assert alice.texts() == []
    page.keyboard.press("Enter")
    alice.hears("日本")


def test_line_break_of_a_phone_keyboard_sends(server: WebServer, visit: Visit) -> None:
    """Some send no key for Enter, only the line break that it makes."""
    phone = {"width": 390, "height": 844}
    alice = visit(viewport=phone, has_touch=True, is_mobile=True).join("alice").online()
    alice.page.fill("#field", "from my phone")
    alice.page.evaluate(
        """() => document.getElementById("field").dispatchEvent(new InputEvent("beforeinput",
          {inputType: "insertLineBreak", bubbles: true, cancelable: true}))"""
    )
    alice.hears("from my phone")
    assert alice.page.input_value("#field") == ""
    width = "() => document.documentElement.scrollWidth"
    assert alice.page.evaluate(width) == phone["width"]


def paste_into(visitor: Visitor, text: str) -> None:
    visitor.page.evaluate(
        """text => {
          const data = new DataTransfer();
          data.setData("text/plain", text);
          const init = {clipboardData: data, bubbles: true, cancelable: true};
          const event = new ClipboardEvent("paste", init);
          document.getElementById("field").dispatchEvent(event);
        }""",
        text,
    )


def test_paste_of_several_lines_is_one_question(server: WebServer, visit: Visit) -> None:
    alice = visit().join("alice").online()
    page = alice.page

    def paste(text: str) -> None:
        paste_into(alice, text)

    with Line(server.port) as bob:
        bob.say("/ping")
        bob.hears("pong")
        paste("one\r\n\r\n/two\nthree\n")
        assert page.text_content("#paste-title") == "Send 3 lines to #lobby?"
        assert page.text_content("#paste-lines") == "one\n/two\nthree"
        page.click("#paste-dialog >> text=Cancel")
        assert alice.texts() == []
        paste("one\r\n\r\n/two\nthree\n")
        page.click("#paste-send")
        for text in "one", "/two", "three":
            bob.hears(f"[alice] {text}\n")
        alice.hears("three")
        paste("a\nb")
        page.click("#paste-dialog >> text=Edit as one line")
        wait_until(lambda: page.input_value("#field") == "a b")
        assert alice.texts() == ["one", "/two", "three"]


@pytest.mark.parametrize("answer", ["Send 2 messages", "Edit as one line"])
def test_pasted_lines_go_where_they_were_pasted(
    server: WebServer, visit: Visit, answer: str
) -> None:
    """A click on a notification shows another conversation while the question is open."""
    alice = visit().join("alice").online()
    page = alice.page
    with Line(server.port).named("bob") as bob:
        bob.say("/msg alice psst")
        wait_until(lambda: alice.badge("bob") == "1")
        paste_into(alice, "one\ntwo")
        page.wait_for_selector("#paste-dialog[open]")
        # As the notification does it; the dialog keeps the mouse out.
        page.evaluate("() => document.querySelector(\".open[data-key='@bob']\").click()")
        page.click(f"#paste-dialog >> text={answer}")
        assert page.input_value("#field") == ""
        alice.show("lobby")
        if "Send" in answer:
            bob.hears("[alice] one\n")
            bob.hears("[alice] two\n")
            alice.hears("two")
        else:
            assert page.input_value("#field") == "one two"


def test_commands_and_names_are_completed_by_keyboard(server: WebServer, visit: Visit) -> None:
    alice = visit().join("alice").online()
    with Line(server.port).named("bob"):
        alice.page.wait_for_selector("#people-list >> text=bob")
        page = alice.page
        page.focus("#field")
        page.keyboard.type("/ms")
        page.wait_for_selector("#completions [aria-selected=true]")
        page.keyboard.press("Tab")
        page.keyboard.type("b")
        page.keyboard.press("Tab")
        assert page.input_value("#field") == "/msg bob "
        page.keyboard.type("hello")
        page.keyboard.press("Enter")
        page.wait_for_selector(".open >> text=bob")
        page.fill("#field", "/frobnicate")
        page.keyboard.press("Enter")
        assert "no command /frobnicate" in (page.text_content("#told") or "")
        assert page.input_value("#field") == "/frobnicate"


def test_rooms_are_browsed_entered_and_left(server: WebServer, visit: Visit) -> None:
    alice = visit().join("alice").online()
    page = alice.page
    with Line(server.port) as bob:
        bob.say("/join attic")
        bob.hears("you are in attic")
        page.click("#add-room")
        page.click("#rooms-list >> text=attic")
        page.wait_for_selector(".shown [data-key='#attic']")
        page.wait_for_selector("#people-list li >> nth=1")
        page.click("#add-room")
        page.fill("#rooms-new", "not a room!")
        page.click("#rooms-form >> text=Enter >> visible=true >> nth=-1")
        wait_until(lambda: page.text_content("#rooms-error"), "the refusal is shown")
        page.click("#rooms-dialog >> text=Close")
        alice.say("hello attic")
        bob.hears("[alice] hello attic")
        page.hover(".open[data-key='#attic']")
        page.click("[aria-label='Leave attic']")
        page.wait_for_selector(".open[data-key='#attic']", state="detached")
        assert page.text_content("#title") == "lobby"


def test_long_lines_are_counted_and_not_lost(server: WebServer, visit: Visit) -> None:
    alice = visit().join("alice").online()
    alice.page.fill("#field", "é" * 40_000)
    assert "too long" in (alice.page.text_content("#rest") or "")
    alice.page.press("#field", "Enter")
    assert "too long" in (alice.page.text_content("#told") or "")
    assert len(alice.page.input_value("#field")) == 40_000
    alice.page.fill("#field", "é" * 30_000)
    alice.page.press("#field", "Enter")
    alice.page.click("text=Show all 30000 characters")
    alice.hears("é" * 30_000)


def test_mentions_notify_a_user_who_is_not_looking(server: WebServer, visit: Visit) -> None:
    alice = visit(permissions=["notifications"])
    alice.page.add_init_script(
        """window.notified = [];
        const Real = Notification;
        window.Notification = class extends Real {
          constructor(title, options) { super(title, options); notified.push(title); }
        };
        window.looks = true;
        Document.prototype.hasFocus = () => window.looks;"""
    )
    alice.join("alice").online()
    alice.page.click("#me")
    alice.page.click("text=Turn notifications on")
    alice.page.wait_for_selector("text=Turn notifications off")
    alice.page.click("#me-dialog >> text=Close")
    with Line(server.port).named("bob") as bob:
        bob.say("alice: seen at once")
        alice.hears("alice: seen at once")
        alice.page.evaluate("() => { looks = false; window.dispatchEvent(new Event('blur')); }")
        bob.say("nothing for you", "alice: look", "/msg alice psst")
        wait_until(lambda: alice.badge("bob") == "1")
        assert alice.page.evaluate("() => notified") == ["bob in lobby", "bob"]
        wait_until(lambda: alice.page.title().startswith("(3!)"), "the title counts")
        alice.page.evaluate("() => { looks = true; window.dispatchEvent(new Event('focus')); }")
        wait_until(lambda: alice.page.title().startswith("(1!)"), "the lobby is read")


def test_notifications_say_why_not_where_the_page_is_not_secure(
    server: WebServer, visit: Visit
) -> None:
    alice = visit().join("alice").online()
    alice.page.click("#me")
    assert "off" in (alice.page.text_content("#notify-why") or "")
    alice.page.evaluate("Object.defineProperty(window, 'isSecureContext', {value: false})")
    alice.page.click("#me-dialog >> text=Close")
    alice.page.click("#me")
    assert "HTTPS" in (alice.page.text_content("#notify-why") or "")
    assert alice.page.is_hidden("#notify-toggle")


def test_the_error_about_a_line_disappears_with_the_next_one(
    server: WebServer, visit: Visit
) -> None:
    alice = visit().join("alice").online()
    alice.page.fill("#field", "/dance")
    alice.page.press("#field", "Enter")
    alice.page.wait_for_selector("#told >> text=There is no command /dance")
    alice.page.fill("#field", "hello")
    alice.page.press("#field", "Enter")
    alice.hears("hello")
    assert not alice.page.is_visible("#told")


def test_only_the_dialog_asks_a_new_visitor_to_join(server: WebServer, visit: Visit) -> None:
    page = visit().open().page
    page.wait_for_selector("#join-dialog[open]")
    page.wait_for_selector("#banner", state="hidden")
    page.wait_for_timeout(100)  # a second frame would show it
    assert not page.is_visible("#banner")


def test_messages_of_the_webhook_are_shown_without_a_button_to_answer(
    visit: Visit, tmp_path: Path
) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text(f"{TOKEN}\n", "utf-8")
    tokens.chmod(0o600)
    with WebServer(tmp_path, "--webhook-token-file", str(tokens)) as server:
        alice = visit(server.url).join("alice").online()
        headers = {"Authorization": f"Bearer {TOKEN}"}
        post = urllib.request.Request(f"{server.url}rooms/lobby/messages", b"done", headers)
        with urllib.request.urlopen(post) as answer:
            assert answer.status == 201
        alice.hears("done")
        with Line(server.port).named("bob") as bob:
            bob.say("good")
            alice.hears("good")
        assert alice.page.locator(".said .name").all_text_contents() == ["webhook", "bob"]
        assert alice.page.locator(".said button.author").all_text_contents() == ["bob"]
