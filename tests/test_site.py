"""The pages of the documentation site: each public name is on one of them, and how-to code runs."""

import re
from collections import Counter
from pathlib import Path

import pytest

import multichat
import multichat.testing

from .support.documents import load

DOCS = Path(__file__).parent.parent / "docs"


@pytest.mark.unit
def test_the_api_pages_document_every_public_name_once() -> None:
    pages = [page.read_text("utf-8") for page in (DOCS / "api").glob("*.rst")]
    documented = Counter(re.findall(r"^\.\. auto\w+:: (\S+)$", "\n".join(pages), re.MULTILINE))
    public = [f"multichat.{name}" for name in multichat.__all__]
    public += [f"multichat.testing.{name}" for name in multichat.testing.__all__]
    assert documented == Counter(public)


@pytest.mark.unit
def test_every_page_is_in_the_navigation() -> None:
    pages = {page.stem for page in DOCS.glob("*.md")} - {"index"}
    listed = re.findall(r"^([a-z]+)$", (DOCS / "index.md").read_text("utf-8"), re.MULTILINE)
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


@pytest.mark.process
@pytest.mark.parametrize("page", ["bots", "embedding"])
def test_the_code_of_a_how_to_runs(page: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = (DOCS / f"{page}.md").read_text("utf-8")
    namespace: dict[str, object] = {}
    for block in re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        exec(compile(block, f"{page}.md", "exec"), namespace)
    if page == "embedding":
        assert "The build is green." in capsys.readouterr().out
