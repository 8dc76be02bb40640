"""Pods as a user of kubectl meets them: run, watched, entered, copied from, restarted, and saying what is wrong."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import Place
from tests.e2e.node_process import eventually, run

pytestmark = pytest.mark.ring4


def pod_manifest(name: str, image: str, script: str = "sleep 3600", **spec: Any) -> str:
    """A pod of one container "c" that runs a shell script; `container` adds to the container, the rest to the spec."""
    container = {"name": "c", "image": image, "command": ["sh", "-c", script], **spec.pop("container", {})}
    manifest = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": {"terminationGracePeriodSeconds": 1, "containers": [container], **spec},
    }
    return json.dumps(manifest)


def pod(place: Place, name: str, script: str = "sleep 3600", **spec: Any) -> str:
    return pod_manifest(name, place.image, script, **spec)


def waiting(place: Place, name: str) -> tuple[str, str]:
    """(reason, message) of what the pod's first container waits for."""
    statuses = place.node.get("-n", place.namespace, "pod", name)["status"].get("containerStatuses", [])
    state = statuses[0]["state"].get("waiting", {}) if statuses else {}
    return state.get("reason", ""), state.get("message", "")


def test_a_pod_runs_and_is_entered_read_copied_and_deleted(place: Place, tmp_path: Path) -> None:
    place.apply(pod(place, "a", "echo one; echo two >&2; echo data > /tmp/file; sleep 3600"))
    place.kubectl("wait", "--for=condition=Ready", "pod/a", "--timeout=30s")
    assert sorted(place.kubectl("logs", "a").split()) == ["one", "two"]
    assert place.kubectl("exec", "a", "--", "cat", "/tmp/file") == "data\n"
    assert place.kubectl("exec", "-i", "a", "--", "tr", "a-z", "A-Z", input="shout") == "SHOUT"
    failed = place.kubectl("exec", "a", "--", "sh", "-c", "exit 7", check=False)
    assert "command terminated with exit code 7" in failed
    place.kubectl("cp", "a:/tmp/file", str(tmp_path / "file"))
    assert (tmp_path / "file").read_text() == "data\n"
    described = place.kubectl("describe", "pod", "a")
    assert "Successfully assigned" in described
    assert "Started container c" in described or "Container started" in described
    place.kubectl("delete", "pod", "a", "--timeout=30s")
    assert place.kubectl("get", "pods", check=False) == f"No resources found in {place.namespace} namespace.\n"


def test_logs_follow_until_the_container_ends(place: Place) -> None:
    place.apply(pod(place, "f", "for i in 1 2 3; do echo $i; sleep 0.3; done", restartPolicy="Never"))
    eventually(lambda: place.node.get("-n", place.namespace, "pod", "f")["status"]["phase"] != "Pending")
    assert place.kubectl("logs", "-f", "f").split() == ["1", "2", "3"]
    assert place.kubectl("logs", "--tail=1", "f") == "3\n"
    assert place.kubectl("logs", "--timestamps", "--tail=1", "f").split()[0].startswith("20")


def test_a_killed_container_is_restarted_and_its_last_log_kept(place: Place) -> None:
    place.apply(pod(place, "k", "echo life; sleep 3600"))
    place.kubectl("wait", "--for=condition=Ready", "pod/k", "--timeout=30s")
    status = place.node.get("-n", place.namespace, "pod", "k")["status"]["containerStatuses"][0]
    run("docker", "kill", status["containerID"].removeprefix("docker://"))

    def restarted() -> Any:
        now = place.node.get("-n", place.namespace, "pod", "k")["status"]["containerStatuses"][0]
        return now if now["restartCount"] == 1 and now["ready"] else None

    again = eventually(restarted)
    assert again["containerID"] != status["containerID"]
    assert again["lastState"]["terminated"]["exitCode"] == 137
    assert place.kubectl("logs", "--previous", "k") == "life\n"
    assert sum(reason == "Started" for reason, _ in place.events("k")) >= 1


def test_a_missing_image_is_said_in_the_registrys_words(place: Place) -> None:
    place.apply(pod(place, "i", container={"image": "localhost:1/nothing:1"}))
    eventually(lambda: waiting(place, "i")[0] in ("ErrImagePull", "ImagePullBackOff"))
    eventually(lambda: waiting(place, "i")[0] == "ImagePullBackOff")
    assert any(reason == "Failed" and "localhost:1/nothing:1" in message for reason, message in place.events("i"))


def test_a_missing_command_is_a_start_error(place: Place) -> None:
    place.apply(pod(place, "m", container={"command": ["/no/such/program"]}, restartPolicy="Never"))
    done = eventually(
        lambda: (
            place.node.get("-n", place.namespace, "pod", "m")["status"]
            .get("containerStatuses", [{}])[0]
            .get("state", {})
            .get("terminated")
        )
    )
    assert done["reason"] == "StartError"
    assert done["exitCode"] == 128
    assert "/no/such/program" in done["message"]


def test_a_bad_manifest_gets_upstreams_text(place: Place) -> None:
    manifest = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: x}}
    spec: {containers: [{name: c, image: i}]}
"""
    said = place.kubectl("apply", "-f", "-", input=manifest, check=False)
    assert (
        'The Deployment "web" is invalid: spec.template.metadata.labels: Invalid value: {"app":"x"}: '
        "`selector` does not match template `labels`" in said
    )


def test_environment_and_volumes_say_what_the_manifest_says(place: Place) -> None:
    place.kubectl("create", "configmap", "conf", "--from-literal=key=from-configmap")
    place.kubectl("create", "secret", "generic", "hidden", "--from-literal=word=from-secret")
    manifest = json.loads(pod(place, "v", "env; cat /conf/key /hidden/word /down/labels /etc/hosts; sleep 3600"))
    container = manifest["spec"]["containers"][0]
    container["env"] = [
        {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
        {"name": "KEY", "valueFrom": {"configMapKeyRef": {"name": "conf", "key": "key"}}},
        {"name": "WORD", "valueFrom": {"secretKeyRef": {"name": "hidden", "key": "word"}}},
        {"name": "CPU", "valueFrom": {"resourceFieldRef": {"resource": "limits.memory"}}},
        {"name": "BOTH", "value": "$(KEY)-$(WORD)"},
    ]
    container["resources"] = {"limits": {"memory": "64Mi"}}
    container["volumeMounts"] = [
        {"name": "conf", "mountPath": "/conf"},
        {"name": "hidden", "mountPath": "/hidden"},
        {"name": "down", "mountPath": "/down"},
    ]
    manifest["spec"]["volumes"] = [
        {"name": "conf", "configMap": {"name": "conf"}},
        {"name": "hidden", "secret": {"secretName": "hidden"}},
        {"name": "down", "downwardAPI": {"items": [{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]}},
    ]
    place.apply(json.dumps(manifest))
    place.kubectl("wait", "--for=condition=Ready", "pod/v", "--timeout=30s")
    address = place.node.get("-n", place.namespace, "pod", "v")["status"]["podIP"]
    said = eventually(lambda: (text := place.kubectl("logs", "v")) and "app=" in text and text)
    for expected in (
        f"IP={address}",
        "KEY=from-configmap",
        "WORD=from-secret",
        f"CPU={64 << 20}",
        "BOTH=from-configmap-from-secret",
        'app="v"',
        "KUBERNETES_SERVICE_HOST=",
        f"{address}\tv",
    ):
        assert expected in said, expected
    place.kubectl("patch", "configmap", "conf", "-p", '{"data":{"key":"changed"}}')
    eventually(lambda: place.kubectl("exec", "v", "--", "cat", "/conf/key") == "changed", within_s=90)


def test_a_watch_shows_the_life_of_a_pod(place: Place) -> None:
    place.apply(pod(place, "w", "exit 0", restartPolicy="Never"))
    seen: list[str] = []

    def follow() -> None:
        seen.append(place.kubectl("wait", "--for=jsonpath={.status.phase}=Succeeded", "pod/w", "--timeout=30s"))

    follower = threading.Thread(target=follow)
    follower.start()
    follower.join(60)
    assert seen == ["pod/w condition met\n"]
