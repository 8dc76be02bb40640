"""Whole nodes whose pods' network is another than the default: dual stack, and CNI plugins."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import dns.message
import dns.query
import pytest

from tests.e2e.conftest import cleaned_up
from tests.e2e.node_process import NodeProcess, eventually, run
from tests.e2e.test_network import pod
from tests.e2e.test_pods import pod_manifest
from tests.e2e.test_workloads import fetch

pytestmark = pytest.mark.ring4

RANGES = ("--cluster-cidr", "10.103.0.0/16,fd00:103::/56", "--service-cidr", "10.153.0.0/16,fd00:153::/112")


@contextmanager
def node_with(instance: str, *flags: str) -> Iterator[NodeProcess]:
    flags = ("--instance", instance, *RANGES, *flags)
    with tempfile.TemporaryDirectory(prefix="kone-e2e-") as folder:
        process = NodeProcess(Path(folder) / "data", "--secure-port", "0", *flags)
        try:
            process.start()
            eventually(lambda: "Ready" in process.kubectl("get", "nodes", check=False))
            eventually(lambda: "default" in process.kubectl("get", "serviceaccounts", check=False))
            yield process
        finally:
            cleaned_up(process, "--instance", instance)


def test_pods_and_services_have_an_address_of_each_family(image: str) -> None:
    with node_with("dual") as node:
        spec = node.get("nodes")["items"][0]["spec"]
        assert spec["podCIDRs"] == ["10.103.0.0/24", "fd00:103::/64"]
        node.apply(pod("web", image))
        node.kubectl("wait", "--for=condition=Ready", "pod/web", "--timeout=60s")
        four, six = (entry["ip"] for entry in node.get("pod", "web")["status"]["podIPs"])
        assert four.startswith("10.103.0.")
        assert six.startswith("fd00:103::")
        assert fetch(f"[{six}]:8080") == fetch(f"{four}:8080") == "web"
        assert six in node.kubectl("exec", "web", "--", "cat", "/etc/hosts")
        spec = {"ipFamilyPolicy": "RequireDualStack", "selector": {"app": "web"}, "type": "NodePort"}
        spec["ports"] = [{"port": 80, "targetPort": 8080}]
        both = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "both"}, "spec": spec}
        node.apply(json.dumps(both))
        spec = node.get("service", "both")["spec"]
        four, six = spec["clusterIPs"]
        assert spec["ipFamilies"] == ["IPv4", "IPv6"]
        assert eventually(lambda: fetch(f"[{six}]:80")) == eventually(lambda: fetch(f"{four}:80")) == "web"
        names = node.kubectl("get", "ipaddresses", "-o", "name").split()
        assert {f"ipaddress.networking.k8s.io/{ip}" for ip in (four, six)} <= set(names)
        answer = dns.query.udp(dns.message.make_query("both.default.svc.cluster.local", "AAAA"), "10.153.0.10", 10)
        assert [str(record) for rrset in answer.answer for record in rrset] == [six]
        single = {"spec": {"ipFamilyPolicy": "SingleStack"}}
        node.kubectl("patch", "service", "both", "-p", json.dumps(single))
        assert node.get("service", "both")["spec"]["clusterIPs"] == [four]
        eventually(lambda: fetch(f"[{six}]:80") != "web")
        assert f"ipaddress.networking.k8s.io/{six}" not in node.kubectl("get", "ipaddresses", "-o", "name")


@pytest.mark.skipif(not os.path.exists("/usr/lib/cni/ptp"), reason="containernetworking-plugins is not there")
def test_pods_are_attached_by_what_the_host_configured(image: str, tmp_path: Path) -> None:
    ipam = {
        "type": "host-local",
        "dataDir": str(tmp_path / "leases"),
        "ranges": [[{"subnet": "10.104.0.0/30"}]],
        "routes": [{"dst": "0.0.0.0/0"}],
    }
    network = {"cniVersion": "1.0.0", "name": "mine", "type": "ptp", "ipMasq": True, "ipam": ipam}
    (tmp_path / "10-mine.conf").write_text(json.dumps(network))
    with node_with("cni", "--cni-conf-dir", str(tmp_path)) as node:
        node.apply(pod("web", image))
        node.kubectl("wait", "--for=condition=Ready", "pod/web", "--timeout=60s")
        assert node.get("pod", "web")["status"]["podIP"] == "10.104.0.2"
        assert fetch("10.104.0.2:8080") == "web"
        node.apply(pod_manifest("late", image))

        def events() -> str:
            listed = node.get("events", "--field-selector", "involvedObject.name=late")["items"]
            return " ".join(e["message"] for e in listed if e["reason"] == "FailedCreatePodSandBox")

        told = eventually(events)
        assert told.startswith("Failed to create pod sandbox: ")
        assert 'plugin type="ptp" name="mine" failed (add): ' in told
        node.kubectl("delete", "pod", "web", "--timeout=30s")
        node.kubectl("wait", "--for=condition=Ready", "pod/late", "--timeout=60s")
    leases = tmp_path / "leases" / "mine"
    assert not [path for path in leases.iterdir() if path.name[0].isdigit()], "cleanup detaches"
    assert "10.104." not in run("ip", "route")
