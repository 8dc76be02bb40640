"""Static pods: manifests on the node's disk run without the API, and the API shows them by mirror pods."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from kone.aio.clock import FakeClock, settle
from kone.apimachinery import errors
from kone.apimachinery.kinds import NODES, PODS
from kone.apimachinery.objects import Object, annotations_of, dig, replace_in, uid_of
from kone.apiserver.pod_manifest import read_pod_manifest
from kone.runtime.manifests import LOOK_EVERY_S, Manifests
from kone.runtime.pod_admit import refuse
from kone.runtime.static_pods import HASH, MIRROR, SOURCE, identify, is_mirror_of, is_static, mirror_of
from tests.runtime.kubelet_world import World, make_container

NAME = "web-n1"


def manifest(*containers: Object, name: str = "web", **spec: Any) -> Object:
    spec = {"terminationGracePeriodSeconds": 1, "containers": list(containers) or [make_container()], **spec}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}


def read(found: Object | str, path: str = "/m/web.yaml", node_name: str = "n1", seen: str = "") -> Object:
    text = found if isinstance(found, str) else json.dumps(found)
    return read_pod_manifest(text.encode(), lambda pod: identify(pod, path=path, node_name=node_name, seen=seen))


# What a manifest says


def test_a_manifest_becomes_a_pod_of_this_node_with_the_defaults_of_the_api() -> None:
    pod = read(
        "apiVersion: v1\nkind: Pod\nmetadata: {name: web}\nspec: {containers: [{name: c, image: i}]}", seen="now"
    )
    assert (pod["metadata"]["name"], pod["metadata"]["namespace"], pod["spec"]["nodeName"]) == (
        "web-n1",
        "default",
        "n1",
    )
    assert pod["spec"]["restartPolicy"] == "Always"
    assert pod["spec"]["containers"][0]["imagePullPolicy"] == "Always"
    assert pod["spec"]["tolerations"] == [{"operator": "Exists", "effect": "NoExecute"}]
    assert annotations_of(pod) == {SOURCE: "file", HASH: uid_of(pod), "kubernetes.io/config.seen": "now"}
    assert pod["status"]["phase"] == "Pending"
    assert is_static(pod)


def test_what_is_the_same_pod_is_told_by_the_manifest_the_file_and_the_node() -> None:
    first = uid_of(read(manifest()))
    assert len(first) == 32
    assert uid_of(read(manifest(), seen="later")) == first
    assert uid_of(read(manifest(make_container("d")))) != first
    assert uid_of(read(manifest(), path="/m/other.yaml")) != first
    assert uid_of(read(manifest(), node_name="n2")) != first
    own = replace_in(manifest(), ("metadata", "uid"), "mine")
    assert annotations_of(read(own))[HASH] == uid_of(read(own)) == "mine"


REFERENCES: dict[str, Object] = {
    "serviceaccounts": {"serviceAccountName": "a"},
    "secrets": {"imagePullSecrets": [{"name": "s"}]},
    "configmaps": {"volumes": [{"name": "v", "configMap": {"name": "m"}}]},
    "persistentvolumeclaims": {"volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "p"}}]},
    "csidrivers (via CSI volumes)": {"volumes": [{"name": "v", "csi": {"driver": "d.test"}}]},
    "persistentvolumeclaims (via ephemeral volumes)": {
        "volumes": [
            {
                "name": "v",
                "ephemeral": {
                    "volumeClaimTemplate": {
                        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
                    }
                },
            }
        ]
    },
}


@pytest.mark.parametrize("kind", REFERENCES)
def test_a_manifest_may_name_nothing_of_the_api(kind: str) -> None:
    with pytest.raises(ValueError) as refused:
        read(manifest(**REFERENCES[kind]))
    assert str(refused.value) == f"static pods may not reference {kind}"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "couldn't parse as pod(invalid pod: no object)"),
        ("{", "couldn't parse as pod("),
        ('{"apiVersion":"v1","kind":"PodList"}', "couldn't parse as pod(invalid pod: v1, Kind=PodList)"),
        ('{"apiVersion":"v1","kind":"Pod","spec":5}', "couldn't parse as pod("),
        ('{"apiVersion":"v1","kind":"Pod","metadata":{}}', "invalid pod: name is needed for the pod"),
        ('{"apiVersion":"v1","kind":"Pod","metadata":{"name":"a"}}', "spec.containers: Required value"),
    ],
)
def test_what_is_no_valid_pod_is_refused(text: str, said: str) -> None:
    with pytest.raises(ValueError) as refused:
        read(text)
    assert said in str(refused.value)


def test_a_mirror_is_owned_by_the_node_and_says_whose_it_is() -> None:
    pod = read(manifest())
    mirror = mirror_of(pod, {"metadata": {"name": "n1", "uid": "u"}})
    assert is_mirror_of(mirror, pod)
    assert "uid" not in mirror["metadata"]
    assert mirror["metadata"]["ownerReferences"] == [
        {"apiVersion": "v1", "kind": "Node", "name": "n1", "uid": "u", "controller": True}
    ]
    assert mirror["spec"] == pod["spec"]


def test_a_static_pod_runs_whatever_taints_its_node_has() -> None:
    node = {"spec": {"taints": [{"key": "k", "effect": "NoExecute"}]}}
    pod = replace_in(read(manifest()), ("spec", "tolerations"), [])
    assert refuse(pod, node, []) is None
    of_the_api = replace_in(pod, ("metadata", "resourceVersion"), "1")
    verdict = refuse(of_the_api, node, [])
    assert verdict is not None
    assert verdict.reason == "TaintToleration"


# The files


class Folder:
    """Manifests of a directory, looked at, and the names of the pods that were told last."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.clock = FakeClock()
        self.told: list[str] = []
        self.manifests = Manifests(path, "n1", self.clock, read_pod_manifest, self.tell)

    def tell(self, pods: Any) -> None:
        self.told = [pod["metadata"]["name"] for pod in pods]

    async def look(self) -> list[str]:
        await self.clock.advance(LOOK_EVERY_S)
        await settle(50)
        return self.told


async def test_dot_files_directories_and_broken_manifests_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "b.json").write_text(json.dumps(manifest(name="b")))
    (tmp_path / "a.yaml").write_text(json.dumps(manifest(name="a")))
    (tmp_path / ".hidden").write_text(json.dumps(manifest(name="hidden")))
    (tmp_path / "broken").write_text("{")
    (tmp_path / "folder").mkdir()
    folder = Folder(tmp_path)
    await folder.manifests.start()
    assert folder.told == ["a-n1", "b-n1"]
    (tmp_path / "a.yaml").write_text("{")
    assert await folder.look() == ["b-n1"]
    await folder.manifests.stop()


async def test_a_directory_may_come_later_and_one_file_will_do(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "later")
    await folder.manifests.start()
    assert folder.told == []
    folder.path.write_text(json.dumps(manifest(name="one")))
    assert await folder.look() == ["one-n1"]
    await folder.manifests.stop()


async def test_inotify_tells_of_a_manifest_that_is_written_and_of_one_that_goes(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    await folder.manifests.start()

    async def until(names: list[str]) -> None:
        async with asyncio.timeout(30):
            while folder.told != names:  # noqa: ASYNC110
                await asyncio.sleep(0.005)

    (tmp_path / "a").write_text(json.dumps(manifest(name="a")))
    await until(["a-n1"])
    (tmp_path / "a").write_text(json.dumps(manifest(name="b")))
    await until(["b-n1"])
    (tmp_path / "a").unlink()
    await until([])
    await folder.manifests.stop()


# The life of a static pod


async def place(world: World, found: Object | None) -> None:
    """The manifest says this, or is gone; the kubelet has seen it."""
    path = world.path / "manifests" / "web.yaml"
    path.parent.mkdir(exist_ok=True)
    if found is None:
        path.unlink()
    else:
        path.write_text(json.dumps(found))
    await world.advance(LOOK_EVERY_S)


def running(world: World) -> list[str]:
    """The ids of the containers that run."""
    return [world.runtime.find(name).id for name in world.runtime.running()]


async def test_a_static_pod_runs_and_its_mirror_tells_of_it(world: World) -> None:
    await place(world, manifest())
    mirror = world.pod(NAME)
    assert dig(mirror, "status", "phase") == "Running"
    assert annotations_of(mirror)[MIRROR] == annotations_of(mirror)[HASH] != uid_of(mirror)
    assert len(running(world)) == 1
    assert [uid_of(pod) for pod in world.kubelet.pods()] == [annotations_of(mirror)[HASH]]
    assert world.kubelet.pod("default", NAME, uid_of(mirror)) is not None


async def test_a_mirror_that_is_deleted_comes_again_and_the_containers_run_on(world: World) -> None:
    await place(world, manifest())
    before, first = running(world), world.pod(NAME)
    for grace_s in (None, 0):
        await world.delete(NAME, grace_s)
        await world.advance(LOOK_EVERY_S)
        assert running(world) == before
        assert uid_of(world.pod(NAME)) != uid_of(first)
        assert world.phase(NAME) == "Running"
        first = world.pod(NAME)


async def test_a_changed_manifest_is_another_pod_which_starts_when_the_first_has_ended(world: World) -> None:
    await place(world, manifest())
    before, first = running(world), world.pod(NAME)
    await place(world, manifest(make_container("d")))
    await world.advance(5)
    assert len(running(world)) == 1
    assert running(world) != before
    assert world.container(NAME, "d")["ready"]
    assert annotations_of(world.pod(NAME))[MIRROR] != annotations_of(first)[MIRROR]


async def test_without_its_manifest_the_pod_ends_and_its_mirror_goes(world: World) -> None:
    await place(world, manifest())
    await place(world, None)
    await world.advance(5)
    assert running(world) == []
    assert not world.exists(NAME)


async def test_a_manifest_that_comes_back_while_its_pod_ends_runs_again(world: World) -> None:
    await place(world, manifest(terminationGracePeriodSeconds=60))
    before = running(world)
    await place(world, None)
    await place(world, manifest(terminationGracePeriodSeconds=60))
    await world.advance(60)
    await world.advance(5)
    assert len(running(world)) == 1
    assert running(world) != before
    assert world.phase(NAME) == "Running"


async def test_the_next_kubelet_adopts_what_runs(world: World) -> None:
    await place(world, manifest())
    before, mirror = running(world), world.pod(NAME)
    await world.restart()
    assert running(world) == before
    assert uid_of(world.pod(NAME)) == uid_of(mirror)
    assert world.phase(NAME) == "Running"


async def test_what_changed_while_no_kubelet_ran_is_made_so(world: World) -> None:
    await place(world, manifest())
    before = running(world)
    (world.path / "manifests" / "web.yaml").write_text(json.dumps(manifest(make_container("d"))))
    await world.restart()
    await world.advance(35)
    assert len(running(world)) == 1
    assert running(world) != before
    assert world.container(NAME, "d")["ready"]


async def test_a_static_pod_runs_while_the_api_refuses_its_mirror(world: World) -> None:
    world.client.refuse = lambda verb, resource, obj: (
        errors.StatusError(500, "InternalError", "no") if (verb, resource) == ("create", PODS) else None
    )
    await place(world, manifest())
    assert len(running(world)) == 1
    assert not world.exists(NAME)
    world.client.refuse = lambda verb, resource, obj: None
    await world.advance(120)
    assert world.phase(NAME) == "Running"


async def test_a_mirror_without_a_static_pod_is_deleted_and_never_run(world: World) -> None:
    mirror = mirror_of(read(manifest()), world.client.of(NODES)[0])
    world.client.put(PODS, mirror)
    await world.settle()
    assert running(world) == []
    assert not world.exists(NAME)


async def test_a_pod_of_the_api_that_calls_itself_static_is_none(world: World) -> None:
    await world.create("p")
    await world.change("p", "metadata", "annotations", to={SOURCE: "file"})
    await world.delete("p")
    await world.advance(35)
    assert not world.exists("p")
    assert running(world) == []
