"""Follows docs/tour.md to the letter: types its input, and expects its output."""

import re
from pathlib import Path

import pytest
import trio

from .support.processes import WAIT_SECONDS, program
from .support.terminals import Terminal

pytestmark = pytest.mark.process

PAGE = Path(__file__).parent.parent / "docs" / "tour.md"
KEYS = {
    "[Alt+1]": "M-1",
    "[Ctrl+C]": "C-c",
    "[Ctrl+D]": "C-d",
    "[Ctrl+S]": "C-s",
    "[Ctrl+Z]": "C-z",
    "[Tab]": "Tab",
}


def blocks() -> list[tuple[str, str, str]]:
    """Yield the kind, name and text of each block, in order."""
    found = re.findall(
        r"^```(\w+) ?(\w+ ?\w*)\n(.*?)^```$", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL
    )
    return [(kind, name, text) for kind, name, text in found]


def pattern(line: str) -> str:
    """Return a pattern for *line*: any amount of white space, and `…` for anything."""
    words = [".*" if word == "…" else re.escape(word).replace("…", ".*") for word in line.split()]
    return r"^\s*" + r"\s+".join(words) + r"\s*$"


async def type_into(terminal: Terminal, name: str, text: str) -> None:
    for piece in re.split(r"(\[Tab\])", text):
        if piece in KEYS:
            await terminal.press(name, KEYS[piece])
        elif piece:
            await terminal.run("send-keys", "-t", name, "-l", piece)
    await terminal.press(name, "Enter")


async def wait_for_new(terminal: Terminal, name: str, line: str, before: str) -> None:
    """Wait until *line* is shown once more than in *before*."""
    found = re.compile(pattern(line), re.MULTILINE)
    count = len(found.findall(before))
    with trio.move_on_after(WAIT_SECONDS):
        while len(found.findall(await terminal.scrollback(name))) <= count:
            await trio.sleep(0.02)
        return
    pytest.fail(f"{name} never showed {line!r} anew, but {await terminal.screen(name)}")


async def follow(terminal: Terminal, name: str, text: str, before: str) -> str:
    """Follow a block in a terminal that showed *before*; return what it shows now."""
    for line in text.splitlines():
        if line.startswith(("$ ", "> ")) or line in KEYS:
            if line.startswith("$ "):
                await terminal.wait_for_match(name, r"^\$\s*\Z")
            before = await terminal.scrollback(name)
            if line in KEYS:
                await terminal.press(name, KEYS[line])
            else:
                await type_into(terminal, name, line[2:])
        else:
            await wait_for_new(terminal, name, line, before)
    return await terminal.scrollback(name)


async def test_the_tour(port: int, terminal: Terminal, tmp_path: Path) -> None:
    program("nc")
    for name in ("server", "alice", "bob", "script"):
        await terminal.open_shell(name, columns=110, rows=40)
    before: dict[str, str] = {}
    for kind, names, text in blocks():
        text = text.replace("9000", str(port))
        match [kind, *names.split()]:
            case ["console", name]:
                before[name] = await follow(terminal, name, text, before.get(name, ""))
            case ["toml", "config"]:
                (tmp_path / "config.toml").write_text(text, "utf-8")
            case ["text", "paste", name]:
                (tmp_path / "pasted").write_text(text, "utf-8")
                await terminal.run("load-buffer", str(tmp_path / "pasted"))
                await terminal.run("paste-buffer", "-p", "-t", name)
            case other:
                pytest.fail(f"nobody knows what to do with {other}")
    await terminal.wait_for_match("server", r"^\$\s*\Z")
    for name in ("alice", "script"):
        assert "Traceback" not in await terminal.screen(name)
    assert "Nobody listens" not in await terminal.screen("alice")


def test_the_tour_mentions_every_feature() -> None:
    from multichat.protocol.commands import COMMANDS

    page = PAGE.read_text("utf-8")
    missing = {each.name for each in COMMANDS if each.help and each.name not in page}
    assert missing <= {"/ping"}  # not useful to people
    assert {"--log-style", "--bell", "--timeout", "--install-completion"} <= set(
        re.findall(r"--[a-z-]+", page)
    )
