"""Volumes of CSI drivers that must be attached: a VolumeAttachment for each node that has a pod for it, which the
driver's external-attacher answers; the node's status says what is attached, and its kubelet mounts nothing before.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from kone.apimachinery.errors import StatusError
from kone.apimachinery.kinds import (
    CSIDRIVERS,
    NODES,
    PERSISTENTVOLUMECLAIMS,
    PERSISTENTVOLUMES,
    PODS,
    VOLUMEATTACHMENTS,
)
from kone.apimachinery.objects import Key, Object, dig, is_pod_terminal, key_of, name_of, namespace_of, uid_of
from kone.apimachinery.pod_references import claim_names
from kone.apimachinery.timestamps import parse_time
from kone.apimachinery.volume_attachments import attached_names, is_attachable
from kone.apimachinery.volume_claims import is_fully_bound
from kone.client.client import EventType, Informer
from kone.controllers import attach_rules as rules
from kone.controllers.attach_rules import Attachment, Failure, NodePlan, Wanted
from kone.controllers.controller import Context, Controller, Reconciler, Result, Watch
from kone.controllers.persistent_volumes import index_by_claim, users_of

_BY_NODE = "attach-node"
_BY_VOLUME = "attach-volume"


class AttachDetach(Reconciler):
    """Keys name nodes."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self.primary: Informer = ctx.client.informer(NODES)
        self._pods: Informer = ctx.client.informer(PODS)
        self._claims: Informer = ctx.client.informer(PERSISTENTVOLUMECLAIMS)
        self._volumes: Informer = ctx.client.informer(PERSISTENTVOLUMES)
        self._drivers: Informer = ctx.client.informer(CSIDRIVERS)
        self._attachments: Informer = ctx.client.informer(VOLUMEATTACHMENTS)
        self._pods.add_index(_BY_NODE, _node_of_user)
        index_by_claim(self._pods)
        self._claims.add_index(_BY_VOLUME, lambda claim: filter(None, [dig(claim, "spec", "volumeName")]))
        self._attachments.add_index(_BY_NODE, lambda attachment: [attachment["spec"].get("nodeName", "")])
        self._told: dict[str, dict[str, str]] = defaultdict(dict)  # node -> volume -> the last failure that was told
        self._unwanted: dict[str, float] = {}  # attachment -> since when (monotonic) nobody wants it

    def watches(self) -> Iterable[Watch]:
        yield Watch(self._volumes, self._keys_of_volume)
        yield Watch(self._claims, lambda event, claim, previous: self._nodes_of(users_of(self._pods, claim)))
        yield Watch(self._drivers, lambda event, obj, previous: [key_of(node) for node in self.primary.list()])
        yield Watch(self._pods, self._keys_of_pod)
        yield Watch(self._attachments, self._keys_of_attachment)
        yield Watch(self.primary, self._keys_of_node)

    def _keys_of_pod(self, event: EventType, pod: Object, previous: Object | None) -> Iterable[Key]:
        before = None if previous is None else (dig(previous, "spec", "nodeName"), is_pod_terminal(previous))
        if event == "MODIFIED" and before == (dig(pod, "spec", "nodeName"), is_pod_terminal(pod)):
            return ()
        return self._nodes_of([pod]) if next(iter(claim_names(pod)), None) else ()

    def _keys_of_attachment(self, event: EventType, attachment: Object, previous: Object | None) -> Iterable[Key]:
        """Its node; when it is gone, those that may wait for its volume too."""
        yield Key("", attachment["spec"].get("nodeName", ""))
        if event == "DELETED":
            name = dig(attachment, "spec", "source", "persistentVolumeName", default="")
            yield from self._nodes_of_users(name)

    def _keys_of_volume(self, event: EventType, volume: Object, previous: Object | None) -> Iterable[Key]:
        return () if dig(volume, "spec", "csi") is None else self._nodes_of_users(name_of(volume))

    def _keys_of_node(self, event: EventType, node: Object, previous: Object | None) -> Iterable[Key]:
        if previous is None or event == "DELETED" or _facts(node) != _facts(previous):
            yield key_of(node)

    def _nodes_of_users(self, volume: str) -> Iterable[Key]:
        claims = self._claims.by_index(_BY_VOLUME, volume)
        return self._nodes_of(pod for claim in claims for pod in users_of(self._pods, claim))

    def _nodes_of(self, pods: Iterable[Object]) -> Iterable[Key]:
        return {Key("", node) for pod in pods if (node := dig(pod, "spec", "nodeName"))}

    async def reconcile(self, key: Key) -> Result | None:
        node = self.primary.get("", key.name)
        volumes = {name_of(volume): volume for volume in self._volumes.list()}
        wanted = self._wanted(key.name) if node is not None else []
        mine = self._own(self._attachments.by_index(_BY_NODE, key.name), volumes)
        if not wanted and not mine and not attached_names(node):
            self._told.pop(key.name, None)
            return None
        plan = self._plan(key.name, node, wanted, mine, volumes)
        await self._act(key.name, node, plan)
        return None if plan.look_after_s is None else Result(max(plan.look_after_s, 1.0))

    def _own(self, attachments: Iterable[Object], volumes: dict[str, Object]) -> list[Attachment]:
        found = (rules.own_attachment(attachment, volumes) for attachment in attachments)
        return [attachment for attachment in found if attachment is not None]

    def _wanted(self, node_name: str) -> list[Wanted]:
        found: dict[str, tuple[Object, list[Object]]] = {}
        for pod in self._pods.by_index(_BY_NODE, node_name):
            for volume in self._volumes_of(pod):
                found.setdefault(name_of(volume), (volume, []))[1].append(pod)
        return [Wanted(volume, tuple(pods)) for _, (volume, pods) in sorted(found.items())]

    def _volumes_of(self, pod: Object) -> Iterable[Object]:
        """The pod's persistent volumes that must be attached."""
        for name in claim_names(pod):
            claim = self._claims.get(namespace_of(pod), name)
            if claim is None or not is_fully_bound(claim):
                continue
            volume = self._volumes.get("", claim["spec"]["volumeName"])
            driver = dig(volume, "spec", "csi", "driver")
            if volume is None or driver is None or dig(volume, "spec", "claimRef", "uid") != uid_of(claim):
                continue
            if is_attachable(self._drivers.get("", driver)):
                yield volume

    def _plan(
        self,
        node_name: str,
        node: Object | None,
        wanted: list[Wanted],
        mine: list[Attachment],
        volumes: dict[str, Object],
    ) -> NodePlan:
        elsewhere: dict[str, list[str]] = defaultdict(list)
        users: dict[str, list[Object]] = defaultdict(list)
        missing = {want.unique_name for want in wanted} - {each.unique_name for each in mine}
        for other in self._own(self._attachments.list(), volumes) if missing else ():
            if other.unique_name in missing and (holder := other.object["spec"]["nodeName"]) != node_name:
                elsewhere[other.unique_name].append(holder)
                users[other.unique_name] += [
                    pod for want in self._wanted(holder) if want.unique_name == other.unique_name for pod in want.pods
                ]
        now, monotonic = self._ctx.clock.now(), self._ctx.clock.monotonic()
        names = {want.unique_name for want in wanted}
        for each in mine:
            if each.unique_name in names:
                self._unwanted.pop(each.name, None)
            else:
                self._unwanted.setdefault(each.name, monotonic)
        return rules.plan_node(
            node_name,
            node,
            wanted,
            mine,
            elsewhere,
            ages_s={each.name: now - parse_time(each.object["metadata"]["creationTimestamp"]) for each in mine},
            unwanted_s={each.name: monotonic - self._unwanted.get(each.name, monotonic) for each in mine},
            users=users,
        )

    async def _act(self, node_name: str, node: Object | None, plan: NodePlan) -> None:
        client, tell = self._ctx.client, self._ctx.recorder.event
        for attachment in plan.create:
            try:
                await client.create(VOLUMEATTACHMENTS, attachment)
            except StatusError as error:
                if error.reason != "AlreadyExists":
                    raise
        if node is not None and attached_names(node) != set(plan.attached):
            status = {"volumesAttached": rules.attached_status(plan.attached)}
            await client.patch(NODES, node_name, {"status": status}, subresource="status")
        for want in plan.told:
            self._told[node_name].pop(want.unique_name, None)
            for pod in want.pods:
                message = f'AttachVolume.Attach succeeded for volume "{name_of(want.volume)}" '
                tell(pod, "Normal", "SuccessfulAttachVolume", message)
        for failure in plan.failures:
            self._tell_failure(node_name, failure)
        for each in plan.detach:
            await client.delete(VOLUMEATTACHMENTS, each.name, uid=uid_of(each.object))
            self._unwanted.pop(each.name, None)

    def _tell_failure(self, node_name: str, failure: Failure) -> None:
        told = self._told[node_name]
        if told.get(failure.wanted.unique_name) != failure.cause:
            told[failure.wanted.unique_name] = failure.cause
            for pod in failure.wanted.pods:
                self._ctx.recorder.event(pod, "Warning", "FailedAttachVolume", failure.message)


def _node_of_user(pod: Object) -> Iterable[str]:
    """The node of a pod that may hold volumes there."""
    if (node := dig(pod, "spec", "nodeName")) and not is_pod_terminal(pod) and next(iter(claim_names(pod)), None):
        yield node


def _facts(node: Object) -> tuple[object, ...]:
    """What attaching looks at."""
    status = node.get("status") or {}
    ready = [c.get("status") for c in status.get("conditions") or () if c.get("type") == "Ready"]
    return status.get("volumesInUse"), status.get("volumesAttached"), ready, dig(node, "spec", "taints")


ATTACH_DETACH_CONTROLLER = Controller(
    "persistentvolume-attach-detach-controller",
    AttachDetach,
    account="attachdetach-controller",
    component="attachdetach-controller",
)
