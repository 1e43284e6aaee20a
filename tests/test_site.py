"""The documentation site: each public name is documented once, and the how-to code runs."""

import re
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

import multichat
import multichat.testing

from .support.documents import load
from .support.processes import LOOPBACK, WAIT_SECONDS

DOCS = Path(__file__).parent.parent / "docs"


@pytest.mark.unit
def test_the_api_pages_document_every_public_name_once() -> None:
    pages = [page.read_text("utf-8") for page in (DOCS / "api").glob("*.rst")]
    documented = Counter(
        re.findall(r"^\.\. auto\w+:: ([\w.]+)(?:\(\))?$", "\n".join(pages), re.MULTILINE)
    )
    public = [f"multichat.{name}" for name in multichat.__all__]
    public += [f"multichat.testing.{name}" for name in multichat.testing.__all__]
    assert documented == Counter(public)


@pytest.mark.unit
@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda page: page.stem)
def test_guides_link_only_to_files_in_the_repository(page: Path) -> None:
    """The pages of the API reference are directives there; `conf.py` links public names."""
    assert re.findall(r"\]\([^)]*\.rst\b[^)]*\)", page.read_text("utf-8")) == []


@pytest.mark.unit
def test_every_page_is_in_the_navigation() -> None:
    pages = {page.stem for page in DOCS.glob("*.md")} - {"index"}
    listed = re.findall(r"^([a-z_]+)$", (DOCS / "index.md").read_text("utf-8"), re.MULTILINE)
    assert sorted(listed) == sorted(pages)


@pytest.mark.unit
@pytest.mark.parametrize(
    ("link", "is_broken"),
    [
        ("b.html", False),
        ("b.html#there", False),
        ("#here", False),
        ("https://example.org/x#y", False),
        ("c.html", True),
        ("b.html#here", True),
        ("#there", True),
        ("http://example.org", True),
        ("https://x y", True),
    ],
)
def test_broken_links_are_found(tmp_path: Path, link: str, is_broken: bool) -> None:
    (tmp_path / "a.html").write_text(f'<p id="here"><a href="{link}">x</a></p>', "utf-8")
    (tmp_path / "b.html").write_text('<p id="there"></p>', "utf-8")
    assert bool(load("check_links").broken_links(tmp_path)) == is_broken


def run_page(page: str) -> dict[str, Any]:
    """Run the Python blocks of a page as one program; return its globals."""
    text = (DOCS / f"{page}.md").read_text("utf-8")
    namespace: dict[str, Any] = {}
    for block in re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        exec(compile(block, f"{page}.md", "exec"), namespace)
    return namespace


@pytest.mark.process
def test_the_code_about_embedding_runs(capsys: pytest.CaptureFixture[str]) -> None:
    run_page("embedding")
    assert "The build is green." in capsys.readouterr().out


@pytest.mark.process
def test_the_code_about_bots_runs_and_the_bot_also_as_a_client() -> None:
    run_bot = run_page("bots")["run"]

    async def meet_the_bot() -> None:
        with trio.fail_after(WAIT_SECONDS):
            async with trio.open_nursery() as nursery:
                serve = partial(multichat.serve, 0, host=LOOPBACK)
                server = await nursery.start(serve)
                nursery.start_soon(run_bot, LOOPBACK, server.port)
                while [member.name for member in server.members] != ["greeter"]:
                    await trio.sleep(0.01)
                async with multichat.connect(LOOPBACK, server.port, name="bob") as chat:
                    async for event in chat:
                        if isinstance(event, multichat.Said):
                            assert (event.name, event.text) == ("greeter", "Welcome, bob!")
                            break
                nursery.cancel_scope.cancel(reason="the bot has answered")

    trio.run(meet_the_bot)
