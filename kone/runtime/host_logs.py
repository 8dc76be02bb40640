"""The node's own logs, /var/log, as the kubelet serves them below /logs/: files, and directories as a list of links.

What a link in it leads to outside of /var/log is not served: pods may write there by hostPath, and whoever may read a
node's logs need not be one who may read all of its files.
"""

from __future__ import annotations

import html
import os
from pathlib import Path
from urllib.parse import quote

from aiohttp import web

from kone.apimachinery.errors import StatusError

ROOT = Path("/var/log")


def serve(path: str, root: Path = ROOT) -> web.StreamResponse:
    """The answer for a path below root, "" for root itself. Raises StatusError 404."""
    top = os.path.realpath(root)
    found = os.path.realpath(os.path.join(top, path.lstrip("/")))
    if not (found == top or found.startswith(top + "/")) or not os.path.exists(found):
        raise StatusError(404, "NotFound", "404 page not found\n")
    if os.path.isfile(found):
        return web.FileResponse(found)
    if path and not path.endswith("/"):
        return web.Response(status=301, headers={"Location": f"{quote(os.path.basename(path))}/"})
    return web.Response(text=_listing(found), content_type="text/html")


def _listing(folder: str) -> str:
    names = sorted(entry.name + "/" * entry.is_dir() for entry in os.scandir(folder))
    links = "".join(f'<a href="{quote(name)}">{html.escape(name)}</a>\n' for name in names)
    return f'<!doctype html>\n<meta name="viewport" content="width=device-width">\n<pre>\n{links}</pre>\n'
