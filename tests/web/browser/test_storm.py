"""A page behind a link that fails all the time, for a minute."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event, Thread

import pytest
import trio
from playwright.sync_api import Route

from tests.support.browser import Line, Visitor, WebServer
from tests.support.processes import LOOPBACK
from tests.support.proxy import Proxy

pytestmark = pytest.mark.stress

Visit = Callable[..., Visitor]

STORM_SECONDS = 60
SEED = 18


@contextmanager
def stormy(target: int) -> Iterator[tuple[Proxy, Callable[[], None]]]:
    """Run a proxy in a thread of its own; yields it, and what ends the storm."""
    started, tokens = Event(), []
    proxy = Proxy(lambda: target, SEED)

    async def run() -> None:
        tokens.append((trio.lowlevel.current_trio_token(), trio.CancelScope()))
        with tokens[0][1]:
            async with trio.open_nursery() as nursery:
                await nursery.start(proxy.run)
                started.set()

    thread = Thread(target=trio.run, args=(run,))
    thread.start()
    started.wait()
    token, scope = tokens[0]
    try:
        yield proxy, lambda: token.run_sync_soon(proxy.calm.set)
    finally:
        token.run_sync_soon(scope.cancel)
        thread.join()


def test_storm_of_faults_loses_nothing_and_repeats_nothing(server: WebServer, visit: Visit) -> None:
    with Line(server.port).named("bob") as bob, stormy(server.web) as (proxy, calm):
        alice = visit(f"http://{LOOPBACK}:{proxy.port}/")

        def pass_by(route: Route) -> None:
            """Take the files from the server itself: only what goes to `/ws` is in the storm."""
            path = route.request.url.removeprefix(alice.url)
            if path == "ws":  # the page asks why its WebSocket failed
                route.continue_()
                return
            route.fulfill(response=route.fetch(url=server.url + path))

        alice.page.route("**/*", pass_by)
        alice.open()
        alice.page.fill("#join-name", "alice")
        alice.page.click("#join-submit")
        alice.page.wait_for_selector("#me .state.online", state="attached")
        number = 0
        for number in range(STORM_SECONDS * 2):
            bob.say(f"bob {number}")
            alice.say(f"alice {number}")
            alice.page.wait_for_timeout(500)
        calm()
        alice.try_now()
        alice.hears(f"bob {number}")
        alice.hears(f"alice {number}")
        for each in range(number + 1):
            bob.hears(f"[alice] alice {each}\n")
        bob.say("/ping end")
        bob.hears("pong end")
        texts = alice.texts()
        for name in "alice", "bob":
            theirs = [text for text in texts if text.startswith(name)]
            shown = range(number + 1 - len(theirs), number + 1)
            assert theirs == [f"{name} {each}" for each in shown]
        assert proxy.faults.total() > 5
