"""Devices as drivers offer them in ResourceSlices: put together into pools, seen from one node.

A pool counts only in its newest generation, and only once all its slices are there.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

from kone.apimachinery.device_taints import means
from kone.apimachinery.node_selectors import matches
from kone.apimachinery.objects import Object, labels_of, name_of
from kone.apimachinery.quantity import Quantity, parse_quantity
from kone.apimachinery.taints import tolerates

KEEPS_AWAY = frozenset({"NoSchedule", "NoExecute"})  # effects of taints


class DeviceId(NamedTuple):
    driver: str
    pool: str
    device: str

    def __str__(self) -> str:
        return "/".join(self)


class PoolId(NamedTuple):
    driver: str
    pool: str

    def __str__(self) -> str:
        return "/".join(self)


class Device:
    """One device of a slice. Where `is_shared` it can be given to several claims, as long as its capacity lasts."""

    def __init__(self, spec: Object, device: Object) -> None:
        self.id = DeviceId(spec["driver"], spec["pool"]["name"], device["name"])
        self.attributes: Mapping[str, Object] = device.get("attributes") or {}
        self.taints: Sequence[Object] = device.get("taints") or ()
        self.counters: Sequence[Object] = device.get("consumesCounters") or ()
        self.is_shared = bool(device.get("allowMultipleAllocations"))
        self.binding: Mapping[str, Sequence[str]] = {  # conditions that its driver sets once it is given
            key: device[key] for key in ("bindingConditions", "bindingFailureConditions") if device.get(key)
        }
        self.binds_to_node = bool(device.get("bindsToNode"))  # once given, it is of that node alone
        self.policies: Mapping[str, Object] = {
            name: policy
            for name, found in (device.get("capacity") or {}).items()
            if (policy := found.get("requestPolicy")) is not None
        }
        self._capacity = device.get("capacity") or {}
        self.where = device if spec.get("perDeviceNodeSelection") else spec  # what names the device's nodes

    @cached_property
    def capacity(self) -> Mapping[str, Quantity]:
        return {name: parse_quantity(found.get("value", "0")) for name, found in self._capacity.items()}

    def attribute(self, name: str) -> Object | None:
        """The attribute by its full name; the driver's own domain need not be written at the device."""
        found = self.attributes.get(name)
        domain, slash, identifier = name.rpartition("/")
        if found is None and slash and domain == self.id.driver:
            found = self.attributes.get(identifier)
        return found


Counters = dict[str, dict[str, Quantity]]
"""Amounts by counter set, by counter."""


@dataclass(slots=True)
class Pool:
    """What of a pool a node can reach. `others` are its devices elsewhere, which use the same counters."""

    id: PoolId
    devices: Sequence[Device] = ()
    others: Sequence[Device] = ()
    counters: Counters = field(default_factory=dict)
    is_incomplete: bool = False
    is_invalid: bool = False


def reaches(where: Mapping[str, Any], node: Object) -> bool:
    """Whether the node is among those that a slice, or a device of it, names."""
    if where.get("nodeName"):
        return bool(where["nodeName"] == name_of(node))
    if where.get("allNodes"):
        return True
    selector = where.get("nodeSelector")
    return selector is not None and matches(selector, labels_of(node), name_of(node))


def gather(slices: Iterable[Object], node: Object) -> list[Pool]:
    """The pools that have something for the node."""
    of_pool: dict[PoolId, list[Object]] = defaultdict(list)
    for found in slices:
        of_pool[PoolId(found["spec"]["driver"], found["spec"]["pool"]["name"])].append(found)
    pools = []
    for pool_id, every in sorted(of_pool.items()):
        newest = max(found["spec"]["pool"].get("generation") or 0 for found in every)
        current = [found for found in every if (found["spec"]["pool"].get("generation") or 0) == newest]
        current.sort(key=name_of)
        if any(_reaches_slice(found["spec"], node) for found in current):
            pools.append(_pool(pool_id, current, node))
    return pools


def _reaches_slice(spec: Object, node: Object) -> bool:
    if spec.get("perDeviceNodeSelection"):
        return any(reaches(device, node) for device in spec.get("devices") or ())
    return reaches(spec, node)


def _pool(pool_id: PoolId, slices: Sequence[Object], node: Object) -> Pool:
    if len(slices) != slices[0]["spec"]["pool"].get("resourceSliceCount"):
        return Pool(pool_id, is_incomplete=True)
    devices: list[Device] = []
    others: list[Device] = []
    counters: Counters = {}
    for found in slices:
        spec = found["spec"]
        for counter_set in spec.get("sharedCounters") or ():
            if counter_set["name"] in counters:
                return Pool(pool_id, is_invalid=True)
            amounts = counter_set.get("counters") or {}
            counters[counter_set["name"]] = {name: parse_quantity(each["value"]) for name, each in amounts.items()}
        for each in spec.get("devices") or ():
            device = Device(spec, each)
            (devices if reaches(device.where, node) else others).append(device)
    names = [device.id for device in (*devices, *others)]
    consumed = [part for device in (*devices, *others) for part in device.counters]
    if len(set(names)) < len(names) or not all(_is_counted(part, counters) for part in consumed):
        return Pool(pool_id, is_invalid=True)
    return Pool(pool_id, devices, others, counters)


def _is_counted(part: Object, counters: Counters) -> bool:
    there = counters.get(part["counterSet"])
    return there is not None and all(name in there for name in part.get("counters") or ())


def with_taints(slices: Iterable[Object], rules: Iterable[Object]) -> list[Object]:
    """The slices with what DeviceTaintRules say of their devices added."""
    known = list(rules)
    if not known:
        return list(slices)
    return [_tainted(found, known) for found in slices]


def _tainted(found: Object, rules: Sequence[Object]) -> Object:
    spec = found["spec"]
    devices = []
    for device in spec.get("devices") or ():
        where = spec["driver"], spec["pool"]["name"], device["name"]
        more = [rule["spec"]["taint"] for rule in rules if means(rule, *where)]
        devices.append({**device, "taints": [*(device.get("taints") or ()), *more]} if more else device)
    return {**found, "spec": {**spec, "devices": devices}}


def is_tainted(device: Device, tolerations: Sequence[Object]) -> bool:
    """Whether a taint that is not tolerated keeps new claims off the device."""
    return any(
        taint.get("effect") in KEEPS_AWAY and not any(tolerates(toleration, taint) for toleration in tolerations)
        for taint in device.taints
    )
