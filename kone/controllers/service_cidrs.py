"""The ranges of cluster IPs: each says that it is ready, and none goes while addresses of it are in use.

Upstream's service-cidr-controller (pkg/controller/servicecidrs), and of its API server the controller that keeps the
ServiceCIDR of the flags (controlplane/controller/defaultservicecidr).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from kone.apimachinery.errors import StatusError
from kone.apimachinery.ip_addresses import containing, covering, is_managed, networks_of, overlapping
from kone.apimachinery.kinds import IPADDRESSES, SERVICECIDRS
from kone.apimachinery.objects import (
    Key,
    Object,
    dig,
    find_condition,
    has_finalizer,
    is_deleting,
    key_of,
    metadata,
    name_of,
    other_conditions,
    replace_in,
    with_finalizer,
    without_finalizer,
)
from kone.apimachinery.timestamps import format_time, parse_time
from kone.client.client import EventType, Informer
from kone.controllers.controller import Context, Controller, Reconciler, Result, Watch

FINALIZER = "networking.k8s.io/service-cidr-finalizer"
DELETION_GRACE_S = 10.0  # until every server has seen that the range gives no more addresses
DEFAULT = "kubernetes"

_READY = {"type": "Ready", "status": "True", "reason": "", "message": "Kubernetes Service CIDR is ready"}
_DEFAULT_READY = {**_READY, "message": "Kubernetes default Service CIDR is ready"}
_TERMINATING = {
    "type": "Ready",
    "status": "False",
    "reason": "Terminating",
    "message": (
        "There are still IPAddresses referencing the ServiceCIDR, please remove them or create a new ServiceCIDR"
    ),
}


# Decide


def is_needed(service_cidr: Object, all_cidrs: Sequence[Object], addresses: Iterable[Object]) -> bool:
    """Whether without it an address that a Service uses would belong to no range."""
    others = [one for one in all_cidrs if name_of(one) != name_of(service_cidr)]
    if all(covering(others, network) for network in networks_of(service_cidr)):
        return False
    return any(
        containing((service_cidr,), name_of(address)) and not containing(others, name_of(address))
        for address in addresses
        if is_managed(address)
    )


def with_ready(service_cidr: Object, wanted: Object, now: float) -> Object | None:
    """The ServiceCIDR with that condition; None where it says so already."""
    found = find_condition(service_cidr, "Ready")
    if found is not None and all(found.get(field, "") == value for field, value in wanted.items()):
        return None
    condition = {**wanted, "lastTransitionTime": format_time(now)}
    return replace_in(service_cidr, ("status", "conditions"), [*other_conditions(service_cidr, "Ready"), condition])


# Act


class ServiceCIDRs(Reconciler):
    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self.primary: Informer = ctx.client.informer(SERVICECIDRS)
        self._addresses: Informer = ctx.client.informer(IPADDRESSES)

    def watches(self) -> Iterable[Watch]:
        yield Watch(self.primary, self._keys)
        yield Watch(self._addresses, self._keys_of_address)

    def _keys(self, event: EventType, service_cidr: Object, previous: Object | None) -> Iterable[Key]:
        yield key_of(service_cidr)
        if event == "ADDED":  # it may free one that waits to go
            yield from map(key_of, overlapping(self.primary.list(), networks_of(service_cidr)))

    def _keys_of_address(self, event: EventType, address: Object, previous: Object | None) -> Iterable[Key]:
        if event == "MODIFIED" or not is_managed(address):
            return ()
        return map(key_of, containing(self.primary.list(), name_of(address)))

    async def reconcile(self, key: Key) -> Result | None:
        service_cidr = self.primary.get(*key)
        if service_cidr is None:
            return None
        if is_deleting(service_cidr):
            return await self._let_go(service_cidr)
        if not has_finalizer(service_cidr, FINALIZER):
            service_cidr = await self._ctx.client.update(SERVICECIDRS, with_finalizer(service_cidr, FINALIZER))
        await self._say(service_cidr, _READY)
        return None

    async def _let_go(self, service_cidr: Object) -> Result | None:
        if not has_finalizer(service_cidr, FINALIZER):
            return None
        if is_needed(service_cidr, self.primary.list(), self._addresses.list()):
            await self._say(service_cidr, _TERMINATING)
            return None
        since = parse_time(metadata(service_cidr)["deletionTimestamp"])
        if (wait_s := DELETION_GRACE_S - (self._ctx.clock.now() - since)) > 0:
            return Result(wait_s)
        await self._ctx.client.update(SERVICECIDRS, without_finalizer(service_cidr, FINALIZER))
        return None

    async def _say(self, service_cidr: Object, condition: Object) -> None:
        changed = with_ready(service_cidr, condition, self._ctx.clock.now())
        if changed is not None:
            await self._ctx.client.update(SERVICECIDRS, changed, subresource="status")


class DefaultServiceCIDR(Reconciler):
    """Is made again when it is deleted, and tells of flags that say something else than it does."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self._cidrs = [str(cidr) for cidr in ctx.settings.service_cidrs]
        self.primary: Informer = ctx.client.informer(SERVICECIDRS)
        self._told: set[str] = set()

    def watches(self) -> Iterable[Watch]:
        yield Watch(self.primary, lambda event, obj, previous: [key_of(obj)] if name_of(obj) == DEFAULT else ())

    def started(self) -> Iterable[Key]:
        return (Key("", DEFAULT),)

    async def reconcile(self, key: Key) -> Result | None:
        found = self.primary.get(*key)
        if found is None:
            made: Object = {"metadata": {"name": DEFAULT}, "spec": {"cidrs": self._cidrs}}
            await self._ctx.client.create(
                SERVICECIDRS, {"kind": "ServiceCIDR", "apiVersion": SERVICECIDRS.api_version, **made}
            )
        elif not is_deleting(found):
            await self._judge(found)
        return None

    async def _judge(self, found: Object) -> None:
        cidrs, condition = dig(found, "spec", "cidrs", default=[]), find_condition(found, "Ready")
        if cidrs != self._cidrs:
            said, flags = (f"[{' '.join(texts)}]" for texts in (cidrs, self._cidrs))
            text = f"The default ServiceCIDR {said} does not match the controller flag configurations {flags}"
            self._tell(found, "KubernetesDefaultServiceCIDRInconsistent", text)
        elif condition is not None and condition["status"] == "False":
            self._tell(found, condition.get("reason", ""), f"Configuration matches, but {condition.get('message', '')}")
        elif condition is None or condition["status"] != "True":
            changed = with_ready(found, _DEFAULT_READY, self._ctx.clock.now())
            if changed is not None:
                await self._set_ready(found, changed)

    async def _set_ready(self, found: Object, changed: Object) -> None:
        try:
            await self._ctx.client.update(SERVICECIDRS, changed, subresource="status")
        except StatusError as error:
            if error.code not in (404, 409):
                text = "The default ServiceCIDR Status can not be set to Ready=True"
                self._ctx.recorder.event(found, "Warning", "KubernetesDefaultServiceCIDRError", text)
            raise

    def _tell(self, found: Object, reason: str, text: str) -> None:
        """Once a run."""
        if reason not in self._told:
            self._told.add(reason)
            self._ctx.recorder.event(found, "Warning", reason, text)


SERVICE_CIDR_CONTROLLER = Controller("service-cidr-controller", ServiceCIDRs, account="service-cidrs-controller")
DEFAULT_SERVICE_CIDR_CONTROLLER = Controller("kubernetes-service-cidr-controller", DefaultServiceCIDR, workers=1)
