"""VolumeBinding: a pod goes where its volumes are, or where they can be made.

Claims that are bound tie the pod to nodes their volumes reach. Claims of a class that waits for its first consumer are
matched with free volumes, node by node, or left to the class's provisioner; that plan is carried out, by
`scheduler/volume_binder.py`, between the decision and the binding. Claims of other classes should be bound already:
where one is not, the pod waits.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from kone.apimachinery.errors import FieldError, invalid_value
from kone.apimachinery.objects import (
    Key,
    Object,
    annotations_of,
    dig,
    is_controlled_by,
    is_deleting,
    key_of,
    name_of,
    namespace_of,
    replace_in,
    uid_of,
)
from kone.apimachinery.quantity import Quantity, parse_quantity
from kone.apimachinery.selectors import from_label_selector
from kone.apimachinery.volume_claims import (
    NO_PROVISIONER,
    SELECTED_NODE,
    class_of,
    find_volume,
    is_fully_bound,
    is_reachable,
    waits_for_consumer,
)
from kone.scheduler.framework import (
    NO_ARGUMENTS,
    SKIP,
    ClusterEvent,
    CycleState,
    Happened,
    Plugin,
    Status,
    unresolvable,
)
from kone.scheduler.pod_info import PodInfo
from kone.scheduler.score_shape import line, on_line, shape_problems
from kone.scheduler.snapshot import Cluster, NodeInfo

OUT_OF_REACH = "node(s) didn't match PersistentVolume's node affinity"
NO_VOLUME = "node(s) didn't find available persistent volumes to bind"
NO_SPACE = "node(s) did not have enough free storage"
VOLUME_GONE = "node(s) unavailable due to one or more pvc(s) bound to non-existent pv(s)"
EMPTIER = ({"utilization": 0, "score": 10}, {"utilization": 100, "score": 0})  # the default shape
TIMEOUT_S = 600.0  # until volumes must be bound
NOT_BOUND_YET = "pod has unbound immediate PersistentVolumeClaims"


@dataclass(frozen=True, slots=True)
class VolumePlan:
    """What is to be done on a node for the pod's claims that are not bound: pairs of volume and claim, and claims
    whose provisioner is to be told the node."""

    matches: tuple[tuple[Object, Object], ...] = ()
    to_provision: tuple[Object, ...] = ()


@dataclass(slots=True)
class PodClaims:
    """The pod's claims, and the plans for the nodes that passed."""

    bound: list[Object] = field(default_factory=list)
    waiting: list[Object] = field(default_factory=list)  # for their first consumer
    plans: dict[str, VolumePlan] = field(default_factory=dict)


Bind = Callable[[PodInfo, NodeInfo, VolumePlan, float], Awaitable[Status | None]]


class VolumeBinding(Plugin):
    name = "VolumeBinding"
    wakes_on = (
        Happened.CLAIM
        | Happened.VOLUME
        | Happened.STORAGE_CLASS
        | Happened.CSI_DRIVER
        | Happened.STORAGE_CAPACITY
        | Happened.NODE_ADDED
        | Happened.NODE_LABELS
    )

    arguments: ClassVar = {"bindTimeoutSeconds": int, "shape": [{"utilization": int, "score": int}]}

    def __init__(self, cluster: Cluster, args: Mapping[str, Any] = NO_ARGUMENTS, bind: Bind | None = None) -> None:
        """`bind` carries a plan out; without it plans are only made."""
        super().__init__(cluster, args)
        self._bind = bind
        self._timeout_s = float(args.get("bindTimeoutSeconds", TIMEOUT_S))
        self._shape = line(args.get("shape") or EMPTIER)
        self._promised: dict[str, Object] = {}  # volumes by name as they will be: with the claim they were chosen for
        self._going: dict[Key, Object] = {}  # claims as they will be: with the node they were told

    @classmethod
    def check(cls, path: str, args: Mapping[str, Any]) -> Iterable[FieldError]:
        if (timeout := args.get("bindTimeoutSeconds", 0)) < 0:
            why = "invalid BindTimeoutSeconds, should not be a negative value"
            yield invalid_value(f"{path}.bindTimeoutSeconds", timeout, why)
        if args.get("shape"):
            yield from shape_problems(f"{path}.shape", args["shape"])

    def wakes(self, pod: PodInfo, event: ClusterEvent) -> bool:
        if event.what & Happened.CLAIM:
            return pod.uses_claim(event.new)
        if event.what & Happened.STORAGE_CLASS and event.old is not None and event.new is not None:
            return bool(event.old.get("allowedTopologies") != event.new.get("allowedTopologies"))
        if event.what & Happened.CSI_DRIVER:
            return _tells_capacity(event.old) and not _tells_capacity(event.new)
        if event.what & Happened.STORAGE_CAPACITY and event.old is not None and event.new is not None:
            return _limit(event.new) > _limit(event.old)
        return True

    # -- deciding ------------------------------------------------------------------------------------------------

    def pre_filter(self, state: CycleState, pod: PodInfo, nodes: Sequence[NodeInfo]) -> Status | None:
        claims = PodClaims()
        for volume in pod.spec.get("volumes") or ():
            name, is_ephemeral = claim_of(pod, volume)
            if not name:
                continue
            claim = self._going.get(Key(pod.namespace, name)) or self.cluster.claims.get(Key(pod.namespace, name))
            if claim is None:
                return unresolvable(not_created_yet(name) if is_ephemeral else not_found(name))
            if (why := _why_useless(claim)) or (is_ephemeral and (why := _why_not_ours(claim, pod))):
                return unresolvable(why)
            if is_fully_bound(claim):
                claims.bound.append(claim)
            elif waits_for_consumer(self._class(claim)) and not dig(claim, "spec", "volumeName"):
                claims.waiting.append(claim)
            else:
                return unresolvable(NOT_BOUND_YET)
        if not claims.bound and not claims.waiting:
            return SKIP
        claims.waiting.sort(key=lambda claim: parse_quantity(dig(claim, *_ASKED, default="0")))
        state.data[self.name] = claims
        return None

    def filter(self, state: CycleState, pod: PodInfo, node: NodeInfo) -> Status | None:
        claims: PodClaims = state.data[self.name]
        reasons = []
        volumes = [self.cluster.volumes.get(dig(claim, "spec", "volumeName")) for claim in claims.bound]
        missing = next((i for i, volume in enumerate(volumes) if volume is None), len(volumes))
        if any(volume and node.node and not is_reachable(volume, node.node) for volume in volumes[:missing]):
            reasons.append(OUT_OF_REACH)
        plan = self._plan(claims.waiting, node)
        if isinstance(plan, str):
            reasons.append(plan)
        if missing < len(volumes) and OUT_OF_REACH not in reasons:
            reasons.append(VOLUME_GONE)
        if reasons or isinstance(plan, str):
            return unresolvable(*reasons)
        claims.plans[node.name] = plan
        return None

    def _plan(self, claims: Iterable[Object], node: NodeInfo) -> VolumePlan | str:
        """Why, where some claim can neither be matched with a volume on the node nor be provisioned there."""
        matches: list[tuple[Object, Object]] = []
        to_provision: list[Object] = []
        for claim in claims:
            told = annotations_of(claim).get(SELECTED_NODE)
            if told is not None and told != node.name:
                return NO_VOLUME
            volume = None if told is not None else self._find(claim, node, matches)
            if volume is not None:
                matches.append((volume, claim))
            elif not _can_provision(self._class(claim), node):
                return NO_VOLUME
            elif self._tells_space(claim) and self._space(claim, node) is None:
                return NO_SPACE
            else:
                to_provision.append(claim)
        return VolumePlan(tuple(matches), tuple(to_provision))

    def _find(self, claim: Object, node: NodeInfo, matches: Iterable[tuple[Object, Object]]) -> Object | None:
        volumes = [self._promised.get(name, volume) for name, volume in self.cluster.volumes.items()]
        of_class = [volume for volume in volumes if class_of(volume) == class_of(claim)]
        return find_volume(claim, of_class, node.node, taken={name_of(volume) for volume, _ in matches})

    def _tells_space(self, claim: Object) -> bool:
        """Whether the claim's driver says how much room it has; one that does not is taken to have enough."""
        storage_class = self._class(claim) or {}
        return _tells_capacity(self.cluster.csi_drivers.get(storage_class.get("provisioner", "")))

    def _space(self, claim: Object, node: NodeInfo) -> Object | None:
        """A CSIStorageCapacity with room for the claim that the node can reach."""
        asked = parse_quantity(dig(claim, *_ASKED, default="0"))
        for capacity in self.cluster.storage_capacities.values():
            if (
                capacity.get("storageClassName") == class_of(claim)
                and _limit(capacity) >= asked
                and capacity.get("nodeTopology") is not None
                and from_label_selector(capacity["nodeTopology"]).matches(node.labels)
            ):
                return capacity
        return None

    def _class(self, claim: Object) -> Object | None:
        return self.cluster.storage_classes.get(class_of(claim))

    # -- which node is better ------------------------------------------------------------------------------------

    def pre_score(self, state: CycleState, pod: PodInfo, nodes: Sequence[NodeInfo]) -> Status | None:
        claims: PodClaims | None = state.data.get(self.name)
        return SKIP if claims is None or not claims.waiting else None

    def score(self, state: CycleState, pod: PodInfo, node: NodeInfo) -> int:
        """By how full the claims would make, class by class, the volumes that are matched; where there are none, the
        room that drivers say they have."""
        plan = plan_of(state, node.name)
        of_class: dict[str, tuple[int, int]] = {}  # what is asked for, and what there is
        for volume, claim in plan.matches:
            asked, there = of_class.get(class_of(claim), (0, 0))
            size = parse_quantity(dig(volume, "spec", "capacity", "storage", default="0")).value()
            of_class[class_of(claim)] = asked + _asked(claim), there + size
        for claim in () if plan.matches else plan.to_provision:
            space = self._space(claim, node) if self._tells_space(claim) else None
            if space is not None:
                asked, _ = of_class.get(class_of(claim), (0, 0))
                there = parse_quantity(space.get("capacity") or "0").value()
                of_class[class_of(claim)] = asked + _asked(claim), there
        if not of_class:
            return 0
        total = sum(on_line(self._shape, _per_cent(asked, there)) for asked, there in of_class.values())
        return (2 * total + len(of_class)) // (2 * len(of_class))  # rounded

    # -- setting aside -------------------------------------------------------------------------------------------

    def reserve(self, state: CycleState, pod: PodInfo, node: NodeInfo) -> Status | None:
        """Until the API says so itself, other pods shall see the volumes as taken and the claims as on their way."""
        plan = plan_of(state, node.name)
        for volume, claim in plan.matches:
            ref = {"namespace": namespace_of(claim), "name": name_of(claim), "uid": uid_of(claim)}
            self._promised[name_of(volume)] = replace_in(volume, ("spec", "claimRef"), ref)
        for claim in plan.to_provision:
            self._going[key_of(claim)] = with_node(claim, node.name)
        return None

    def unreserve(self, state: CycleState, pod: PodInfo, node: NodeInfo) -> None:
        plan = plan_of(state, node.name)
        for volume, _ in plan.matches:
            self._promised.pop(name_of(volume), None)
        for claim in plan.to_provision:
            self._going.pop(key_of(claim), None)

    def will_pre_bind(self, state: CycleState, pod: PodInfo, node: NodeInfo) -> bool:
        plan = plan_of(state, node.name)
        return self._bind is not None and bool(plan.matches or plan.to_provision)

    async def pre_bind(self, state: CycleState, pod: PodInfo, node: NodeInfo) -> Status | None:
        return await self._bind(pod, node, plan_of(state, node.name), self._timeout_s) if self._bind else None

    async def post_bind(self, state: CycleState, pod: PodInfo, node: NodeInfo) -> None:
        self.unreserve(state, pod, node)  # the claims themselves say it by now


def plan_of(state: CycleState, node: str) -> VolumePlan:
    claims: PodClaims | None = state.data.get(VolumeBinding.name)
    return claims.plans.get(node, VolumePlan()) if claims else VolumePlan()


def with_node(claim: Object, node: str) -> Object:
    """The claim, telling its provisioner the node."""
    return replace_in(claim, ("metadata", "annotations"), {**annotations_of(claim), SELECTED_NODE: node})


def claim_of(pod: PodInfo, volume: Mapping[str, Any]) -> tuple[str, bool]:
    """The name of the volume's claim, "" for none, and whether it is the pod's own (an ephemeral volume)."""
    if (source := volume.get("persistentVolumeClaim")) is not None:
        return source.get("claimName", ""), False
    return (f"{pod.name}-{volume.get('name', '')}", True) if volume.get("ephemeral") is not None else ("", False)


def not_found(claim: str) -> str:
    return f'persistentvolumeclaim "{claim}" not found'


def not_created_yet(claim: str) -> str:
    return f'waiting for ephemeral volume controller to create the persistentvolumeclaim "{claim}"'


_ASKED = ("spec", "resources", "requests", "storage")


def _asked(claim: Object) -> int:
    return parse_quantity(dig(claim, *_ASKED, default="0")).value()


def _per_cent(asked: int, there: int) -> int:
    return asked * 100 // there if there and asked <= there else 100


def _why_useless(claim: Object) -> str:
    if dig(claim, "status", "phase") == "Lost":
        volume = dig(claim, "spec", "volumeName", default="")
        return f'persistentvolumeclaim "{name_of(claim)}" bound to non-existent persistentvolume "{volume}"'
    return f'persistentvolumeclaim "{name_of(claim)}" is being deleted' if is_deleting(claim) else ""


def _why_not_ours(claim: Object, pod: PodInfo) -> str:
    if is_controlled_by(claim, pod.pod):
        return ""
    whose = f"PVC {namespace_of(claim)}/{name_of(claim)} was not created for pod {pod.namespace}/{pod.name}"
    return f"{whose} (pod is not owner)"


def _tells_capacity(driver: Object | None) -> bool:
    """Whether a CSI driver says by CSIStorageCapacities how much room it has."""
    return bool(dig(driver, "spec", "storageCapacity"))


def _limit(capacity: Object) -> Quantity:
    """The largest volume that a CSIStorageCapacity has room for; below zero where it does not say."""
    told = capacity.get("maximumVolumeSize", capacity.get("capacity"))
    return parse_quantity("-1" if told is None else told)


def _can_provision(storage_class: Object | None, node: NodeInfo) -> bool:
    """Whether the class makes volumes, and for this node."""
    if storage_class is None or storage_class.get("provisioner") in (None, "", NO_PROVISIONER):
        return False
    topologies: Sequence[Object] = storage_class.get("allowedTopologies") or ()
    return not topologies or any(
        all(
            node.labels.get(wanted.get("key", "")) in (wanted.get("values") or ())
            for wanted in topology.get("matchLabelExpressions") or ()
        )
        for topology in topologies
    )
