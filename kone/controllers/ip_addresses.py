"""Services and IPAddresses agree: each cluster IP has its IPAddress, and each IPAddress that the allocators made has
its Service.

A write of kone commits both together. What can still part them: an older kone that knew no IPAddresses, and people.
This is upstream's repair of them (registry/core/service/ipallocator/controller, RepairIPAddress), with its events.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from kone.apimachinery.errors import StatusError
from kone.apimachinery.ip_addresses import cluster_ips, containing, family_of, ip_address_of, is_managed, labels_match
from kone.apimachinery.kinds import IPADDRESSES, SERVICECIDRS, SERVICES
from kone.apimachinery.objects import Key, Object, dig, key_of, metadata, name_of
from kone.apimachinery.timestamps import parse_time
from kone.client.client import EventType, Informer
from kone.controllers.controller import Context, Controller, Reconciler, Result, Watch, for_object

COMPONENT = "ipallocator-repair-controller"
LEAK_GRACE_S = 60.0  # an IPAddress may be made before its Service, by clients that reserve addresses
_BY_ADDRESS = "services by cluster IP"

# Decide


@dataclass(frozen=True, slots=True)
class Finding:
    """What is wrong with an address: an event, "" for none, and whether its IPAddress is made anew."""

    reason: str = ""
    text: str = ""
    remake: bool = False


def parent_key(address: Object) -> Key | None:
    """The Service that an IPAddress is of; None where it is of something else."""
    parent = dig(address, "spec", "parentRef", default={})
    if parent.get("group") or parent.get("resource") != "services":
        return None
    return Key(parent.get("namespace", ""), parent.get("name", ""))


def judge(
    service: Object, ip: str, address: Object | None, parent: Object | None, service_cidrs: Sequence[Object]
) -> Finding | None:
    """What is wrong with one cluster IP of a Service; None for nothing. `address` is the IPAddress of that name, and
    `parent` the Service that it is of."""
    family = family_of(ip)
    if not containing(service_cidrs, ip):
        text = f"Cluster IP [{family}]: {ip} is not within any configured Service CIDR; please recreate service"
        return Finding("ClusterIPOutOfRange", text)
    if address is None:
        text = f"Cluster IP [{family}]: {ip} is not allocated; repairing"
        return Finding("ClusterIPNotAllocated", text, remake=True)
    if parent_key(address) != key_of(service):
        if parent is not None and ip in cluster_ips(parent):
            text = f"Cluster IP [{family}]:{ip} was assigned to multiple services; please recreate service"
            return Finding("ClusterIPAlreadyAllocated", text)
        text = f"the ClusterIP [{family}]: {ip} for Service {key_of(service)} has a wrong reference; repairing"
        return Finding("ClusterIPNotAllocated", text, remake=True)
    return None if labels_match(address) else Finding(remake=True)


def judge_address(address: Object, service: Object | None) -> Finding | None:
    """What is wrong with an IPAddress of the allocators' whose Service is `service`; it goes then."""
    name, parent = name_of(address), parent_key(address)
    if parent is None:
        reference = dig(address, "spec", "parentRef", default={})
        shown = " ".join(reference.get(field, "") for field in ("group", "resource", "namespace", "name"))
        text = f"IPAddress {name} appears to have been modified, not referencing a Service &{{{shown}}}: cleaning up"
        return Finding("IPAddressNotAllocated", text)
    if service is None:
        text = f"IPAddress: {name} for Service {parent} appears to have leaked: cleaning up"
        return Finding("IPAddressNotAllocated", text)
    if name not in cluster_ips(service):
        text = f"IPAddress: {name} for Service {parent} has a wrong reference; cleaning up"
        return Finding("IPAddressWrongReference", text)
    return None


# Act


class ServiceAddresses(Reconciler):
    """A key is a Service's."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self.primary: Informer = ctx.client.informer(SERVICES)
        self._addresses: Informer = ctx.client.informer(IPADDRESSES)
        self._service_cidrs: Informer = ctx.client.informer(SERVICECIDRS)
        self.primary.add_index(_BY_ADDRESS, cluster_ips)

    def watches(self) -> Iterable[Watch]:
        yield Watch(self._addresses, self._keys_of_address)
        yield Watch(self._service_cidrs, self._keys_of_range)
        yield Watch(self.primary, for_object)

    def _keys_of_address(self, event: EventType, address: Object, previous: Object | None) -> Iterable[Key]:
        return map(key_of, self.primary.by_index(_BY_ADDRESS, name_of(address)))

    def _keys_of_range(self, event: EventType, service_cidr: Object, previous: Object | None) -> Iterable[Key]:
        return map(key_of, self.primary.list()) if event == "DELETED" else ()

    async def reconcile(self, key: Key) -> Result | None:
        service = self.primary.get(*key)
        if service is None:
            return None
        for ip in cluster_ips(service):
            address = self._addresses.get("", ip)
            parent = parent_key(address) if address is not None else None
            of = self.primary.get(*parent) if parent is not None else None
            finding = judge(service, ip, address, of, self._service_cidrs.list())
            if finding is None:
                continue
            if finding.reason:
                self._ctx.recorder.event(service, "Warning", finding.reason, finding.text, action="ClusterIPAllocation")
            if finding.remake:
                await self._remake(service, ip, address)
        return None

    async def _remake(self, service: Object, ip: str, address: Object | None) -> None:
        if address is not None:
            await delete(self._ctx, address)
        await self._ctx.client.create(IPADDRESSES, ip_address_of(service, ip))


class Addresses(Reconciler):
    """A key is an IPAddress's."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self.primary: Informer = ctx.client.informer(IPADDRESSES)
        self._services: Informer = ctx.client.informer(SERVICES)

    def watches(self) -> Iterable[Watch]:
        yield Watch(self._services, lambda event, service, previous: ())  # read only
        yield Watch(self.primary, for_object)

    async def reconcile(self, key: Key) -> Result | None:
        address = self.primary.get(*key)
        if address is None or not is_managed(address):
            return None
        parent = parent_key(address)
        service = self._services.get(*parent) if parent is not None else None
        finding = judge_address(address, service)
        if finding is None:
            return None
        if parent is not None and service is None:
            age_s = self._ctx.clock.now() - parse_time(metadata(address)["creationTimestamp"])
            if age_s <= LEAK_GRACE_S:
                return Result(LEAK_GRACE_S - age_s + 1.0)
        self._ctx.recorder.event(address, "Warning", finding.reason, finding.text, action="IPAddressAllocation")
        await delete(self._ctx, address)
        return None


async def delete(ctx: Context, address: Object) -> None:
    """Delete it, and be content where somebody was faster."""
    try:
        await ctx.client.delete(IPADDRESSES, name_of(address))
    except StatusError as error:
        if error.code != 404:
            raise


SERVICE_ADDRESS_REPAIR = Controller("service-address-repair", ServiceAddresses, component=COMPONENT)
ADDRESS_REPAIR = Controller("ip-address-repair", Addresses, component=COMPONENT)
