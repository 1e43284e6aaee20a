"""A terminal in several rooms of a real server: what is unread, switching, leaving, returning."""

import re
from pathlib import Path

import pytest
import trio

import multichat
from tests.support.processes import LOOPBACK, MULTICHAT, WAIT_SECONDS, ServerCommand, serve
from tests.support.terminals import Terminal, connect_alice, paste

pytestmark = pytest.mark.process


async def join(terminal: Terminal, *rooms: str, session: str = "t", name: str = "alice") -> None:
    for room in rooms:
        await terminal.type(session, f"/join {room}")
        await terminal.wait_for(session, f"{name} in {room} · ")


async def test_two_people_in_three_rooms_and_a_server_that_is_killed(
    terminal: Terminal, tmp_path: Path
) -> None:
    journal = ("--journal", str(tmp_path / "journal.db"))
    async with serve(tmp_path, *journal) as server:
        port = server.port
        await connect_alice(terminal, server)
        await join(terminal, "kitchen", "ops")
        await terminal.wait_for("t", "alice in ops · 1 here · lobby · kitchen · ops")
        command = (MULTICHAT, "connect", "--name", "bob", LOOPBACK, str(port))
        await terminal.open("b", *command)
        await terminal.wait_for("b", "bob in lobby")
        for text in ("one", "two"):
            await terminal.type("b", text)
        await join(terminal, "kitchen", session="b", name="bob")
        await terminal.type("b", "dinner, alice?")
        await terminal.wait_for_match("t", r"^alice in ops · 1 here · lobby 2 · kitchen 1! · ops")
        await join(terminal, "ops", session="b", name="bob")
        await terminal.type("b", "and here")
        await terminal.wait_for("t", "bob  and here")
        server.process.kill()
        await server.wait()
        await terminal.wait_for_match("t", r"^reconnecting .* · ops · (lobby 2 · kitchen 1!|3!)$")
        # Typed while the server is away, each for its room.
        await terminal.type("b", "ops again")
        await terminal.press("b", "M-1")
        await terminal.wait_for("b", "bob in lobby")
        await terminal.type("b", "three")
    serving = (MULTICHAT, "serve", str(port), "--host", LOOPBACK, *journal)
    async with ServerCommand(tmp_path, *serving) as again:
        await terminal.wait_for_match("t", r"^alice in ops · 2 here · lobby 3 · kitchen 1! · ops")
        await terminal.wait_for("t", "bob  ops again")
        assert "three" not in await terminal.screen("t")
        await terminal.press("t", "M-2")
        await terminal.wait_for_match("t", r"^alice in kitchen · 2 here · lobby 3 · kitchen · ops")
        await terminal.wait_for("t", "bob  dinner, alice?")
        await terminal.press("t", "M-1")
        await terminal.wait_for_match(
            "t",
            r"· you are in lobby; 2 are here\n\d\d:\d\d bob  one\n\d\d:\d\d bob  two\n"
            r"\d\d:\d\d bob  three\n>\s*\nalice in lobby · 2 here · lobby · kitchen · ops",
        )
        await terminal.type("t", "heard you")
        await terminal.wait_for("b", "alice  heard you")
        shown = await terminal.scrollback("t")
        for text in ("one", "two", "three", "dinner, alice?", "and here", "ops again"):
            assert len(re.findall(rf"^\d\d:\d\d bob  {re.escape(text)}$", shown, re.MULTILINE)) == 1
        said = [line.split("[RX] ")[1] for line in again.lines if "[RX]" in line]
        assert sorted(said) == ["[alice] heard you", "[bob] ops again", "[bob] three"]


async def test_names_in_greek_and_korean_on_a_narrow_terminal(
    terminal: Terminal, tmp_path: Path
) -> None:
    async with (
        serve(tmp_path) as server,
        multichat.connect(LOOPBACK, server.port, name="Ευγενία", room="κουζίνα") as eugenia,
    ):
        command = (MULTICHAT, "connect", "--name", "지민", LOOPBACK, str(server.port))
        await terminal.open("t", *command)
        await terminal.wait_for("t", "지민 in lobby")
        await terminal.type("t", "/join κουζ", key="Tab")
        await terminal.press("t", "Enter")
        await terminal.wait_for("t", "지민 in κουζίνα · 2 here · lobby · κουζίνα")
        await join(terminal, "부엌", name="지민")
        await eugenia.say("지민아, τρώμε;")
        await terminal.wait_for("t", "지민 in 부엌 · 1 here · lobby · κουζίνα 1! · 부엌")
        await terminal.resize("t", 20, 15)
        await terminal.wait_for_match("t", r"^부엌 · κουζίνα 1!$")
        await terminal.resize("t", 60, 15)
        await terminal.press("t", "M-2")
        await terminal.wait_for("t", "Ευγενία  지민아, τρώμε;")
        await terminal.wait_for("t", "지민 in κουζίνα · 2 here · lobby · κουζίνα · 부엌")


async def test_a_paste_goes_to_the_room_in_which_it_was_confirmed(
    terminal: Terminal, tmp_path: Path
) -> None:
    pasted = tmp_path / "pasted"
    pasted.write_text("".join(f"line {number}\n" for number in range(500)), "utf-8")
    async with (
        serve(tmp_path) as server,
        multichat.connect(LOOPBACK, server.port, name="bob", room="kitchen") as bob,
    ):
        await connect_alice(terminal, server)
        await join(terminal, "kitchen")
        await paste(terminal, pasted)
        await terminal.wait_for("t", "500 pasted lines: Ctrl+S sends them to everybody in kitchen")
        # In one write, so that not all lines have been sent when the other room is shown.
        await terminal.press("t", "C-s", "M-1")
        await terminal.type("t", "in the lobby")
        await terminal.wait_for("t", "alice  in the lobby")
        heard: list[str] = []
        with trio.fail_after(WAIT_SECONDS):
            async for event in bob:
                if isinstance(event, multichat.Said):
                    heard.append(event.text)
                    if len(heard) == 500:
                        break
        assert heard == [f"line {number}" for number in range(500)]
        await terminal.press("t", "M-2")
        await terminal.wait_for("t", "alice  line 499")
        await terminal.wait_for("t", "alice in kitchen · 2 here · lobby · kitchen")


async def test_leaving_rooms_until_the_last(terminal: Terminal, tmp_path: Path) -> None:
    async with (
        serve(tmp_path) as server,
        multichat.connect(LOOPBACK, server.port, name="bob", room="kitchen") as bob,
    ):
        await connect_alice(terminal, server)
        await join(terminal, "ops", "kitchen")
        await terminal.press("t", "M-2")
        await terminal.wait_for("t", "alice in ops")
        await terminal.type("t", "/leave lobby")
        await terminal.wait_for("t", "· you have left lobby")
        await terminal.wait_for_match("t", "^alice in ops · 1 here · ops · kitchen · ")
        await bob.say("still there?")
        await terminal.wait_for("t", "ops · kitchen 1")
        # Typed at once: the message goes where leaving leads.
        await terminal.run("send-keys", "-t", "t", "/leave", "Enter", "yes", "Enter")
        await terminal.wait_for_match(
            "t",
            r"· you have left ops\n.*· you are in kitchen; 2 are here\n.*bob  still there\?\n"
            r".*alice  yes\n>\s*\nalice in kitchen · 2 here · 127",
        )
        await terminal.type("t", "/leave nowhere")
        await terminal.wait_for_match("t", "! .*nowhere")
        await terminal.type("t", "/leave")
        await terminal.wait_for("t", "· you have left kitchen")
        await terminal.wait_for_match("t", r"^>\s*\nalice in lobby · 1 here · 127")
        await terminal.type("t", "/part")
        await terminal.wait_for("t", "· this is your only room; /join ROOM enters another")
        await terminal.type("t", "/join !")
        await terminal.wait_for_match("t", r"^\d\d:\d\d ! ")
        await terminal.type("t", "hello")
        await terminal.wait_for("t", "alice  hello")


async def test_the_list_of_rooms_and_the_messages_before_we_entered(
    terminal: Terminal, tmp_path: Path
) -> None:
    async with (
        serve(tmp_path) as server,
        multichat.connect(LOOPBACK, server.port, name="bob", room="kitchen") as bob,
    ):
        await bob.send(*(f"earlier {number}, alice" for number in range(30)))
        await connect_alice(terminal, server, rows=40)
        await join(terminal, "kitchen")
        await terminal.wait_for("t", "bob  earlier 29")
        shown = await terminal.screen("t")
        assert re.findall(r"bob  earlier (\d+)", shown) == [str(number) for number in range(10, 30)]
        await terminal.press("t", "M-1")
        await terminal.wait_for("t", "alice in lobby · 1 here · lobby · kitchen")
        await bob.send("one", "two, alice")
        await terminal.wait_for("t", "lobby · kitchen 2!")
        await terminal.type("t", "/rooms")
        await terminal.wait_for("t", "· lobby 1 (Alt+1)")
        await terminal.wait_for("t", "· kitchen 2 (Alt+2): 2 unread, 1 mention")
        await terminal.press("t", "M-9")
        await terminal.type("t", "/help")
        await terminal.wait_for("t", "· Alt+1 … Alt+9  show one of your rooms")


async def test_the_newest_200_messages_of_a_room_are_kept(
    terminal: Terminal, tmp_path: Path
) -> None:
    async with (
        serve(tmp_path) as server,
        multichat.connect(LOOPBACK, server.port, name="bob", room="kitchen") as bob,
    ):
        await connect_alice(terminal, server)
        await join(terminal, "kitchen")
        await terminal.press("t", "M-1")
        await terminal.wait_for("t", "alice in lobby · 1 here · lobby · kitchen")
        await bob.send(*(f"message {number}" for number in range(250)))
        await terminal.wait_for("t", "kitchen 250")
        await terminal.press("t", "M-2")
        await terminal.wait_for("t", "bob  message 249")
        shown = await terminal.scrollback("t")
        assert "· 50 earlier messages left out" in shown
        numbers = re.findall(r"bob  message (\d+)", shown)
        assert numbers == [str(number) for number in range(50, 250)]
