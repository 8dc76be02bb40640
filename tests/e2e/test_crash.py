"""kill -9: 20 rounds under 8 writers and 8 watchers lose no write, reuse no revision and leave no watch gap; a Service
and its addresses are not parted.
"""

from __future__ import annotations

import asyncio
import base64
import json
import random
import sqlite3
import ssl
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml

from kone.store.opening import open_store
from kone.store.store import prefix_for
from tests.e2e.node_process import BARE_API, NodeProcess

pytestmark = pytest.mark.ring4

ROUNDS = 20
WRITERS = 8
WATCHERS = 8
CONFIGMAPS = "/api/v1/namespaces/default/configmaps"


class Door:
    """The API as one client sees it across restarts."""

    def __init__(self, kubeconfig: Path) -> None:
        view = yaml.safe_load(kubeconfig.read_text())
        cluster = view["clusters"][0]["cluster"]
        self.url = cluster["server"]
        self.headers = {"Authorization": f"Bearer {view['users'][0]['user']['token']}"}
        ca = base64.b64decode(cluster["certificate-authority-data"]).decode()
        self.tls = ssl.create_default_context(cadata=ca)

    def session(self) -> aiohttp.ClientSession:
        connector = aiohttp.TCPConnector(ssl=self.tls, limit=0)
        return aiohttp.ClientSession(self.url, connector=connector, headers=self.headers)


class Ledger:
    """What the API acknowledged, and what each watcher saw."""

    def __init__(self) -> None:
        self.acknowledged: dict[str, int] = {}  # name -> newest acknowledged revision
        self.deleted: set[str] = set()
        self.in_doubt: set[str] = set()  # an answer never came: the write may or may not be there
        self.revisions: dict[int, str] = {}  # revision -> what was acknowledged under it
        self.seen: list[list[tuple[int, str, str]]] = [[] for _ in range(WATCHERS)]

    def acknowledge(self, name: str, revision: int, what: str) -> None:
        assert revision not in self.revisions, f"revision {revision} was given to {self.revisions[revision]} and {what}"
        self.revisions[revision] = what
        self.acknowledged[name] = revision


async def write(number: int, round_: int, session: aiohttp.ClientSession, ledger: Ledger) -> None:
    """Create, patch and delete until the server dies."""
    count = 0
    while True:
        name = f"w{number}-r{round_}-{count}"
        count += 1
        ledger.in_doubt.add(name)
        try:
            body: dict[str, Any] = {
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "metadata": {"name": name},
                "data": {"n": "0"},
            }
            async with session.post(CONFIGMAPS, json=body) as answer:
                assert answer.status == 201, await answer.text()
                made = await answer.json()
            ledger.acknowledge(name, int(made["metadata"]["resourceVersion"]), f"create {name}")
            for turn in range(random.randrange(3)):
                async with session.patch(
                    f"{CONFIGMAPS}/{name}",
                    data=json.dumps({"data": {"n": str(turn + 1)}}),
                    headers={"Content-Type": "application/merge-patch+json"},
                ) as answer:
                    assert answer.status == 200, await answer.text()
                    made = await answer.json()
                ledger.acknowledge(name, int(made["metadata"]["resourceVersion"]), f"patch {name}")
            if random.random() < 0.3:
                async with session.delete(f"{CONFIGMAPS}/{name}") as answer:
                    assert answer.status == 200, await answer.text()
                del ledger.acknowledged[name]
                ledger.deleted.add(name)
            ledger.in_doubt.discard(name)
        except (aiohttp.ClientError, OSError, json.JSONDecodeError):
            return


async def watch(number: int, since: int, session: aiohttp.ClientSession, ledger: Ledger, until: str = "") -> None:
    """Follow from `since` until the server dies, or until an object named `until` is seen."""
    query = {"watch": "1", "resourceVersion": str(since), "allowWatchBookmarks": "false"}
    try:
        async with session.get(CONFIGMAPS, params=query, timeout=aiohttp.ClientTimeout(total=None)) as answer:
            assert answer.status == 200, await answer.text()
            async for line in answer.content:
                if not line.endswith(b"\n"):
                    return  # cut off in the middle by the kill
                event = json.loads(line)
                assert event["type"] in ("ADDED", "MODIFIED", "DELETED"), event
                revision = int(event["object"]["metadata"]["resourceVersion"])
                name = event["object"]["metadata"]["name"]
                ledger.seen[number].append((revision, event["type"], name))
                if name == until:
                    return
    except (aiohttp.ClientError, OSError):
        return


async def one_round(server: NodeProcess, round_: int, ledger: Ledger, start_revision: int) -> None:
    async with Door(server.kubeconfig).session() as session:
        watchers = [
            asyncio.create_task(watch(n, seen[-1][0] if (seen := ledger.seen[n]) else start_revision, session, ledger))
            for n in range(WATCHERS)
        ]
        writers = [asyncio.create_task(write(n, round_, session, ledger)) for n in range(WRITERS)]
        await asyncio.sleep(random.uniform(0.2, 0.6))
        server.kill()
        await asyncio.gather(*writers, *watchers)


async def test_twenty_rounds_of_kill_9_lose_nothing(tmp_path: Path) -> None:
    server = NodeProcess(tmp_path / "data", "--bind-address", "127.0.0.1", "--secure-port", "0", "--disable", BARE_API)
    ledger = Ledger()
    try:
        server.start()
        async with Door(server.kubeconfig).session() as session, session.get(CONFIGMAPS) as answer:
            start_revision = int((await answer.json())["metadata"]["resourceVersion"])
        for round_ in range(ROUNDS):
            await one_round(server, round_, ledger, start_revision)
            server.start()
        async with Door(server.kubeconfig).session() as session:
            async with session.get(CONFIGMAPS) as answer:
                listed = await answer.json()
            end = int(listed["metadata"]["resourceVersion"])
            async with session.post(
                CONFIGMAPS, json={"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "the-end"}}
            ) as answer:
                assert answer.status == 201
                last = int((await answer.json())["metadata"]["resourceVersion"])
            assert last > end
            async with asyncio.timeout(30):
                since = [seen[-1][0] if seen else start_revision for seen in ledger.seen]
                await asyncio.gather(*(watch(n, since[n], session, ledger, "the-end") for n in range(WATCHERS)))
    finally:
        server.stop()

    present = {item["metadata"]["name"]: int(item["metadata"]["resourceVersion"]) for item in listed["items"]}
    lost = {
        n for n, revision in ledger.acknowledged.items() if present.get(n, 0) < revision and n not in ledger.in_doubt
    }
    lost |= {
        n
        for n, revision in ledger.acknowledged.items()
        if n in ledger.in_doubt and 0 < present.get(n, revision) < revision
    }
    assert not lost
    assert not {n for n in ledger.deleted if n in present}
    assert len(ledger.acknowledged) > ROUNDS * WRITERS

    first = ledger.seen[0]
    for seen in ledger.seen:
        revisions = [revision for revision, _, _ in seen]
        assert revisions == sorted(set(revisions)), "a watcher saw an event twice or out of order"
        assert seen == first, "two watchers saw different histories"
    shown = {revision for revision, _, _ in first}
    assert set(ledger.revisions) <= shown, "a watcher missed an acknowledged write"

    with sqlite3.connect(tmp_path / "data" / "kone.db") as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    database.close()


SERVICES = "/api/v1/namespaces/default/services"


async def come_and_go(number: int, round_: int, session: aiohttp.ClientSession) -> int:
    """Make Services, and delete every other, until the server dies; how many were made."""
    count = 0
    try:
        while True:
            name = f"s{number}-r{round_}-{count}"
            body = {"metadata": {"name": name}, "spec": {"ports": [{"port": 80}]}}
            async with session.post(SERVICES, json=body) as answer:
                assert answer.status == 201, await answer.text()
            count += 1
            if count % 2:
                async with session.delete(f"{SERVICES}/{name}") as answer:
                    assert answer.status == 200, await answer.text()
    except (aiohttp.ClientError, OSError):
        return count


async def stored(data: Path, group: str, resource: str) -> list[dict[str, Any]]:
    """What the database has, before a server looks at it."""
    store = await open_store(f"sqlite:///{data}/kone.db")
    try:
        return [entry.obj for entry in (await store.list(prefix_for(group, resource))).entries]
    finally:
        await store.close()


async def test_a_service_and_its_address_are_there_together_or_not_at_all(tmp_path: Path) -> None:
    server = NodeProcess(tmp_path / "data", "--bind-address", "127.0.0.1", "--secure-port", "0", "--disable", BARE_API)
    made = 0
    try:
        for round_ in range(4):
            server.start()
            async with Door(server.kubeconfig).session() as session:
                clients = [asyncio.create_task(come_and_go(number, round_, session)) for number in range(WRITERS)]
                await asyncio.sleep(random.uniform(0.3, 0.6))
                server.kill()
                made += sum(await asyncio.gather(*clients))
            services = await stored(server.data, "", "services")
            claimed = sorted(ip for service in services for ip in service["spec"]["clusterIPs"])
            addresses = await stored(server.data, "networking.k8s.io", "ipaddresses")
            assert claimed == sorted(address["metadata"]["name"] for address in addresses)
            assert len(set(claimed)) == len(claimed)
    finally:
        server.stop()
    assert made > 4 * WRITERS
