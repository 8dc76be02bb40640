"""The Gateway API on a whole node, with small definitions of our own: installed, served, and taken away again."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.e2e.conftest import INGRESS_PORT, Place
from tests.e2e.node_process import NodeProcess, eventually
from tests.e2e.test_ingress import status
from tests.e2e.test_workloads import WEB

pytestmark = pytest.mark.ring4

GROUP = "gateway.networking.k8s.io"
KINDS = (
    ("gatewayclasses", "GatewayClass", "Cluster"),
    ("gateways", "Gateway", "Namespaced"),
    ("httproutes", "HTTPRoute", "Namespaced"),
    ("referencegrants", "ReferenceGrant", "Namespaced"),
)

MANIFEST = """
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {{name: gw}}
spec:
  gatewayClassName: kone
  listeners: [{{name: http, port: {port}, protocol: HTTP}}, {{name: more, port: {more}, protocol: HTTP}}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: web}}
spec:
  parentRefs: [{{name: gw}}]
  hostnames: ["{host}"]
  rules: [{{backendRefs: [{{name: web, port: 80}}]}}]
"""


def definition(plural: str, kind: str, scope: str) -> dict[str, object]:
    open_object = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    schema = {"type": "object", "properties": {"spec": open_object, "status": open_object}}
    version = {
        "name": "v1",
        "served": True,
        "storage": True,
        "subresources": {"status": {}},
        "schema": {"openAPIV3Schema": schema},
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": f"{plural}.{GROUP}",
            "annotations": {"api-approved.kubernetes.io": "unapproved, experimental-only"},
        },
        "spec": {
            "group": GROUP,
            "scope": scope,
            "names": {"plural": plural, "singular": kind.lower(), "kind": kind, "listKind": f"{kind}List"},
            "versions": [version],
        },
    }


@pytest.fixture
def installed(whole_node: NodeProcess) -> Iterator[None]:
    definitions = [definition(*kind) for kind in KINDS]
    whole_node.kubectl("apply", "-f", "-", input=json.dumps({"apiVersion": "v1", "kind": "List", "items": definitions}))
    yield
    whole_node.kubectl("delete", "crd", *(f"{plural}.{GROUP}" for plural, _, _ in KINDS), "--ignore-not-found")


def test_a_gateway_serves_a_deployment_on_its_ports_until_its_kind_goes(place: Place, installed: None) -> None:
    host, more = f"gw.{place.namespace}.test", INGRESS_PORT + 2
    place.apply(WEB.format(image=place.image) + "---" + MANIFEST.format(port=INGRESS_PORT, more=more, host=host))
    place.kubectl("rollout", "status", "deployment/web", "--timeout=60s")
    for port in (INGRESS_PORT, more):
        eventually(lambda port=port: status(host, port) == 200, within_s=20)  # type: ignore[misc]
    place.kubectl("wait", "gateway/gw", "--for=condition=Programmed", "--timeout=20s")
    accepted = "--for=jsonpath={.status.parents[0].conditions[?(@.type=='Accepted')].status}=True"
    place.kubectl("wait", "httproute/web", accepted, "--timeout=20s")
    made = json.loads(place.kubectl("get", "gatewayclass", "kone", "-o", "json"))
    assert made["spec"]["controllerName"] == "kone.dev/gateway-controller"
    place.node.kubectl("delete", "crd", f"httproutes.{GROUP}")
    eventually(lambda: status(host, more) == 0, within_s=20)
    assert status(host) in (0, 404)
