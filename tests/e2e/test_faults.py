"""What Docker and kone do to each other when they fail: pods recover as upstream's do, nothing is started twice,
nothing is left.

A dockerd of the test's own behind a socket that can delay and keep requests. Each pod writes a line when it starts, so
that what was started is known from the pod itself.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.held import Held
from tests.e2e.node_process import BIN, NodeProcess, eventually, run
from tests.e2e.own_docker import BadSocket, OwnDocker, own_docker
from tests.e2e.test_pods import pod_manifest

pytestmark = pytest.mark.ring4

FLAGS = ("--cluster-cidr", "10.119.0.0/16", "--service-cidr", "10.169.0.0/16", "--disable", "proxy,dns,ingress")
# A tag stands for what a registry gives: there is none here that a pod could show its credentials once more.
FLAGS += ("--image-pull-credentials-verification", "NeverVerify")


@dataclass
class World:
    """A node, its Docker, and the bad socket between them."""

    docker: OwnDocker
    socket: BadSocket
    node: NodeProcess
    image: str
    folder: Path
    instance: str

    def apply(self, *names: str, **fields: Any) -> None:
        """Pods that write down each of their starts and then wait."""
        for name in names:
            script = f"echo start >>/starts/{name}; exec sleep 1000"
            starts = {"name": "starts", "hostPath": {"path": str(self.folder / "starts")}}
            container = {"volumeMounts": [{"name": "starts", "mountPath": "/starts"}], **fields}
            self.node.apply(pod_manifest(name, self.image, script, volumes=[starts], container=container))

    def starts(self, name: str) -> int:
        try:
            return len((self.folder / "starts" / name).read_text().split())
        except FileNotFoundError:
            return 0

    def restarts(self) -> dict[str, int]:
        """Of each pod that is Ready: its restartCount."""
        found = {}
        for pod in self.node.get("pods")["items"]:
            (status,) = pod["status"].get("containerStatuses") or ({"ready": False},)
            if status["ready"]:
                found[pod["metadata"]["name"]] = int(status["restartCount"])
        return found

    def until_ready(self, restarts: Mapping[str, int], *, or_more: bool = False) -> None:
        """Wait until just these pods are Ready, restarted so often, and each was started so often, and runs once."""
        running = sorted(f"k8s_{container}_{name}_default" for name in restarts for container in ("POD", "c"))

        def as_wanted() -> bool:
            found = self.restarts()
            if or_more and all(found.get(name, 0) >= least for name, least in restarts.items()):
                wanted: Mapping[str, int] = {name: found[name] for name in restarts}
            else:
                wanted = restarts
            return (
                found == wanted
                and {name: self.starts(name) - 1 for name in restarts} == wanted
                and sorted("_".join(name.split("_")[:4]) for name in self.held.containers()) == running
            )

        try:
            eventually(as_wanted, within_s=120, every_s=0.3)
        except AssertionError:
            found, starts = self.restarts(), {name: self.starts(name) for name in restarts}
            told = self.node.kubectl("describe", "pods")
            raise AssertionError(
                f"restarted {found}, not {restarts}; started {starts}; running {self.held.containers()}: {told}"
            ) from None

    def container(self, name: str, container: str) -> str:
        """The name in Docker of a pod's container, "POD" for its sandbox."""
        (found,) = (one for one in self.held.containers() if one.startswith(f"k8s_{container}_{name}_default_"))
        return found

    def restart_kone(self, meanwhile: Callable[[], object]) -> None:
        """kill -9, and another after `meanwhile`."""
        self.node.kill()
        meanwhile()
        self.node.start()

    @property
    def held(self) -> Held:
        return Held(self.node, self.instance, self.docker.url)

    def condition(self, kind: str) -> bool:
        """Whether the node's condition of that type holds."""
        conditions = self.node.get("nodes")["items"][0]["status"]["conditions"]
        return {c["type"]: c["status"] for c in conditions}[kind] == "True"

    @property
    def is_node_ready(self) -> bool:
        return self.condition("Ready")


@contextlib.contextmanager
def world_on(docker: OwnDocker, image: str, instance: str) -> Iterator[World]:
    with tempfile.TemporaryDirectory(prefix="kone-e2e-") as place:
        folder = Path(place)
        socket = BadSocket(folder / "bad.sock", docker.url)
        flags = ("--instance", instance, "--docker-host", socket.url, *FLAGS)
        node = NodeProcess(folder / "d", "--secure-port", "0", *flags)
        world = World(docker, socket, node, image, folder, instance)
        (folder / "starts").mkdir()
        try:
            node.start()
            eventually(lambda: world.is_node_ready)
            eventually(lambda: "default" in node.kubectl("get", "serviceaccounts", "-o", "name", check=False))
            yield world
        finally:
            node.stop()
            socket.close()
            run(BIN / "kone", "cleanup", "--data-dir", node.data, "--instance", instance, "--docker-host", docker.url)


@pytest.fixture(scope="module")
def whole_world(image: str) -> Iterator[World]:
    with own_docker(image) as docker, world_on(docker, image, "e2e-faults") as world:
        yield world


@pytest.fixture
def world(whole_world: World) -> Iterator[World]:
    """Without pods, before and after."""
    yield whole_world
    whole_world.node.kubectl("delete", "pods", "--all", "--wait=true", "--timeout=60s")
    whole_world.held.until_nothing()
    for file in (whole_world.folder / "starts").iterdir():
        file.unlink()


def test_pods_start_once_more_when_docker_is_killed(world: World) -> None:
    world.apply("a", "b")
    world.until_ready({"a": 0, "b": 0})
    world.docker.kill()
    world.docker.start()
    world.until_ready({"a": 1, "b": 1})


def test_pods_start_again_when_docker_is_restarted(world: World) -> None:
    world.apply("a", "b")
    world.until_ready({"a": 0, "b": 0})
    world.docker.stop()  # which ends one container after the other, and starts what it is asked to meanwhile
    world.docker.start()
    world.until_ready({"a": 1, "b": 1}, or_more=True)


@pytest.mark.parametrize("lost", ["c", "POD"], ids=["a container", "a sandbox"])
def test_what_docker_loses_is_made_anew(lost: str, world: World) -> None:
    world.apply("a", "b")
    world.until_ready({"a": 0, "b": 0})
    world.docker.docker("rm", "--force", world.container("a", lost))
    world.until_ready({"a": 1, "b": 0})


def test_a_docker_that_is_slow_is_waited_for(world: World) -> None:
    world.socket.delay_s = 1.0
    try:
        names = ("a", "b", "c", "d")
        world.apply(*names)
        world.until_ready(dict.fromkeys(names, 0))
        world.node.kubectl("delete", "pods", "--all", "--wait=true", "--timeout=100s")
    finally:
        world.socket.delay_s = 0.0


def test_a_docker_that_answers_again_is_told_what_came_meanwhile(world: World) -> None:
    world.apply("stays", "goes")
    world.until_ready({"stays": 0, "goes": 0})
    world.socket.hold(".")
    eventually(lambda: not world.is_node_ready)
    world.node.kubectl("delete", "pod", "goes", "--wait=false")
    world.apply("comes")
    eventually(lambda: len(world.socket.held) > 1)
    world.socket.release()
    world.until_ready({"stays": 0, "comes": 0})
    eventually(lambda: world.is_node_ready)


@pytest.mark.parametrize(
    ("request_", "passes", "arrives"),
    [
        ("POST /containers/create.*k8s_POD", 0, True),
        ("POST /containers/[0-9a-f]+/start", 0, False),
        ("POST /containers/create.*k8s_c_", 0, True),
        ("POST /containers/[0-9a-f]+/start", 1, True),
        ("POST /containers/[0-9a-f]+/start", 1, False),
    ],
    ids=[
        "makes a sandbox and Docker does it",
        "starts a sandbox and Docker never hears of it",
        "makes a container and Docker does it",
        "starts a container and Docker does it",
        "starts a container and Docker never hears of it",
    ],
)
def test_a_pod_starts_once_though_kone_is_killed_when_it(
    request_: str, passes: int, arrives: bool, world: World
) -> None:
    world.socket.hold(request_, passes=passes)
    world.apply("a")
    eventually(lambda: world.socket.held)
    world.restart_kone(lambda: world.socket.release(drop=not arrives))
    world.until_ready({"a": 0})


def test_a_pod_starts_once_though_kone_is_killed_when_it_pulls(world: World) -> None:
    absent = "localhost:1/kone-test/absent:1"
    world.socket.hold("POST /images/create")
    world.apply("a", image=absent)
    eventually(lambda: world.socket.held)

    def pulled() -> None:
        world.socket.release()
        world.docker.docker("tag", world.image, absent)

    world.restart_kone(pulled)
    world.until_ready({"a": 0})


def test_a_pod_ends_though_kone_is_killed_when_it_ends_it(world: World) -> None:
    world.apply("a")
    world.until_ready({"a": 0})
    world.socket.hold("POST /containers/[0-9a-f]+/(kill|stop)")
    world.node.kubectl("delete", "pod", "a", "--wait=false")
    eventually(lambda: world.socket.held)
    world.restart_kone(lambda: world.socket.release(drop=True))
    world.node.kubectl("wait", "--for=delete", "pod/a", "--timeout=60s")
    assert world.starts("a") == 1


def test_a_full_disk_ends_pods_and_keeps_others_away_until_there_is_room(image: str) -> None:
    with own_docker(image, data_mb=128) as docker, world_on(docker, image, "e2e-full") as world:
        world.apply("a")
        world.until_ready({"a": 0})
        filler = docker.data / "filler"
        with open(filler, "wb") as file:
            os.posix_fallocate(file.fileno(), 0, os.statvfs(docker.data).f_bavail * os.statvfs(docker.data).f_frsize)
        eventually(lambda: world.condition("DiskPressure"))
        eventually(lambda: world.node.get("pod", "a")["status"].get("reason") == "Evicted")
        world.apply("b")
        told = "node(s) had untolerated taint(s)"
        eventually(lambda: told in world.node.kubectl("describe", "pod", "b"))
        filler.unlink()
        world.node.stop()  # the kubelet that saw it goes by it for five minutes more
        world.node.start()
        world.node.kubectl("delete", "pod", "a")
        world.until_ready({"b": 0})
        assert world.starts("a") == 1
        world.node.kubectl("delete", "pods", "--all", "--wait=true", "--timeout=60s")
        world.held.until_nothing()
