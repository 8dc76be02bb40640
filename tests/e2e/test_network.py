"""What pods reach and who reaches them: host ports, the host's own network, the world, affinity, and names."""

from __future__ import annotations

import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.e2e.conftest import Place
from tests.e2e.node_process import eventually, run
from tests.e2e.test_workloads import WEB, address_of, fetch

pytestmark = pytest.mark.ring4

WORLD = "198.51.100.2"  # TEST-NET-2, RFC 5737
HOST_IN_WORLD = "198.51.100.1"
PEER_PORT = 18475


@contextmanager
def world() -> Iterator[tuple[str, ...]]:
    """Another machine, as a network namespace that knows the host's address and no pod's; gives the command prefix."""
    name, link = f"w-{uuid.uuid4().hex[:6]}", f"w{uuid.uuid4().hex[:8]}"
    run("ip", "netns", "add", name)
    try:
        run("ip", "link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", name)
        run("ip", "addr", "add", f"{HOST_IN_WORLD}/24", "dev", link)
        run("ip", "link", "set", link, "up")
        inside = ("ip", "netns", "exec", name)
        run(*inside, "ip", "link", "set", "lo", "up")
        run(*inside, "ip", "addr", "add", f"{WORLD}/24", "dev", "eth0")
        run(*inside, "ip", "link", "set", "eth0", "up")
        yield inside
    finally:
        run("ip", "netns", "delete", name)
        run("ip", "link", "delete", link, check=False)


@contextmanager
def says_who_came(*prefix: str) -> Iterator[None]:
    """A server that answers each connection with the address that it came from."""
    program = (
        "import socket\n"
        f"with socket.create_server(('', {PEER_PORT})) as server:\n"
        "    while True:\n"
        "        connection, peer = server.accept()\n"
        "        with connection: connection.sendall(peer[0].encode())\n"
    )
    with subprocess.Popen([*prefix, sys.executable, "-c", program]) as server:
        try:
            yield
        finally:
            server.terminate()


def pod(name: str, image: str, spec: str = "", *, container: str = "", port: int = 8080) -> str:
    """A manifest of a pod that serves its own name at that port, and what `spec` and `container` add."""
    return f"""
apiVersion: v1
kind: Pod
metadata: {{name: {name}, labels: {{app: {name}}}}}
spec:
  terminationGracePeriodSeconds: 1
  {spec}
  containers:
    - name: c
      image: {image}
      command: [sh, -c, "mkdir /www; echo {name} > /www/index.html; exec httpd -f -p {port} -h /www"]
      readinessProbe: {{httpGet: {{path: /, port: {port}}}, periodSeconds: 1}}
      {container}
"""


def test_a_host_port_leads_into_its_pod_and_ends_with_it(place: Place) -> None:
    place.apply(pod("front", place.image, container="ports: [{containerPort: 8080, hostPort: 18473}]"))
    place.kubectl("wait", "--for=condition=Ready", "pod/front", "--timeout=60s")
    assert fetch("127.0.0.1:18473") == "front"
    with world() as outside:
        request = f"printf 'GET / HTTP/1.0\\r\\n\\r\\n' | busybox nc -w 3 {HOST_IN_WORLD} 18473 | tail -n 1"
        assert run(*outside, "sh", "-c", request) == "front\n"
    place.apply(pod("second", place.image, container="ports: [{containerPort: 8080, hostPort: 18473}]"))
    eventually(lambda: any(reason == "FailedScheduling" for reason, _ in place.events("second")))
    text = next(message for reason, message in place.events("second") if reason == "FailedScheduling")
    assert text.startswith("0/1 nodes are available: 1 node(s) didn't have free ports for the requested pod ports.")
    place.kubectl("delete", "pod", "front", "--wait=true")
    place.kubectl("wait", "--for=condition=Ready", "pod/second", "--timeout=60s")
    assert fetch("127.0.0.1:18473") == "second"


def test_a_pod_in_the_hosts_network_has_its_address_and_ports(place: Place) -> None:
    place.apply(pod("host", place.image, "hostNetwork: true", port=18474))
    place.kubectl("wait", "--for=condition=Ready", "pod/host", "--timeout=60s")
    status = place.node.get("-n", place.namespace, "pod", "host")["status"]
    assert status["podIP"] == status["hostIP"]
    assert fetch("127.0.0.1:18474") == "host"
    links = place.kubectl("exec", "host", "--", "ls", "/sys/class/net").split()
    assert set(links) >= set(run("ls", "/sys/class/net").split()) - {link for link in links if link.startswith("veth")}


def test_a_pod_reaches_its_host_and_the_world_as_the_host(place: Place) -> None:
    place.apply(pod("client", place.image))
    place.kubectl("wait", "--for=condition=Ready", "pod/client", "--timeout=60s")
    host_ip = place.node.get("nodes")["items"][0]["status"]["addresses"][0]["address"]

    def answer(address: str) -> str:
        ask = f"nc -w 3 {address} {PEER_PORT} </dev/null"
        return place.kubectl("exec", "client", "--", "sh", "-c", ask, check=False).strip()

    with world() as outside, says_who_came(*outside):
        eventually(lambda: answer(WORLD) == HOST_IN_WORLD, within_s=10)  # it sees the host's address, it knows no pod's
    pod_ip = place.node.get("-n", place.namespace, "pod", "client")["status"]["podIP"]
    with says_who_came():
        eventually(lambda: answer(host_ip) == pod_ip, within_s=10)


def test_a_client_stays_with_its_endpoint_where_the_service_says_so(place: Place) -> None:
    place.apply(WEB.format(image=place.image).replace("replicas: 2", "replicas: 3"))
    place.kubectl("rollout", "status", "deployment/web", "--timeout=60s")
    cluster_ip, _ = address_of(place)
    eventually(lambda: len({fetch(cluster_ip) for _ in range(20)}) == 3, within_s=20)
    place.kubectl("patch", "service", "web", "-p", '{"spec":{"sessionAffinity":"ClientIP"}}')
    eventually(lambda: len({fetch(cluster_ip) for _ in range(20)}) == 1, within_s=20)
    first = fetch(cluster_ip)
    place.kubectl("delete", "pod", first, "--wait=true")
    assert eventually(lambda: fetch(cluster_ip), within_s=10) != first, "another one takes over where it is gone"


NAMES = """
apiVersion: v1
kind: Service
metadata: {name: headless}
spec: {clusterIP: None, selector: {app: member}, ports: [{name: http, port: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: elsewhere}
spec: {type: ExternalName, externalName: kubernetes.default.svc.cluster.local}
"""


def test_names_of_headless_services_members_and_aliases(place: Place) -> None:
    place.apply(NAMES)
    place.apply(pod("member", place.image, "hostname: one\n  subdomain: headless"))
    place.kubectl("wait", "--for=condition=Ready", "pod/member", "--timeout=60s")
    ip = place.node.get("-n", place.namespace, "pod", "member")["status"]["podIP"]
    domain = f"{place.namespace}.svc.cluster.local"

    def answers(name: str) -> str:
        return place.kubectl("exec", "member", "--", "nslookup", name, check=False)

    eventually(lambda: f"Address: {ip}" in answers(f"headless.{domain}"), within_s=10)
    assert f"Address: {ip}" in answers(f"one.headless.{domain}")
    assert "canonical name = kubernetes.default.svc.cluster.local" in answers(f"elsewhere.{domain}")
    assert f"one.headless.{domain}" in answers(ip)
    assert place.kubectl("exec", "member", "--", "hostname", "-f").strip() == f"one.headless.{domain}"
    conf = place.kubectl("exec", "member", "--", "cat", "/etc/resolv.conf")
    assert f"search {domain} svc.cluster.local cluster.local" in conf
    assert "options ndots:5" in conf
