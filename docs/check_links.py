"""Checks the links of the built site: internal ones must exist, external ones must be URLs.

Opens no connection.  Run by `nox -s site`.
"""

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    """The links and anchors of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.feed(path.read_text("utf-8"))

    def handle_starttag(
        self,
        tag: str,  # noqa: ARG002 - links are the same in every tag
        attrs: list[tuple[str, str | None]],
    ) -> None:
        """Record the links and the anchor of a tag."""
        for name, value in attrs:
            if name in ("href", "src") and value is not None:
                self.links.append(value)
            elif name == "id" and value is not None:
                self.anchors.add(value)


def broken_links(site: Path) -> list[str]:
    """Return a line for each broken link below *site*."""
    pages = {path.resolve(): Page(path) for path in site.rglob("*.html")}
    return [
        f"{path.relative_to(site.resolve())}: {link}"
        for path, page in pages.items()
        for link in page.links
        if not _is_good(link, path, pages)
    ]


def _is_good(link: str, path: Path, pages: dict[Path, Page]) -> bool:
    url = urlsplit(link)
    if url.scheme or url.netloc:
        return url.scheme == "https" and "." in url.netloc
    target = (path.parent / unquote(url.path)).resolve() if url.path else path
    if target not in pages:
        return target.is_file() and not url.fragment
    return not url.fragment or unquote(url.fragment) in pages[target].anchors


if __name__ == "__main__":
    broken = broken_links(Path(sys.argv[1]))
    sys.exit("\n".join(["broken links:", *broken]) if broken else 0)
