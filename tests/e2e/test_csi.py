"""Volumes of a CSI driver end to end: a driver of the test's own, the test in the place of its external-attacher."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from kone.runtime import loop_devices
from tests.e2e.conftest import Place
from tests.e2e.node_process import eventually, run

pytestmark = pytest.mark.ring4

REPOSITORY = Path(__file__).parents[2]


@dataclass
class Driver:
    name: str
    folder: Path
    place: Place

    @property
    def kubelet(self) -> Path:
        return self.place.node.data / "kubelet"

    def apply(self, manifest: str) -> None:
        """A manifest with the driver's name in it."""
        self.place.apply(manifest.replace("DRIVER", self.name).replace("IMAGE", self.place.image))

    def attach(self) -> None:
        """What an external-attacher does: answer the attachment that names the driver."""

        def mine() -> list[str]:
            found = self.place.node.get("volumeattachments")["items"]
            return [a["metadata"]["name"] for a in found if a["spec"]["attacher"] == self.name]

        (name,) = eventually(mine)
        status = '{"status": {"attached": true}}'
        self.place.node.kubectl("patch", "volumeattachment", name, "--subresource=status", "--type=merge", "-p", status)

    def left(self) -> list[str]:
        """What the node still holds of the driver's volumes."""
        node = self.place.node.get("nodes")["items"][0]["status"]
        names = [*node.get("volumesInUse", ()), *(v["name"] for v in node.get("volumesAttached", ()))]
        attachments = self.place.node.get("volumeattachments")["items"]
        data = [str(path) for path in self.kubelet.rglob("vol_data.json") if self.name in path.read_text()]
        mine = [a["metadata"]["name"] for a in attachments if a["spec"]["attacher"] == self.name]
        return [*(name for name in names if self.name in name), *mine, *data]


@pytest.fixture
def driver(place: Place) -> Iterator[Driver]:
    name = f"d{uuid.uuid4().hex[:8]}.csi.kone.dev"
    with tempfile.TemporaryDirectory(prefix="kone-csi-") as folder:
        made = Driver(name, Path(folder), place)
        command = [sys.executable, "-m", "tests.csi_driver", str(made.kubelet), folder, name]
        process = subprocess.Popen(command, cwd=REPOSITORY, env={**os.environ, "PYTHONPATH": str(REPOSITORY)})

        def registered() -> bool:
            nodes = place.node.get("csinodes")["items"]
            return name in [driver["name"] for node in nodes for driver in node["spec"]["drivers"] or ()]

        try:
            eventually(registered)
            yield made
        finally:
            process.terminate()
            process.wait(30)
            (made.kubelet / "plugins_registry" / f"{name}-reg.sock").unlink(missing_ok=True)
            place.node.kubectl("delete", "csidriver,pv", name, "--ignore-not-found", "--wait=false")
        eventually(lambda: not registered())


FILES = """
apiVersion: storage.k8s.io/v1
kind: CSIDriver
metadata: {name: DRIVER}
spec: {attachRequired: true, podInfoOnMount: true, fsGroupPolicy: File, volumeLifecycleModes: [Persistent, Ephemeral]}
---
apiVersion: v1
kind: PersistentVolume
metadata: {name: DRIVER}
spec:
  capacity: {storage: 1Mi}
  accessModes: [ReadWriteOnce]
  persistentVolumeReclaimPolicy: Retain
  csi: {driver: DRIVER, volumeHandle: one}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: c}
spec: {storageClassName: "", volumeName: DRIVER, accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Mi}}}
---
apiVersion: v1
kind: Pod
metadata: {name: p}
spec:
  terminationGracePeriodSeconds: 0
  securityContext: {runAsUser: 4711, fsGroup: 4712}
  containers:
    - name: c
      image: IMAGE
      command: [sh, -c, "echo written >/data/file && echo $(cat /inline/csi.storage.k8s.io_pod.name); exec sleep 1000"]
      volumeMounts: [{name: data, mountPath: /data}, {name: inline, mountPath: /inline}]
  volumes:
    - {name: data, persistentVolumeClaim: {claimName: c}}
    - {name: inline, csi: {driver: DRIVER}}
"""


def test_a_volume_is_attached_mounted_written_to_and_let_go(driver: Driver) -> None:
    place = driver.place
    driver.apply(FILES)
    driver.attach()
    place.kubectl("wait", "--for=condition=Ready", "pod/p", "--timeout=60s")
    eventually(lambda: place.kubectl("logs", "p") == "p\n")
    assert (driver.folder / "volumes" / "one" / "file").read_text() == "written\n"
    name = next(name for name in driver.left() if "^" in name)
    assert name == f"kubernetes.io/csi/{driver.name}^one"
    told = f'AttachVolume.Attach succeeded for volume "{driver.name}" '
    eventually(lambda: ("SuccessfulAttachVolume", told) in place.events("p"))
    place.kubectl("delete", "pod", "p", "--wait=true")
    eventually(lambda: driver.left() == [])


DEVICE = """
apiVersion: storage.k8s.io/v1
kind: CSIDriver
metadata: {name: DRIVER}
spec: {attachRequired: false}
---
apiVersion: v1
kind: PersistentVolume
metadata: {name: DRIVER}
spec:
  capacity: {storage: 1Mi}
  accessModes: [ReadWriteOnce]
  volumeMode: Block
  persistentVolumeReclaimPolicy: Retain
  csi: {driver: DRIVER, volumeHandle: disk}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: c}
spec:
  storageClassName: ""
  volumeName: DRIVER
  volumeMode: Block
  accessModes: [ReadWriteOnce]
  resources: {requests: {storage: 1Mi}}
---
apiVersion: v1
kind: Pod
metadata: {name: p}
spec:
  terminationGracePeriodSeconds: 0
  containers:
    - name: c
      image: IMAGE
      command: [sh, -c, "echo written | dd of=/dev/disk conv=fsync && exec sleep 1000"]
      volumeDevices: [{name: disk, devicePath: /dev/disk}]
  volumes:
    - {name: disk, persistentVolumeClaim: {claimName: c}}
"""


def test_a_block_device_is_given_to_a_container(driver: Driver) -> None:
    place = driver.place
    file = driver.folder / "file"
    file.touch()
    os.truncate(file, 1 << 20)
    device = loop_devices.attach(file)
    try:
        (driver.folder / "volumes").mkdir()
        (driver.folder / "volumes" / "disk").symlink_to(device)
        driver.apply(DEVICE)
        place.kubectl("wait", "--for=condition=Ready", "pod/p", "--timeout=60s")
        run("sync", device)
        assert file.read_bytes()[:8] == b"written\n"
        place.kubectl("delete", "pod", "p", "--wait=true")
        eventually(lambda: driver.left() == [])
    finally:
        loop_devices.detach(device)
