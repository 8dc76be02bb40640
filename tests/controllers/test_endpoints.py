"""Endpoints and EndpointSlices: which pods a Service has, and how that is written down."""

import pytest

from kone.apimachinery.kinds import ENDPOINTS, ENDPOINTSLICES, NODES, PODS, SERVICES
from kone.apimachinery.objects import Object, annotations_of, dig, labels_of, name_of
from kone.controllers.endpoint_slices import find_port, plan_slices
from kone.controllers.endpoints import ENDPOINTS_CONTROLLER, repack, truncate
from kone.controllers.endpointslice import ENDPOINTSLICE_CONTROLLER, MANAGER
from kone.controllers.endpointslice_mirroring import ENDPOINTSLICE_MIRRORING_CONTROLLER
from tests.controllers.world import World
from tests.fakes import make_node, ready_pod, set_pod_status

ALL = (ENDPOINTSLICE_CONTROLLER, ENDPOINTS_CONTROLLER, ENDPOINTSLICE_MIRRORING_CONTROLLER)
NODE_MAP = {"n1": make_node("n1")}


def service(name: str = "svc", **spec: object) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": "shop", "uid": f"uid-{name}", "labels": {"team": "a"}},
        "spec": {
            "selector": {"app": "web"},
            "clusterIP": "10.96.0.5",
            "ipFamilies": ["IPv4"],
            "ports": [{"port": 80, "targetPort": 8080, "protocol": "TCP"}],
            **spec,
        },
    }


def pod(name: str, **spec: object) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "shop", "uid": f"uid-{name}", "labels": {"app": "web"}},
        "spec": {"containers": [{"name": "c", "ports": [{"name": "http", "containerPort": 81}]}], **spec},
    }


def placed(number: int, *, ready: bool = True) -> Object:
    """A pod with an address, as the informer would show it."""
    made = pod(f"p{number:03}", nodeName="n1")
    state = "True" if ready else "False"
    ip = f"10.244.{number // 250}.{number % 250 + 1}"
    made["status"] = {"podIP": ip, "podIPs": [{"ip": ip}], "conditions": [{"type": "Ready", "status": state}]}
    return made


async def add_pod(world: World, name: str, ip: str, *, ready: bool = True, **spec: object) -> Object:
    made = await world.put(PODS, pod(name, **spec))
    if ready:
        ready_pod(world.client, made, ip)
    else:
        ready_pod(world.client, made, ip)
        set_pod_status(world.client, made, conditions=[{"type": "Ready", "status": "False"}])
    await world.settle()
    return made


async def test_a_ready_pod_is_in_the_slice_and_in_the_endpoints(world: World) -> None:
    await world.put(NODES, make_node("n1"))
    async with world.running(*ALL):
        await world.put(SERVICES, service())
        [empty] = world.client.of(ENDPOINTSLICES)
        assert (empty["endpoints"], empty["ports"]) == ([], [])
        await add_pod(world, "p", "10.244.0.9")
        [slice_] = world.client.of(ENDPOINTSLICES)
        assert name_of(slice_) == name_of(empty)
        assert labels_of(slice_) == {
            "team": "a",
            "kubernetes.io/service-name": "svc",
            "endpointslice.kubernetes.io/managed-by": MANAGER,
        }
        assert slice_["addressType"] == "IPv4"
        assert slice_["ports"] == [{"name": "", "protocol": "TCP", "port": 8080}]
        target = {"kind": "Pod", "namespace": "shop", "name": "p", "uid": "uid-p"}
        assert slice_["endpoints"] == [
            {
                "addresses": ["10.244.0.9"],
                "conditions": {"ready": True, "serving": True, "terminating": False},
                "targetRef": target,
                "nodeName": "n1",
            }
        ]
        assert annotations_of(slice_)["endpoints.kubernetes.io/last-change-trigger-time"] == "2023-11-14T22:13:20Z"
        [endpoints] = world.client.of(ENDPOINTS)
        assert labels_of(endpoints) == {"team": "a", "endpoints.kubernetes.io/managed-by": "endpoint-controller"}
        assert endpoints["subsets"] == [
            {
                "addresses": [{"ip": "10.244.0.9", "nodeName": "n1", "targetRef": target}],
                "ports": [{"port": 8080, "protocol": "TCP"}],
            }
        ]


@pytest.mark.parametrize(
    ("published", "conditions", "field"),
    [
        (False, {"ready": False, "serving": False, "terminating": False}, "notReadyAddresses"),
        (True, {"ready": True, "serving": False, "terminating": False}, "addresses"),
    ],
)
async def test_a_pod_that_is_not_ready(world: World, published: bool, conditions: dict[str, bool], field: str) -> None:
    await world.put(NODES, make_node("n1"))
    async with world.running(*ALL):
        await world.put(SERVICES, service(publishNotReadyAddresses=published))
        await add_pod(world, "p", "10.244.0.9", ready=False)
        [slice_] = world.client.of(ENDPOINTSLICES)
        assert slice_["endpoints"][0]["conditions"] == conditions
        assert list(world.client.of(ENDPOINTS)[0]["subsets"][0]) == [field, "ports"]


async def test_a_terminating_pod_still_serves_in_the_slice_but_is_not_in_endpoints(world: World) -> None:
    await world.put(NODES, make_node("n1"))
    async with world.running(*ALL):
        await world.put(SERVICES, service())
        await add_pod(world, "p", "10.244.0.9")
        await world.client.delete(PODS, "p", namespace="shop")
        await world.settle()
        [slice_] = world.client.of(ENDPOINTSLICES)
        assert slice_["endpoints"][0]["conditions"] == {"ready": False, "serving": True, "terminating": True}
        assert world.client.of(ENDPOINTS)[0]["subsets"] == []
        await world.client.delete(PODS, "p", namespace="shop", grace_s=0)
        await world.settle()
        assert world.client.of(ENDPOINTSLICES)[0]["endpoints"] == []


async def test_headless_with_hostname(world: World) -> None:
    await world.put(NODES, make_node("n1"))
    async with world.running(*ALL):
        await world.put(SERVICES, service(clusterIP="None"))
        await add_pod(world, "p", "10.244.0.9", hostname="h", subdomain="svc")
        [slice_] = world.client.of(ENDPOINTSLICES)
        assert slice_["endpoints"][0]["hostname"] == "h"
        assert labels_of(slice_)["service.kubernetes.io/headless"] == ""
        assert labels_of(world.client.of(ENDPOINTS)[0])["service.kubernetes.io/headless"] == ""


async def test_headless_without_ports(world: World) -> None:
    await world.put(NODES, make_node("n1"))
    async with world.running(*ALL):
        await world.put(SERVICES, service(clusterIP="None", ports=[]))
        await add_pod(world, "p", "10.244.0.9")
        assert len(world.client.of(ENDPOINTSLICES)[0]["endpoints"]) == 1
        [subset] = world.client.of(ENDPOINTS)[0]["subsets"]
        assert list(subset) == ["addresses"]


async def test_a_pod_without_the_named_port_is_in_a_slice_without_ports_and_in_no_subset(world: World) -> None:
    await world.put(NODES, make_node("n1"))
    async with world.running(*ALL):
        await world.put(SERVICES, service(ports=[{"port": 80, "targetPort": "web", "protocol": "TCP"}]))
        await add_pod(world, "p", "10.244.0.9")
        [slice_] = world.client.of(ENDPOINTSLICES)
        assert (slice_["ports"], len(slice_["endpoints"])) == ([], 1)
        assert world.client.of(ENDPOINTS)[0]["subsets"] == []


async def test_a_pod_whose_node_is_unknown_waits_for_it(world: World) -> None:
    async with world.running(*ALL):
        await world.put(SERVICES, service())
        await add_pod(world, "p", "10.244.0.9")
        assert world.client.of(ENDPOINTSLICES)[0]["endpoints"] == []
        assert "Node n1 Not Found" in (await world.events("FailedToUpdateEndpointSlices"))[0][2]
        await world.put(NODES, make_node("n1"))
        await world.advance(10)
        assert len(world.client.of(ENDPOINTSLICES)[0]["endpoints"]) == 1


async def test_a_slice_that_someone_changed_is_mended_within_a_second(world: World) -> None:
    await world.put(NODES, make_node("n1"))
    async with world.running(*ALL):
        await world.put(SERVICES, service())
        await add_pod(world, "p", "10.244.0.9")
        await world.advance(2)
        [slice_] = world.client.of(ENDPOINTSLICES)
        await world.edit(ENDPOINTSLICES, slice_, "endpoints", value=[])
        await world.advance(1)
        assert len(world.client.of(ENDPOINTSLICES)[0]["endpoints"]) == 1


async def test_endpoints_go_with_their_service_also_when_nobody_looked(world: World) -> None:
    meta = {"namespace": "shop", "name": "gone"}
    world.client.put(ENDPOINTS, {"apiVersion": "v1", "kind": "Endpoints", "metadata": meta})
    async with world.running(*ALL):
        assert world.client.of(ENDPOINTS) == []
        await world.put(SERVICES, service())
        await world.client.delete(SERVICES, "svc", namespace="shop")
        await world.settle()
        assert world.client.of(ENDPOINTS) == []


# The layout


def existing(number: int, pods: list[Object], **labels: str) -> Object:
    plan, _ = plan_slices(service(), pods, NODE_MAP, [], MANAGER)
    [made] = plan.create
    made["metadata"] |= {"name": f"s{number}"}
    made["metadata"]["labels"] |= labels
    return made


def test_250_pods_make_slices_of_100_100_and_50() -> None:
    plan, _ = plan_slices(service(), [placed(n) for n in range(250)], NODE_MAP, [], MANAGER)
    assert [len(s["endpoints"]) for s in plan.create] == [100, 100, 50]


def test_nothing_to_do_where_all_is_right() -> None:
    pods = [placed(n) for n in range(3)]
    plan, _ = plan_slices(service(), pods, NODE_MAP, [existing(1, pods)], MANAGER)
    assert (plan.create, plan.update, plan.delete) == ([], [], [])


def test_a_changed_pod_changes_only_its_own_slice() -> None:
    pods = [placed(n) for n in range(4)]
    slices = [existing(1, pods[:2]), existing(2, pods[2:])]
    plan, _ = plan_slices(service(), [placed(0, ready=False), *pods[1:]], NODE_MAP, slices, MANAGER)
    assert [name_of(s) for s in plan.update] == ["s1"]
    assert (plan.create, plan.delete) == ([], [])


def test_new_pods_fill_changed_slices_first() -> None:
    pods = [placed(n) for n in range(5)]
    slices = [existing(1, pods[:2]), existing(2, pods[2:4])]
    plan, _ = plan_slices(service(), [placed(0, ready=False), *pods[1:]], NODE_MAP, slices, MANAGER)
    assert [(name_of(s), len(s["endpoints"])) for s in plan.update] == [("s1", 3)]


def test_new_pods_go_into_the_fullest_slice_that_has_room() -> None:
    pods = [placed(n) for n in range(8)]
    slices = [existing(1, pods[:1]), existing(2, pods[1:4]), existing(3, pods[4:7])]
    plan, _ = plan_slices(service(), pods, NODE_MAP, slices, MANAGER, max_endpoints=3)
    assert [(name_of(s), len(s["endpoints"])) for s in plan.update] == [("s1", 2)]


def test_changed_ports_reuse_the_slice() -> None:
    pods = [placed(0)]
    changed = service(ports=[{"port": 80, "targetPort": 9090, "protocol": "TCP"}])
    plan, _ = plan_slices(changed, pods, NODE_MAP, [existing(1, pods)], MANAGER)
    assert [(name_of(s), s["ports"][0]["port"]) for s in plan.update] == [("s1", 9090)]
    assert (plan.create, plan.delete) == ([], [])


def test_slices_of_an_older_service_of_that_name_are_replaced() -> None:
    old = existing(1, [placed(0)])
    old["metadata"]["ownerReferences"][0]["uid"] = "another"
    plan, _ = plan_slices(service(), [placed(0)], NODE_MAP, [old], MANAGER)
    assert (len(plan.create), plan.update, [name_of(s) for s in plan.delete]) == (1, [], ["s1"])


def test_changed_labels_of_the_service_are_copied() -> None:
    pods = [placed(0)]
    plan, _ = plan_slices(service(), pods, NODE_MAP, [existing(1, pods, old="x")], MANAGER)
    assert "old" not in labels_of(plan.update[0])


def test_dual_stack_has_slices_of_both_families() -> None:
    both = placed(0)
    both["status"]["podIPs"].append({"ip": "fd00::0001"})
    plan, _ = plan_slices(service(ipFamilies=["IPv4", "IPv6"]), [both], NODE_MAP, [], MANAGER)
    assert {s["addressType"]: s["endpoints"][0]["addresses"] for s in plan.create} == {
        "IPv4": ["10.244.0.1"],
        "IPv6": ["fd00::1"],
    }


def test_traffic_distribution_gives_hints_and_their_end_takes_them() -> None:
    nodes = {"n1": make_node("n1")}
    nodes["n1"]["metadata"]["labels"]["topology.kubernetes.io/zone"] = "z1"
    pods = [placed(0), placed(1, ready=False)]
    plan, _ = plan_slices(service(trafficDistribution="PreferSameNode"), pods, nodes, [], MANAGER)
    hinted = plan.create[0]
    assert [endpoint.get("hints") for endpoint in hinted["endpoints"]] == [
        {"forZones": [{"name": "z1"}], "forNodes": [{"name": "n1"}]},
        None,
    ]
    hinted["metadata"]["name"] = "s1"
    plan, _ = plan_slices(service(), pods, nodes, [hinted], MANAGER)
    assert "hints" not in plan.update[0]["endpoints"][0]


@pytest.mark.parametrize(
    ("target", "expected"), [(8080, 8080), ("http", 81), ("nope", None)], ids=["number", "name", "unknown name"]
)
def test_find_port(target: object, expected: int | None) -> None:
    assert find_port(pod("p"), {"targetPort": target, "protocol": "TCP"}) == expected


def test_repack_joins_ports_with_the_same_addresses() -> None:
    a, b = {"ip": "10.0.0.1"}, {"ip": "10.0.0.2"}
    x, y = {"port": 1, "protocol": "TCP"}, {"port": 2, "protocol": "TCP"}
    packed = repack(
        [
            {"addresses": [b], "ports": [x]},
            {"addresses": [a], "ports": [x, y]},
            {"addresses": [b], "ports": [y]},
        ]
    )
    assert packed == [{"addresses": [a, b], "ports": [x, y]}]


def test_endpoints_are_cut_at_1000_ready_ones_first() -> None:
    subset = {
        "addresses": [{"ip": f"a{n}"} for n in range(900)],
        "notReadyAddresses": [{"ip": f"b{n}"} for n in range(200)],
    }
    [cut], was_cut = truncate([subset])
    assert was_cut
    assert (len(cut["addresses"]), len(cut["notReadyAddresses"])) == (900, 100)


# Mirroring


async def test_endpoints_kept_by_users_are_mirrored(world: World) -> None:
    async with world.running(*ALL):
        headless = service()
        del headless["spec"]["selector"]
        await world.put(SERVICES, headless)
        endpoints = {
            "apiVersion": "v1",
            "kind": "Endpoints",
            "metadata": {"name": "svc", "namespace": "shop", "labels": {"l": "m"}},
            "subsets": [
                {
                    "addresses": [{"ip": "10.9.9.1"}, {"ip": "10.9.9.2", "hostname": "h"}],
                    "notReadyAddresses": [{"ip": "10.9.9.3"}],
                    "ports": [{"name": "x", "port": 81}],
                }
            ],
        }
        made = await world.put(ENDPOINTS, endpoints)
        [slice_] = world.client.of(ENDPOINTSLICES)
        assert labels_of(slice_) == {
            "l": "m",
            "kubernetes.io/service-name": "svc",
            "endpointslice.kubernetes.io/managed-by": "endpointslicemirroring-controller.k8s.io",
        }
        assert dig(slice_, "metadata", "ownerReferences", 0, "kind") == "Endpoints"
        assert slice_["ports"] == [{"name": "x", "protocol": "TCP", "port": 81}]
        assert slice_["endpoints"] == [
            {"addresses": ["10.9.9.1"], "conditions": {"ready": True}},
            {"addresses": ["10.9.9.2"], "conditions": {"ready": True}, "hostname": "h"},
            {"addresses": ["10.9.9.3"], "conditions": {"ready": False}},
        ]
        subset = {"addresses": [{"ip": "10.9.9.4"}], "ports": [{"name": "x", "port": 82}]}
        await world.edit(ENDPOINTS, made, "subsets", value=[subset])
        [changed] = world.client.of(ENDPOINTSLICES)
        assert (name_of(changed), changed["ports"][0]["port"]) == (name_of(slice_), 82)
        await world.edit(
            ENDPOINTS, made, "metadata", "labels", value={"endpointslice.kubernetes.io/skip-mirror": "true"}
        )
        assert world.client.of(ENDPOINTSLICES) == []
