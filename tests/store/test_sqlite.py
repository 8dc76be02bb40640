"""The SQLite file: who may open it, what it says when it cannot be, how it shrinks, and what kill -9 leaves of it."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from kone.aio.clock import FakeClock
from kone.store import sql
from kone.store.log_store import LOOK_EVERY_S, LogStore
from kone.store.opening import open_store
from kone.store.store import (
    DatastoreError,
    DatastoreFailed,
    DatastoreLocked,
    DatastoreTooNew,
    DatastoreUnwritable,
    Retention,
    Store,
    Write,
)

KEY = "/registry/core/configmaps/default/a"


def url(path: Path) -> str:
    return f"sqlite:///{path}"


def obj(**data: Any) -> dict[str, Any]:
    return {"metadata": {"name": "a"}, "data": data}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "kone.db"


def asked(path: Path, question: str) -> Sequence[Any]:
    """What another program reads in the file."""
    connection = sqlite3.connect(path)
    try:
        return connection.execute(question).fetchall()
    finally:
        connection.close()


async def test_the_file_and_its_directory_are_made_for_their_owner_alone(path: Path) -> None:
    store = await open_store(url(path))
    await store.commit(Write(KEY, obj()))
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    for file in path.parent.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file
    await store.close()


async def test_a_commit_is_synced_to_a_write_ahead_log(path: Path) -> None:
    log = await sql.open_log(url(path))
    assert isinstance(log, sql.FileLog)
    pragmas = {}
    for name in ("journal_mode", "synchronous", "auto_vacuum"):
        [(pragmas[name],)] = await log._driver.execute_fetchall(f"PRAGMA {name}")
    assert pragmas == {"journal_mode": "wal", "synchronous": 2, "auto_vacuum": 2}  # FULL, INCREMENTAL
    await log.close()


# Refusals: one line that says what to do


async def refusal(where: str, kind: type[DatastoreError]) -> str:
    with pytest.raises(DatastoreError) as refused:
        await open_store(where)
    assert type(refused.value) is kind
    text = str(refused.value)
    assert "\n" not in text
    return text


async def test_a_second_server_on_the_same_database_is_refused(path: Path) -> None:
    store = await open_store(url(path))
    text = await refusal(url(path), DatastoreLocked)
    assert f"process {os.getpid()}" in text
    assert "--data-dir" in text
    await store.close()
    await (await open_store(url(path))).close()


async def test_a_database_of_a_newer_kone_is_refused_and_left_alone(path: Path) -> None:
    await (await open_store(url(path))).close()
    connection = sqlite3.connect(path)
    connection.execute("UPDATE kone_marks SET value = 99 WHERE name = 'schema'")
    connection.commit()
    connection.close()
    text = await refusal(url(path), DatastoreTooNew)
    assert "schema 99" in text
    assert "run the newer kone" in text
    assert asked(path, "SELECT value FROM kone_marks WHERE name = 'schema'") == [(99,)]


async def test_an_older_database_is_brought_up_step_by_step(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = await open_store(url(path))
    await store.commit(Write(KEY, obj()))
    await store.close()
    steps: list[int] = []

    async def first(connection: AsyncConnection) -> None:
        steps.append(1)
        await connection.execute(sa.text("ALTER TABLE kone_log ADD COLUMN note TEXT"))

    async def second(connection: AsyncConnection) -> None:
        steps.append(2)

    monkeypatch.setattr(sql, "SCHEMA", 3)
    monkeypatch.setattr(sql, "MIGRATIONS", {1: first, 2: second})
    for _ in range(2):
        store = await open_store(url(path))
        assert await store.get(KEY) is not None
        await store.close()
    assert steps == [1, 2]


async def test_a_migration_that_fails_changes_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    await (await open_store(url(path))).close()

    async def broken(connection: AsyncConnection) -> None:
        await connection.execute(sa.text("ALTER TABLE kone_log ADD COLUMN note TEXT"))
        await connection.execute(sa.text("SELECT nonsense"))

    with monkeypatch.context() as newer:
        newer.setattr(sql, "SCHEMA", 2)
        newer.setattr(sql, "MIGRATIONS", {1: broken})
        await refusal(url(path), DatastoreUnwritable)
    assert "note" not in [column[1] for column in asked(path, "PRAGMA table_info(kone_log)")]
    await (await open_store(url(path))).close()


async def test_a_file_that_is_no_database_is_named(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"not a database at all, but long enough to look at" * 100)
    text = await refusal(url(path), DatastoreError)
    assert "is damaged" in text
    assert str(path) in text


async def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    text = await refusal(url(tmp_path / "file" / "kone.db"), DatastoreUnwritable)
    assert "give another --data-dir" in text


async def test_a_database_in_the_place_of_a_directory_is_named(tmp_path: Path) -> None:
    (tmp_path / "kone.db").mkdir()
    await refusal(url(tmp_path / "kone.db"), DatastoreUnwritable)


@pytest.mark.parametrize("where", ["mysql://host/db", "/var/lib/kone.db", "sqlite:", "sqlite:///"])
async def test_a_url_that_is_not_known_is_refused_with_those_that_are(where: str) -> None:
    assert "memory://" in await refusal(where, DatastoreError)


# Space


async def until(condition: Any) -> None:
    """Wait for the writer's idle steps, which are real time of some milliseconds."""
    for _ in range(30_000):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it did not come about within five minutes")


async def test_the_file_shrinks_again_when_history_goes(path: Path) -> None:
    clock = FakeClock()
    store = await open_store(url(path), retention=Retention(max_age_s=5), clock=clock)
    for n in range(40):
        await store.commit(*(Write(f"{KEY}{i}", obj(n=n, fill="x" * 2000)) for i in range(50)))
    await store.commit(*(Write(f"{KEY}{i}", None) for i in range(50)))
    assert asked(path, "SELECT count(*) FROM kone_log") == [(2050,)]
    await clock.advance(LOOK_EVERY_S)
    await until(lambda: asked(path, "SELECT count(*) FROM kone_log") == [(0,)])
    await until(lambda: asked(path, "PRAGMA freelist_count")[0][0] <= 256)
    await store.close()
    assert path.stat().st_size < 2 * 2**20  # 4 MB of objects were written
    store = await open_store(url(path))
    assert store.revision == 2051
    await store.close()


async def test_a_full_disk_refuses_writes_serves_reads_and_is_over_when_there_is_space(path: Path) -> None:
    log = await sql.open_log(url(path))
    assert isinstance(log, sql.FileLog)
    await log._driver.execute_fetchall("PRAGMA max_page_count=30")
    store = await LogStore.load(log, Retention(), FakeClock(), protect=True)
    [made] = await store.commit(Write(KEY, obj()))
    big = [Write(f"{KEY}{n}", obj(fill="x" * 5000)) for n in range(50)]
    with pytest.raises(DatastoreFailed, match="full"):
        await store.commit(*big)
    assert (await store.get(KEY), await store.get(f"{KEY}0")) == (made.entry, None)
    await log._driver.execute_fetchall("PRAGMA max_page_count=1000000")
    assert len(await store.commit(*big)) == 50
    await store.close()


# kill -9

WRITER = """
import asyncio, sys
from kone.store.opening import open_store
from kone.store.store import Write

async def main():
    store = await open_store(sys.argv[1])
    async def write(worker):
        for n in range(100000):
            key = f"/registry/core/configmaps/default/w{worker}-{n % 20}"
            lease = f"/registry/coordination.k8s.io/leases/kube-node-lease/w{worker}"
            for write in (Write(key, {"metadata": {"name": "x"}, "n": n}), Write(lease, {"n": n}, volatile=True)):
                [event] = await store.commit(write)
                sys.stdout.write(f"{event.revision} {event.key} {n}\\n")
            if n % 7 == 6:
                [event] = await store.commit(Write(key, None))
                sys.stdout.write(f"{event.revision} {event.key} -\\n")
            sys.stdout.flush()
    print("started", store.revision, flush=True)
    await asyncio.gather(*(write(worker) for worker in range(8)))

asyncio.run(main())
"""


def killed_while_writing(path: Path, lines: int) -> list[str]:
    """What the store of another process acknowledged until it was killed."""
    process = subprocess.Popen([sys.executable, "-c", WRITER, url(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    told = [process.stdout.readline() for _ in range(lines)]
    process.send_signal(signal.SIGKILL)
    told += process.stdout.read().split("\n")[:-1]
    process.stdout.close()
    process.wait()
    return [line.strip() for line in told if line.count(" ") == 2]


async def test_kill_9_loses_no_acknowledged_write_and_gives_no_revision_twice(path: Path) -> None:
    newest = 1
    for round_ in range(3):
        acknowledged = killed_while_writing(path, 300 + 100 * round_)
        durable: dict[str, tuple[int, str]] = {}
        for line in acknowledged:
            revision, key, n = line.split()
            assert int(revision) > newest, "a revision was given twice"
            if "lease" not in key:
                durable[key] = max(durable.get(key, (0, "")), (int(revision), n))
        newest = max(int(line.split()[0]) for line in acknowledged)
        store = await open_store(url(path))
        await check(store, durable)
        assert store.revision >= newest
        newest = store.revision
        await store.close()
        assert asked(path, "PRAGMA integrity_check") == [("ok",)]


async def check(store: Store, durable: dict[str, tuple[int, str]]) -> None:
    """Every acknowledged state is there, or a later one that was not acknowledged any more."""
    for key, (revision, n) in durable.items():
        entry = await store.get(key)
        later = {event.revision for event in store.history() if event.key == key and event.revision > revision}
        if not later:
            assert (entry and (entry.revision, str(entry.obj["n"]))) == (None if n == "-" else (revision, n)), key
