"""APIServices of what the server itself has come and go with it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest

from kone.apimachinery.kinds import CUSTOMRESOURCEDEFINITIONS
from kone.apimachinery.objects import Object, find_condition, labels_of
from kone.apiserver.aggregation import APISERVICES
from kone.apiserver.local_api_services import MANAGED, PRIORITIES
from kone.client.client import Client
from kone.testing import Cluster
from tests.apiserver.test_custom_resources import definition


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    async with Cluster(controllers=False, scheduler=False) as cluster:
        yield cluster.client


async def until(client: Client, look: Callable[[dict[str, Object]], bool]) -> dict[str, Object]:
    """The APIServices by name, once `look` holds of them."""
    informer = client.informer(APISERVICES)

    def found() -> dict[str, Object]:
        return {obj["metadata"]["name"]: obj for obj in informer.list()}

    happened = asyncio.Event()
    unsubscribe = informer.subscribe(lambda *_: happened.set() if look(found()) else None)
    async with asyncio.timeout(20):
        if not look(found()):
            await happened.wait()
    unsubscribe()
    return found()


def is_available(obj: Object | None) -> bool:
    condition = find_condition(obj or {}, "Available")
    return condition is not None and condition["reason"] == "Local"


async def test_what_is_built_in_has_them_from_the_start(client: Client) -> None:
    found = await until(client, lambda all: len(all) == len(PRIORITIES) and all_available(all))
    apps = found["v1.apps"]
    assert apps["spec"] == {
        "group": "apps",
        "version": "v1",
        "groupPriorityMinimum": 17800,
        "versionPriority": 15,
    }
    assert labels_of(apps)[MANAGED] == "onstart"
    assert found["v1."]["spec"]["groupPriorityMinimum"] == 18000


def all_available(found: dict[str, Object]) -> bool:
    return all(map(is_available, found.values()))


async def test_a_definition_brings_one_and_takes_it_along(client: Client) -> None:
    await client.create(CUSTOMRESOURCEDEFINITIONS, definition())
    found = await until(client, lambda all: is_available(all.get("v1.example.com")))
    assert labels_of(found["v1.example.com"])[MANAGED] == "true"
    assert found["v1.example.com"]["spec"]["groupPriorityMinimum"] == 1000
    await client.delete(CUSTOMRESOURCEDEFINITIONS, "widgets.example.com")
    await until(client, lambda all: "v1.example.com" not in all)


async def test_what_is_managed_is_put_right_and_what_is_somebodys_own_stays(client: Client) -> None:
    await until(client, lambda all: len(all) == len(PRIORITIES) and all_available(all))
    await client.patch(APISERVICES, "v1.apps", {"spec": {"versionPriority": 99}})
    await until(client, lambda all: all["v1.apps"]["spec"]["versionPriority"] == 15)
    await client.patch(APISERVICES, "v1.batch", {"metadata": {"labels": {MANAGED: None}}})
    await client.patch(APISERVICES, "v1.batch", {"spec": {"versionPriority": 99}})
    await client.delete(APISERVICES, "v1.policy")
    await client.create(CUSTOMRESOURCEDEFINITIONS, definition())
    found = await until(client, lambda all: "v1.example.com" in all)
    assert found["v1.batch"]["spec"]["versionPriority"] == 99
    assert "v1.policy" not in found, "until the next start"
