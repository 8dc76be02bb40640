"""DynamicResources: a pod goes where the devices that its ResourceClaims ask for can be had.

Which devices, `scheduler/device_allocation.py` decides, node by node. A claim that was given devices ties its pods to
the nodes that reach these. What was decided is written into the claims between the decision and the binding, by
`scheduler/claim_reservation.py`; until the API says so itself, other pods see those devices as taken. For extended
resources that devices serve, one more claim is made, whose requests depend on what the node offers by itself
(`scheduler/extended_devices.py`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

from kone.apimachinery.cel_values import parse_duration
from kone.apimachinery.errors import FieldError, invalid_value
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
    replace_in,
    uid_of,
)
from kone.scheduler.device_allocation import BadClaim, NotOnThisNode, Taken, allocate
from kone.scheduler.device_binding import is_lost
from kone.scheduler.device_selectors import SelectorError
from kone.scheduler.devices import Pool, gather, with_taints
from kone.scheduler.extended_devices import claim_for, is_extended, is_of_pod, requests_and_mappings
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
    spread_scores,
    unresolvable,
)
from kone.scheduler.pod_info import PodInfo
from kone.scheduler.snapshot import Cluster, NodeInfo

NOT_ALLOCATED = "cannot allocate all claims"
ELSEWHERE = "resourceclaim not available on the node"
IN_USE = "resourceclaim in use"
DEALLOCATED = "deallocation of ResourceClaim completed"
DELETED = "deletion of ResourceClaim completed"
STALE = "cannot schedule extended resource claim"  # it was made for a binding that did not come about
NO_RESOURCE = "cannot fit resource"
RESERVED_MAX = 256  # users of one claim
ALTERNATIVES_MAX = 8  # of one request
BINDING_TIMEOUT_S = 600.0


class ClaimMissing(Exception):
    """A claim of the pod is not there, or not its own."""


@dataclass(slots=True)
class PodClaims:
    """The pod's claims; for nodes that passed, what those that have no devices yet would be given."""

    allocated: list[Object] = field(default_factory=list)
    waiting: list[Object] = field(default_factory=list)
    slices: list[Object] = field(default_factory=list)
    taken: Taken = field(default_factory=Taken)
    plans: dict[str, list[Reservation]] = field(default_factory=dict)  # of `waiting` and the extended, by node
    elsewhere: dict[str, Object] = field(default_factory=dict)  # allocated claims, by uid, that some node lacks
    extended: Object | None = None  # the claim for extended resources, as it is before a node is known
    stale: Object | None = None  # one that was left over


@dataclass(frozen=True, slots=True)
class Reservation:
    """One claim and, where it has no devices yet, what it is to be given. One with `mappings` is yet to be made: they
    say which container uses which of its requests."""

    claim: Object
    allocation: Object | None
    mappings: Sequence[Object] = ()


Reserve = Callable[[PodInfo, Sequence[Reservation], str, float], Awaitable[Status | None]]
"""For the pod, on the node of that name; how many seconds drivers have to make the devices ready."""
Release = Callable[[PodInfo, Object], Awaitable[None]]


class DynamicResources(Plugin):
    """`reserve_claims` writes what was decided into the API, `deallocate` takes a claim's devices back, `delete` takes
    back a claim that was made for extended resources."""

    name = "DynamicResources"
    weight = 2
    wakes_on = (
        Happened.RESOURCE_CLAIM
        | Happened.DEVICE_CLASS
        | Happened.RESOURCE_SLICE
        | Happened.SELF_CLAIMS
        | Happened.NODE_ADDED
        | Happened.NODE_LABELS
        | Happened.NODE_ALLOCATABLE
    )
    arguments: ClassVar = {"filterTimeout": str, "bindingTimeout": str}

    def __init__(
        self,
        cluster: Cluster,
        args: Mapping[str, Any] = NO_ARGUMENTS,
        *,
        new_id: Callable[[], str] = lambda: "",
        reserve_claims: Reserve | None = None,
        deallocate: Release | None = None,
        delete: Release | None = None,
        now: Callable[[], float] = lambda: 0.0,
    ) -> None:
        """`new_id` gives each share of a device that several claims use its id, and each claim that is not made yet."""
        super().__init__(cluster, args)
        self._new_id = new_id
        self._reserve_claims = reserve_claims
        self._deallocate = deallocate
        self._delete = delete
        self._now = now
        self._timeout_s = _seconds(args.get("bindingTimeout")) or BINDING_TIMEOUT_S
        self._pending: dict[str, Object] = {}  # allocations that are being written, by the claim's uid

    @classmethod
    def check(cls, path: str, args: Mapping[str, Any]) -> Iterable[FieldError]:
        for key, least_s in (("filterTimeout", 0.0), ("bindingTimeout", 1.0)):
            if (given := args.get(key)) is not None:
                seconds = _seconds(given)
                if seconds is None:
                    yield invalid_value(f"{path}.{key}", given, "invalid duration")
                elif seconds < least_s:
                    why = "must be at least 1 second" if least_s else "must be greater than or equal to 0"
                    yield invalid_value(f"{path}.{key}", given, why)

    def wakes(self, pod: PodInfo, event: ClusterEvent) -> bool:
        if not pod.uses_resource_claims and not self._served(pod):
            return False
        if event.what & Happened.RESOURCE_CLAIM:
            return self._claim_wakes(pod, event)
        return True

    def _claim_wakes(self, pod: PodInfo, event: ClusterEvent) -> bool:
        """Devices were given free, or the status of one of its own claims has changed."""
        had = dig(event.old, "status", "allocation") is not None
        if event.new is None:
            return had
        try:
            mine = any(uid_of(claim) == uid_of(event.new) for claim in self._claims(pod))
        except ClaimMissing:
            return False
        if had and dig(event.new, "status", "allocation") is None:
            return True
        return mine and (event.old is None or event.old.get("status") != event.new.get("status"))

    def _served(self, pod: PodInfo) -> list[str]:
        """The extended resources it asks for that devices may serve."""
        classes = self.cluster.extended_classes
        return [name for name, amount in pod.requests.items() if amount and name in classes] if classes else []

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
        found = PodClaims()
        if self._served(pod):
            found.stale = next((c for c in self.cluster.resource_claims.values() if is_of_pod(c, pod.pod)), None)
            found.extended = claim_for(pod.pod, self._new_id())
        elif not claims:
            return SKIP
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
        if found.waiting or found.extended is not None:
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
        waiting, mappings = found.waiting, list[Object]()
        if found.extended is not None:
            if found.stale is not None:
                return unresolvable(STALE)
            by_devices = []
            for name in pod.requests:
                if not pod.requests[name] or not is_extended(name):
                    continue
                if name in self.cluster.extended_classes and not node.allocatable.get(name):
                    by_devices.append(name)
                elif name not in node.allocatable:
                    return unresolvable(NO_RESOURCE)
            if by_devices:
                requests, mappings = requests_and_mappings(pod.spec, by_devices, self.cluster.extended_classes)
                waiting = [*waiting, replace_in(found.extended, ("spec", "devices", "requests"), requests)]
        lacking = [c for c in found.allocated if not _is_reachable(c, node.node) or self._is_lost(c)]
        if lacking:
            found.elsewhere |= {uid_of(claim): claim for claim in lacking}
            return unresolvable(ELSEWHERE)
        if waiting:
            try:
                pools: list[Pool] = gather(found.slices, node.node)
                plan = allocate(waiting, node.name, pools, self.cluster.device_classes, found.taken, self._new_id)
            except NotOnThisNode as error:
                return unresolvable(str(error))
            except (BadClaim, SelectorError) as error:
                raise PluginError(f'running "{self.name}" filter plugin: {error}') from None
            if plan is None:
                return unresolvable(NOT_ALLOCATED)
            found.plans[node.name] = [
                Reservation(claim, allocation, mappings if uid_of(claim) == uid_of(found.extended or {}) else ())
                for claim, allocation in zip(waiting, plan, strict=True)
            ]
        return None

    def _is_lost(self, claim: Object) -> bool:
        return is_lost(claim, self._timeout_s, self._now())

    def post_filter(self, framework: Framework, pod: PodInfo, failure: NoFit) -> Remedy | None:
        """A claim that got its devices where the pod cannot go, and that nobody uses, is given free."""
        found: PodClaims | None = failure.state.data.get(self.name)
        deallocate, delete = self._deallocate, self._delete
        if found is None or deallocate is None or delete is None:
            return None
        for claim in found.elsewhere.values():
            users = dig(claim, "status", "reservedFor", default=())
            if not users or (len(users) == 1 and _is_reserved(claim, pod)):
                return Remedy(DEALLOCATED, deed=partial(deallocate, pod, claim))
        if found.stale is not None:
            return Remedy(DELETED, deed=partial(delete, pod, found.stale))
        return None

    def pre_score(self, state: CycleState, pod: PodInfo, nodes: Sequence[NodeInfo]) -> Status | None:
        found: PodClaims | None = state.data.get(self.name)
        return SKIP if found is None or not found.plans else None

    def score(self, state: CycleState, pod: PodInfo, node: NodeInfo) -> int:
        """The earlier the alternatives that requests are given, the better."""
        return sum(
            ALTERNATIVES_MAX - position
            for reservation in self._reservations(state, node)
            for position in _alternatives(reservation)
        )

    def normalize(self, state: CycleState, pod: PodInfo, scores: dict[str, int]) -> None:
        spread_scores(scores)

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

    def will_pre_bind(self, state: CycleState, pod: PodInfo, node: NodeInfo) -> bool:
        return self._reserve_claims is not None and bool(self._reservations(state, node))

    async def pre_bind(self, state: CycleState, pod: PodInfo, node: NodeInfo) -> Status | None:
        wanted, reserve = self._reservations(state, node), self._reserve_claims
        return await reserve(pod, wanted, node.name, self._timeout_s) if reserve is not None else None

    async def post_bind(self, state: CycleState, pod: PodInfo, node: NodeInfo) -> None:
        self.unreserve(state, pod, node)  # the claims themselves say it by now

    def _reservations(self, state: CycleState, node: NodeInfo) -> list[Reservation]:
        found: PodClaims | None = state.data.get(self.name)
        if found is None:
            return []
        return [*(Reservation(claim, None) for claim in found.allocated), *found.plans.get(node.name, ())]


def _is_reserved(claim: Object, pod: PodInfo) -> bool:
    return any(user.get("uid") == pod.uid for user in dig(claim, "status", "reservedFor", default=()))


def _alternatives(reservation: Reservation) -> Iterator[int]:
    """Of each request with alternatives, the position of the one that is given."""
    allocation = reservation.allocation or dig(reservation.claim, "status", "allocation")
    given = {result["request"] for result in dig(allocation, "devices", "results", default=())}
    for request in dig(reservation.claim, "spec", "devices", "requests", default=()):
        for position, each in enumerate(request.get("firstAvailable") or ()):
            if f"{request['name']}/{each['name']}" in given:
                yield position


def _seconds(duration: str | None) -> float | None:
    """Of Go's "10m0s"; None where it is none."""
    found = parse_duration(duration) if duration else None
    return None if found is None else found.ns / 1e9


def _is_reachable(claim: Object, node: Object) -> bool:
    selector = dig(claim, "status", "allocation", "nodeSelector")
    return selector is None or matches(selector, labels_of(node), name_of(node))
