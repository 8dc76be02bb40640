"""Encryption at rest as the files show it: no value of a sealed key is anywhere in them, whatever was there before."""

from __future__ import annotations

from pathlib import Path

import pytest

from kone.aio.clock import FakeClock
from kone.apimachinery.objects import Object
from kone.store.log import DELETE
from kone.store.log_store import LogStore
from kone.store.opening import open_store
from kone.store.sealing import SealError
from kone.store.store import DatastoreError, DatastoreFailed, Retention, Write, key_for
from tests.store.fake_log import FakeLog

KEY = key_for("", "secrets", "ns", "a")
PLAIN = key_for("", "configmaps", "ns", "a")


class Xor:
    """A cipher for tests: values of secrets are turned around and marked with a name."""

    def __init__(self, name: str, *others: str) -> None:
        self._mark = f"k8s:enc:{name}:".encode()
        self._others = [f"k8s:enc:{other}:".encode() for other in others]

    def seal(self, key: str, value: bytes) -> bytes:
        return self._mark + value[::-1] if "/secrets/" in key else value

    def unseal(self, key: str, stored: bytes) -> tuple[bytes, bool]:
        if "/secrets/" not in key:
            return stored, False
        if stored.startswith(self._mark):
            return stored[len(self._mark) :][::-1], False
        for mark in self._others:
            if stored.startswith(mark):
                return stored[len(mark) :][::-1], True
        if stored.startswith(b"k8s:enc:"):
            raise SealError("no matching prefix found")
        return stored, True


def obj(text: str) -> Object:
    return {"metadata": {"name": "a"}, "data": text}


def files(folder: Path) -> bytes:
    return b"".join(file.read_bytes() for file in sorted(folder.iterdir()))


async def test_a_store_that_turns_encryption_on_leaves_nothing_plain(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'kone.db'}"
    store = await open_store(url)
    await store.commit(Write(KEY, obj("needle-1")))
    await store.commit(Write(KEY, obj("needle-2")))  # needle-1 is history now
    await store.commit(Write(key_for("", "secrets", "ns", "gone"), obj("needle-3")))
    await store.commit(Write(key_for("", "secrets", "ns", "gone"), None))
    await store.commit(Write(PLAIN, obj("hay")))
    await store.close()
    assert b"needle" in files(tmp_path)

    store = await open_store(url, sealer=Xor("one"))
    assert b"needle" not in files(tmp_path)
    await store.commit(Write(KEY, obj("needle-4")))
    found = await store.get(KEY)
    assert found is not None
    assert found.obj["data"] == "needle-4"
    assert b"needle" not in files(tmp_path)  # the log that is written ahead, too
    assert b"hay" in files(tmp_path)
    await store.close()

    store = await open_store(url, sealer=Xor("one"))
    assert [event.obj["data"] for event in store.history() if event.key == KEY] == ["needle-1", "needle-2", "needle-4"]
    await store.close()


async def test_a_new_key_holds_for_everything_and_the_old_one_may_go_at_once(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'kone.db'}"
    store = await open_store(url, sealer=Xor("one"))
    for i in range(5):
        await store.commit(Write(KEY, obj(f"{i}")))
    assert await store.reseal(Xor("two")) == 5
    assert await store.reseal(Xor("two")) == 0
    await store.commit(Write(KEY, obj("5")))
    assert b"k8s:enc:one:" not in files(tmp_path)
    await store.close()
    store = await open_store(url, sealer=Xor("two"))
    assert len([event for event in store.history() if event.key == KEY]) == 6
    await store.close()


@pytest.mark.parametrize("sealer", [None, Xor("two")])
async def test_without_the_key_it_does_not_start_and_says_what_is_missing(tmp_path: Path, sealer: Xor | None) -> None:
    url = f"sqlite:///{tmp_path / 'kone.db'}"
    store = await open_store(url, sealer=Xor("one"))
    await store.commit(Write(KEY, obj("x")))
    await store.close()
    with pytest.raises(DatastoreError, match=f"{KEY} cannot be read: .* --encryption-provider-config"):
        await open_store(url, sealer=sealer)


async def test_a_reseal_that_fails_is_done_by_the_next_one() -> None:
    class Failing(FakeLog):
        fails = True

        async def rewrite(self, values: object) -> None:
            if self.fails:
                raise DatastoreFailed("the disk is full")
            await super().rewrite(values)  # type: ignore[arg-type]

    log = Failing()
    store = await LogStore.load(log, Retention(), FakeClock(), protect=True, sealer=Xor("one"))
    await store.commit(Write(KEY, obj("x")))
    with pytest.raises(DatastoreFailed):
        await store.reseal(Xor("two"))
    await store.commit(Write(KEY, obj("y")))  # by the new key already; the old one can still be read
    log.fails = False
    assert await store.reseal(Xor("two")) == 1
    values = [row.value for row in log.stored.values() if row.kind != DELETE]
    assert all(value is not None and value.startswith(b"k8s:enc:two:") for value in values)
    await store.close()
