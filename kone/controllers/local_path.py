"""Volumes without a storage system: each claim of the class local-path gets a directory of this node, or a file that
the kubelet makes a block device of.

It is what sig-storage's external provisioner and resizer are to a CSI driver: it answers claims that name it, expands
them (a directory has no size of its own; a file takes what is written), and removes what nobody has any more. The class
is made once, as the default; who wants another default takes the annotation away.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from kone.apimachinery.errors import StatusError
from kone.apimachinery.kinds import NODES, PERSISTENTVOLUMECLAIMS, PERSISTENTVOLUMES, STORAGECLASSES
from kone.apimachinery.objects import (
    Key,
    Object,
    annotations_of,
    dig,
    is_deleting,
    key_of,
    labels_of,
    name_of,
    namespace_of,
    replace_in,
    resource_version_of,
    uid_of,
)
from kone.apimachinery.quantity import parse_quantity
from kone.apimachinery.volume_claims import SELECTED_NODE, class_of, is_bound_to, waits_for_consumer
from kone.client.client import EventType, Informer
from kone.controllers.controller import Context, Controller, Reconciler, Result, Watch, for_object
from kone.controllers.volume_expansion import asked, has
from kone.controllers.volume_rules import PROVISIONED_BY, PROVISIONER, volume_mode

NAME: Final = "kone.dev/local-path"
CLASS: Final = "local-path"
HOSTNAME: Final = "kubernetes.io/hostname"
_CLASS_KEY: Final = Key("", "")
STORAGE_CLASS: Final[Object] = {
    "apiVersion": "storage.k8s.io/v1",
    "kind": "StorageClass",
    "metadata": {"name": CLASS, "annotations": {"storageclass.kubernetes.io/is-default-class": "true"}},
    "provisioner": NAME,
    "reclaimPolicy": "Delete",
    "allowVolumeExpansion": True,
    "volumeBindingMode": "WaitForFirstConsumer",
}


# Decide


def refusal(claim: Object) -> str:
    """Why no volume can be made for the claim; "" where one can."""
    return "claim.Spec.Selector is not supported" if dig(claim, "spec", "selector") is not None else ""


def is_asked(claim: Object, storage_class: Object | None) -> bool:
    """Whether the claim waits for a volume of ours."""
    if dig(claim, "spec", "volumeName") or is_deleting(claim) or storage_class is None:
        return False
    if annotations_of(claim).get(PROVISIONER) != NAME or storage_class.get("provisioner") != NAME:
        return False
    return not waits_for_consumer(storage_class) or SELECTED_NODE in annotations_of(claim)


def folder_of(claim: Object) -> str:
    """The name of the claim's directory: its volume's name, and whose it is, for people who look."""
    return f"{volume_name(claim)}_{namespace_of(claim)}_{name_of(claim)}"


def volume_name(claim: Object) -> str:
    return f"pvc-{uid_of(claim)}"


def is_block(claim: Object) -> bool:
    return volume_mode(claim) == "Block"


def path_of(volume: Object) -> str:
    """Where a volume of ours lies."""
    return str(dig(volume, "spec", "local", "path") or dig(volume, "spec", "hostPath", "path", default=""))


def make_volume(claim: Object, storage_class: Object, path: str, hostname: str) -> Object:
    """The persistent volume for a directory, or for a claim of mode Block a file, of the node with that hostname
    label."""
    source = {"local": {"path": path}} if is_block(claim) else {"hostPath": {"path": path, "type": "DirectoryOrCreate"}}
    modes = {key: storage_class[key] for key in ("mountOptions",) if storage_class.get(key)}
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": volume_name(claim), "annotations": {PROVISIONED_BY: NAME}},
        "spec": {
            "accessModes": list(claim["spec"]["accessModes"]),
            "capacity": {"storage": claim["spec"]["resources"]["requests"]["storage"]},
            "claimRef": {
                "kind": "PersistentVolumeClaim",
                "apiVersion": "v1",
                "namespace": namespace_of(claim),
                "name": name_of(claim),
                "uid": uid_of(claim),
                "resourceVersion": resource_version_of(claim),
            },
            **source,
            "nodeAffinity": {
                "required": {
                    "nodeSelectorTerms": [
                        {"matchExpressions": [{"key": HOSTNAME, "operator": "In", "values": [hostname]}]}
                    ]
                }
            },
            "persistentVolumeReclaimPolicy": storage_class.get("reclaimPolicy", "Delete"),
            "storageClassName": name_of(storage_class),
            "volumeMode": volume_mode(claim),
            **modes,
        },
    }


def is_to_be_removed(volume: Object) -> bool:
    """Whether a volume of ours has lost its claim and says that its content goes with it."""
    return (
        annotations_of(volume).get(PROVISIONED_BY) == NAME
        and dig(volume, "spec", "persistentVolumeReclaimPolicy") == "Delete"
        and dig(volume, "status", "phase") in ("Released", "Failed")
        and not is_deleting(volume)
    )


def expanded(volume: Object, claim: Object) -> Object | None:
    """The volume as large as the claim asks; None where it is so already."""
    if parse_quantity(dig(volume, "spec", "capacity", "storage", default="0")) >= asked(claim):
        return None
    return replace_in(volume, ("spec", "capacity", "storage"), claim["spec"]["resources"]["requests"]["storage"])


def grown(claim: Object) -> Object:
    """The claim with what it asked for, and nothing left to do."""
    status = dict(claim.get("status") or {})
    status["capacity"] = {
        **(status.get("capacity") or {}),
        "storage": claim["spec"]["resources"]["requests"]["storage"],
    }
    left = [c for c in status.get("conditions") or () if c.get("type") not in ("Resizing", "FileSystemResizePending")]
    status.pop("conditions", None)
    return {**claim, "status": {**status, "conditions": left} if left else status}


# Act


class LocalPath(Reconciler):
    """Keys name claims, volumes where the namespace is "", and the class where the name is "" too."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self._folder = Path(ctx.settings.local_storage)
        self.primary: Informer = ctx.client.informer(PERSISTENTVOLUMECLAIMS)
        self._volumes: Informer = ctx.client.informer(PERSISTENTVOLUMES)
        self._classes: Informer = ctx.client.informer(STORAGECLASSES)
        self._nodes: Informer = ctx.client.informer(NODES)

    def watches(self) -> Iterable[Watch]:
        if not self._ctx.settings.local_storage:
            return
        yield Watch(self._classes, lambda event, obj, previous: ())
        yield Watch(self._nodes, lambda event, obj, previous: ())
        yield Watch(self.primary, self._keys_of_claim)
        yield Watch(self._volumes, for_object)

    def started(self) -> Iterable[Key]:
        return (_CLASS_KEY,) if self._ctx.settings.local_storage else ()

    def subject(self, key: Key) -> Object | None:
        return self.primary.get(*key) if key.namespace else self._volumes.get("", key.name)

    def _keys_of_claim(self, event: EventType, claim: Object, previous: Object | None) -> Iterable[Key]:
        return () if event == "DELETED" else (key_of(claim),)

    async def reconcile(self, key: Key) -> Result | None:
        if key == _CLASS_KEY:
            await self._ensure_class()
        elif not key.namespace:
            volume = self._volumes.get("", key.name)
            if volume is not None and is_to_be_removed(volume):
                await self._remove(volume)
        elif (claim := self.primary.get(*key)) is not None:
            storage_class = self._classes.get("", class_of(claim))
            if is_asked(claim, storage_class):
                assert storage_class is not None, "a claim that asks has a class"
                await self._provision(claim, storage_class)
            elif asked(claim) > has(claim) and dig(claim, "status", "phase") == "Bound":
                await self._expand(claim)
        return None

    async def _ensure_class(self) -> None:
        if self._classes.get("", CLASS) is None:
            try:
                await self._ctx.client.create(STORAGECLASSES, STORAGE_CLASS)
            except StatusError as error:
                if error.reason != "AlreadyExists":
                    raise

    async def _provision(self, claim: Object, storage_class: Object) -> None:
        tell = self._ctx.recorder.event
        if why := refusal(claim):
            message = f'failed to provision volume with StorageClass "{name_of(storage_class)}": {why}'
            return tell(claim, "Warning", "ProvisioningFailed", message)
        node = annotations_of(claim).get(SELECTED_NODE) or self._ctx.settings.node_name
        found = self._nodes.get("", node)
        labels: Mapping[str, str] = labels_of(found) if found is not None else {}
        path = self._folder / folder_of(claim)
        if is_block(claim):
            await asyncio.to_thread(_make_file, path, asked(claim).value())
        else:
            await asyncio.to_thread(_make, path)
        volume = make_volume(claim, storage_class, str(path), labels.get(HOSTNAME, node))
        try:
            await self._ctx.client.create(PERSISTENTVOLUMES, volume)
        except StatusError as error:
            if error.reason != "AlreadyExists":
                raise
            return None
        return tell(claim, "Normal", "ProvisioningSucceeded", f"Successfully provisioned volume {name_of(volume)}")

    async def _expand(self, claim: Object) -> None:
        volume = self._volumes.get("", dig(claim, "spec", "volumeName", default=""))
        if volume is None or annotations_of(volume).get(PROVISIONED_BY) != NAME or not is_bound_to(volume, claim):
            return
        client, tell = self._ctx.client, self._ctx.recorder.event
        if (larger := expanded(volume, claim)) is not None:
            if is_block(claim):
                await asyncio.to_thread(_make_file, Path(path_of(volume)), asked(claim).value())
            tell(claim, "Normal", "Resizing", f"External resizer is resizing volume {name_of(volume)}")
            await client.update(PERSISTENTVOLUMES, larger)
        await client.update(PERSISTENTVOLUMECLAIMS, grown(claim), subresource="status")
        tell(claim, "Normal", "VolumeResizeSuccessful", "Resize volume succeeded")

    async def _remove(self, volume: Object) -> None:
        path = Path(path_of(volume))
        if path.parent == self._folder:  # a user may have pointed it elsewhere: then its content is not ours
            try:
                await asyncio.to_thread(_delete, path)
            except OSError as error:
                self._ctx.recorder.event(volume, "Warning", "VolumeFailedDelete", str(error))
                raise
        await self._ctx.client.delete(PERSISTENTVOLUMES, name_of(volume), uid=uid_of(volume))


def _make(path: Path) -> None:
    """A directory that every user may write to: which user the pod runs as is not known here."""
    path.mkdir(parents=True, exist_ok=True)
    path.chmod(0o777)


def _make_file(path: Path, size_bytes: int) -> None:
    """A file of that size at least, which takes no more of the disk than is written to it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab") as file:
        if file.tell() < size_bytes:
            file.truncate(size_bytes)


def _delete(path: Path) -> None:
    try:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    except FileNotFoundError:
        pass


LOCAL_PATH_PROVISIONER = Controller(
    "local-path-provisioner", LocalPath, account="persistent-volume-binder", component=NAME
)
