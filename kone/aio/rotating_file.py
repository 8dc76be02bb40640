"""A file that lines are added to and that is put aside when it is full: the audit log.

Kept as upstream's (lumberjack) keeps it: `audit.log` becomes `audit-2026-11-25T10-52-39.000.log`; files put aside go
when they are too many or too old.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path

from kone.aio.clock import Clock

DAY_S = 24 * 3600.0


class RotatingFile:
    """Lines in `path`, or on standard output where it is "-". A size of 0 bytes never rotates; a number of backups or
    an age in days of 0 keeps them all. A process that starts goes on with the file that is there."""

    def __init__(
        self, path: str, clock: Clock, *, max_bytes: int = 0, max_backups: int = 0, max_age_days: int = 0
    ) -> None:
        self._path = Path(path)
        self._clock = clock
        self._max_bytes, self._max_backups, self._max_age_s = max_bytes, max_backups, max_age_days * DAY_S
        self._rotates = path != "-"
        self._file = 1 if path == "-" else self._opened()
        self._size = os.fstat(self._file).st_size if self._rotates else 0

    def _opened(self) -> int:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def write(self, line: bytes) -> None:
        """Add a line, which brings its own end. Raises OSError."""
        if self._rotates and self._max_bytes and self._size and self._size + len(line) > self._max_bytes:
            self._rotate()
        view = memoryview(line)
        while view:
            view = view[os.write(self._file, view) :]
        self._size += len(line)

    def _rotate(self) -> None:
        os.close(self._file)
        moment = datetime.fromtimestamp(self._clock.now(), UTC)
        stamp = f"{moment:%Y-%m-%dT%H-%M-%S}.{moment.microsecond // 1000:03d}"
        aside, count = self._path.with_name(f"{self._path.stem}-{stamp}{self._path.suffix}"), 1
        while aside.exists():  # twice in a millisecond
            aside, count = aside.with_name(f"{self._path.stem}-{stamp}.{count}{self._path.suffix}"), count + 1
        self._path.rename(aside)
        self._file, self._size = self._opened(), 0
        self._forget()

    def _forget(self) -> None:
        """Remove what was put aside too long ago, or before too many others."""
        stem, oldest = self._path.stem, self._clock.now() - self._max_age_s
        named = self._path.parent.glob(f"{stem}-*{self._path.suffix}")
        aside = sorted(((at, file) for file in named if (at := _put_aside(file, stem)) is not None), reverse=True)
        for i, (at, file) in enumerate(aside):
            if (self._max_backups and i >= self._max_backups) or (self._max_age_s and at < oldest):
                file.unlink(missing_ok=True)

    def close(self) -> None:
        if self._rotates:
            os.close(self._file)


def _put_aside(file: Path, stem: str) -> float | None:
    """When a file was put aside, by its name; None for a file that is another's."""
    try:
        stamp = file.name.removeprefix(f"{stem}-")[:19]
        return datetime.strptime(stamp, "%Y-%m-%dT%H-%M-%S").replace(tzinfo=UTC).timestamp()
    except ValueError:
        return None
