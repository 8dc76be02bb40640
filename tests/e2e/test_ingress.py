"""Ingresses on a whole node: requests by name reach pods through roll-outs and through kill -9 of kone."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.e2e.conftest import INGRESS_PORT, Place
from tests.e2e.node_process import eventually
from tests.e2e.test_workloads import WEB

pytestmark = pytest.mark.ring4

INGRESS = """
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {{name: {name}}}
spec:
  rules:
    - host: {name}.{host}
      http: {{paths: [{{path: /, pathType: Prefix, backend: {{service: {{name: web, port: {{number: 80}}}}}}}}]}}
"""


def ask(connection: http.client.HTTPConnection, host: str) -> int:
    """The status of one request, its answer read to its end."""
    connection.request("GET", "/", headers={"Host": host})
    answer = connection.getresponse()
    answer.read()
    return answer.status


def status(host: str, port: int = INGRESS_PORT) -> int:
    """What a request is answered; 0 where nobody listens."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        return ask(connection, host)
    except OSError:
        return 0
    finally:
        connection.close()


@contextmanager
def asking(host: str) -> Iterator[dict[str, int]]:
    """Four clients with connections that they keep: what they were answered, by status or error."""
    counts: dict[str, int] = {}
    done = threading.Event()

    def run() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", INGRESS_PORT, timeout=10)
        while not done.is_set():
            try:
                what = str(ask(connection, host))
            except (OSError, http.client.HTTPException) as error:
                what = repr(error)
                connection.close()
            counts[what] = counts.get(what, 0) + 1
            time.sleep(0.002)
        connection.close()

    clients = [threading.Thread(target=run) for _ in range(4)]
    for client in clients:
        client.start()
    try:
        yield counts
    finally:
        done.set()
        for client in clients:
            client.join()


def test_no_request_is_lost_in_roll_outs_and_while_kone_is_killed(place: Place) -> None:
    host = f"{place.namespace}.test"
    place.apply(WEB.format(image=place.image) + "---" + INGRESS.format(name="web", host=host))
    place.kubectl("rollout", "status", "deployment/web", "--timeout=60s")
    eventually(lambda: status(f"web.{host}") == 200, within_s=15)
    made = json.loads(place.kubectl("get", "ingress", "web", "-o", "json"))
    assert made["spec"]["ingressClassName"] == "kone", "the default class"
    node_ip = place.node.get("nodes")["items"][0]["status"]["addresses"][0]["address"]
    eventually(lambda: node_ip in place.kubectl("get", "ingress", "web"))
    with asking(f"web.{host}") as counts:
        place.kubectl("scale", "deployment/web", "--replicas=3")
        place.kubectl("rollout", "restart", "deployment/web")
        place.kubectl("rollout", "status", "deployment/web", "--timeout=60s")
        place.node.kill()
        before = counts["200"]
        time.sleep(0.5)
        assert counts["200"] > before, "requests go on without kone"
        place.node.start()
        place.apply(INGRESS.format(name="more", host=host))
        eventually(lambda: status(f"more.{host}") == 200, within_s=15)
    assert set(counts) == {"200"}
    assert counts["200"] > 200


def test_what_an_ingress_cannot_have_is_told_to_kubectl_describe(place: Place) -> None:
    place.apply(INGRESS.format(name="lost", host=f"{place.namespace}.test"))
    expected = ("ServiceNotFound", f"Service {place.namespace}/web does not exist")
    eventually(lambda: expected in place.events("lost"), within_s=15)
    assert status(f"lost.{place.namespace}.test") == 503
