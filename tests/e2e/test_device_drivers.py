"""A device plugin and a driver of claims of the test's own: from the node's capacity to /dev in a container."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import Place
from tests.e2e.node_process import NodeProcess, eventually

pytestmark = pytest.mark.ring4

REPOSITORY = Path(__file__).parents[2]
WIDGET = "kone.test/widget"


@pytest.fixture(scope="module")
def drivers(whole_node: NodeProcess) -> Iterator[Path]:
    """Both, running; the file of what the driver of claims was asked."""
    folder = Path(tempfile.mkdtemp(prefix="kone-drv-"))
    kubelet = whole_node.data / "kubelet"
    eventually(lambda: (kubelet / "device-plugins/kubelet.sock").exists())
    with open(folder / "calls", "w") as calls:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.device_drivers", kubelet, folder],
            stdout=calls,
            cwd=REPOSITORY,
            env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        )
    yield folder / "calls"
    process.terminate()
    process.wait(30)
    (kubelet / "plugins_registry/dra.kone.test.sock").unlink(missing_ok=True)
    shutil.rmtree(folder)


def pod(name: str, image: str, resources: dict[str, object], **spec: object) -> str:
    container = {"name": "c", "image": image, "command": ["sleep", "1000"], "resources": resources}
    whole = {"containers": [container], "terminationGracePeriodSeconds": 0, **spec}
    return json.dumps({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": whole})


def inside(place: Place, name: str, command: str) -> str:
    return place.kubectl("exec", name, "--", "sh", "-c", command).strip()


def test_devices_of_a_plugin_are_the_nodes_to_give_and_a_containers_to_use(drivers: Path, place: Place) -> None:
    def widgets() -> tuple[str, str]:
        status = place.node.get("nodes")["items"][0]["status"]
        return status["capacity"].get(WIDGET, ""), status["allocatable"].get(WIDGET, "")

    eventually(lambda: widgets() == ("2", "2"))
    place.apply(pod("user", place.image, {"limits": {WIDGET: "2"}}))
    place.kubectl("wait", "--for=condition=Ready", "pod/user", "--timeout=60s")
    assert inside(place, "user", "echo $WIDGETS; ls /dev/widget-w0 /dev/widget-w1; ls /widgets | grep -c pods") == (
        "w0,w1\n/dev/widget-w0\n/dev/widget-w1\n1"
    )
    place.apply(pod("waiter", place.image, {"limits": {WIDGET: "1"}}))
    eventually(lambda: any(f"Insufficient {WIDGET}" in text for _, text in place.events("waiter")))
    place.kubectl("delete", "pod", "user")
    place.kubectl("wait", "--for=condition=Ready", "pod/waiter", "--timeout=60s")
    assert inside(place, "waiter", "echo $WIDGETS") == "w0"


CLAIM = {"devices": {"requests": [{"name": "one", "exactly": {"deviceClassName": "kone.test"}}]}}


def test_a_claimed_device_is_prepared_given_and_let_go(drivers: Path, place: Place) -> None:
    node = place.node.get("nodes")["items"][0]["metadata"]["name"]
    api = {"apiVersion": "resource.k8s.io/v1"}
    selectors = [{"cel": {"expression": 'device.driver == "dra.kone.test"'}}]
    spec = {
        "driver": "dra.kone.test",
        "nodeName": node,
        "pool": {"name": "p", "generation": 1, "resourceSliceCount": 1},
        "devices": [{"name": "d"}],
    }
    whole = [
        {**api, "kind": "DeviceClass", "metadata": {"name": "kone.test"}, "spec": {"selectors": selectors}},
        {**api, "kind": "ResourceSlice", "metadata": {"name": "kone-test"}, "spec": spec},
    ]
    template = {**api, "kind": "ResourceClaimTemplate", "metadata": {"name": "t"}, "spec": {"spec": CLAIM}}
    for made in (*whole, template):
        place.apply(json.dumps(made))
    claims = [{"name": "mine", "resourceClaimTemplateName": "t"}]
    place.apply(pod("user", place.image, {"claims": [{"name": "mine"}]}, resourceClaims=claims))
    place.kubectl("wait", "--for=condition=Ready", "pod/user", "--timeout=60s")
    said = inside(place, "user", "echo $CLAIM; ls /dev/claimed; id -G").splitlines()
    assert said[0].startswith("user-mine-")
    assert said[1] == "/dev/claimed"
    assert "4242" in said[2].split()
    assert drivers.read_text().split()[0] == "prepare"
    place.kubectl("delete", "pod", "user")
    eventually(lambda: "unprepare" in drivers.read_text())
    eventually(lambda: not place.node.get("-n", place.namespace, "resourceclaims")["items"])
    for kind, name in (("resourceslice", "kone-test"), ("deviceclass", "kone.test")):
        place.kubectl("delete", kind, name)
