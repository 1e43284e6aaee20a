"""Writes docs/terminal-light.svg and docs/terminal-dark.svg from a session in a real terminal.

Run it:    python docs/make_pictures.py
It starts a server, talking clients, and `multichat connect` in a tmux terminal of 80 columns and 18
rows, and draws its screen on a light and on a dark background.
"""

import os
import re
import socket
import subprocess
import tempfile
import unicodedata
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import trio
from make_session import MULTICHAT, Tmux, wait_for_log

import multichat

PAGES = {theme: Path(__file__).with_name(f"terminal-{theme}.svg") for theme in ("light", "dark")}

COLUMNS, ROWS = 80, 18

# The size of a cell, and the margin around all cells.
CELL_WIDTH, CELL_HEIGHT, FONT_SIZE, MARGIN = 8.4, 18, 14, 14

FONTS = "ui-monospace, 'DejaVu Sans Mono', Menlo, Consolas, monospace"

# Usual colours of text and background.
THEMES = {"light": ("#1f2328", "#ffffff"), "dark": ("#e6edf3", "#0d1117")}


class Style(NamedTuple):
    """The style of a cell; *color* is one of 256 colours, or None for the default."""

    color: int | None = None
    bold: bool = False
    underline: bool = False
    reverse: bool = False


class Run(NamedTuple):
    """Text in one style, starting in *column*, from 0."""

    column: int
    text: str
    style: Style


_SWITCHES: dict[str, dict[str, Any]] = {
    "1": {"bold": True},
    "22": {"bold": False},
    "4": {"underline": True},
    "24": {"underline": False},
    "7": {"reverse": True},
    "27": {"reverse": False},
    "39": {"color": None},
}


def parse(styled: str) -> list[list[Run]]:
    """Parse the output of `tmux capture-pane -e` to rows; raises `ValueError` for unknown codes."""
    rows = []
    style = Style()
    for line in styled.split("\n"):
        row: list[Run] = []
        column = 0
        for piece in re.split(r"(\x1b\[[0-9;:]*m)", line):
            if piece.startswith("\x1b["):
                style = _changed(style, piece[2:-1])
                continue
            for text in re.findall(r"[\x20-\x7e]+|[^\x20-\x7e]", piece):
                if row and not width_of(text):  # a combining mark belongs to the previous letter
                    row[-1] = row[-1]._replace(text=row[-1].text + text)
                else:
                    row.append(Run(column, text, style))
                column += width_of(text)
        rows.append(row)
    return rows


def width_of(text: str) -> int:
    """Return how many columns *text* takes."""
    letters = [letter for letter in text if not unicodedata.combining(letter)]
    return sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in letters)


def _changed(style: Style, codes: str) -> Style:
    if found := re.match(r"38[;:]5[;:](\d+)(?:;|$)", codes):
        style = style._replace(color=int(found[1]))
        codes = codes[found.end() :]
        if not codes:
            return style
    for code in codes.split(";"):
        if code in ("", "0"):
            style = Style()
        elif code in _SWITCHES:
            style = style._replace(**_SWITCHES[code])
        elif code != "49":  # the default background, the only one that is used
            raise ValueError(f"what is {code} in {codes}?")
    return style


def format_color(number: int) -> str:
    """Format one of the upper 240 of the 256 colours, which are the same in every terminal."""
    if number >= 232:
        level = 8 + 10 * (number - 232)
        return f"#{level:02x}{level:02x}{level:02x}"
    levels = (0, 95, 135, 175, 215, 255)
    red, rest = divmod(number - 16, 36)
    return f"#{levels[red]:02x}{levels[rest // 6]:02x}{levels[rest % 6]:02x}"


def draw(rows: list[list[Run]], theme: str) -> str:
    """Return the picture of a screen."""
    background = THEMES[theme][1]
    width = COLUMNS * CELL_WIDTH + 2 * MARGIN
    height = ROWS * CELL_HEIGHT + 2 * MARGIN
    shapes = [shape for y, row in enumerate(rows) for shape in _draw_row(row, y, theme)]
    return "\n".join(
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}"',
            f'width="{width:g}" height="{height:g}" role="img" aria-label="multichat connect">',
            f"<style>text {{ font: {FONT_SIZE}px {FONTS}; }}</style>",
            f'<rect width="100%" height="100%" rx="8" fill="{background}" stroke="#87919f"/>',
            *shapes,
            "</svg>\n",
        )
    )


def _draw_row(row: list[Run], y: int, theme: str) -> Iterator[str]:
    foreground, background = THEMES[theme]
    for run in row:
        text = run.text if run.style.reverse else run.text.strip(" ")
        if not text:
            continue
        width = width_of(text) * CELL_WIDTH
        color = foreground if run.style.color is None else format_color(run.style.color)
        x = MARGIN + (run.column + run.text.index(text)) * CELL_WIDTH
        top = MARGIN + y * CELL_HEIGHT
        if run.style.reverse:
            yield (
                f'<rect x="{x:.1f}" y="{top}" width="{width:.1f}" '
                f'height="{CELL_HEIGHT}" fill="{color}"/>'
            )
            color = background
        # The width of a cell does not depend on the font.
        place = f'x="{x:.1f}" y="{top + FONT_SIZE}" textLength="{width:.1f}"'
        looks = f"fill: {color}"
        looks += "; font-weight: bold" * run.style.bold
        looks += "; text-decoration: underline" * run.style.underline
        yield (
            f'<text {place} lengthAdjust="spacingAndGlyphs" xml:space="preserve" '
            f'style="{looks}">{escape(text)}</text>'
        )


async def hold_session(folder: Path) -> str:
    """Run a conversation with a terminal client; return its styled screen."""
    os.environ["MULTICHAT_CONFIG"] = os.devnull  # no user settings
    os.environ["MULTICHAT_HISTORY"] = str(folder / "history")
    tmux = Tmux(folder)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = folder / "server.log"
    with log.open("wb") as output:
        argv = [MULTICHAT, "serve", str(port), "--host", "127.0.0.1"]
        server = subprocess.Popen(argv, stdout=output)  # noqa: ASYNC220, S603
    try:
        wait_for_log(log, "Listening")
        async with (
            multichat.connect("127.0.0.1", port, name="bob") as bob,
            multichat.connect("127.0.0.1", port, name="carol") as carol,
        ):
            async for event in bob:  # otherwise alice may see it later
                if (
                    isinstance(event, multichat.Joined | multichat.Renamed)
                    and event.name == "carol"
                ):
                    break
            command = f"{MULTICHAT} connect --name alice 127.0.0.1 {port}"
            size = ("-x", str(COLUMNS), "-y", str(ROWS))
            tmux.run("new-session", "-d", "-s", "alice", *size, command)
            tmux.wait_for("alice", "alice in lobby · 3 here")
            await _talk(tmux, bob, carol, port)
        return tmux.run("capture-pane", "-p", "-e", "-t", "alice").replace(str(port), "9000")
    finally:
        subprocess.run([*tmux._tmux, "kill-server"], check=False, capture_output=True)  # noqa: ASYNC221, S603, SLF001
        server.terminate()
        server.wait()


async def _talk(tmux: Tmux, bob: multichat.Chat, carol: multichat.Chat, port: int) -> None:
    async def say(chat: multichat.Chat, text: str) -> None:
        await chat.say(text)
        tmux.wait_for("alice", text.replace("\x1b", "␛"))

    await say(bob, "The build is green again.")
    await say(carol, "Γειά σου! 안녕하세요 👋")
    tmux.type("alice", "Hello everyone!")
    tmux.wait_for("alice", "alice  Hello everyone!")
    await say(bob, "Lunch at noon, alice? carol and I thought of the place by the river.")
    tmux.type("alice", "/me is hungry already")
    tmux.wait_for("alice", "* alice is hungry already")
    await carol.act("waves")
    tmux.wait_for("alice", "* carol waves")
    await carol.direct("alice", "Shall we ask dave, too?")
    tmux.wait_for("alice", "carol → you  Shall we ask dave, too?")
    tmux.type("alice", "/msg carol Yes, please.")
    tmux.wait_for("alice", "you → carol  Yes, please.")
    async with multichat.connect("127.0.0.1", port, name="dave") as dave:
        tmux.wait_for("alice", "dave joined")
        await say(dave, "I am in. \x1b[31mRed\x1b[0m, <b>bold</b> & friends are just text here.")
    tmux.wait_for("alice", "dave left")
    tmux.type("alice", "/msg dave see you there")
    tmux.wait_for("alice", "nobody here is called 'dave'")
    tmux.run("send-keys", "-t", "alice", "-l", "And car")
    tmux.run("send-keys", "-t", "alice", "Tab")
    tmux.wait_for("alice", "> And carol")
    tmux.run("send-keys", "-t", "alice", "-l", ", will you book a table")
    tmux.wait_for("alice", "book a table")


def make(styled: str) -> dict[str, str]:
    """Return the pictures of a screen, with fixed times."""
    rows = parse(re.sub(r"(?<![\d:])\d\d:\d\d ", "10:30 ", styled))
    return {theme: draw(rows, theme) for theme in THEMES}


def main() -> None:
    """Run the session and write the pictures."""
    with tempfile.TemporaryDirectory() as folder:
        pictures = make(trio.run(hold_session, Path(folder)))
    for theme, picture in pictures.items():
        PAGES[theme].write_text(picture, "utf-8")


if __name__ == "__main__":
    main()
