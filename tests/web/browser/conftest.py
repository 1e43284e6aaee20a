"""One browser for all tests of a process, a fresh profile for each visitor."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser

from tests.support.browser import Visitor, WebServer, chromium, open_visitor


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    with chromium() as started:
        yield started


@pytest.fixture
def server(tmp_path: Path) -> Iterator[WebServer]:
    with WebServer(tmp_path) as started:
        yield started


@pytest.fixture
def visit(browser: Browser, request: pytest.FixtureRequest) -> Iterator[Callable[..., Visitor]]:
    """Return a function that opens the page of `server`, or of *url*, as a new user."""
    with ExitStack() as stack:

        def opened(url: str = "", **options: Any) -> Visitor:
            address = url or request.getfixturevalue("server").url
            context = browser.new_context(**{"viewport": {"width": 1280, "height": 800}, **options})
            stack.callback(context.close)
            return stack.enter_context(open_visitor(context, address))

        yield opened
