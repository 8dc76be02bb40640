"""Claims end to end: a StatefulSet's data outlives its pods, and goes with its claim."""

from __future__ import annotations

from pathlib import Path

import pytest

from kone.runtime import loop_devices
from tests.e2e.conftest import Place
from tests.e2e.node_process import eventually

pytestmark = pytest.mark.ring4

COUNTER = """
apiVersion: apps/v1
kind: StatefulSet
metadata: {{name: counter}}
spec:
  serviceName: counter
  selector: {{matchLabels: {{app: counter}}}}
  template:
    metadata: {{labels: {{app: counter}}}}
    spec:
      terminationGracePeriodSeconds: 0
      securityContext: {{runAsUser: 4711}}
      containers:
        - name: c
          image: {image}
          command: [sh, -c, "echo start >>/data/starts; exec sleep 1000"]
          volumeMounts: [{{name: data, mountPath: /data}}]
  volumeClaimTemplates:
    - metadata: {{name: data}}
      spec: {{accessModes: [ReadWriteOnce], resources: {{requests: {{storage: 10Mi}}}}}}
"""


def test_data_of_a_stateful_set_outlives_its_pods_and_goes_with_its_claim(place: Place) -> None:
    place.apply(COUNTER.format(image=place.image))
    place.kubectl("rollout", "status", "statefulset/counter", "--timeout=60s")
    claim = place.node.get("-n", place.namespace, "pvc", "data-counter-0")
    assert (claim["status"]["phase"], claim["spec"]["storageClassName"]) == ("Bound", "local-path")
    place.kubectl("delete", "pod", "counter-0", "--wait=true")

    def starts() -> str:
        return place.kubectl("exec", "counter-0", "--", "cat", "/data/starts", check=False)

    eventually(lambda: starts() == "start\nstart\n", within_s=30)

    place.kubectl("delete", "pvc", "data-counter-0", "--wait=false")
    held = place.node.get("-n", place.namespace, "pvc", "data-counter-0")
    assert held["metadata"]["finalizers"] == ["kubernetes.io/pvc-protection"], "a pod uses it"
    assert starts() == "start\nstart\n"
    volume = place.node.get("pv", claim["spec"]["volumeName"])
    place.kubectl("delete", "statefulset", "counter", "--wait=true")
    place.kubectl("wait", "--for=delete", f"pv/{claim['spec']['volumeName']}", "--timeout=30s")
    assert not Path(volume["spec"]["hostPath"]["path"]).exists()


DISK = """
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {{name: disk}}
spec: {{volumeMode: Block, accessModes: [ReadWriteOnce], resources: {{requests: {{storage: 4Mi}}}}}}
---
apiVersion: v1
kind: Pod
metadata: {{name: p}}
spec:
  terminationGracePeriodSeconds: 0
  containers:
    - name: c
      image: {image}
      command: [sh, -c, "echo written | dd of=/dev/disk conv=fsync && exec sleep 1000"]
      volumeDevices: [{{name: disk, devicePath: /dev/disk}}]
  volumes:
    - {{name: disk, persistentVolumeClaim: {{claimName: disk}}}}
"""


def test_a_claim_of_mode_block_is_a_device_in_its_pod(place: Place) -> None:
    place.apply(DISK.format(image=place.image))
    place.kubectl("wait", "--for=condition=Ready", "pod/p", "--timeout=60s")
    volume = place.node.get("pv", place.get("pvc", "disk")["spec"]["volumeName"])  # type: ignore[index]
    file = Path(volume["spec"]["local"]["path"])
    assert file.stat().st_size == 4 << 20
    place.kubectl("delete", "pod/p", "pvc/disk", "--wait=true")
    place.kubectl("wait", "--for=delete", f"pv/{volume['metadata']['name']}", "--timeout=30s")
    assert not file.exists()
    eventually(lambda: loop_devices.below(file.parent) == [])
