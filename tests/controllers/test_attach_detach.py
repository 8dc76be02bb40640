"""Attaching: a node gets what its pods use, and keeps it until it has let go."""

from __future__ import annotations

from typing import Any

import pytest

from kone.apimachinery.kinds import (
    CSIDRIVERS,
    GVR,
    NODES,
    PERSISTENTVOLUMECLAIMS,
    PERSISTENTVOLUMES,
    PODS,
    VOLUMEATTACHMENTS,
)
from kone.apimachinery.objects import Object, dig, name_of, replace_in, uid_of
from kone.apimachinery.volume_attachments import attachment_name, unique_name
from kone.apimachinery.volume_claims import BIND_COMPLETED
from kone.controllers.attach_detach import ATTACH_DETACH_CONTROLLER
from tests.controllers.world import World

DRIVER, HANDLE = "d.example.com", "h1"
NAME = unique_name(DRIVER, HANDLE)


class Attaching(World):
    async def furnish(self, *, attach: bool = True, modes: tuple[str, ...] = ("ReadWriteOnce",)) -> None:
        """Nodes n1 and n2, and a volume "pv" that is bound to the claim "c"."""
        for node in ("n1", "n2"):
            ready = {"conditions": [{"type": "Ready", "status": "True"}]}
            await self.put(NODES, _object("Node", node, status=ready))
        await self.put(CSIDRIVERS, _object("CSIDriver", DRIVER, "storage.k8s.io/v1", spec={"attachRequired": attach}))
        claim = _object("PersistentVolumeClaim", "c", spec={"volumeName": "pv"}, status={"phase": "Bound"})
        claim["metadata"] |= {"namespace": "n", "annotations": {BIND_COMPLETED: "yes"}}
        claim = await self.put(PERSISTENTVOLUMECLAIMS, claim)
        reference = {"namespace": "n", "name": "c", "uid": uid_of(claim)}
        csi = {"driver": DRIVER, "volumeHandle": HANDLE}
        spec = {"csi": csi, "claimRef": reference, "accessModes": list(modes)}
        await self.put(PERSISTENTVOLUMES, _object("PersistentVolume", "pv", spec=spec))

    async def pod(self, name: str = "p", node: str = "n1") -> Object:
        volumes = [{"name": "v", "persistentVolumeClaim": {"claimName": "c"}}]
        pod = _object("Pod", name, spec={"nodeName": node, "volumes": volumes, "containers": []})
        pod["metadata"]["namespace"] = "n"
        return await self.put(PODS, pod)

    @property
    def attachments(self) -> list[Object]:
        return self.client.of(VOLUMEATTACHMENTS)

    async def write_status(self, obj: Object, resource: GVR, **status: Any) -> None:
        self.client.overwrite(resource, {**obj, "status": {**(obj.get("status") or {}), **status}})
        await self.settle()

    async def answer(self, **status: Any) -> None:
        """The external-attacher."""
        (attachment,) = self.attachments
        await self.write_status(attachment, VOLUMEATTACHMENTS, **status)

    def node(self, name: str = "n1") -> Object:
        return next(node for node in self.client.of(NODES) if name_of(node) == name)

    def shown(self, name: str = "n1") -> list[str]:
        return [volume["name"] for volume in dig(self.node(name), "status", "volumesAttached", default=[])]

    async def use(self, *names: str, node: str = "n1") -> None:
        """The kubelet."""
        await self.write_status(self.node(node), NODES, volumesInUse=list(names))


def _object(kind: str, name: str, api_version: str = "v1", **content: Any) -> Object:
    return {"apiVersion": api_version, "kind": kind, "metadata": {"name": name}, **content}


@pytest.fixture
def world() -> Attaching:
    return Attaching()


async def test_a_volume_is_attached_and_shown_and_its_pod_is_told(world: Attaching) -> None:
    async with world.running(ATTACH_DETACH_CONTROLLER):
        await world.furnish()
        await world.pod()
        (attachment,) = world.attachments
        assert name_of(attachment) == attachment_name(HANDLE, DRIVER, "n1")
        assert attachment["spec"] == {"attacher": DRIVER, "nodeName": "n1", "source": {"persistentVolumeName": "pv"}}
        assert world.shown() == []
        await world.answer(attached=True)
        assert world.node()["status"]["volumesAttached"] == [{"name": NAME, "devicePath": ""}]
        assert await world.events() == [
            ("Normal", "SuccessfulAttachVolume", 'AttachVolume.Attach succeeded for volume "pv" ')
        ]


async def test_a_driver_that_needs_no_attaching(world: Attaching) -> None:
    async with world.running(ATTACH_DETACH_CONTROLLER):
        await world.furnish(attach=False)
        await world.pod()
        assert world.attachments == []


async def test_it_is_detached_once_the_node_has_let_go(world: Attaching) -> None:
    async with world.running(ATTACH_DETACH_CONTROLLER):
        await world.furnish()
        pod = await world.pod()
        await world.use(NAME)
        await world.answer(attached=True)
        await world.client.delete(PODS, name_of(pod), namespace="n", grace_s=0)
        await world.settle()
        assert (len(world.attachments), world.shown()) == (1, [NAME])
        await world.use()
        assert (world.attachments, world.shown()) == ([], [])


async def test_a_finished_pod_wants_nothing(world: Attaching) -> None:
    async with world.running(ATTACH_DETACH_CONTROLLER):
        await world.furnish()
        pod = await world.pod()
        await world.answer(attached=True)
        await world.write_status(pod, PODS, phase="Succeeded")
        assert world.attachments == []


async def test_a_node_that_is_not_well_loses_its_volumes_after_six_minutes(world: Attaching) -> None:
    async with world.running(ATTACH_DETACH_CONTROLLER):
        await world.furnish()
        pod = await world.pod()
        await world.use(NAME)
        await world.answer(attached=True)
        await world.write_status(world.node(), NODES, conditions=[{"type": "Ready", "status": "Unknown"}])
        await world.client.delete(PODS, name_of(pod), namespace="n", grace_s=0)
        await world.advance(359.0)
        assert len(world.attachments) == 1
        await world.advance(2.0)
        assert world.attachments == []


async def test_a_node_that_is_out_of_service_loses_them_at_once(world: Attaching) -> None:
    async with world.running(ATTACH_DETACH_CONTROLLER):
        await world.furnish()
        pod = await world.pod()
        await world.use(NAME)
        await world.answer(attached=True)
        taints = [{"key": "node.kubernetes.io/out-of-service", "effect": "NoExecute"}]
        await world.edit(NODES, world.node(), "spec", value={"taints": taints})
        await world.client.delete(PODS, name_of(pod), namespace="n", grace_s=0)
        await world.settle()
        assert world.attachments == []


async def test_an_error_of_the_attacher_is_told_once(world: Attaching) -> None:
    async with world.running(ATTACH_DETACH_CONTROLLER):
        await world.furnish()
        await world.pod()
        for _ in range(2):
            await world.answer(attached=False, attachError={"time": "2026-01-01T00:00:00Z", "message": "no slot"})
        told = 'AttachVolume.Attach failed for volume "pv" : no slot'
        assert await world.events() == [("Warning", "FailedAttachVolume", told)]


async def test_an_attacher_that_does_not_answer(world: Attaching) -> None:
    async with world.running(ATTACH_DETACH_CONTROLLER):
        await world.furnish()
        await world.pod()
        await world.advance(119.0)
        assert await world.events() == []
        await world.advance(2.0)
        told = (
            'AttachVolume.Attach failed for volume "pv" : timed out waiting for external-attacher of '
            f"{DRIVER} CSI driver to attach volume {HANDLE}"
        )
        assert await world.events() == [("Warning", "FailedAttachVolume", told)]


async def test_a_volume_for_one_node_is_not_attached_to_a_second(world: Attaching) -> None:
    async with world.running(ATTACH_DETACH_CONTROLLER):
        await world.furnish()
        first = await world.pod("p1", "n1")
        await world.answer(attached=True)
        await world.pod("p2", "n2")
        assert [a["spec"]["nodeName"] for a in world.attachments] == ["n1"]
        told = 'Waiting for detach for volume "pv" Volume is already used by pod(s) p1'
        assert await world.events("FailedAttachVolume") == [("Warning", "FailedAttachVolume", told)]
        await world.client.delete(PODS, name_of(first), namespace="n", grace_s=0)
        await world.settle()
        await world.advance(60.0)
        assert [a["spec"]["nodeName"] for a in world.attachments] == ["n2"]


async def test_a_volume_for_many_nodes_is(world: Attaching) -> None:
    async with world.running(ATTACH_DETACH_CONTROLLER):
        await world.furnish(modes=("ReadWriteMany",))
        await world.pod("p1", "n1")
        await world.pod("p2", "n2")
        assert sorted(a["spec"]["nodeName"] for a in world.attachments) == ["n1", "n2"]


async def test_attachments_of_others_are_left_alone(world: Attaching) -> None:
    async with world.running(ATTACH_DETACH_CONTROLLER):
        await world.furnish()
        spec = {"attacher": DRIVER, "nodeName": "n1", "source": {"persistentVolumeName": "pv"}}
        await world.put(VOLUMEATTACHMENTS, _object("VolumeAttachment", "by-hand", "storage.k8s.io/v1", spec=spec))
        await world.advance(1.0)
        assert [name_of(attachment) for attachment in world.attachments] == ["by-hand"]


async def test_a_node_that_is_gone_holds_nothing(world: Attaching) -> None:
    async with world.running(ATTACH_DETACH_CONTROLLER):
        await world.furnish()
        await world.pod()
        await world.use(NAME)
        await world.answer(attached=True)
        await world.client.delete(NODES, "n1")
        await world.settle()
        assert world.attachments == []


def test_names_are_upstreams() -> None:
    """sha256 of handle, driver and node, one after the other."""
    assert attachment_name("a", "b", "c") == "csi-ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert replace_in({"name": NAME}, ("name",), NAME) == {"name": "kubernetes.io/csi/d.example.com^h1"}
