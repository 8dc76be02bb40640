"""What a node leaves behind: nothing. And two nodes on one host: each removes its own and leaves the other's.

It runs before all else (conftest.py): what the shared node does meanwhile would look like a trace.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.node_process import BIN, NodeProcess, eventually, run
from tests.e2e.test_workloads import fetch

pytestmark = pytest.mark.ring4


def _without_counters(saved: str) -> list[str]:
    return sorted(line.split(" [")[0] for line in saved.splitlines() if not line.startswith("#"))


def _ip(*words: str) -> list[Any]:
    found: list[Any] = json.loads(run("ip", "-j", *words) or "[]")
    volatile = {"stats", "stats64", "valid_life_time", "preferred_life_time", "operstate", "flags"}
    return sorted(({k: v for k, v in item.items() if k not in volatile} for item in found), key=str)


def network_traces() -> dict[str, Any]:
    """Everything of this host's network in which a node could leave a trace."""
    return {
        "iptables": _without_counters(run("iptables-save")),
        "ip6tables": _without_counters(run("ip6tables-save")),
        "nftables": sorted(line for line in run("nft", "list", "ruleset").splitlines() if "counter" not in line),
        "links": [link["ifname"] for link in _ip("link")],
        "addresses": _ip("addr"),
        "routes": _ip("route"),
        "rules": _ip("rule"),
        "sets": sorted(run("ipset", "list", "-n", check=False).splitlines()),
        "tracking": {p.name: p.read_text() for p in Path("/proc/sys/net/netfilter").glob("nf_conntrack_tcp_timeout_*")},
        "virtual servers": Path("/proc/net/ip_vs").read_text() if Path("/proc/net/ip_vs").exists() else "",
    }


def traces() -> dict[str, Any]:
    """Everything on this host in which a node could leave a trace."""
    return network_traces() | {
        "mounts": sorted(line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()),
        "containers": sorted(run("docker", "ps", "-a", "--format", "{{.Names}}").split()),
        "networks": sorted(run("docker", "network", "ls", "--format", "{{.Name}}").split()),
        "volumes": sorted(run("docker", "volume", "ls", "-q").split()),
        "cgroups": sorted(str(p) for p in Path("/sys/fs/cgroup").glob("**/kubepods-e2e-*")),
    }


POD = """
apiVersion: v1
kind: Pod
metadata: {{name: {name}, labels: {{app: {name}}}}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
    - name: c
      image: {image}
      command: [sh, -c, "mkdir /www; echo {name} > /www/index.html; exec httpd -f -p 80 -h /www"]
      ports: [{{containerPort: 80, hostPort: {host_port}}}]
      volumeMounts: [{{name: memory, mountPath: /memory}}]
  volumes: [{{name: memory, emptyDir: {{medium: Memory}}}}]
---
apiVersion: v1
kind: Service
metadata: {{name: {name}}}
spec:
  type: NodePort
  selector: {{app: {name}}}
  ports: [{{port: 80}}]
"""


@pytest.fixture
def two(image: str) -> Iterator[list[NodeProcess]]:
    """Two whole nodes on this host, each with a pod and a Service of its own."""
    folder = Path(tempfile.mkdtemp(prefix="kone-e2e-"))
    nodes = [
        NodeProcess(folder / name, "--secure-port", "0", "--instance", f"e2e-{name}", "--node-name", f"node-{name}")
        for name in ("a", "b")
    ]
    try:
        for number, node in enumerate(nodes):
            node.start()
            eventually(
                lambda node=node: node.kubectl("get", "serviceaccount", "default", check=False).startswith("NAME")
            )
            node.apply(POD.format(name=node.data.name, image=image, host_port=18080 + number))
        for node in nodes:
            node.kubectl("wait", "--for=condition=Ready", f"pod/{node.data.name}", "--timeout=60s")
        yield nodes
    finally:
        for node in nodes:
            node.stop()
            run(BIN / "kone", "cleanup", "--data-dir", node.data, "--instance", f"e2e-{node.data.name}")
        shutil.rmtree(folder)


def service_address(node: NodeProcess) -> str:
    return str(node.get("service", node.data.name)["spec"]["clusterIP"])


def test_two_nodes_live_side_by_side_and_leave_no_trace(image: str, request: pytest.FixtureRequest) -> None:
    before = traces()
    a, b = request.getfixturevalue("two")
    assert [n["metadata"]["name"] for n in a.get("nodes")["items"]] == ["node-a"]
    assert [n["metadata"]["name"] for n in b.get("nodes")["items"]] == ["node-b"]
    for node, host_port in ((a, 18080), (b, 18081)):
        eventually(lambda node=node: fetch(service_address(node)) == node.data.name, within_s=10)
        assert fetch(f"127.0.0.1:{host_port}") == node.data.name
    a.stop()
    run(BIN / "kone", "cleanup", "--data-dir", a.data, "--instance", "e2e-a")
    assert fetch(service_address(b)) == "b"
    b.stop()
    run(BIN / "kone", "cleanup", "--data-dir", b.data, "--instance", "e2e-b")
    after = traces()
    for kind, found in before.items():
        assert after[kind] == found, kind


BOTH = """
apiVersion: v1
kind: Service
metadata: {name: both}
spec:
  ipFamilyPolicy: PreferDualStack
  selector: {app: web}
  ports: [{port: 80}]
"""
FOUR = ("--cluster-cidr", "10.108.0.0/16", "--service-cidr", "10.158.0.0/16")
BOTH_FAMILIES = ("--cluster-cidr", "10.108.0.0/16,fd00:108::/56", "--service-cidr", "10.158.0.0/16,fd00:158::/112")


def test_every_mode_in_turn_leaves_nothing_to_the_next_and_no_trace_in_the_end(image: str) -> None:
    before = traces()
    folder = Path(tempfile.mkdtemp(prefix="kone-e2e-"))
    node, instance = NodeProcess(folder / "web"), ("--instance", "e2e-m")
    try:
        for mode, ranges in (("nftables", BOTH_FAMILIES), ("iptables", FOUR), ("userspace", BOTH_FAMILIES)):
            node.flags = (*instance, "--secure-port", "0", "--proxy-mode", mode, *ranges)
            node.start()
            if mode == "nftables":
                eventually(lambda: node.kubectl("get", "serviceaccount", "default", check=False).startswith("NAME"))
                node.apply(POD.format(name="web", image=image, host_port=18082) + "---" + BOTH)
                node.kubectl("wait", "--for=condition=Ready", "pod/web", "--timeout=60s")
            four, six = node.get("service", "both")["spec"]["clusterIPs"]
            eventually(lambda ip=four: fetch(ip) == "web", within_s=10)
            eventually(
                lambda ip=six, served=ranges is BOTH_FAMILIES: (fetch(f"[{ip}]") == "web") is served, within_s=10
            )
            eventually(lambda mode=mode: not of_others(mode), within_s=10)
            node.stop()
    finally:
        node.stop()
        run(BIN / "kone", "cleanup", "--data-dir", node.data, *instance)
        shutil.rmtree(folder)
    after = traces()
    for kind, found in before.items():
        assert after[kind] == found, kind
    assert "fd00:108" not in run("ip", "-6", "route", "show", "table", "all")


def of_others(mode: str) -> list[str]:
    """What the kernel holds of this instance that other modes made."""
    marks = {
        "nftables": [line for line in run("nft", "list", "tables").splitlines() if "kone-e2e-m-services" in line],
        "iptables": [line for line in run("iptables-save").splitlines() if line.startswith(":KONE-e2e-m-SERVICES")],
        "userspace": [line for line in run("ip", "-br", "link").splitlines() if line.startswith("kusr-e2e-m")],
    }
    return [line for other, found in marks.items() if other != mode for line in found]
