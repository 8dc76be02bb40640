"""The loop that enforces NetworkPolicies, with a table that only remembers: what wakes it, and who waits for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import cast

import pytest

from kone.aio.clock import FakeClock, settle
from kone.apimachinery.kinds import NAMESPACES, NETWORKPOLICIES, PODS
from kone.apimachinery.objects import name_of, namespace_of, replace_in
from kone.net.nft_ruleset import Ruleset
from kone.net.nft_table import NftError, NftTable
from kone.net.policy_enforcer import PolicyEnforcer
from tests.fakes import FakeClient
from tests.net.objects import namespace, pod, policy


class Remembering:
    """A table whose kernel is a variable."""

    def __init__(self) -> None:
        self.held: Ruleset | None = None
        self.writes = 0
        self.fails = 0
        self.gate = asyncio.Event()
        self.gate.set()

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    async def hold(self, wanted: Ruleset | None) -> None:
        await self.gate.wait()
        if self.fails:
            self.fails -= 1
            raise NftError("no such chain")
        self.held = wanted
        self.writes += 1

    @property
    def isolated(self) -> set[str]:
        return set(self.held.sets["pods4-ingress"].elements) if self.held else set()

    @property
    def peers(self) -> list[set[str]]:
        assert self.held is not None
        return [set(kept.elements) for name, kept in self.held.sets.items() if name.startswith("peers4")]


class Setting:
    def __init__(self) -> None:
        self.clock = FakeClock()
        self.client = FakeClient(self.clock)
        self.table = Remembering()
        self.enforcer = PolicyEnforcer(self.client, cast(NftTable, self.table), "n1", self.clock)

    async def passes(self) -> None:
        """Let what is due be done, the thread's part too."""
        await self.clock.advance(1)
        async with asyncio.timeout(5):
            await self.enforcer.settled()
        await settle()


@pytest.fixture
async def setting() -> AsyncIterator[Setting]:
    setting = Setting()
    setting.client.put(NAMESPACES, namespace("default"))
    setting.client.put(PODS, pod("web", "10.244.0.2"))
    setting.client.put(NETWORKPOLICIES, policy("p", ingress=[{"from": [{"podSelector": {}}]}]))
    await setting.enforcer.start()
    await settle()
    await setting.passes()
    yield setting
    await setting.enforcer.stop()


async def test_what_was_there_at_start_is_enforced(setting: Setting) -> None:
    assert setting.table.isolated == {"10.244.0.2"}


async def test_a_pod_waits_until_its_addresses_are_judged(setting: Setting) -> None:
    new = setting.client.put(PODS, pod("new", phase="Pending"))
    await setting.passes()
    setting.table.gate.clear()
    waiting = asyncio.create_task(setting.enforcer.wired(new["metadata"]["uid"], ["10.244.0.3"]))
    await asyncio.sleep(0.05)
    assert not waiting.done()
    setting.table.gate.set()
    async with asyncio.timeout(5):
        await waiting
    assert setting.table.isolated == {"10.244.0.2", "10.244.0.3"}, "though no status tells of it"


async def test_without_policies_no_pod_waits(setting: Setting) -> None:
    await setting.client.delete(NETWORKPOLICIES, "p", namespace="default")
    await setting.passes()
    assert setting.table.held is None
    setting.table.gate.clear()
    new = setting.client.put(PODS, pod("new", phase="Pending"))
    await setting.enforcer.wired(new["metadata"]["uid"], ["10.244.0.3"])
    setting.table.gate.set()


async def test_a_deleted_pod_is_judged_until_its_link_is_gone(setting: Setting) -> None:
    (web,) = setting.client.of(PODS)
    await setting.enforcer.wired(web["metadata"]["uid"], ["10.244.0.2"])
    await setting.client.delete(PODS, "web", namespace="default", grace_s=0)
    await setting.passes()
    assert setting.table.isolated == {"10.244.0.2"}
    setting.enforcer.unwired(web["metadata"]["uid"])
    await setting.passes()
    assert setting.table.isolated == set()


async def test_only_what_policies_look_at_wakes_it(setting: Setting) -> None:
    before = setting.table.writes
    (web,) = setting.client.of(PODS)
    web = setting.client.overwrite(PODS, replace_in(web, ("status", "message"), "fine"))
    (default,) = setting.client.of(NAMESPACES)
    setting.client.overwrite(NAMESPACES, replace_in(default, ("metadata", "annotations"), {"a": "b"}))
    await setting.passes()
    assert setting.table.writes == before
    setting.client.overwrite(PODS, replace_in(web, ("metadata", "labels"), {"pod": "other"}))
    await setting.passes()
    assert setting.table.writes == before + 1


async def test_a_namespace_that_is_labelled_lets_its_pods_in(setting: Setting) -> None:
    setting.client.put(NAMESPACES, namespace("other"))
    setting.client.put(PODS, pod("far", "10.244.0.7", namespace="other"))
    wanted = [{"from": [{"namespaceSelector": {"matchLabels": {"team": "b"}}}]}]
    (held,) = setting.client.of(NETWORKPOLICIES)
    setting.client.overwrite(NETWORKPOLICIES, replace_in(held, ("spec", "ingress"), wanted))
    await setting.passes()
    assert setting.table.peers == [set()]
    (other,) = [n for n in setting.client.of(NAMESPACES) if name_of(n) == "other"]
    setting.client.overwrite(NAMESPACES, replace_in(other, ("metadata", "labels"), {"team": "b"}))
    await setting.passes()
    assert setting.table.peers == [{"10.244.0.7"}]
    assert namespace_of(held) == "default"


async def test_what_the_kernel_refused_is_tried_again(setting: Setting) -> None:
    setting.table.fails = 2
    setting.client.put(PODS, pod("db", "10.244.0.3"))
    for _ in range(3):
        await setting.clock.advance(2)
        await asyncio.sleep(0.05)
    await setting.passes()
    assert setting.table.isolated == {"10.244.0.2", "10.244.0.3"}
