"""NetworkPolicies on real pods, through a Service, as a user of kubectl writes them."""

from __future__ import annotations

import json

import pytest

from tests.e2e.conftest import Place
from tests.e2e.node_process import eventually
from tests.e2e.test_network import pod
from tests.e2e.test_pods import pod_manifest

pytestmark = pytest.mark.ring4

SERVER = "ports: [{name: http, containerPort: 8080}]"


def policy(name: str, **spec: object) -> str:
    return json.dumps(
        {
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": {"name": name},
            "spec": {"podSelector": {}} | spec,
        }
    )


def asking(address: str, port: int) -> str:
    """A shell command that prints the page's last line."""
    return f"printf 'GET / HTTP/1.0\\r\\n\\r\\n' | timeout 1 nc {address} {port} | tail -n 1"


def reaches(place: Place, source: str, address: str) -> bool:
    return place.kubectl("exec", source, "--", "sh", "-c", asking(address, 80), check=False).strip() == "server"


def test_pods_are_isolated_as_policies_say(place: Place) -> None:
    for name in ("server", "friend", "stranger"):
        place.apply(pod(name, place.image, container=SERVER if name == "server" else ""))
    place.kubectl("wait", "--for=condition=Ready", "pod", "--all", "--timeout=60s")
    place.kubectl("expose", "pod", "server", "--port=80", "--target-port=8080")
    service = place.node.get("-n", place.namespace, "service", "server")["spec"]["clusterIP"]
    eventually(lambda: reaches(place, "friend", service))
    assert reaches(place, "stranger", service)

    place.apply(policy("deny", policyTypes=["Ingress"]))
    eventually(lambda: not reaches(place, "friend", service), within_s=5)
    friends = [{"podSelector": {"matchLabels": {"app": "friend"}}}]
    place.apply(
        policy(
            "friends",
            podSelector={"matchLabels": {"app": "server"}},
            ingress=[{"from": friends, "ports": [{"port": "http"}]}],
        )
    )
    eventually(lambda: reaches(place, "friend", service), within_s=5)
    assert not reaches(place, "stranger", service)
    place.kubectl("label", "pod", "stranger", "app=friend", "--overwrite")
    eventually(lambda: reaches(place, "stranger", service), within_s=5)

    place.kubectl("wait", "--for=condition=Ready", "pod/server", "--timeout=1s")  # probes pass
    place.kubectl("delete", "networkpolicy", "--all")
    place.apply(policy("closed", policyTypes=["Egress"]))
    eventually(lambda: not reaches(place, "friend", service), within_s=5)


def test_a_pod_is_isolated_before_its_first_process(place: Place) -> None:
    place.apply(pod("server", place.image))
    place.kubectl("wait", "--for=condition=Ready", "pod/server", "--timeout=60s")
    address = place.node.get("-n", place.namespace, "pod", "server")["status"]["podIP"]
    script = f"{asking(address, 8080)}; echo asked; sleep 3600"
    place.apply(pod_manifest("free", place.image, script))
    eventually(lambda: place.kubectl("logs", "free", check=False).startswith("server"))
    place.apply(policy("closed", policyTypes=["Egress"]))
    place.apply(pod_manifest("closed", place.image, script))
    place.kubectl("wait", "--for=condition=Ready", "pod/closed", "--timeout=30s")
    told = eventually(lambda: "asked" in (words := place.kubectl("logs", "closed").split()) and words)
    assert "server" not in told
