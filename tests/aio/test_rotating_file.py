"""A log that is put aside when it is full, and forgotten when there is too much of it."""

from __future__ import annotations

from pathlib import Path

from kone.aio.clock import FakeClock
from kone.aio.rotating_file import DAY_S, RotatingFile


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


async def test_a_full_file_is_put_aside_under_the_moment(tmp_path: Path) -> None:
    clock = FakeClock(1_700_000_000.0)
    file = RotatingFile(str(tmp_path / "a" / "audit.log"), clock, max_bytes=10)
    file.write(b"12345\n")
    file.write(b"123\n")  # exactly full
    file.write(b"next\n")
    file.close()
    assert names(tmp_path / "a") == ["audit-2023-11-14T22-13-20.000.log", "audit.log"]
    assert (tmp_path / "a" / "audit.log").read_bytes() == b"next\n"


async def test_a_line_longer_than_a_file_gets_one_of_its_own(tmp_path: Path) -> None:
    file = RotatingFile(str(tmp_path / "audit.log"), FakeClock(), max_bytes=4)
    for _ in range(3):
        file.write(b"longer than four\n")
    file.close()
    assert len(names(tmp_path)) == 3  # also within one moment


async def test_too_many_and_too_old_files_go_others_stay(tmp_path: Path) -> None:
    clock = FakeClock()
    (tmp_path / "audit-of-somebody-else.log").touch()
    file = RotatingFile(str(tmp_path / "audit.log"), clock, max_bytes=1, max_backups=2)
    for _ in range(6):
        file.write(b"line\n")
        await clock.advance(1)
    file.close()
    assert len(names(tmp_path)) == 4
    assert "audit-of-somebody-else.log" in names(tmp_path)
    file = RotatingFile(str(tmp_path / "audit.log"), clock, max_bytes=1, max_age_days=1)
    await clock.advance(DAY_S + 10)
    file.write(b"line\n")
    file.close()
    assert len(names(tmp_path)) == 3  # the one just put aside, the log, the stranger


async def test_a_new_process_goes_on_with_the_file(tmp_path: Path) -> None:
    for line in (b"one\n", b"two\n"):
        file = RotatingFile(str(tmp_path / "audit.log"), FakeClock(), max_bytes=100)
        file.write(line)
        file.close()
    assert (tmp_path / "audit.log").read_bytes() == b"one\ntwo\n"
