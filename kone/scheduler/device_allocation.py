"""Which devices a pod's claims are given on one node: a search that takes back what leads nowhere.

Claims, and requests within a claim, are served in order; a request is given the first devices that are free, that its
class and its own selectors select, and that the claim's constraints allow. Of alternatives (`firstAvailable`) the first
that can be had is taken.

Worked case: devices a (model x), b (model y), c (model x); a request for two with a constraint that their models match.
a is taken, b does not match, c does: a and c.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kone.apimachinery.objects import Object, dig, name_of, namespace_of
from kone.apimachinery.quantity import Quantity, parse_quantity
from kone.scheduler.device_selectors import attribute, selects
from kone.scheduler.devices import Device, DeviceId, Pool, PoolId, is_tainted

RESULTS_MAX = 32  # devices of one claim
TRIES_MAX = 10_000  # on one node; upstream gives it 10 s (filterTimeout), but here all else waits meanwhile
Consumed = dict[str, Quantity]  # by capacity


class NotOnThisNode(Exception):
    """The claims cannot be served here, for a reason that is worth telling."""


class BadClaim(Exception):
    """The claims cannot be judged at all: an error, and not a matter of this node."""


@dataclass(slots=True)
class Taken:
    """What claims hold already: whole devices, and of shared ones how much of their capacity."""

    devices: set[DeviceId] = field(default_factory=set)
    shared: dict[DeviceId, Consumed] = field(default_factory=dict)

    def holds(self, device: DeviceId) -> bool:
        return device in self.devices or device in self.shared

    def add(self, allocation: Object) -> None:
        for result in dig(allocation, "devices", "results", default=()):
            if result.get("adminAccess"):
                continue
            device = DeviceId(result["driver"], result["pool"], result["device"])
            if result.get("shareID"):
                consumed = {name: parse_quantity(q) for name, q in (result.get("consumedCapacity") or {}).items()}
                _add(self.shared.setdefault(device, {}), consumed)
            else:
                self.devices.add(device)


@dataclass(frozen=True, slots=True)
class Wish:
    """A request, or one alternative of it, with its class."""

    name: str  # "gpu", or "gpu/big" of an alternative
    parent: str  # "gpu"
    asked: Object
    device_class: Object
    devices: tuple[tuple[Device, Pool], ...] | None  # all of them are wanted

    @property
    def count(self) -> int:
        return len(self.devices) if self.devices is not None else int(self.asked.get("count") or 1)

    @property
    def is_admin(self) -> bool:
        return bool(self.asked.get("adminAccess"))

    @property
    def capacity(self) -> Mapping[str, Any]:
        found: Mapping[str, Any] = dig(self.asked, "capacity", "requests", default={})
        return found


@dataclass(frozen=True, slots=True)
class Given:
    """One device for one wish."""

    wish: Wish
    device: Device
    pool: Pool
    consumed: Consumed


def allocate(
    claims: Sequence[Object],
    node: str,
    pools: Sequence[Pool],
    classes: Mapping[str, Object],
    taken: Taken,
    new_id: Callable[[], str],
) -> list[Object] | None:
    """For each claim its AllocationResult on the node, which reaches the pools; None where they cannot all be served.
    `new_id` gives the ids of shares.

    Raises NotOnThisNode, BadClaim, SelectorError.
    """
    search = _Search(claims, node, pools, classes, taken)
    if not search.run():
        if any(pool.is_invalid for pool in pools):
            raise NotOnThisNode("invalid resource pools were encountered")
        return None
    return [allocation_result(claim, given, node, new_id) for claim, given in zip(claims, search.given, strict=True)]


class _Search:
    """`given` grows and shrinks as devices are tried; `run` leaves it as found."""

    def __init__(
        self, claims: Sequence[Object], node: str, pools: Sequence[Pool], classes: Mapping[str, Object], taken: Taken
    ) -> None:
        self.node, self.pools, self.classes, self.taken = node, pools, classes, taken
        self.claims = claims
        self._devices = tuple((device, pool) for pool in pools for device in pool.devices)
        self._selected: dict[tuple[int, str, DeviceId], bool] = {}
        self._tries = 0
        self.given: list[list[Given]] = [[] for _ in claims]
        self.wishes = [[self._wishes(claim, request) for request in _requests(claim)] for claim in claims]
        self._consumed: dict[PoolId, dict[tuple[str, str], Quantity]] = {}
        self._check_counts()

    def _check_counts(self) -> None:
        """A claim that wants more devices than it could name is hopeless. Raises BadClaim."""
        for claim, requests in zip(self.claims, self.wishes, strict=True):
            least = 0
            for alternatives in requests:
                fewest = min((wish.count for wish in alternatives), default=0)
                if fewest > RESULTS_MAX - least:
                    why = f"adding {fewest} devices exceeds the claim limit of {RESULTS_MAX}, with {least}"
                    whose = f"claim {namespace_of(claim)}/{name_of(claim)}, request {alternatives[0].parent}"
                    raise BadClaim(f"{whose}: {why} already accounted for")
                least += fewest

    def run(self) -> bool:
        return self._claim(0)

    def _claim(self, index: int) -> bool:
        return index == len(self.claims) or self._request(index, 0)

    def _request(self, claim: int, request: int) -> bool:
        if request == len(self.wishes[claim]):
            return self._claim(claim + 1)
        return any(self._wish(claim, request, wish, 0, 0) for wish in self.wishes[claim][request])

    def _wish(self, claim: int, request: int, wish: Wish, have: int, start: int) -> bool:
        """Serve what is missing of the wish, and all that comes after it. In which order one wish is given its devices
        is all the same: only those from `start` on are tried."""
        if wish.devices == () or wish.count - have > RESULTS_MAX - len(self.given[claim]):
            return False
        if have == wish.count:
            return self._request(claim, request + 1)
        every = wish.devices[have : have + 1] if wish.devices is not None else self._devices[start:]
        for position, (device, pool) in enumerate(every, start + 1):
            given = self._try(claim, wish, device, pool)
            if given is None:
                continue
            self.given[claim].append(given)
            if self._wish(claim, request, wish, have + 1, position):
                return True
            self.given[claim].pop()
        return False

    def _try(self, claim: int, wish: Wish, device: Device, pool: Pool) -> Given | None:
        self._tries += 1
        if self._tries > TRIES_MAX:
            raise BadClaim(f"node {self.node}: timed out trying to allocate devices")
        if wish.is_admin:
            if any(given.device.id == device.id for given in self.given[claim]):
                return None
        elif not device.is_shared and self._is_taken(device.id):
            return None
        if wish.devices is None and not self._is_selected(claim, wish, device):
            return None
        consumed = consumption(device, wish.capacity)
        if consumed is None or (device.is_shared and not wish.is_admin and not self._is_left(device, consumed)):
            return None
        if is_tainted(device, wish.asked.get("tolerations") or ()) or not self._counts(pool, device):
            return None
        given = Given(wish, device, pool, consumed if device.is_shared else {})
        if self._is_allowed(claim, given):
            return given
        if wish.devices is not None:
            whose = f"claim {namespace_of(self.claims[claim])}/{name_of(self.claims[claim])}"
            why = f"cannot add device {device.id} because a claim constraint would not be satisfied"
            raise BadClaim(f"{whose}, request {wish.asked.get('name') or wish.parent}: {why}")
        return None

    def _is_taken(self, device: DeviceId) -> bool:
        return device in self.taken.devices or any(each.device.id == device for given in self.given for each in given)

    def _is_left(self, device: Device, consumed: Consumed) -> bool:
        """Whether there is so much left of a shared device's capacity."""
        total = dict(self.taken.shared.get(device.id, {}))
        for given in self.given:
            for each in given:
                if each.device.id == device.id and not each.wish.is_admin:
                    _add(total, each.consumed)
        _add(total, consumed)
        return all(amount <= device.capacity.get(name, Quantity.of(0)) for name, amount in total.items())

    def _counts(self, pool: Pool, device: Device) -> bool:
        """Whether the pool's counters last for the device beside all that is taken from the pool."""
        if not device.counters:
            return True
        base = self._consumed.get(pool.id)
        if base is None:
            used = [each for each in (*pool.devices, *pool.others) if self.taken.holds(each.id)]
            base = self._consumed[pool.id] = _counted(used)
        chosen = {
            each.device.id: each.device
            for given in self.given
            for each in given
            if each.pool is pool and not (each.device.is_shared and self.taken.holds(each.device.id))
        }
        if device.is_shared and (device.id in chosen or self.taken.holds(device.id)):
            return True  # a further share of it costs no more
        total = _counted([*chosen.values(), device])
        return all(
            base.get(key, Quantity.of(0)) + amount <= pool.counters[key[0]][key[1]] for key, amount in total.items()
        )

    def _is_allowed(self, claim: int, new: Given) -> bool:
        """Whether the claim's constraints hold with the new device, too."""
        for constraint in dig(self.claims[claim], "spec", "devices", "constraints", default=()):
            names = set(constraint.get("requests") or ())
            if names and not names & {new.wish.name, new.wish.parent}:
                continue
            held = [each for each in self.given[claim] if not names or names & {each.wish.name, each.wish.parent}]
            match, distinct = constraint.get("matchAttribute"), constraint.get("distinctAttribute")
            values = [_kind_and_value(each.device.attribute(match or distinct or "")) for each in (*held, new)]
            if None in values:
                return False
            different = len(set(values))
            if (match and different > 1) or (distinct and different < len(values)):
                return False
        return True

    # -- what is asked for -------------------------------------------------------------------------------------------

    def _wishes(self, claim: Object, request: Object) -> list[Wish]:
        parent = request["name"]
        if (exactly := request.get("exactly")) is not None:
            return [self._as_wish(claim, parent, parent, exactly)]
        return [
            self._as_wish(claim, f"{parent}/{each['name']}", parent, each)
            for each in request.get("firstAvailable") or ()
        ]

    def _as_wish(self, claim: Object, name: str, parent: str, asked: Object) -> Wish:
        wish = Wish(name, parent, asked, self.classes[asked["deviceClassName"]], None)
        if asked.get("allocationMode") != "All":
            return wish
        whose = f"claim {namespace_of(claim)}/{name_of(claim)}, request {asked.get('name') or parent}"
        for pool in self.pools:
            if pool.is_incomplete or pool.is_invalid:
                what = "currently being updated" if pool.is_incomplete else "currently invalid"
                raise BadClaim(f"{whose}: asks for all devices, but resource pool {pool.id} is {what}")
        every = tuple(
            (device, pool)
            for device, pool in self._devices
            if _selected(claim, wish, device) and consumption(device, wish.capacity) is not None
        )
        return Wish(name, parent, asked, wish.device_class, every)

    def _is_selected(self, claim: int, wish: Wish, device: Device) -> bool:
        key = claim, wish.name, device.id
        found = self._selected.get(key)
        if found is None:
            found = self._selected[key] = _selected(self.claims[claim], wish, device)
        return found


def _selected(claim: Object, wish: Wish, device: Device) -> bool:
    of_class = dig(wish.device_class, "spec", "selectors", default=())
    return selects(of_class, device, f"class {name_of(wish.device_class)}") and selects(
        wish.asked.get("selectors") or (), device, f"claim {namespace_of(claim)}/{name_of(claim)}"
    )


def _requests(claim: Object) -> Sequence[Object]:
    found: Sequence[Object] = dig(claim, "spec", "devices", "requests", default=())
    return found


def _kind_and_value(found: Object | None) -> tuple[str, Any] | None:
    """A number and a word are never the same."""
    if found is None or (value := attribute(found)) is None:
        return None
    return type(value).__name__, value


def _counted(devices: Iterable[Device]) -> dict[tuple[str, str], Quantity]:
    total: dict[tuple[str, str], Quantity] = defaultdict(lambda: Quantity.of(0))
    for device in devices:
        for part in device.counters:
            for name, amount in (part.get("counters") or {}).items():
                total[part["counterSet"], name] += parse_quantity(amount["value"])
    return total


def _add(total: Consumed, more: Mapping[str, Quantity]) -> None:
    for name, amount in more.items():
        total[name] = total[name] + amount if name in total else amount


# -- capacity ---------------------------------------------------------------------------------------------------------


def consumption(device: Device, requests: Mapping[str, Any]) -> Consumed | None:
    """How much of each capacity is used by who asks for so much; None where the device has not that much to give.

    Worked case: a policy of steps of 2Gi from 4Gi on: 5Gi asked for use 6Gi; nothing asked for uses the default.
    """
    if any(name not in device.capacity for name in requests):
        return None
    used: Consumed = {}
    for name, whole in device.capacity.items():
        asked = parse_quantity(requests[name]) if name in requests else None
        amount = _by_policy(asked, whole, device.policies.get(name))
        if amount is None or amount > whole or (asked is not None and asked > whole):
            return None
        used[name] = amount
    return used


def _by_policy(asked: Quantity | None, whole: Quantity, policy: Object | None) -> Quantity | None:
    if asked is None:
        default = (policy or {}).get("default")
        return parse_quantity(default) if default is not None else whole
    if policy is None:
        return asked
    if valid := policy.get("validValues"):
        return min((value for value in map(parse_quantity, valid) if value >= asked), default=None)
    if (within := policy.get("validRange")) is None:
        return asked
    least, step = parse_quantity(within["min"]), within.get("step")
    amount = max(asked, least)
    if step is not None:
        nanos = parse_quantity(step).nanos
        amount = Quantity(least.nanos + -(-(amount.nanos - least.nanos) // nanos) * nanos, amount.notation)
    return None if within.get("max") is not None and amount > parse_quantity(within["max"]) else amount


# -- what is said of it -----------------------------------------------------------------------------------------------


def allocation_result(claim: Object, given: Sequence[Given], node: str, new_id: Callable[[], str]) -> Object:
    """The claim's status.allocation."""
    results = []
    for each in given:
        result: Object = {"request": each.wish.name, **each.device.id._asdict()}
        if each.wish.is_admin:
            result["adminAccess"] = True
        if tolerations := each.wish.asked.get("tolerations"):
            result["tolerations"] = tolerations
        result |= each.device.binding
        if each.device.is_shared:
            result["shareID"] = new_id()
            result["consumedCapacity"] = {name: amount.canonical() for name, amount in each.consumed.items()}
        results.append(result)
    devices: Object = {"results": results}
    if config := _configuration(claim, given):
        devices["config"] = config
    selector = _node_selector(given, node)
    return {"devices": devices, **({"nodeSelector": selector} if selector else {})}


def _configuration(claim: Object, given: Sequence[Given]) -> list[Object]:
    """What drivers are told: by the classes, for the requests of each, then by the claim."""
    wishes = list({each.wish.name: each.wish for each in given}.values())
    found: list[Object] = []
    for device_class in {name_of(wish.device_class): wish.device_class for wish in wishes}.values():
        names = [wish.name for wish in wishes if wish.device_class is device_class]
        found += [
            {"source": "FromClass", "requests": names, **config}
            for config in dig(device_class, "spec", "config", default=())
        ]
    known = {name for wish in wishes for name in (wish.name, wish.parent)}
    for config in dig(claim, "spec", "devices", "config", default=()):
        names = config.get("requests") or []
        if not names or known & {*names}:
            found.append({**config, "source": "FromClaim", "requests": names})
    for config in found:
        # What is for all of them need not name them.
        if all({wish.name, wish.parent} & {*config["requests"]} for wish in wishes) or not config["requests"]:
            del config["requests"]
    return found


def _node_selector(given: Sequence[Given], node: str) -> Object | None:
    """The nodes from which all the devices can be reached, given that they are for `node`; None for all nodes."""
    fields: list[Object] = []
    expressions: list[Object] = []
    for each in given:
        where = each.device.where
        if where.get("nodeName") or each.device.binds_to_node:
            only = {"key": "metadata.name", "operator": "In", "values": [node]}
            return {"nodeSelectorTerms": [{"matchFields": [only]}]}
        for term in (where.get("nodeSelector") or {}).get("nodeSelectorTerms") or ():
            fields += [one for one in term.get("matchFields") or () if one not in fields]
            expressions += [one for one in term.get("matchExpressions") or () if one not in expressions]
    term = {
        **({"matchFields": fields} if fields else {}),
        **({"matchExpressions": expressions} if expressions else {}),
    }
    return {"nodeSelectorTerms": [term]} if term else None
