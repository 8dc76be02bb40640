"""The manifests of static pods on the node's disk, a directory or one file, and what they say whenever that changes.

inotify tells at once; every 20 s they are read whatever it says. What kubernetes/pkg/kubelet/config/file.go does: files
whose names begin with a dot and whatever is not a regular file are left out; a manifest that cannot be read is reported
and its pod ended by the next regular look, not by the first sight of a file that may be half written.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Final

from kone.aio.clock import Clock
from kone.aio.tasks import TaskGroup
from kone.apimachinery.objects import Object, uid_of
from kone.apimachinery.timestamps import format_time
from kone.runtime.inotify import DirectoryWatch
from kone.runtime.static_pods import identify

log = logging.getLogger(__name__)

LOOK_EVERY_S: Final = 20.0  # fileCheckFrequency
MANIFEST_MAX_BYTES: Final = 10 * 2**20

ReadPod = Callable[[bytes, Callable[[Object], None]], Object]
"""(a manifest, what gives the decoded pod its identity in place) -> the pod with every default. Raises ValueError."""


class _Empty(ValueError):
    """A file with nothing in it: most likely its writer has just begun."""


class Manifests:
    """Tells `changed` all pods of the manifests, by their paths' order, each time they were looked at."""

    def __init__(
        self, path: Path, node_name: str, clock: Clock, read: ReadPod, changed: Callable[[Sequence[Object]], None]
    ) -> None:
        self._path, self._node_name, self._clock = path, node_name, clock
        self._read, self._changed = read, changed
        self._known: dict[Path, Object] = {}
        self._complaints: dict[Path, str] = {}
        self._touched = asyncio.Event()
        self._watch: DirectoryWatch | None = None
        self._tasks = TaskGroup("manifests")

    async def start(self) -> None:
        """The first look is done when this returns."""
        self._observe()
        self._look(regular=True)
        self._tasks.guard(self._on_touch, name="manifests.inotify")
        self._tasks.guard(self._regularly, name="manifests.look")

    async def stop(self) -> None:
        await self._tasks.cancel()
        if self._watch is not None:
            self._watch.close()

    async def _on_touch(self) -> None:
        while True:
            await self._touched.wait()
            self._touched.clear()
            self._look(regular=False)

    async def _regularly(self) -> None:
        while True:
            await self._clock.sleep(LOOK_EVERY_S)
            self._observe()
            self._look(regular=True)

    def _observe(self) -> None:
        """Let inotify tell; a directory that comes later is observed from the next look on."""
        try:
            if self._watch is None:
                self._watch = DirectoryWatch(self._touched.set, content=True)
            self._watch.add(self._path if self._path.is_dir() else self._path.parent)
        except OSError as error:
            log.debug("manifests in %s are looked for every %.0f s: %s", self._path, LOOK_EVERY_S, error)

    def _look(self, *, regular: bool) -> None:
        try:
            paths = list(self._files())
        except OSError as error:
            log.warning("manifests cannot be looked for in %s: %s", self._path, error.strerror)
            return
        found: dict[Path, Object] = {}
        for path in paths:
            try:
                found[path] = self._pod(path)
                self._complaints.pop(path, None)
            except FileNotFoundError:
                continue
            except (OSError, ValueError) as error:
                is_begun = isinstance(error, _Empty) and not regular
                if not is_begun and self._complaints.get(path) != str(error):
                    self._complaints[path] = str(error)
                    log.error("manifest %s: %s", path, error)
                if not regular and path in self._known:
                    found[path] = self._known[path]
        self._known = found
        self._changed(list(found.values()))

    def _files(self) -> Iterator[Path]:
        """The regular files to read, sorted; none where nothing is there. Raises OSError."""
        if self._path.is_dir():
            for path in sorted(self._path.iterdir()):
                if not path.name.startswith(".") and path.is_file():
                    yield path
        elif self._path.is_file():
            yield self._path

    def _pod(self, path: Path) -> Object:
        """The pod of a manifest; the same object as long as it says the same. Raises OSError and ValueError."""
        with path.open("rb") as file:
            text = file.read(MANIFEST_MAX_BYTES + 1)
        if len(text) > MANIFEST_MAX_BYTES:
            raise ValueError("the file is larger than 10 MiB")
        if not text:
            raise _Empty("the file is empty")
        seen = format_time(self._clock.now())
        pod = self._read(text, partial(identify, path=str(path), node_name=self._node_name, seen=seen))
        known = self._known.get(path)
        return known if known is not None and uid_of(known) == uid_of(pod) else pod
