"""What `kubectl get` shows: spans of time, and cells that are put together from several fields."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from kone.apimachinery.objects import Object
from kone.apimachinery.timestamps import parse_time
from kone.registry.printing import age, human_duration, joined_some, selector_text
from tests.registry.pipeline import resource_of

NOW = parse_time("2026-01-01T01:00:00Z")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-5, "<invalid>"),
        (-1, "0s"),
        (0, "0s"),
        (119, "119s"),
        (120, "2m"),
        (125, "2m5s"),
        (599, "9m59s"),
        (600, "10m"),
        (179 * 60, "179m"),
        (180 * 60, "3h"),
        (3 * 3600 + 60, "3h1m"),
        (8 * 3600, "8h"),
        (47 * 3600, "47h"),
        (50 * 3600, "2d2h"),
        (8 * 86400, "8d"),
        (2 * 365 * 86400, "2y"),
        (2 * 365 * 86400 + 86400, "2y1d"),
        (9 * 365 * 86400, "9y"),
    ],
)
def test_a_span_has_two_figures_at_most(seconds: int, text: str) -> None:
    assert human_duration(seconds) == text


def test_an_age_ends_where_gos_durations_end() -> None:
    assert age(parse_time("1600-01-01T00:00:00Z"), NOW) == "292y"
    assert age(0, NOW) == "<unknown>"


def test_selectors_and_long_lists() -> None:
    assert selector_text({"b": "2", "a": "1"}) == "a=1,b=2"
    assert selector_text({}) == "<none>"
    assert joined_some(["a", "b", "c", "d"]) == "a,b,c + 1 more..."


def _cells(obj: Object) -> dict[str, Any]:
    return {column.name: column.cell(obj, NOW) for column in resource_of(obj).columns}


SERVICE: Object = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s"}}


@pytest.mark.parametrize(
    ("spec", "status", "cells"),
    [
        (
            {
                "type": "NodePort",
                "clusterIPs": ["10.0.0.1"],
                "ports": [{"port": 80, "nodePort": 30080, "protocol": "TCP"}],
            },
            {},
            {"Cluster-IP": "10.0.0.1", "External-IP": "<none>", "Port(s)": "80:30080/TCP", "Selector": "<none>"},
        ),
        ({"type": "ExternalName", "externalName": "a.b"}, {}, {"External-IP": "a.b", "Port(s)": "<none>"}),
        ({"type": "LoadBalancer"}, {}, {"External-IP": "<pending>"}),
        (
            {"type": "LoadBalancer", "externalIPs": ["1.1.1.1"]},
            {"loadBalancer": {"ingress": [{"ip": "2.2.2.2"}, {"hostname": "h"}]}},
            {"External-IP": "2.2.2.2,h,1.1.1.1"},
        ),
    ],
)
def test_services(spec: Object, status: Object, cells: dict[str, str]) -> None:
    shown = _cells({**SERVICE, "spec": spec, "status": status})
    assert {name: shown[name] for name in cells} == cells


def test_nodes() -> None:
    node = {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": "n",
            "creationTimestamp": "2026-01-01T00:00:00Z",
            "labels": {"node-role.kubernetes.io/worker": "", "kubernetes.io/role": "extra"},
        },
        "spec": {"unschedulable": True},
        "status": {
            "conditions": [{"type": "Ready", "status": "False"}],
            "addresses": [{"type": "InternalIP", "address": "192.0.2.1"}],
            "nodeInfo": {"kubeletVersion": "v1.37.2", "kernelVersion": "6.1", "architecture": "amd64"},
        },
    }
    assert _cells(node) == {
        "Name": "n",
        "Status": "NotReady,SchedulingDisabled",
        "Roles": "extra,worker",
        "Age": "60m",
        "Version": "v1.37.2",
        "Internal-IP": "192.0.2.1",
        "External-IP": "<none>",
        "OS-Image": "<unknown>",
        "Kernel-Version": "6.1 (amd64)",
        "Container-Runtime": "<unknown>",
    }


def test_events_of_both_apis_look_alike() -> None:
    old = {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": "e"},
        "involvedObject": {"kind": "Pod", "name": "p"},
        "source": {"component": "kubelet", "host": "n"},
        "message": " Pulled \n",
        "reason": "Pulled",
        "type": "Normal",
        "count": 3,
        "firstTimestamp": "2026-01-01T00:00:00Z",
        "lastTimestamp": "2026-01-01T00:59:00Z",
    }
    shown = _cells(old)
    assert [shown[name] for name in ("Last Seen", "Object", "Source", "Message", "First Seen", "Count")] == [
        "60s",
        "pod/p",
        "kubelet, n",
        "Pulled",
        "60m",
        3,
    ]
    resource = resource_of({"apiVersion": "events.k8s.io/v1", "kind": "Event"})
    assert resource.conversion is not None
    assert _cells(asyncio.run(resource.conversion.from_storage(old))) == shown


def test_volumes_and_claims() -> None:
    volume = {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": "v", "deletionTimestamp": "2026-01-01T00:00:00Z"},
        "spec": {
            "capacity": {"storage": "1Gi"},
            "accessModes": ["ReadWriteMany", "ReadWriteOnce"],
            "claimRef": {"namespace": "d", "name": "c"},
        },
    }
    shown = _cells(volume)
    assert [shown[name] for name in ("Capacity", "Access Modes", "Status", "Claim", "VolumeMode")] == [
        "1Gi",
        "RWO,RWX",
        "Terminating",
        "d/c",
        "<unset>",
    ]


def test_quotas_show_use_of_what_is_bounded() -> None:
    quota = {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": "q"},
        "status": {"hard": {"pods": "3", "limits.cpu": "2", "cpu": "1"}, "used": {"pods": "1"}},
    }
    shown = _cells(quota)
    assert (shown["Request"], shown["Limit"]) == ("cpu: 0/1, pods: 1/3", "limits.cpu: 0/2")
