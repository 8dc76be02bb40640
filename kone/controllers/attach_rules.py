"""Attaching: which volumes a node should have attached, and what stands between that and what it has. Pure.

Rules and texts: kubernetes/pkg/controller/volume/attachdetach.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from kone.apimachinery.objects import Object, dig, find_condition, is_deleting, name_of, namespace_of
from kone.apimachinery.taints import OUT_OF_SERVICE, taints_of
from kone.apimachinery.volume_attachments import attached_names, attachment_name, unique_name

ATTACH_TIMEOUT_S = 120.0  # csiTimeout: how long an attacher may take before its users are told
UNMOUNT_WAIT_S = 360.0  # maxWaitForUnmountDuration: how long a node that is not well may keep a volume
_SHARED = frozenset(("ReadWriteMany", "ReadOnlyMany"))


@dataclass(frozen=True, slots=True)
class Wanted:
    """A persistent volume of an attachable driver, and the pods of one node that use it."""

    volume: Object
    pods: tuple[Object, ...]

    @property
    def driver(self) -> str:
        return str(self.volume["spec"]["csi"]["driver"])

    @property
    def handle(self) -> str:
        return str(self.volume["spec"]["csi"]["volumeHandle"])

    @property
    def unique_name(self) -> str:
        return unique_name(self.driver, self.handle)


@dataclass(frozen=True, slots=True)
class Attachment:
    """A VolumeAttachment of this controller's making, and the volume that it is for."""

    object: Object
    unique_name: str

    @property
    def name(self) -> str:
        return name_of(self.object)

    @property
    def attached(self) -> bool:
        return bool(dig(self.object, "status", "attached")) and not is_deleting(self.object)


@dataclass(frozen=True, slots=True)
class Failure:
    """Something to tell the pods of a volume: once for each `cause`."""

    wanted: Wanted
    message: str
    cause: str


@dataclass(slots=True)
class NodePlan:
    create: list[Object] = field(default_factory=list)
    attached: list[str] = field(default_factory=list)
    """The unique names that the node's status is to show."""
    told: list[Wanted] = field(default_factory=list)
    """Volumes that the node has only now."""
    detach: list[Attachment] = field(default_factory=list)
    """When the status does not show them any more."""
    failures: list[Failure] = field(default_factory=list)
    look_after_s: float | None = None


def own_attachment(attachment: Object, volumes: Mapping[str, Object]) -> Attachment | None:
    """None for one that somebody else made, or whose volume is gone."""
    spec = attachment["spec"]
    volume = volumes.get(dig(spec, "source", "persistentVolumeName", default=""))
    source = dig(volume, "spec", "csi")
    if source is None or source["driver"] != spec.get("attacher"):
        return None
    if name_of(attachment) != attachment_name(source["volumeHandle"], source["driver"], spec.get("nodeName", "")):
        return None
    return Attachment(attachment, unique_name(source["driver"], source["volumeHandle"]))


def plan_node(
    node_name: str,
    node: Object | None,
    wanted: Sequence[Wanted],
    attachments: Sequence[Attachment],
    elsewhere: Mapping[str, Sequence[str]],
    *,
    ages_s: Mapping[str, float],
    unwanted_s: Mapping[str, float],
    users: Mapping[str, Sequence[Object]],
) -> NodePlan:
    """`attachments` are the node's own; `elsewhere` says of a volume which other nodes have it; `ages_s` how old an
    attachment is, `unwanted_s` for how long nobody has wanted it, by name; `users` the pods that use a volume, on any
    node."""
    plan = NodePlan()
    shown = attached_names(node)
    there = {each.unique_name: each for each in attachments}
    for want in wanted:
        name = want.unique_name
        attachment = there.get(name)
        if attachment is None:
            if elsewhere.get(name) and not _may_be_shared(want.volume):
                plan.failures.append(_in_use_elsewhere(want, elsewhere[name], users.get(name, ())))
            else:
                plan.create.append(new_attachment(want, node_name))
        elif attachment.attached:
            plan.attached.append(name)
            if name not in shown:
                plan.told.append(want)
        else:
            _judge_waiting(plan, want, attachment, ages_s.get(attachment.name, 0.0))
    names = {want.unique_name for want in wanted}
    for each in attachments:
        if each.unique_name not in names:
            _judge_unwanted(plan, node, each, unwanted_s.get(each.name, 0.0))
    plan.attached.sort()
    return plan


def _may_be_shared(volume: Object) -> bool:
    modes = dig(volume, "spec", "accessModes", default=())
    return not modes or not _SHARED.isdisjoint(modes)


def _judge_waiting(plan: NodePlan, want: Wanted, attachment: Attachment, age_s: float) -> None:
    failed = f'AttachVolume.Attach failed for volume "{name_of(want.volume)}" :'
    error = dig(attachment.object, "status", "attachError")
    if is_deleting(attachment.object):
        plan.failures.append(
            Failure(want, f"{failed} volume attachment is being deleted", f"{attachment.name} deleting")
        )
    elif error is not None:
        cause = f"{attachment.name} {error.get('time', '')} {error.get('message', '')}"
        plan.failures.append(Failure(want, f"{failed} {error.get('message', '')}", cause))
    else:
        times = int(age_s // ATTACH_TIMEOUT_S)
        if times:
            what = f"of {want.driver} CSI driver to attach volume {want.handle}"
            message = f"{failed} timed out waiting for external-attacher {what}"
            plan.failures.append(Failure(want, message, f"{attachment.name} timeout {times}"))
        _look_after(plan, (times + 1) * ATTACH_TIMEOUT_S - age_s)


def _judge_unwanted(plan: NodePlan, node: Object | None, each: Attachment, unwanted_s: float) -> None:
    if is_deleting(each.object):
        return  # the attacher detaches it; when it is done, the attachment is gone
    if node is not None and each.unique_name in dig(node, "status", "volumesInUse", default=()):
        out_of_service = any(taint.get("key") == OUT_OF_SERVICE for taint in taints_of(node))
        if not out_of_service and (_is_ready(node) or unwanted_s < UNMOUNT_WAIT_S):
            if each.attached:
                plan.attached.append(each.unique_name)
            if not _is_ready(node):
                _look_after(plan, UNMOUNT_WAIT_S - unwanted_s)
            return
    plan.detach.append(each)


def _is_ready(node: Object) -> bool:
    condition = find_condition(node, "Ready")
    return condition is not None and condition.get("status") == "True"


def _look_after(plan: NodePlan, delay_s: float) -> None:
    plan.look_after_s = delay_s if plan.look_after_s is None else min(plan.look_after_s, delay_s)


def _in_use_elsewhere(want: Wanted, nodes: Sequence[str], users: Sequence[Object]) -> Failure:
    text = f'Waiting for detach for volume "{name_of(want.volume)}" '
    others = [pod for pod in users if dig(pod, "spec", "nodeName") in nodes]
    if not others:
        text += "Volume is already exclusively attached to one node, waiting on detach before it can be attached to "
        return Failure(want, f"{text}another node", f"{want.unique_name} elsewhere")
    namespace = namespace_of(want.pods[0]) if want.pods else ""
    local = [name_of(pod) for pod in others if namespace_of(pod) == namespace]
    foreign = len(others) - len(local)
    if local:
        text += f"Volume is already used by pod(s) {', '.join(local)}"
        text += f" and {foreign} pod(s) in different namespaces" if foreign else ""
    else:
        text += f"Volume is already used by {foreign} pod(s) in different namespaces"
    return Failure(want, text, f"{want.unique_name} elsewhere")


def new_attachment(want: Wanted, node_name: str) -> Object:
    return {
        "apiVersion": "storage.k8s.io/v1",
        "kind": "VolumeAttachment",
        "metadata": {"name": attachment_name(want.handle, want.driver, node_name)},
        "spec": {
            "attacher": want.driver,
            "nodeName": node_name,
            "source": {"persistentVolumeName": name_of(want.volume)},
        },
    }


def attached_status(names: Iterable[str]) -> list[Object]:
    """node.status.volumesAttached."""
    return [{"name": name, "devicePath": ""} for name in names]
