"""Pods that come and go leave nothing behind: on the host, in the node's files, or in its process.

60 of them, in some seconds; `make soak` sends 500: KONE_TEST_SOAK says how many.
"""

from __future__ import annotations

import itertools
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import cleaned_up
from tests.e2e.held import Held, until
from tests.e2e.node_process import NodeProcess, eventually
from tests.e2e.test_pods import pod_manifest

pytestmark = pytest.mark.ring4

PODS = int(os.environ.get("KONE_TEST_SOAK", "60"))
AT_ONCE = 10
INSTANCE = "e2e-soak"
RANGES = ("--cluster-cidr", "10.118.0.0/16", "--service-cidr", "10.168.0.0/16")
# What the process itself may keep: a pool's thread, a connection in reserve; events of the last hour in memory.
SPARE_FILES, SPARE_MB = 6, 60

CLAIM = {"spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Mi"}}}}
BLOCK = {"spec": CLAIM["spec"] | {"volumeMode": "Block"}}


def _mounted(**source: Any) -> dict[str, Any]:
    """A volume of that source, and a container that mounts it."""
    return {
        "volumes": [{"name": "v", **source}],
        "container": {"volumeMounts": [{"name": "v", "mountPath": "/v"}]},
    }


def _below(path: str, **source: Any) -> dict[str, Any]:
    return _mounted(**source) | {"container": {"volumeMounts": [{"name": "v", "mountPath": "/v", "subPath": path}]}}


def shapes(image: str) -> list[dict[str, Any]]:
    """Pods that use all that a node can hold for a pod, one kind of thing each (fields of pod_manifest)."""
    shell = ["sh", "-c", "exit 0"]
    probe = {"exec": {"command": ["true"]}, "periodSeconds": 1}
    crashing = {"script": "exit 1", "restartPolicy": "Always"}
    disk = {"volumeDevices": [{"name": "v", "devicePath": "/dev/v"}]}
    return [
        {},
        {"script": "true", "restartPolicy": "Never"},
        crashing,
        {"initContainers": [{"name": "i", "image": image, "command": shell}], "terminationGracePeriodSeconds": 0},
        _mounted(emptyDir={"medium": "Memory", "sizeLimit": "1Mi"}),
        _below("a/b", emptyDir={}),
        _below("ca.crt", configMap={"name": "kube-root-ca.crt"}),
        _mounted(ephemeral={"volumeClaimTemplate": CLAIM}),
        {"volumes": [{"name": "v", "ephemeral": {"volumeClaimTemplate": BLOCK}}], "container": disk},
        {"container": {"ports": [{"containerPort": 80, "hostPort": 18090}]}},
        {"hostNetwork": True},
        {"shareProcessNamespace": True, "container": {"livenessProbe": probe, "readinessProbe": probe}},
        {"container": {"lifecycle": {"preStop": {"exec": {"command": ["true"]}}}}},
        {"container": {"resources": {"limits": {"cpu": "100m", "memory": "16Mi"}}}},
        _mounted(image={"reference": image}),
        {"container": {"command": ["/no/such/program"]}, "restartPolicy": "Never"},
        {"container": {"image": "localhost:1/nothing:1"}},
    ]


@pytest.fixture
def node(image: str) -> Iterator[NodeProcess]:
    with tempfile.TemporaryDirectory(prefix="kone-e2e-") as folder:
        process = NodeProcess(Path(folder) / "data", "--secure-port", "0", "--instance", INSTANCE, *RANGES)
        try:
            process.start()
            eventually(lambda: "kube-root-ca.crt" in process.kubectl("get", "configmaps", "-o", "name", check=False))
            eventually(lambda: "default" in process.kubectl("get", "serviceaccounts", "-o", "name", check=False))
            yield process
        finally:
            cleaned_up(process, "--instance", INSTANCE)


def come_and_go(node: NodeProcess, batch: list[str], *, wait: bool) -> None:
    """Make these pods and delete them: once they are there, or in the middle of their start."""
    listed = {"apiVersion": "v1", "kind": "List", "items": [json.loads(manifest) for manifest in batch]}
    node.kubectl("create", "-f", "-", input=json.dumps(listed))
    if wait:

        def settled() -> bool:
            pods = node.get("pods")["items"]
            return all(_is_settled(pod["status"]) for pod in pods)

        eventually(settled, every_s=0.3)
    node.kubectl("delete", "pods", "--all", "--wait=true", "--timeout=100s")


def _is_settled(status: dict[str, Any]) -> bool:
    """Runs, has ended, or waits for something that will not come."""
    if status.get("phase") in ("Succeeded", "Failed"):
        return True
    reasons = ("ErrImagePull", "ImagePullBackOff", "CrashLoopBackOff")
    states = [found["state"] for found in status.get("containerStatuses", ())]
    return bool(states) and all("running" in s or s.get("waiting", {}).get("reason") in reasons for s in states)


def test_pods_that_come_and_go_leave_nothing_behind(node: NodeProcess, image: str) -> None:
    held = Held(node, INSTANCE)
    kinds = shapes(image)
    names = (f"p{number}" for number in itertools.count())

    def batch(size: int) -> list[str]:
        return [pod_manifest(next(names), image, **kind) for kind in itertools.islice(forms, size)]

    forms = itertools.cycle(kinds)
    come_and_go(node, batch(len(kinds)), wait=True)  # what a node makes once it has made after this
    eventually(lambda: held.in_api() == [])
    held.until_nothing()
    files, process = held.in_files(), held.in_process()
    for number in range(0, PODS, AT_ONCE):
        come_and_go(node, batch(min(AT_ONCE, PODS - number)), wait=number // AT_ONCE % 3 != 2)
    eventually(lambda: held.in_api() == [])
    held.until_nothing()
    until(held.in_files, files)

    def tasks() -> bool:
        return held.in_process()["python_asyncio_tasks"] <= process["python_asyncio_tasks"]

    eventually(tasks)
    after = held.in_process()
    assert after["process_open_fds"] <= process["process_open_fds"] + SPARE_FILES
    grown = (after["process_resident_memory_bytes"] - process["process_resident_memory_bytes"]) / 2**20
    assert grown <= SPARE_MB
    print(f"{PODS} pods: {grown:+.1f} MB, tasks and files {process} -> {after}")
