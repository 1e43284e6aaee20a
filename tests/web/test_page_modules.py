"""The page's pure modules, tested by node's own test runner."""

import re
import subprocess
from pathlib import Path

import pytest

from multichat.protocol.auth import PASSWORD_REQUIRED, WRONG_PASSWORD
from multichat.protocol.goodbyes import _CODES_BY_REASON, GOODBYES
from tests.support.processes import WAIT_SECONDS, program

pytestmark = pytest.mark.process

PAGE = Path(__file__).parents[2] / "multichat" / "web" / "page"
TESTS = sorted((Path(__file__).parent / "page").glob("*.test.mjs"))

# As for every module of the project; the page's are read by strangers, too.
MAX_LINES = 400

# They need a browser; everything else is pure.
NEED_A_BROWSER = {
    "attention",
    "composer",
    "dialogs",
    "dom",
    "log",
    "main",
    "sidebar",
    "socket",
    "tab",
}
DOM = re.compile(r"\b(?:document|window|sessionStorage|localStorage|navigator|WebSocket)\b[.(\[]")


@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.name.removesuffix(".test.mjs"))
def test_pure_modules_of_the_page(path: Path) -> None:
    argv = [program("node"), "--test", str(path)]
    ended = subprocess.run(argv, capture_output=True, text=True, timeout=WAIT_SECONDS)
    assert ended.returncode == 0, ended.stdout


@pytest.mark.parametrize("path", sorted(PAGE.glob("*.js")), ids=lambda path: path.stem)
def test_modules_are_small_and_say_what_they_need(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= MAX_LINES
    assert text.startswith("// ")
    code = "\n".join(
        line for line in text.splitlines() if not line.lstrip().startswith(("//", "*"))
    )
    if path.stem not in NEED_A_BROWSER:
        assert not DOM.search(code)


@pytest.mark.parametrize("path", sorted(PAGE.iterdir()), ids=lambda path: path.name)
def test_page_takes_nothing_from_elsewhere_and_makes_no_markup(path: Path) -> None:
    text = path.read_text()
    assert not re.search(r"(?:src|href|action)=[\"'](?:https?:|//|/)", text)
    assert not re.search(r"@import|url\(|\beval\(|new Function|import\(", text)
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|srcdoc", text)
    assert not re.search(r"<script(?![^>]*\bsrc=)|\bstyle=|\son\w+=\"", text)


def test_page_knows_the_lines_of_the_server_before_the_welcome() -> None:
    text = (PAGE / "session.js").read_text()
    [block] = re.findall(r"const MAY_RETURN = \[(.*?)\];", text, re.DOTALL)
    starts = re.findall(r'"(.*?)"', block)
    for start, code in _CODES_BY_REASON.items():
        assert any(map(start.startswith, starts)) == GOODBYES[code], start
    assert f'"[Server] {PASSWORD_REQUIRED.partition(":")[0]}"' in text
    assert f'"[Server] {WRONG_PASSWORD}"' in text
