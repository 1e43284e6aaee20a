"""The page's files, as responses: types, validators, and what a browser may do with them.  Pure.

Only the given files can be requested: a path is looked up, never opened.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import replace

from multichat.web.http import Request, Response

__all__ = ["SECURITY_HEADERS", "PageFiles"]

SECURITY_HEADERS = {
    # Nothing from other sites, nothing inline, no frame around the page; scripts can only set text.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        "img-src 'self'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'; require-trusted-types-for 'script'"
    ),
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}
"""The fields of each response with a file of the page."""

# Browsers ignore it without TLS, and complain.
_HTTPS_HEADERS = {"Cross-Origin-Opener-Policy": "same-origin"}

_TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "mjs": "text/javascript; charset=utf-8",
    "json": "application/json",
    "webmanifest": "application/manifest+json",
    "svg": "image/svg+xml",
    "png": "image/png",
    "ico": "image/x-icon",
    "txt": "text/plain; charset=utf-8",
}
_INDEX = "index.html"


class PageFiles:
    """Answers requests for *contents*, files by their paths."""

    def __init__(self, contents: Mapping[str, bytes]) -> None:
        self._responses = {f"/{path}": _response(path, body) for path, body in contents.items()}
        if (index := self._responses.get(f"/{_INDEX}")) is not None:
            self._responses["/"] = index

    def __contains__(self, path: str) -> bool:
        """Return whether there is a file at *path*, which begins with a slash."""
        return path in self._responses

    def answer(self, request: Request, scheme: str = "http") -> Response:
        """Return the response to GET or HEAD over *scheme*: the file, or 304 if it is unchanged."""
        response = self._responses[request.path]
        if scheme == "https":
            response = replace(response, headers={**response.headers, **_HTTPS_HEADERS})
        known = [tag.removeprefix("w/") for tag in request.tokens("if-none-match")]
        if response.headers["ETag"] in known or known == ["*"]:
            kept = {name: value for name, value in response.headers.items() if name != _TYPE}
            return Response(status=304, headers=kept)
        return response


_TYPE = "Content-Type"


def _response(path: str, body: bytes) -> Response:
    kind = _TYPES.get(path.rpartition(".")[2], "application/octet-stream")
    tag = hashlib.sha256(body).hexdigest()[:32]
    # `no-cache`: a browser may keep it but checks it each time, and so sees a new version at once.
    headers = {_TYPE: kind, "ETag": f'"{tag}"', "Cache-Control": "no-cache", **SECURITY_HEADERS}
    return Response(status=200, headers=headers, body=body)
