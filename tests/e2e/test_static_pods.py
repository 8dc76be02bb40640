"""A static pod on the node that ring 4 shares, as its administrator and a user of kubectl meet it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.e2e.conftest import MANIFESTS, Place
from tests.e2e.node_process import eventually
from tests.e2e.test_pods import pod

pytestmark = pytest.mark.ring4


def test_a_static_pod_lives_as_long_as_its_manifest_whatever_happens_to_its_mirror(place: Place) -> None:
    path = place.node.data.parent / MANIFESTS / f"{place.namespace}.yaml"
    node_name = place.node.get("nodes")["items"][0]["metadata"]["name"]
    name = f"s-{node_name}"

    def write(script: str) -> None:
        manifest = json.loads(pod(place, "s", script))
        manifest["metadata"]["namespace"] = place.namespace
        path.write_text(json.dumps(manifest))

    def ready() -> Any:
        items = place.node.get("-n", place.namespace, "pods")["items"]
        found = next((item for item in items if item["metadata"]["name"] == name), None)
        statuses = found["status"].get("containerStatuses") if found is not None else None
        return found if statuses and statuses[0]["ready"] and "deletionTimestamp" not in found["metadata"] else None

    def container(mirror: Any) -> str:
        return str(mirror["status"]["containerStatuses"][0]["containerID"])

    try:
        write("echo first; sleep 3600")
        first = eventually(ready)
        assert first["metadata"]["ownerReferences"][0]["kind"] == "Node"
        assert place.kubectl("logs", name) == "first\n"
        assert place.kubectl("exec", name, "--", "echo", "in") == "in\n"

        place.kubectl("delete", "pod", name, "--wait=false")
        again = eventually(lambda: (now := ready()) and now["metadata"]["uid"] != first["metadata"]["uid"] and now)
        assert container(again) == container(first)

        write("echo second; sleep 3600")
        second = eventually(lambda: (now := ready()) and container(now) != container(first) and now)
        assert place.kubectl("logs", name) == "second\n"
        assert second["metadata"]["uid"] != again["metadata"]["uid"]
    finally:
        path.unlink()
    eventually(lambda: not place.node.get("-n", place.namespace, "pods")["items"])
