"""The log in SQL, by SQLAlchemy Core: SQLite in a file or in memory through aiosqlite, PostgreSQL through asyncpg.

One table is the whole design: a row's id is its revision, and the unique index on (key, previous) lets only one writer
replace a row. The hot path, appending a transaction's rows, is handed to the driver in one `executemany`: two thread
hops on SQLite where Core takes seven (measured: 80 us a transaction against 350 us). Everything else is Core.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from kone.store.log import Log, LogConflict, Marks, Row
from kone.store.store import DatastoreError, DatastoreFailed, DatastoreLocked, DatastoreTooNew, DatastoreUnwritable

SCHEMA = 1  # raise it with every change of the tables, and say in MIGRATIONS how one gets there

Migration = Callable[[AsyncConnection], Awaitable[None]]
MIGRATIONS: Mapping[int, Migration] = {}  # n: what makes a database of schema n one of schema n + 1

_BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_tables = sa.MetaData()
LOG = sa.Table(
    "kone_log",
    _tables,
    sa.Column("revision", _BIG, primary_key=True, autoincrement=False),
    sa.Column("key", sa.Text, nullable=False),
    sa.Column("previous", _BIG, nullable=False),
    sa.Column("kind", sa.SmallInteger, nullable=False),
    sa.Column("value", sa.LargeBinary),
    sa.Index("kone_log_replaces", "key", "previous", unique=True),
)
MARKS = sa.Table(
    "kone_marks",
    _tables,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("value", _BIG, nullable=False),
)

PIECE_ROWS = 2000  # of a read; bounds the memory of loading
WAL_LIMIT_BYTES = 16 * 2**20  # what a file's WAL shrinks to after a burst
PAGE_CACHE_KIB = 4096


async def open_log(url: str) -> Log:
    """Open the database at `url` (see `open_store`), make or migrate its tables, and keep every other process out."""
    scheme, _, rest = url.partition("://")
    if scheme == "memory":
        return await _prepared(MemoryLog())
    if scheme == "sqlite" and rest.startswith("/") and len(rest) > 1:
        return await _prepared(FileLog(Path(rest[1:])))
    if scheme in ("postgresql", "postgres"):
        return await _prepared(PostgresLog(f"postgresql://{rest}"))
    raise DatastoreError(
        f"datastore {url!r} is not known: give sqlite:///relative/path, sqlite:////absolute/path, memory:// "
        "or postgresql://user@host/database"
    )


async def _prepared(opened: SqlLog) -> SqlLog:
    try:
        await opened.open()
    except BaseException:
        await opened.close()
        raise
    return opened


class SqlLog(ABC):
    """What the databases have in common. Implements `Log` for those that say how to connect and how to append."""

    def __init__(self, where: str) -> None:
        self.where = where
        self._engine: AsyncEngine | None = None
        self._connection: AsyncConnection | None = None

    @abstractmethod
    async def open(self) -> None:
        """Connect, and make or migrate the tables. Raises DatastoreError."""

    @abstractmethod
    async def append(self, rows: Sequence[Row]) -> None: ...

    async def shrink(self, pages: int) -> bool:
        return False

    async def marks(self) -> Marks:
        found = await self._read_marks()
        return Marks(found.get("floor", 0), found.get("reserved", 0), bool(found.get("clean", 1)))

    async def rows(self, *, after: int) -> AsyncIterator[Sequence[Row]]:
        while True:
            query = sa.select(LOG).where(LOG.c.revision > after).order_by(LOG.c.revision).limit(PIECE_ROWS)
            try:
                connection = await self._connected()
                async with connection.begin():
                    found = [Row(*row) for row in await connection.execute(query)]
            except (sa.exc.SQLAlchemyError, OSError) as error:
                raise self._failed(error) from error
            if found:
                yield found
            if len(found) < PIECE_ROWS:
                return
            after = found[-1].revision

    async def mark(self, *, reserved: int, clean: bool) -> None:
        await self._write(*_set_mark("reserved", reserved), *_set_mark("clean", int(clean)))

    async def forget(self, revisions: Sequence[int], *, floor: int) -> None:
        await self._write(
            *(sa.delete(LOG).where(LOG.c.revision.in_(piece)) for piece in _pieces(revisions, 500)),
            *_set_mark("floor", floor),
        )

    async def rewrite(self, values: Sequence[tuple[int, bytes]]) -> None:
        await self._write(
            *(sa.update(LOG).where(LOG.c.revision == revision).values(value=value) for revision, value in values)
        )

    async def scrub(self) -> None:
        return  # what a server keeps of old rows is for its own vacuum

    async def close(self) -> None:
        connection, self._connection = self._connection, None
        engine, self._engine = self._engine, None
        if connection is not None:
            await connection.close()
        if engine is not None:
            await engine.dispose()

    async def _connected(self) -> AsyncConnection:
        assert self._connection is not None, "the log is closed"
        return self._connection

    async def _write(self, *statements: sa.Executable) -> None:
        """Run statements in one transaction."""
        try:
            connection = await self._connected()
            async with connection.begin():
                for statement in statements:
                    await connection.execute(statement)
        except (sa.exc.SQLAlchemyError, OSError) as error:
            raise self._failed(error) from error

    async def _read_marks(self) -> dict[str, int]:
        try:
            connection = await self._connected()
            async with connection.begin():
                return dict((await connection.execute(sa.select(MARKS))).all())
        except (sa.exc.SQLAlchemyError, OSError) as error:
            raise self._failed(error) from error

    async def _migrate(self, connection: AsyncConnection) -> None:
        """Make the tables of a new database, or bring an older one up. In the caller's transaction."""
        await connection.run_sync(_tables.create_all)
        version = await connection.scalar(sa.select(MARKS.c.value).where(MARKS.c.name == "schema"))
        if version is None:
            await connection.execute(sa.insert(MARKS).values(name="schema", value=SCHEMA))
            return
        if version > SCHEMA:
            raise DatastoreTooNew(
                f"{self.where} has schema {version}, this kone knows {SCHEMA}: "
                "run the newer kone, or restore a backup from before it"
            )
        for step in range(version, SCHEMA):
            await MIGRATIONS[step](connection)
            await connection.execute(sa.update(MARKS).where(MARKS.c.name == "schema").values(value=step + 1))

    def _failed(self, error: BaseException) -> DatastoreFailed:
        return DatastoreFailed(f"{self.where}: {_reason(error)}")


def _set_mark(name: str, value: int) -> tuple[sa.Executable, sa.Executable]:
    return sa.delete(MARKS).where(MARKS.c.name == name), sa.insert(MARKS).values(name=name, value=value)


def _pieces(items: Sequence[int], size: int) -> list[Sequence[int]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def _reason(error: BaseException) -> str:
    """The database's own words, on one line."""
    cause = getattr(error, "orig", None) or error
    return " ".join(str(cause).split()) or type(cause).__name__


INSERT = "INSERT INTO kone_log (revision, key, previous, kind, value) VALUES (?, ?, ?, ?, ?)"


class SqliteLog(SqlLog):
    """SQLite over one connection, which only the store's writer uses."""

    def __init__(self, where: str) -> None:
        super().__init__(where)
        self._driver: Any = None  # aiosqlite's own connection

    async def _connect(self, database: str) -> AsyncConnection:
        # "IMMEDIATE": sqlite3 itself begins a transaction before the first change, and takes the write lock at once
        url = sa.URL.create("sqlite+aiosqlite", database=database)
        self._engine = create_async_engine(url, connect_args={"isolation_level": "IMMEDIATE", "cached_statements": 32})
        self._connection = await self._engine.connect()
        self._driver = (await self._connection.get_raw_connection()).driver_connection
        return self._connection

    async def _make_tables(self, connection: AsyncConnection) -> None:
        await self._driver.execute("BEGIN IMMEDIATE")
        await self._migrate(connection)
        await connection.commit()

    async def append(self, rows: Sequence[Row]) -> None:
        driver = self._driver
        try:
            await driver.executemany(INSERT, rows)
            await driver.commit()
        except sqlite3.Error as error:
            await self._roll_back()
            if isinstance(error, sqlite3.IntegrityError):
                raise LogConflict(f"{self.where}: {_reason(error)}") from error
            raise self._failed(error) from error

    async def _roll_back(self) -> None:
        try:
            await self._driver.rollback()
        except sqlite3.Error:
            pass  # SQLite rolls back by itself on the errors after which it cannot be asked to

    async def close(self) -> None:
        self._driver = None
        await super().close()


class MemoryLog(SqliteLog):
    """SQLite in memory: for tests, and for clusters that need not survive their process."""

    def __init__(self) -> None:
        super().__init__("memory://")

    async def open(self) -> None:
        connection = await self._connect(":memory:")
        await self._driver.execute("PRAGMA synchronous=OFF")
        await self._make_tables(connection)


class FileLog(SqliteLog):
    """SQLite in a file, durable: WAL with a synced commit. The file shrinks when rows go, and a lock file keeps others
    out."""

    def __init__(self, path: Path) -> None:
        super().__init__(str(path))
        self.path = path
        self._lock: int | None = None
        self._free_pages_kept = 256  # of 4 KiB: the slack that the next writes use again

    async def open(self) -> None:
        self._lock = _locked(self.path)
        try:
            connection = await self._connect(str(self.path))
            pragmas = (
                "auto_vacuum=INCREMENTAL",  # counts for a new file only, and before its first page is written
                "journal_mode=WAL",
                "synchronous=FULL",
                "busy_timeout=5000",
                f"journal_size_limit={WAL_LIMIT_BYTES}",
                f"cache_size=-{PAGE_CACHE_KIB}",
                "temp_store=MEMORY",
            )
            for pragma in pragmas:
                await self._driver.execute_fetchall(f"PRAGMA {pragma}")
            await self._make_tables(connection)
        except (sqlite3.Error, sa.exc.SQLAlchemyError) as error:
            raise _unopened(self.path, error) from error
        _sync_directory(self.path.parent)

    async def shrink(self, pages: int) -> bool:
        try:
            [(free,)] = await self._driver.execute_fetchall("PRAGMA freelist_count")
            if free <= self._free_pages_kept:
                return False
            count = min(pages, free - self._free_pages_kept)
            # a script, because sqlite3 runs any other statement without columns for one step only: one page
            await self._driver.executescript(f"PRAGMA incremental_vacuum({count})")
        except sqlite3.Error as error:
            raise self._failed(error) from error
        return bool(count < free - self._free_pages_kept)

    async def scrub(self) -> None:
        try:
            await self._driver.execute("VACUUM")  # free pages go, and pages' free parts with them
            await self._driver.execute_fetchall("PRAGMA wal_checkpoint(TRUNCATE)")
        except sqlite3.Error as error:
            raise self._failed(error) from error

    async def close(self) -> None:
        await super().close()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def _locked(path: Path) -> int:
    """The lock file's descriptor, locked for as long as it is open; makes the directory and the database's file (0600)
    too."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise _unwritable(path, error) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
    except BlockingIOError:
        holder = os.pread(lock, 32, 0).decode(errors="replace").strip() or "unknown"
        os.close(lock)
        raise DatastoreLocked(
            f"{path} is in use by process {holder}: stop that kone, or give this one another --data-dir"
        ) from None
    except OSError as error:
        os.close(lock)
        raise _unwritable(path, error) from error
    return lock


def _unwritable(path: Path, error: OSError) -> DatastoreUnwritable:
    return DatastoreUnwritable(
        f"cannot write {path}: {error.strerror}: make {path.parent} writable for this user, or give another --data-dir"
    )


def _unopened(path: Path, error: BaseException) -> DatastoreError:
    reason = _reason(error)
    if "not a database" in reason or "malformed" in reason:
        return DatastoreError(f"{path} is damaged ({reason}): restore a backup, or move the file away to begin anew")
    return DatastoreUnwritable(f"cannot open {path}: {reason}: see to its directory's rights and free space")


def _sync_directory(path: Path) -> None:
    """Make a new file's name durable too."""
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


# One server a database so far: whoever holds this advisory lock. The digits spell "kone".
POSTGRES_LOCK = 0x6B6F6E65


class PostgresLog(SqlLog):
    """PostgreSQL over one connection; it is made again when it breaks."""

    def __init__(self, url: str) -> None:
        parsed = sa.make_url(url)
        super().__init__(parsed.render_as_string(hide_password=True))
        self._url = parsed.set(drivername="postgresql+asyncpg")

    async def open(self) -> None:
        try:
            self._engine = create_async_engine(self._url)
        except ImportError as error:
            raise DatastoreError("PostgreSQL needs the driver asyncpg: pip install 'kone[postgres]'") from error
        try:
            connection = await self._connected()
            async with connection.begin():
                await self._migrate(connection)
        except (sa.exc.SQLAlchemyError, OSError) as error:
            raise DatastoreUnwritable(
                f"cannot use {self.where}: {_reason(error)}: see to the server, the user and the database's rights"
            ) from error

    async def _connected(self) -> AsyncConnection:
        assert self._engine is not None, "the log is closed"
        if self._connection is not None and self._connection.closed | self._connection.invalidated:
            await self._connection.close()
            self._connection = None
        if self._connection is None:
            connection = await self._engine.connect()
            async with connection.begin():
                alone = await connection.scalar(sa.select(sa.func.pg_try_advisory_lock(POSTGRES_LOCK)))
            if not alone:
                await connection.close()
                raise DatastoreLocked(
                    f"{self.where} is in use by another kone: stop it, or give this one another database"
                )
            self._connection = connection
        return self._connection

    async def append(self, rows: Sequence[Row]) -> None:
        try:
            connection = await self._connected()
            async with connection.begin():
                await connection.execute(LOG.insert(), [row._asdict() for row in rows])
        except sa.exc.IntegrityError as error:
            raise LogConflict(f"{self.where}: {_reason(error)}") from error
        except (sa.exc.SQLAlchemyError, OSError) as error:
            raise self._failed(error) from error
