"""Workloads of the size that one node carries: fifty replicas rolled, two hundred indexes completed, ten in order."""

from __future__ import annotations

import pytest

from tests.e2e.conftest import Place
from tests.e2e.node_process import eventually

pytestmark = pytest.mark.ring4

PATIENCE_S = 300

FIFTY = """
apiVersion: apps/v1
kind: Deployment
metadata: {{name: fifty}}
spec:
  replicas: 50
  strategy: {{rollingUpdate: {{maxSurge: 10, maxUnavailable: 10}}}}
  selector: {{matchLabels: {{app: fifty}}}}
  template:
    metadata: {{labels: {{app: fifty}}}}
    spec:
      terminationGracePeriodSeconds: 0
      containers: [{{name: c, image: {image}, command: [sleep, "3600"], env: [{{name: VERSION, value: "1"}}]}}]
"""

INDEXED = """
apiVersion: batch/v1
kind: Job
metadata: {{name: indexed}}
spec:
  completions: 200
  parallelism: 40
  completionMode: Indexed
  template:
    spec:
      restartPolicy: Never
      containers: [{{name: c, image: {image}, command: [sh, -c, "test -n $JOB_COMPLETION_INDEX"]}}]
"""

ORDERED = """
apiVersion: v1
kind: Service
metadata: {{name: ten}}
spec: {{clusterIP: None, selector: {{app: ten}}, ports: [{{port: 80}}]}}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {{name: ten}}
spec:
  replicas: 10
  serviceName: ten
  selector: {{matchLabels: {{app: ten}}}}
  template:
    metadata: {{labels: {{app: ten}}}}
    spec:
      terminationGracePeriodSeconds: 0
      containers: [{{name: c, image: {image}, command: [sleep, "3600"]}}]
"""


def test_fifty_replicas_are_rolled(place: Place) -> None:
    place.apply(FIFTY.format(image=place.image))
    place.kubectl("rollout", "status", "deployment/fifty", f"--timeout={PATIENCE_S}s", timeout_s=PATIENCE_S)
    place.kubectl("set", "env", "deployment/fifty", "VERSION=2")
    place.kubectl("rollout", "status", "deployment/fifty", f"--timeout={PATIENCE_S}s", timeout_s=PATIENCE_S)
    status = place.node.get("-n", place.namespace, "deployment", "fifty")["status"]
    counts = (status["replicas"], status["updatedReplicas"], status["availableReplicas"])
    assert counts == (50, 50, 50)
    items = place.node.get("-n", place.namespace, "pods", "-l", "app=fifty")["items"]
    living = [item for item in items if "deletionTimestamp" not in item["metadata"]]
    assert {item["spec"]["containers"][0]["env"][0]["value"] for item in living} == {"2"}
    assert len(living) == 50
    place.kubectl("delete", "deployment", "fifty", "--wait=false")


def test_a_job_completes_each_of_its_two_hundred_indexes_once(place: Place) -> None:
    place.apply(INDEXED.format(image=place.image))
    place.kubectl("wait", "job/indexed", "--for=condition=Complete", f"--timeout={PATIENCE_S}s", timeout_s=PATIENCE_S)
    status = place.node.get("-n", place.namespace, "job", "indexed")["status"]
    assert (status["succeeded"], status.get("failed", 0), status["completedIndexes"]) == (200, 0, "0-199")
    assert status["uncountedTerminatedPods"] == {}
    items = place.node.get("-n", place.namespace, "pods", "-l", "job-name=indexed")["items"]
    assert not any(item["metadata"].get("finalizers") for item in items)
    place.kubectl("delete", "job", "indexed", "--wait=false")


def test_ten_replicas_come_and_go_in_order(place: Place) -> None:
    place.apply(ORDERED.format(image=place.image))
    place.kubectl("rollout", "status", "statefulset/ten", f"--timeout={PATIENCE_S}s", timeout_s=PATIENCE_S)
    items = place.node.get("-n", place.namespace, "pods", "-l", "app=ten")["items"]
    in_order = sorted(items, key=_ordinal)
    assert [item["metadata"]["name"] for item in in_order] == [f"ten-{number}" for number in range(10)]
    born = [item["metadata"]["creationTimestamp"] for item in in_order]
    assert born == sorted(born)
    place.kubectl("scale", "statefulset/ten", "--replicas=7")

    def left() -> set[str]:
        listed = place.node.get("-n", place.namespace, "pods", "-l", "app=ten")["items"]
        return {item["metadata"]["name"] for item in listed}

    eventually(lambda: left() == {f"ten-{number}" for number in range(7)}, within_s=60)
    place.kubectl("delete", "statefulset", "ten", "--wait=false")


def _ordinal(item: dict[str, dict[str, str]]) -> int:
    return int(item["metadata"]["name"].rpartition("-")[2])
