"""Where plugins look for the kubelet's files: /var/lib/kubelet, as manifests have it, is a link to where they lie.

So CSI drivers and device plugins are installed unchanged. What is there already is somebody else's and stays: then
plugins must be told the real directory (most charts call it kubeletDir).
"""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path

from kone.runtime import mounts

log = logging.getLogger(__name__)


def offer(root: Path, public: Path | None) -> Path:
    """Make `public` a link to the kubelet's directory where nothing is in the way; the name that plugins are to use."""
    if public is None or public == root:
        return root
    root.mkdir(parents=True, exist_ok=True)
    if public.is_symlink():
        if public.resolve() == root.resolve():
            return public
        if not public.exists():
            public.unlink()  # of a node whose data is gone
    with contextlib.suppress(OSError):
        if public.is_dir() and not public.is_symlink():
            public.rmdir()  # only where it is empty
    if public.exists():
        log.warning("%s is not kone's: plugins of this node must be told the kubelet's directory, %s", public, root)
        return root
    public.parent.mkdir(parents=True, exist_ok=True)
    public.symlink_to(root.absolute())
    return public


def share(root: Path) -> None:
    """See to it that mounts go to and fro between the kubelet's directory and containers that have it
    (mountPropagation), as CSI drivers must: not every host's file systems are shared, as systemd makes them."""
    root.mkdir(parents=True, exist_ok=True)
    try:
        if mounts.share(str(root.absolute())):
            log.info("%s is a shared mount now", root)
    except OSError as error:
        log.warning("mounts in %s are not seen in containers: %s", root, error.strerror)


def withdraw(root: Path, public: Path) -> bool:
    """Take the link away where it is ours; whether it was."""
    if not public.is_symlink() or public.resolve() != root.resolve():
        return False
    public.unlink()
    return True
