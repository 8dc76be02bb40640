"""The host name of a pod's containers: the same in all, and by kone's OCI runtime one that they share for real."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.e2e.conftest import Place, cleaned_up
from tests.e2e.node_process import BIN, NodeProcess, eventually, run
from tests.e2e.own_docker import OwnDocker, own_docker

pytestmark = pytest.mark.ring4

INSTANCE = "e2e-uts"


def pod(name: str, image: str) -> str:
    """One container sets the host name, the other looks at it."""
    common = {"image": image, "imagePullPolicy": "Never"}
    setter = {
        **common,
        "name": "setter",
        "command": ["sh", "-c", "hostname; hostname changed && sleep 1000"],
        "securityContext": {"capabilities": {"add": ["SYS_ADMIN"]}},
    }
    looker = {**common, "name": "looker", "command": ["sleep", "1000"]}
    spec = {"containers": [setter, looker], "terminationGracePeriodSeconds": 0}
    return json.dumps({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec})


def host_name(place: Place, name: str, container: str) -> str:
    return place.kubectl("exec", name, "-c", container, "--", "hostname", check=False).strip()


def names(place: Place, name: str) -> tuple[str, str, str]:
    """What the container that sets the host name saw first and sees now, and what the other one sees."""
    place.apply(pod(name, place.image))
    place.kubectl("wait", "--for=condition=Ready", f"pod/{name}", "--timeout=60s")
    eventually(lambda: host_name(place, name, "setter") == "changed")
    first = place.kubectl("logs", name, "-c", "setter").strip()
    return first, host_name(place, name, "setter"), host_name(place, name, "looker")


def test_without_the_runtime_each_container_has_a_host_name_of_its_own_that_says_the_same(place: Place) -> None:
    assert names(place, "apart") == ("apart", "changed", "apart")


def runtime(action: str, docker: OwnDocker, folder: Path) -> str:
    places = ("--bin-dir", folder / "bin", "--daemon-config", folder / "daemon.json", "--docker-host", docker.url)
    return run(BIN / "kone", "runtime", action, *places)


def test_with_the_runtime_what_one_container_sets_the_other_sees(image: str, tmp_path: Path) -> None:
    config = tmp_path / "daemon.json"
    config.write_text('{"max-concurrent-downloads": 3}\n')
    with own_docker(image, flags=[f"--config-file={config}"]) as docker:
        assert "dockerd reads its configuration again" in runtime("install", docker, tmp_path)
        runtimes = {"kone": {"path": f"{tmp_path}/bin/kone-runc"}}
        assert json.loads(config.read_text()) == {"max-concurrent-downloads": 3, "runtimes": runtimes}
        eventually(lambda: "kone" in json.loads(docker.docker("info", "--format", "{{json .Runtimes}}")))
        where = ("--bind-address", "127.0.0.1", "--instance", INSTANCE, "--docker-host", docker.url)
        node = NodeProcess(
            tmp_path / "node", "--secure-port", "0", *where, "--disable", "ingress,loadbalancer,dns,proxy"
        )
        try:
            node.start()
            place = Place(node, "default", image)
            eventually(lambda: "default" in place.kubectl("get", "serviceaccounts", "-o", "name", check=False))
            assert names(place, "shared") == ("shared", "changed", "changed")
            place.kubectl("delete", "pod", "shared", "--grace-period=0", "--force")
        finally:
            cleaned_up(node, "--instance", INSTANCE, "--docker-host", docker.url)
        runtime("remove", docker, tmp_path)
        assert json.loads(config.read_text()) == {"max-concurrent-downloads": 3}
        assert not (tmp_path / "bin/kone-runc").exists()
