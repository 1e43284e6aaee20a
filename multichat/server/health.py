"""The answers to checks of health, on the port of the page and on that of the metrics.

`/live` says that the event loop runs: a server that does not answer it should be restarted.
`/ready` says whether it should get new clients, and why not.
"""

from typing import TYPE_CHECKING

from multichat.web.http import Response
from multichat.web.site import Health

if TYPE_CHECKING:
    from multichat.server.server import Server

__all__ = ["health_response"]


def health_response(server: "Server", health: Health) -> Response:
    """Return the answer to a check of the *health* of *server*: 200, or 503 with the reason."""
    if health is Health.READY and (reason := server.why_not_ready()):
        return Response.of_text(503, reason)
    return Response.of_text(200, "ok")
