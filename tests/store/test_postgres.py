"""PostgreSQL, where it differs from a file: a server that goes away, and others that would use the same database."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from kone.store.opening import open_store
from kone.store.store import DatastoreError, DatastoreFailed, DatastoreLocked, DatastoreUnwritable, KeyExists, Write
from tests.contracts.postgres import PostgresServer, postgres_server

pytestmark = pytest.mark.ring3
KEY = "/registry/core/configmaps/default/a"


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with postgres_server() as running:
        yield running


async def test_writes_fail_while_the_server_is_away_and_go_on_when_it_is_back(server: PostgresServer) -> None:
    store = await open_store(server.url)
    await store.commit(Write(KEY, {"n": 1}, expected=0))
    server.crash()
    for _ in range(2):
        with pytest.raises(DatastoreFailed):
            await store.commit(Write(KEY, {"n": 2}))
    server.start()
    [event] = await store.commit(Write(KEY, {"n": 3}))
    assert (event.type, event.revision > 3) == ("MODIFIED", True)
    await store.close()
    store = await open_store(server.url)
    with pytest.raises(KeyExists) as refused:
        await store.commit(Write(KEY, {}, expected=0))
    assert refused.value.actual == event.revision
    await store.close()


async def test_a_second_kone_on_the_same_database_is_refused(server: PostgresServer) -> None:
    store = await open_store(server.url)
    with pytest.raises(DatastoreLocked, match="in use by another kone"):
        await open_store(server.url)
    await store.close()
    await (await open_store(server.url)).close()


async def test_a_server_that_is_not_there_is_named_without_the_password() -> None:
    with pytest.raises(DatastoreError) as refused:
        await open_store("postgresql://kone:secret@127.0.0.1:1/kone")
    assert type(refused.value) is DatastoreUnwritable
    assert "kone:***@127.0.0.1:1/kone" in str(refused.value)
    assert "\n" not in str(refused.value)
