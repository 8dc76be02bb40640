"""Links of a page that was fetched through the API server's proxy, turned so that they lead through it again.

A page behind …/proxy/ that says <a href="/next"> means its own root, not the API server's. Which attributes of which
tags hold addresses, and which addresses are turned: k8s.io/apimachinery, pkg/util/proxy/transport.go.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping
from html.parser import HTMLParser
from typing import Final
from urllib.parse import urlsplit, urlunsplit

ADDRESSES: Final[Mapping[str, tuple[str, ...]]] = {
    "a": ("href",),
    "applet": ("codebase",),
    "area": ("href",),
    "audio": ("src",),
    "base": ("href",),
    "blockquote": ("cite",),
    "body": ("background",),
    "button": ("formaction",),
    "command": ("icon",),
    "del": ("cite",),
    "embed": ("src",),
    "form": ("action",),
    "frame": ("longdesc", "src"),
    "head": ("profile",),
    "html": ("manifest",),
    "iframe": ("longdesc", "src"),
    "img": ("longdesc", "src", "usemap"),
    "input": ("src", "usemap", "formaction"),
    "ins": ("cite",),
    "link": ("href",),
    "object": ("classid", "codebase", "data", "usemap"),
    "q": ("cite",),
    "script": ("src",),
    "source": ("src",),
    "video": ("poster", "src"),
}


def through_proxy(address: str, *, prefix: str, backend: str, asked_of: str) -> str:
    """The address with `prefix` (…/proxy) before its path, where it is a path from the root, of `backend` or of the
    host that the client asked (both "host:port"). Others stay as they are, and so does what has the prefix already.
    """
    try:
        parts = urlsplit(address)
    except ValueError:
        return address
    if parts.netloc not in ("", backend, asked_of) or not parts.path.startswith("/"):
        return address
    if parts.netloc != asked_of:
        parts = parts._replace(scheme="", netloc="")
    if not parts.path.startswith(prefix):
        parts = parts._replace(path=prefix + parts.path)
    return urlunsplit(parts)


def rewritten(page: str, turn: Callable[[str], str]) -> str:
    """The page with `turn` applied to every address in it; everything else stays letter by letter."""
    finder = _Finder(turn)
    finder.feed(page)
    finder.close()
    starts = [0]
    for line in page.split("\n"):
        starts.append(starts[-1] + len(line) + 1)
    pieces: list[str] = []
    done = 0
    for (line_number, column), raw, tag in finder.tags:
        begin = starts[line_number - 1] + column
        pieces += page[done:begin], tag
        done = begin + len(raw)
    return "".join((*pieces, page[done:]))


class _Finder(HTMLParser):
    """Collects the start tags that hold addresses: (line and column, as written, as it shall be)."""

    def __init__(self, turn: Callable[[str], str]) -> None:
        super().__init__(convert_charrefs=False)
        self._turn = turn
        self.tags: list[tuple[tuple[int, int], str, str]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._take(tag, attrs, ">")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._take(tag, attrs, "/>")

    def _take(self, tag: str, attrs: list[tuple[str, str | None]], end: str) -> None:
        names = ADDRESSES.get(tag, ())
        raw = self.get_starttag_text()
        if raw is None or not any(name in names for name, _ in attrs):
            return
        turned = [(name, self._turn(value) if name in names and value else value) for name, value in attrs]
        shown = "".join(f' {name}="{html.escape(value or "")}"' for name, value in turned)
        self.tags.append((self.getpos(), raw, f"<{tag}{shown}{end}"))
