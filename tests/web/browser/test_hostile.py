"""Attacks in a real browser: hostile people, a hostile server, other sites.

The browser must not run anything, load anything or leave the page; the page must keep working.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.resources import files
from threading import Thread
from typing import Any

import pytest
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response
from websockets.sync.server import ServerConnection, serve

from multichat.web.page_files import SECURITY_HEADERS
from tests.support.browser import Line, Visitor, WebServer, wait_until
from tests.support.processes import LOOPBACK

pytestmark = pytest.mark.process

Visit = Callable[..., Visitor]

MARKUP = [
    "<img src=x onerror=hacked=1>",
    "<script>hacked=1</script>",
    '"><svg onload=hacked=1>',
    "javascript:hacked=1",
    'https://example.org/" onmouseover=hacked=1 x="',
    "<iframe srcdoc='<script>parent.hacked=1</script>'></iframe>",
    "</textarea><style>*{display:none}</style>",
    "&lt;b&gt; ${hacked=1} {{hacked=1}}",
]

HARMLESS = """() => ({
  hacked: "hacked" in window,
  elements: document.querySelectorAll("#rows :is(script, img, iframe, style, object, form)").length,
  handlers: [...document.querySelectorAll("#app *")]
    .filter((each) => [...each.attributes].some(({name}) => name.startsWith("on"))).length,
  links: [...document.querySelectorAll("#rows a")]
    .filter(({protocol, rel}) => !/^https?:$/.test(protocol) || !/noopener noreferrer/.test(rel))
    .length,
  here: location.pathname,
})"""
NOTHING = {"hacked": False, "elements": 0, "handlers": 0, "links": 0, "here": "/"}


def test_markup_in_messages_is_text(server: WebServer, visit: Visit) -> None:
    alice = visit().join("alice").online()
    with Line(server.port).named("bob") as bob:
        bob.say(
            *MARKUP, *(f"/me {text}" for text in MARKUP), *(f"/msg alice {text}" for text in MARKUP)
        )
        for text in MARKUP:
            alice.hears(text)
        alice.say(*(f"/say {text}" for text in MARKUP))
        wait_until(lambda: len(alice.texts()) == 3 * len(MARKUP))
        assert alice.page.evaluate(HARMLESS) == NOTHING
        alice.show("bob")
        alice.hears(MARKUP[0])
        assert alice.page.evaluate(HARMLESS) == NOTHING


@contextmanager
def hostile_server(talk: Callable[[ServerConnection], None]) -> Iterator[str]:
    """Serve the real page, and let *talk* be what answers its hello; yields the address."""
    page = files("multichat.web") / "page"
    types = {
        "js": "text/javascript",
        "css": "text/css",
        "svg": "image/svg+xml",
        "html": "text/html",
    }

    def answer(connection: ServerConnection, request: Request) -> Response | None:
        if request.path == "/ws":
            return None
        name = request.path.lstrip("/") or "index.html"
        body = (page / name).read_bytes()
        kind = types[name.rpartition(".")[2]]
        fields = {"Content-Type": kind, "Content-Length": str(len(body)), **SECURITY_HEADERS}
        return Response(200, "OK", Headers(fields), body)

    def handle(connection: ServerConnection) -> None:
        connection.recv()
        try:
            talk(connection)
            for _ in connection:  # until the page is closed
                pass
        except ConnectionClosed:
            pass

    subprotocols: list[Any] = ["multichat.lines"]
    options: dict[str, Any] = {"process_request": answer, "subprotocols": subprotocols}
    with serve(handle, LOOPBACK, 0, **options, compression=None) as listening:
        thread = Thread(target=listening.serve_forever)
        thread.start()
        try:
            yield f"http://{LOOPBACK}:{listening.socket.getsockname()[1]}/"
        finally:
            listening.shutdown()
            thread.join()


def lines(*events: dict[str, Any]) -> str:
    return "\n".join(json.dumps(event) for event in events)


def welcome(**fields: Any) -> dict[str, Any]:
    return {
        "type": "welcome",
        "client": 1,
        "name": "alice",
        "room": "lobby",
        "members": 1,
        "limits": {"line": 65536, "name": 32, "wait": 0},
        "resumed": False,
        "session": "token",
        "rooms": {"lobby": {"members": 1, "last": None}},
        **fields,
    }


def said(number: int, **fields: Any) -> dict[str, Any]:
    return {
        "type": "said",
        "id": f"e-{number:08}",
        "time": "2025-01-15T10:30:45.123Z",
        "room": "lobby",
        "client": 2,
        "name": "bob",
        "text": f"message {number}",
        **fields,
    }


def test_markup_in_names_rooms_and_topics_is_text(visit: Visit) -> None:
    def talk(connection: ServerConnection) -> None:
        rooms = {text: {"members": 2, "last": None, "topic": text} for text in MARKUP}
        connection.send(lines(welcome(name=MARKUP[0], rooms=rooms, server=MARKUP[1])))
        for number, text in enumerate(MARKUP):
            connection.send(
                lines(
                    {"type": "joined", "client": 9, "name": text, "room": text, "members": 3},
                    {"type": "renamed", "client": 9, "old": text, "name": f"{text}2"},
                    {"type": "topic", "room": text, "text": text, "name": text},
                    {"type": "notice", "text": text},
                    {"type": "error", "code": text, "text": text, "room": text},
                    {"type": "direct", "client": number, "name": text, "text": text, "time": text},
                    said(number, room=text, name=text, text=text, time=text),
                    {"type": "members", "room": text, "members": [{"client": 1, "name": text}]},
                )
            )

    with hostile_server(talk) as url:
        alice = visit(url).join("alice")
        for text in MARKUP:
            alice.page.wait_for_selector(f".open >> text={json.dumps(text)} >> nth=0")
        for entry in alice.page.locator(".open").all():
            entry.click()
            assert alice.page.evaluate(HARMLESS) == NOTHING
        assert alice.page.locator(".lists :is(img, script, svg:not(.icon))").count() == 0


def test_nonsense_and_floods_from_a_server_do_not_stop_the_page(visit: Visit) -> None:
    zalgo = "Z" + "\u0301" * 5000

    def talk(connection: ServerConnection) -> None:
        many = {f"room{number}": {"members": 1, "last": None} for number in range(5000)}
        connection.send("[Server] nonsense\n{\n[]\nnull\n" + "[" * 50_000)
        connection.send(lines(welcome(rooms={"lobby": {"members": 1, "last": None}, **many})))
        connection.send(lines(welcome(client="x"), {"type": "said"}, {"type": "accepted"}))
        connection.send(b"\x00\xff")
        connection.send(lines({"type": "notice", "text": "x" * 3_000_000}))
        connection.send(lines(*({"type": "notice", "text": f"n{n}"} for n in range(3000))))
        people = [{"client": number, "name": f"p{number}"} for number in range(20_000)]
        connection.send(lines({"type": "members", "room": "lobby", "members": people}))
        joins = (
            {"type": "joined", "client": n, "name": f"p{n}", "room": "lobby"} for n in range(5000)
        )
        connection.send(lines(*joins))
        directs = (
            {"type": "direct", "client": n, "name": f"d{n}", "text": "hi"} for n in range(2000)
        )
        connection.send(lines(*directs))
        connection.send(lines(said(1, text=zalgo), said(2, name="n" * 100, text="w" * 60_000)))
        connection.send(lines(said(3, text="\u202eevil\u202c \u2066x"), said(4, id="\u0000")))
        connection.send(lines(*(said(n) for n in range(10, 3000))))
        connection.send(lines(said(9000, text="still here")))

    with hostile_server(talk) as url:
        alice = visit(url).join("alice")
        alice.hears("still here")
        alice.page.fill("#field", "I can type")
        alice.page.press("#field", "Enter")
        wait_until(lambda: "I can type" in alice.texts())
        assert alice.page.evaluate("() => document.querySelectorAll('*').length") < 8000
        assert alice.page.locator(".open").count() <= 300


COUNT_DRAWS = """() => {
  window.draws = 0;
  new MutationObserver(() => { window.draws += 1; })
    .observe(document.getElementById("rows"), {childList: true});
}"""


def test_messages_that_take_long_to_draw_are_not_drawn_one_by_one(visit: Visit) -> None:
    batches, links = 100, "https://x.example/ " * 20

    def talk(connection: ServerConnection) -> None:
        connection.send(lines(welcome()))
        for batch in range(batches):
            first = batch * 200
            connection.send(lines(*(said(first + n, text=links) for n in range(200))))
        connection.send(lines(said(99_999_999, text="the end")))

    with hostile_server(talk) as url:
        alice = visit(url).open()
        alice.page.evaluate(COUNT_DRAWS)
        alice.page.fill("#join-name", "alice")
        alice.page.click("#join-submit")
        alice.hears("the end")
        assert alice.page.evaluate("() => window.draws") < batches / 3


def test_goodbyes_of_a_hostile_server_do_not_make_the_page_hammer(visit: Visit) -> None:
    connections: list[int] = []

    def talk(connection: ServerConnection) -> None:
        connections.append(1)
        connection.send(lines(welcome()))
        goodbye = {"type": "goodbye", "reason": "again", "reconnect": True, "after": -1e300}
        connection.send(lines(goodbye))

    with hostile_server(talk) as url:
        alice = visit(url).join("alice")
        wait_until(lambda: len(connections) >= 2)
        alice.page.wait_for_timeout(1000)
        assert len(connections) <= 6


def test_other_sites_can_neither_connect_nor_frame_the_page(
    server: WebServer, visit: Visit
) -> None:
    alice = visit().join("alice").online()
    other = alice.page.context.new_page()
    answer = other.evaluate(
        """url => new Promise((done) => {
          const socket = new WebSocket(url.replace("http", "ws") + "ws", ["multichat.lines"]);
          socket.onopen = () => done("open");
          socket.onclose = () => done("closed");
        })""",
        server.url,
    )
    assert answer == "closed"
    other.set_content(f"<iframe src='{server.url}'></iframe>")
    wait_until(lambda: len(other.frames) == 2 and other.frames[1].url)
    other.wait_for_timeout(500)
    assert other.frames[1].locator("#app").count() == 0


def test_the_page_can_send_nothing_to_other_sites(server: WebServer, visit: Visit) -> None:
    alice = visit().join("alice").online()
    blocked = alice.page.evaluate(
        """async (elsewhere) => {
          const blocked = [];
          document.addEventListener("securitypolicyviolation", (event) => {
            blocked.push(event.effectiveDirective);
          });
          const script = document.createElement("script");
          const tries = [
            () => fetch(elsewhere),
            () => new WebSocket(elsewhere.replace("http", "ws")),
            () => navigator.sendBeacon(elsewhere, "x"),
            () => { new Image().src = elsewhere; },
            () => { script.append("hacked=1"); document.head.append(script); },
            () => document.body.insertAdjacentHTML("beforeend", "<b>x</b>"),
            () => setTimeout("hacked=1"),
            () => document.body.setAttribute("style", "color: red"),
          ];
          for (const each of tries) { try { await each(); } catch {} }
          await new Promise((done) => setTimeout(done, 300));
          return blocked;
        }""",
        f"http://{LOOPBACK}:{server.port}/",
    )
    assert alice.page.evaluate("() => 'hacked' in window") is False
    needed = {"connect-src", "img-src", "require-trusted-types-for", "style-src-attr"}
    assert needed <= set(blocked)
    alice.complaints.clear()  # that was all on purpose
