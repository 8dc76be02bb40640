"""metrics.k8s.io: use as the growth between two looks at kubelets, and how it is asked for."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, Self

import aiohttp
import pytest
from yarl import URL

from kone.aio.clock import FakeClock
from kone.apimachinery.errors import StatusError
from kone.apimachinery.kinds import NODES, PODS
from kone.apimachinery.objects import Object, name_of
from kone.apiserver import tables
from kone.apiserver.local_client import LocalClient
from kone.apiserver.metric_points import Look, Point, Points
from kone.apiserver.options import ListOptions
from kone.apiserver.resource_metrics import IDLE_S, RESOLUTION_S, ResourceMetrics
from kone.registry import metrics
from kone.registry.metrics import NODE_METRICS, POD_METRICS
from tests.apiserver.conftest import Full

PAGE = """# HELP container_cpu_usage_seconds_total Cumulative cpu time consumed by the container in core-seconds
# TYPE container_cpu_usage_seconds_total counter
container_cpu_usage_seconds_total{container="c",namespace="ns",pod="a"} 1.5 1700000000500
container_memory_working_set_bytes{container="c",namespace="ns",pod="a"} 4096 1700000000500
container_start_time_seconds{container="c",namespace="ns",pod="a"} 1699999000.25
container_cpu_usage_seconds_total{container="half",namespace="ns",pod="a"} 1.5 1700000000500
node_cpu_usage_seconds_total 100.25 1700000000600
node_memory_working_set_bytes 1.048576e+06 1700000000600
pod_cpu_usage_seconds_total{namespace="ns",pod="a"} 1.6 1700000000500
resource_scrape_error 0
"""


def test_a_kubelets_page_is_read() -> None:
    look = Look()
    look.take("n", PAGE, 1_700_000_009.0)
    assert look.nodes == {"n": Point(1_700_000_000.6, 100_250_000_000, 1 << 20)}
    assert look.pods == {("ns", "a"): {"c": Point(1_700_000_000.5, 1_500_000_000, 4096, 1_699_999_000.25)}}


def looks(*rounds: dict[str, Point]) -> Points:
    """What is known after looks at the containers of pod ns/a."""
    points = Points()
    for containers in rounds:
        points.store(Look(pods={("ns", "a"): dict(containers)}))
    return points


def test_use_is_the_growth_between_the_last_two_looks() -> None:
    points = looks(
        {"c": Point(1000.0, 5 * 10**9, 1 << 20, 10.0)},
        {"c": Point(1010.0, 6 * 10**9, 2 << 20, 10.0)},
        {"c": Point(1025.5, 10 * 10**9, 3 << 20, 10.0)},
    )
    assert points.pod("ns", "a") == {
        "timestamp": "1970-01-01T00:17:05Z",
        "window": "15.5s",
        "containers": [{"name": "c", "usage": {"cpu": "258064516n", "memory": "3Mi"}}],
    }


C = Point(1000.0, 10**9, 0, 10.0)


@pytest.mark.parametrize(
    ("rounds", "known"),
    [
        pytest.param([{"c": C}], False, id="seen once"),
        pytest.param([{"c": C}, {"c": C}], False, id="the same moment twice says nothing"),
        pytest.param([{"c": C}, {"c": Point(1015.0, 10**9, 0, 10.0)}], True, id="seen twice"),
        pytest.param(
            [{"c": C}, {"c": Point(1015.0, 2 * 10**9, 0, 10.0)}, {"c": Point(1015.0, 2 * 10**9, 0, 10.0)}],
            True,
            id="a look that brings nothing new keeps the earlier one",
        ),
        pytest.param([{"c": C}, {"c": Point(1015.0, 0, 0, 1014.0)}], False, id="started again in between"),
        pytest.param([{"c": Point(1012.0, 10**9, 0, 1000.0)}], True, id="12 s old: counted from its start"),
        pytest.param([{"c": Point(1005.0, 10**9, 0, 1000.0)}], False, id="5 s old: too young"),
        pytest.param([{"c": C}, {"c": Point(1015.0, 9, 0, 10.0)}], False, id="counted backwards"),
        pytest.param(
            [{"c": C}, {"c": Point(1015.0, 10**9, 0, 10.0), "d": Point(1015.0, 0, 0, 1014.0)}],
            False,
            id="one container of two is new: the pod waits for it",
        ),
    ],
)
def test_when_a_pod_is_measured(rounds: list[dict[str, Point]], known: bool) -> None:
    assert (looks(*rounds).pod("ns", "a") is not None) is known


class Page:
    """An answer of a kubelet; one without a text cannot be reached."""

    def __init__(self, text: str) -> None:
        self._text, self.status = text, 200

    async def __aenter__(self) -> Self:
        if not self._text:
            raise aiohttp.ClientConnectionError("refused")
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    async def text(self) -> str:
        return self._text


class Kubelets:
    """Every node uses half a core and 8 MiB, each of its pods a tenth of one and 1 MiB, since a thousand seconds."""

    def __init__(self, clock: FakeClock) -> None:
        self._clock, self.asked, self.pods = clock, 0, ["a"]
        self.session = SimpleNamespace(get=self._get)

    def url(self, node: str, path: str) -> URL:
        return URL.build(scheme="https", host=node, path=path)

    def _get(self, url: URL, timeout: Any) -> Page:
        self.asked += 1
        if url.host == "lost":
            return Page("")
        now = self._clock.now()
        since = now - 1_700_000_000.0 + 1000
        lines = [f"node_cpu_usage_seconds_total {since / 2} {now * 1000:.0f}"]
        lines.append(f"node_memory_working_set_bytes {8 << 20} {now * 1000:.0f}")
        for pod in self.pods:
            labels = f'{{container="c",namespace="ns",pod="{pod}"}}'
            lines.append(f"container_cpu_usage_seconds_total{labels} {since / 10} {now * 1000:.0f}")
            lines.append(f"container_memory_working_set_bytes{labels} {1 << 20} {now * 1000:.0f}")
            lines.append(f"container_start_time_seconds{labels} 1699999000")
        return Page("\n".join(lines))


class World:
    """The API with nodes `here` and `lost` and the running pods a and b, of which only a is measured."""

    def __init__(self, full: Full) -> None:
        self.full, self.client = full, full.client
        self.clock = full.verbs.clock
        assert isinstance(self.clock, FakeClock)
        self.kubelets = Kubelets(self.clock)
        self.metrics = ResourceMetrics(full.verbs.caches, self.kubelets, self.clock)  # type: ignore[arg-type]
        full.verbs.computed = dict.fromkeys((NODE_METRICS, POD_METRICS), self.metrics)
        for resource in metrics.RESOURCES:
            full.verbs.registry.add(resource)

    async def fill(self) -> None:
        for name in ("here", "lost"):
            await self.client.create(NODES, {"metadata": {"name": name, "labels": {"zone": name}}})
        for name in ("a", "b", "done"):
            await self.full.pod(name, labels={"app": name}, node="here", status={"phase": "Running"})
        await self.client.patch(PODS, "done", {"status": {"phase": "Succeeded"}}, namespace="ns", subresource="status")
        self.kubelets.pods = ["a", "done"]

    async def ask(self, question: Any) -> Any:
        """An answer that may take the two seconds of a first window."""
        task = asyncio.ensure_future(question)
        await self.clock.advance(2.0)  # type: ignore[attr-defined]
        return await task


@pytest.fixture
async def world(full: Full) -> World:
    world = World(full)
    await world.fill()
    return world


async def test_nodes_and_running_pods_are_measured_within_two_seconds(world: World) -> None:
    nodes = await world.ask(world.client.list(NODE_METRICS))
    assert nodes == [
        {
            "kind": "NodeMetrics",
            "apiVersion": "metrics.k8s.io/v1beta1",
            "metadata": {"name": "here", "creationTimestamp": "2023-11-14T22:13:22Z", "labels": {"zone": "here"}},
            "timestamp": "2023-11-14T22:13:22Z",
            "window": "2s",
            "usage": {"cpu": "500m", "memory": "8Mi"},
        }
    ]
    pods = await world.client.list(POD_METRICS)
    assert [name_of(pod) for pod in pods] == ["a"]
    assert pods[0]["metadata"]["namespace"] == "ns"
    assert pods[0]["containers"] == [{"name": "c", "usage": {"cpu": "100m", "memory": "1Mi"}}]
    await world.metrics.stop()


async def test_labels_and_names_select(world: World) -> None:
    assert await world.ask(world.client.list(POD_METRICS, labels="app=b")) == []
    assert len(await world.client.list(POD_METRICS, "ns", labels="app in (a,b)")) == 1
    assert len(await world.client.list(POD_METRICS, fields="metadata.name=a")) == 1
    assert await world.client.list(POD_METRICS, "elsewhere") == []
    await world.metrics.stop()


@pytest.mark.parametrize(
    ("gvr", "name", "namespace", "message"),
    [
        (NODE_METRICS, "none", "", 'nodes "none" not found'),
        (NODE_METRICS, "lost", "", 'nodes.metrics.k8s.io "lost" not found'),
        (POD_METRICS, "none", "ns", 'pods "none" not found'),
        (POD_METRICS, "b", "ns", 'pods.metrics.k8s.io "ns/b" not found'),
    ],
)
async def test_what_is_not_measured_is_not_found(
    world: World, gvr: Any, name: str, namespace: str, message: str
) -> None:
    with pytest.raises(StatusError) as refused:
        await world.ask(world.client.get(gvr, name, namespace))
    assert (refused.value.code, refused.value.message) == (404, message)
    await world.metrics.stop()


async def test_a_table_shows_sums(world: World) -> None:
    resource = world.full.verbs.registry.get(POD_METRICS)
    assert resource is not None
    page = await world.ask(world.full.verbs.list(resource, ListOptions(), namespace="ns"))
    obj: Object = page.entries[0].obj
    two = {**obj, "containers": obj["containers"] * 2}
    made = tables.table(resource, [two], {}, meta_version="meta.k8s.io/v1", include="Metadata", now=0.0)
    assert [column["name"] for column in made["columnDefinitions"]] == ["Name", "cpu", "memory", "Window"]
    assert made["rows"][0]["cells"] == ["a", "200m", "2Mi", "2s"]
    await world.metrics.stop()


async def test_kubelets_are_left_alone_when_nobody_asks(world: World) -> None:
    client: LocalClient = world.client
    await world.ask(client.list(NODE_METRICS))
    clock = world.clock
    assert isinstance(clock, FakeClock)
    await clock.advance(IDLE_S + 2 * RESOLUTION_S)
    asked = world.kubelets.asked
    assert asked == 2 * (2 + IDLE_S // RESOLUTION_S)
    await clock.advance(IDLE_S)
    assert world.kubelets.asked == asked
    assert [m["window"] for m in await world.ask(client.list(NODE_METRICS))] == ["2s"]
    await world.metrics.stop()
