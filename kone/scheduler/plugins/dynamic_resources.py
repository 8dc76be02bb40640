"""DynamicResources: a pod goes where the devices that its ResourceClaims ask for can be had.

Which devices, `scheduler/device_allocation.py` decides, node by node. A claim that was given devices ties its pods to
the nodes that reach these. What was decided is written into the claims between the decision and the binding, by
`scheduler/claim_reservation.py`; until the API says so itself, other pods see those devices as taken.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

from kone.apimachinery.node_selectors import matches
from kone.apimachinery.objects import (
    Key,
    Object,
    dig,
    is_controlled_by,
    is_deleting,
    labels_of,
    name_of,
    namespace_of,
    uid_of,
)
from kone.scheduler.device_allocation import NotOnThisNode, Taken, allocate
from kone.scheduler.device_selectors import SelectorError
from kone.scheduler.devices import Pool, gather, with_taints
from kone.scheduler.framework import (
    NO_ARGUMENTS,
    SKIP,
    ClusterEvent,
    CycleState,
    Framework,
    Happened,
    NoFit,
    Plugin,
    PluginError,
    Remedy,
    Status,
    unresolvable,
)
from kone.scheduler.pod_info import PodInfo
from kone.scheduler.snapshot import Cluster, NodeInfo

NOT_ALLOCATED = "cannot allocate all claims"
ELSEWHERE = "resourceclaim not available on the node"
IN_USE = "resourceclaim in use"
DEALLOCATED = "deallocation of ResourceClaim completed"
RESERVED_MAX = 256  # users of one claim


class ClaimMissing(Exception):
    """A claim of the pod is not there, or not its own."""


@dataclass(slots=True)
class PodClaims:
    """The pod's claims; for nodes that passed, what those that have no devices yet would be given."""

    allocated: list[Object] = field(default_factory=list)
    waiting: list[Object] = field(default_factory=list)
    slices: list[Object] = field(default_factory=list)
    taken: Taken = field(default_factory=Taken)
    plans: dict[str, list[Object]] = field(default_factory=dict)  # allocations in the order of `waiting`, by node
    elsewhere: dict[str, Object] = field(default_factory=dict)  # allocated claims, by uid, that some node lacks


@dataclass(frozen=True, slots=True)
class Reservation:
    """One claim and, where it has no devices yet, what it is to be given."""

    claim: Object
    allocation: Object | None


Reserve = Callable[[PodInfo, Sequence[Reservation]], Awaitable[Status | None]]
Release = Callable[[PodInfo, Object], Awaitable[None]]


class DynamicResources(Plugin):
    """`reserve_claims` writes what was decided into the API, `deallocate` takes a claim's devices back."""

    name = "DynamicResources"
    wakes_on = (
        Happened.RESOURCE_CLAIM
        | Happened.DEVICE_CLASS
        | Happened.RESOURCE_SLICE
        | Happened.SELF_CLAIMS
        | Happened.NODE_ADDED
        | Happened.NODE_LABELS
    )
    arguments: ClassVar = {"filterTimeout": str}

    def __init__(
        self,
        cluster: Cluster,
        args: Mapping[str, Any] = NO_ARGUMENTS,
        *,
        new_id: Callable[[], str] = lambda: "",
        reserve_claims: Reserve | None = None,
        deallocate: Release | None = None,
    ) -> None:
        """`new_id` gives each share of a device that several claims use its id."""
        super().__init__(cluster, args)
        self._new_id = new_id
        self._reserve_claims = reserve_claims
        self._deallocate = deallocate
        self._pending: dict[str, Object] = {}  # allocations that are being written, by the claim's uid

    def wakes(self, pod: PodInfo, event: ClusterEvent) -> bool:
        if not pod.uses_resource_claims:
            return False
        if event.what & Happened.RESOURCE_CLAIM:
            mine = event.new is not None and any(uid_of(claim) == uid_of(event.new) for claim in self._found(pod))
            return mine or dig(event.old, "status", "allocation") is not None
        return True

    def _found(self, pod: PodInfo) -> list[Object]:
        """Its claims, as far as they are there."""
        try:
            return list(self._claims(pod))
        except ClaimMissing:
            return []

    def _claims(self, pod: PodInfo) -> Iterator[Object]:
        """Raises ClaimMissing."""
        made = {
            status.get("name"): status.get("resourceClaimName")
            for status in dig(pod.pod, "status", "resourceClaimStatuses", default=())
        }
        for wanted in pod.spec.get("resourceClaims") or ():
            name, is_own = wanted.get("resourceClaimName"), False
            if not name:
                if wanted.get("name") not in made:
                    raise ClaimMissing(f'pod "{pod.namespace}/{pod.name}": ResourceClaim not created yet')
                name, is_own = made[wanted.get("name")], True
            if not name:
                continue  # none was needed
            claim = self.cluster.resource_claims.get(Key(pod.namespace, name))
            if claim is None:
                raise ClaimMissing(f'resourceclaim.resource.k8s.io "{name}" not found')
            if is_deleting(claim):
                raise ClaimMissing(f'resourceclaim "{name}" is being deleted')
            if is_own and not is_controlled_by(claim, pod.pod):
                whose = f"ResourceClaim {namespace_of(claim)}/{name} was not created for pod"
                raise ClaimMissing(f"{whose} {pod.namespace}/{pod.name} (pod is not owner)")
            yield claim

    # -- deciding ------------------------------------------------------------------------------------------------

    def pre_enqueue(self, pod: PodInfo) -> Status | None:
        try:
            list(self._claims(pod))
        except ClaimMissing as error:
            return unresolvable(str(error))
        return None

    def pre_filter(self, state: CycleState, pod: PodInfo, nodes: Sequence[NodeInfo]) -> Status | None:
        try:
            claims = list(self._claims(pod))
        except ClaimMissing as error:
            return unresolvable(str(error))
        if not claims:
            return SKIP
        found = PodClaims()
        for claim in claims:
            if dig(claim, "status", "allocation") is not None:
                users = dig(claim, "status", "reservedFor", default=())
                if len(users) >= RESERVED_MAX and not _is_reserved(claim, pod):
                    return unresolvable(IN_USE)
                found.allocated.append(claim)
                continue
            shown = f"{namespace_of(claim)}/{name_of(claim)}"
            if uid_of(claim) in self._pending:
                return unresolvable(f"resource claim {shown} is in the process of being allocated")
            if (why := self._missing_class(claim)) is not None:
                return unresolvable(why)
            found.waiting.append(claim)
        if found.waiting:
            found.slices = with_taints(self.cluster.resource_slices.values(), self.cluster.device_taint_rules.values())
            found.taken = self._taken()
        state.data[self.name] = found
        return None

    def _missing_class(self, claim: Object) -> str | None:
        for request in dig(claim, "spec", "devices", "requests", default=()):
            name = request["name"]
            wishes = [(name, request["exactly"])] if request.get("exactly") else []
            wishes += [(f"{name}/{each['name']}", each) for each in request.get("firstAvailable") or ()]
            for shown, wish in wishes:
                if wish["deviceClassName"] not in self.cluster.device_classes:
                    return f"request {shown}: device class {wish['deviceClassName']} does not exist"
        return None

    def _taken(self) -> Taken:
        """What all claims hold, with those that are being written."""
        taken = Taken()
        for claim in self.cluster.resource_claims.values():
            allocation = dig(claim, "status", "allocation") or self._pending.get(uid_of(claim))
            if allocation is not None:
                taken.add(allocation)
        return taken

    def filter(self, state: CycleState, pod: PodInfo, node: NodeInfo) -> Status | None:
        found: PodClaims = state.data[self.name]
        if node.node is None:
            return unresolvable(NOT_ALLOCATED)
        lacking = [claim for claim in found.allocated if not _is_reachable(claim, node.node)]
        if lacking:
            found.elsewhere |= {uid_of(claim): claim for claim in lacking}
            return unresolvable(ELSEWHERE)
        if found.waiting:
            try:
                pools: list[Pool] = gather(found.slices, node.node)
                plan = allocate(found.waiting, pools, self.cluster.device_classes, found.taken, self._new_id)
            except NotOnThisNode as error:
                return unresolvable(str(error))
            except SelectorError as error:
                raise PluginError(f'running "{self.name}" filter plugin: {error}') from None
            if plan is None:
                return unresolvable(NOT_ALLOCATED)
            found.plans[node.name] = plan
        return None

    def post_filter(self, framework: Framework, pod: PodInfo, failure: NoFit) -> Remedy | None:
        """A claim that got its devices where the pod cannot go, and that nobody uses, is given free."""
        found: PodClaims | None = failure.state.data.get(self.name)
        deallocate = self._deallocate
        if found is None or deallocate is None:
            return None
        for claim in found.elsewhere.values():
            users = dig(claim, "status", "reservedFor", default=())
            if not users or (len(users) == 1 and _is_reserved(claim, pod)):
                return Remedy(DEALLOCATED, deed=partial(deallocate, pod, claim))
        return None

    # -- setting aside -------------------------------------------------------------------------------------------

    def reserve(self, state: CycleState, pod: PodInfo, node: NodeInfo) -> Status | None:
        for reservation in self._reservations(state, node):
            if reservation.allocation is not None:
                self._pending[uid_of(reservation.claim)] = reservation.allocation
        return None

    def unreserve(self, state: CycleState, pod: PodInfo, node: NodeInfo) -> None:
        for reservation in self._reservations(state, node):
            if self._pending.get(uid_of(reservation.claim)) is reservation.allocation:
                self._pending.pop(uid_of(reservation.claim), None)

    async def pre_bind(self, state: CycleState, pod: PodInfo, node: NodeInfo) -> Status | None:
        missing = [
            reservation
            for reservation in self._reservations(state, node)
            if reservation.allocation is not None or not _is_reserved(reservation.claim, pod)
        ]
        return await self._reserve_claims(pod, missing) if missing and self._reserve_claims is not None else None

    async def post_bind(self, state: CycleState, pod: PodInfo, node: NodeInfo) -> None:
        self.unreserve(state, pod, node)  # the claims themselves say it by now

    def _reservations(self, state: CycleState, node: NodeInfo) -> list[Reservation]:
        found: PodClaims | None = state.data.get(self.name)
        if found is None:
            return []
        plan = found.plans.get(node.name, [])
        return [
            *(Reservation(claim, None) for claim in found.allocated),
            *(Reservation(claim, allocation) for claim, allocation in zip(found.waiting, plan, strict=False)),
        ]


def _is_reserved(claim: Object, pod: PodInfo) -> bool:
    return any(user.get("uid") == pod.uid for user in dig(claim, "status", "reservedFor", default=()))


def _is_reachable(claim: Object, node: Object) -> bool:
    selector = dig(claim, "status", "allocation", "nodeSelector")
    return selector is None or matches(selector, labels_of(node), name_of(node))
