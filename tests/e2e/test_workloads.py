"""Deployments and Services end to end: made, reached, scaled, rolled, replaced, and kept over a kill -9."""

from __future__ import annotations

import urllib.request
import uuid
from typing import Any

import pytest

from tests.e2e.conftest import Place
from tests.e2e.node_process import BIN, NodeProcess, eventually, run

pytestmark = pytest.mark.ring4

WEB = """
apiVersion: apps/v1
kind: Deployment
metadata: {{name: web}}
spec:
  replicas: 2
  selector: {{matchLabels: {{app: web}}}}
  template:
    metadata: {{labels: {{app: web}}}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
        - name: web
          image: {image}
          command: [sh, -c, "mkdir /www; hostname > /www/index.html; exec httpd -f -p 8080 -h /www"]
          ports: [{{name: http, containerPort: 8080}}]
          readinessProbe: {{httpGet: {{path: /, port: http}}, periodSeconds: 1}}
---
apiVersion: v1
kind: Service
metadata: {{name: web}}
spec:
  type: NodePort
  selector: {{app: web}}
  ports: [{{port: 80, targetPort: http}}]
"""


def fetch(address: str) -> str:
    """The page at http://address/, "" where there is none within 2 s."""
    try:
        with urllib.request.urlopen(f"http://{address}/", timeout=2) as answer:
            return str(answer.read().decode().strip())
    except OSError:
        return ""


def pods(place: Place) -> dict[str, Any]:
    items = place.node.get("-n", place.namespace, "pods", "-l", "app=web")["items"]
    return {item["metadata"]["name"]: item for item in items if "deletionTimestamp" not in item["metadata"]}


@pytest.fixture
def web(place: Place) -> Place:
    place.apply(WEB.format(image=place.image))
    place.kubectl("rollout", "status", "deployment/web", "--timeout=60s")
    return place


def address_of(place: Place) -> tuple[str, int]:
    spec = place.node.get("-n", place.namespace, "service", "web")["spec"]
    return spec["clusterIP"], spec["ports"][0]["nodePort"]


def test_a_service_answers_by_address_name_and_node_port_from_every_pod(web: Place) -> None:
    cluster_ip, node_port = address_of(web)
    names = set(pods(web))
    eventually(lambda: fetch(cluster_ip) in names, within_s=10)
    reached = set()
    for _ in range(40):
        reached.add(fetch(cluster_ip))
    assert reached == names
    node_ip = web.node.get("nodes")["items"][0]["status"]["addresses"][0]["address"]
    assert fetch(f"{node_ip}:{node_port}") in names
    one = next(iter(names))
    full = f"web.{web.namespace}.svc.cluster.local"
    ask = f"printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc {cluster_ip} 80 | tail -n 1"
    assert web.kubectl("exec", one, "--", "sh", "-c", ask).strip() in names
    for name in ("web", full):
        # busybox exits 1 as it also asks for what the search path makes of the name; the answer is what counts.
        assert f"Address: {cluster_ip}" in web.kubectl("exec", one, "--", "nslookup", name, check=False)


def test_a_deployment_scales_rolls_and_rolls_back(web: Place) -> None:
    web.kubectl("scale", "deployment/web", "--replicas=3")
    web.kubectl("rollout", "status", "deployment/web", "--timeout=60s")
    assert len(pods(web)) == 3
    web.kubectl("set", "env", "deployment/web", "VERSION=2")
    web.kubectl("rollout", "status", "deployment/web", "--timeout=60s")
    assert all(p["spec"]["containers"][0]["env"] == [{"name": "VERSION", "value": "2"}] for p in pods(web).values())
    assert web.kubectl("rollout", "history", "deployment/web").count("<none>") == 2
    web.kubectl("rollout", "undo", "deployment/web")
    web.kubectl("rollout", "status", "deployment/web", "--timeout=60s")
    eventually(lambda: all("env" not in p["spec"]["containers"][0] for p in pods(web).values()))


def test_a_deleted_pod_is_replaced(web: Place) -> None:
    before = set(pods(web))
    web.kubectl("delete", "pod", next(iter(before)))
    eventually(lambda: len(pods(web)) == 2 and set(pods(web)) != before)
    web.kubectl("rollout", "status", "deployment/web", "--timeout=60s")


def test_kill_9_keeps_containers_and_traffic(web: Place) -> None:
    cluster_ip, _ = address_of(web)
    before = {n: p["status"]["containerStatuses"][0] for n, p in pods(web).items()}
    eventually(lambda: fetch(cluster_ip) in before, within_s=10)
    web.node.kill()
    assert fetch(cluster_ip) in before
    web.node.start()
    eventually(
        lambda: "True" in web.kubectl("get", "nodes", "-o", "jsonpath={..conditions[?(@.type=='Ready')].status}")
    )
    assert fetch(cluster_ip) in before
    after = {n: p["status"]["containerStatuses"][0] for n, p in pods(web).items()}
    assert {n: (s["containerID"], s["restartCount"]) for n, s in after.items()} == {
        n: (s["containerID"], s["restartCount"]) for n, s in before.items()
    }


def test_a_flush_of_the_rules_is_mended_within_5_seconds(web: Place) -> None:
    cluster_ip, _ = address_of(web)
    eventually(lambda: fetch(cluster_ip), within_s=10)
    saved = run("iptables-save")
    try:
        run("iptables", "-F")
        run("iptables", "-t", "nat", "-F")
        eventually(lambda: fetch(cluster_ip) in pods(web), within_s=5)
    finally:
        # Docker's own rules went with the flush; put back what was there without touching what kone has mended.
        run("iptables-restore", input=saved)
    eventually(lambda: fetch(cluster_ip) in pods(web), within_s=5)


def test_foreign_containers_and_images_are_not_touched(web: Place) -> None:
    name = f"kone-test-foreign-{uuid.uuid4().hex[:8]}"
    run("docker", "run", "--detach", "--name", name, web.image, "sleep", "3600")
    try:
        started = run("docker", "inspect", "-f", "{{.State.StartedAt}} {{.RestartCount}}", name)
        web.node.kill()
        web.node.start()
        web.kubectl("delete", "deployment", "web")
        eventually(lambda: not pods(web))
        assert run("docker", "inspect", "-f", "{{.State.StartedAt}} {{.RestartCount}}", name) == started
    finally:
        run("docker", "rm", "--force", name)


def test_cleanup_refuses_while_the_node_runs(whole_node: NodeProcess) -> None:
    said = run(BIN / "kone", "cleanup", "--data-dir", whole_node.data, "--instance", "e2e", check=False)
    assert said.count("\n") == 1
    assert "stop it first" in said
