"""EndpointSlices of Services with a selector: the layout is decided in endpoint_slices.py, here it is written."""

from __future__ import annotations

from collections.abc import Iterable

from kone.apimachinery.errors import StatusError
from kone.apimachinery.kinds import ENDPOINTSLICES, NODES, PODS, SERVICES
from kone.apimachinery.objects import (
    Key,
    Object,
    dig,
    is_deleting,
    is_pod_ready,
    key_of,
    labels_of,
    name_of,
    namespace_of,
    uid_of,
)
from kone.client.client import Client, EventType, Informer, Objects
from kone.controllers.controller import Context, Controller, NotYet, Reconciler, Result, Watch, for_object
from kone.controllers.endpoint_slices import (
    MANAGED_BY,
    SERVICE_NAME,
    SlicePlan,
    TriggerTimes,
    plan_slices,
    with_trigger_time,
)
from kone.controllers.label_index import index_by_labels, index_by_selector, selected, selecting

MANAGER = "endpointslice-controller.k8s.io"
SERVICE_INDEX = "service"
SETTLE_S = 1.0  # a slice that was changed is looked at again after this


def index_by_service(slices: Informer) -> None:
    slices.add_index(SERVICE_INDEX, _service_keys)


def _service_keys(slice_: Object) -> Iterable[str]:
    labels = labels_of(slice_)
    return (f"{namespace_of(slice_)}/{labels.get(SERVICE_NAME, '')}/{labels.get(MANAGED_BY, '')}",)


def slices_of(slices: Informer, namespace: str, service: str, manager: str) -> Objects:
    """The manager's slices of the Service, but for those being deleted."""
    found = slices.by_index(SERVICE_INDEX, f"{namespace}/{service}/{manager}")
    return [slice_ for slice_ in found if not is_deleting(slice_)]


def services_of_pod(services: Informer, event: EventType, pod: Object, previous: Object | None) -> set[Key]:
    """The Services whose endpoints the change of a pod may change."""
    states = [pod]
    if event == "MODIFIED" and previous is not None:
        if _footprint(pod) == _footprint(previous):
            return set()
        if labels_of(pod) != labels_of(previous):
            states.append(previous)
    return {
        key_of(service) for state in states for service in selecting(services, namespace_of(state), labels_of(state))
    }


def _footprint(pod: Object) -> tuple[object, ...]:
    """What of a pod shows in endpoints."""
    spec, status = pod.get("spec") or {}, pod.get("status") or {}
    return (
        labels_of(pod),
        is_deleting(pod),
        is_pod_ready(pod),
        spec.get("hostname"),
        spec.get("subdomain"),
        status.get("podIPs"),
        status.get("phase") in ("Succeeded", "Failed"),
    )


async def write_slices(client: Client, owner: Object, plan: SlicePlan) -> None:
    """Create, update, delete. One whose owner is being deleted gets no new slices: the collector would race with us."""
    namespace = namespace_of(owner)
    if not is_deleting(owner):
        for slice_ in plan.create:
            await client.create(ENDPOINTSLICES, slice_, namespace=namespace)
    for slice_ in plan.update:
        await client.update(ENDPOINTSLICES, slice_)
    for slice_ in plan.delete:
        await delete_slice(client, slice_)


async def delete_slice(client: Client, slice_: Object) -> None:
    try:
        await client.delete(ENDPOINTSLICES, name_of(slice_), namespace=namespace_of(slice_), uid=uid_of(slice_))
    except StatusError as error:
        if error.code != 404:
            raise


class EndpointSlices(Reconciler):
    """Reconciles the slices of a Service."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        client = ctx.client
        self.primary: Informer = client.informer(SERVICES)
        self._pods: Informer = client.informer(PODS)
        self._nodes: Informer = client.informer(NODES)
        self._slices: Informer = client.informer(ENDPOINTSLICES)
        self._trigger_times = TriggerTimes()
        index_by_selector(self.primary)
        index_by_labels(self._pods)
        index_by_service(self._slices)

    def watches(self) -> Iterable[Watch]:
        yield Watch(self.primary, for_object)
        yield Watch(self._pods, lambda *event: services_of_pod(self.primary, *event))
        yield Watch(self._slices, self._keys_of_slice)

    def _keys_of_slice(self, event: EventType, slice_: Object, previous: Object | None) -> Iterable[Key]:
        """Someone may have changed a slice of ours; our own changes come here too and find nothing to do."""
        for state in (slice_, previous):
            labels = labels_of(state) if state is not None else {}
            if labels.get(MANAGED_BY) == MANAGER and (service := labels.get(SERVICE_NAME)):
                self._ctx.queue.add_after(Key(namespace_of(slice_), service), SETTLE_S)
        return ()

    async def reconcile(self, key: Key) -> Result | None:
        service = self.primary.get(*key)
        if service is None:
            self._trigger_times.forget(*key)
            return None
        selector = dig(service, "spec", "selector")
        if selector is None or dig(service, "spec", "type") == "ExternalName":
            return None
        pods = selected(self._pods, key.namespace, selector)
        existing = slices_of(self._slices, key.namespace, key.name, MANAGER)
        time = self._trigger_times.next(service, pods)
        node_names = {dig(pod, "spec", "nodeName", default="") for pod in pods}
        nodes = {name: node for name in node_names if (node := self._nodes.get("", name)) is not None}
        plan, homeless = plan_slices(service, pods, nodes, existing, MANAGER)
        plan.create = [with_trigger_time(slice_, time) for slice_ in plan.create]
        plan.update = [with_trigger_time(slice_, time) for slice_ in plan.update]
        where = f"{key.namespace}/{key.name}"
        try:
            await write_slices(self._ctx.client, service, plan)
        except StatusError as error:
            if error.code != 409:
                self._tell(service, f"Error updating Endpoint Slices for Service {where}: {error}")
            raise
        if homeless:
            whys = ", ".join(
                f"skipping Pod {name_of(pod)} for Service {where}: "
                f"Node {dig(pod, 'spec', 'nodeName', default='')} Not Found"
                for pod in homeless
            )
            self._tell(service, f"Error updating Endpoint Slices for Service {where}: {whys}")
            raise NotYet(whys)
        return None

    def _tell(self, service: Object, message: str) -> None:
        self._ctx.recorder.event(service, "Warning", "FailedToUpdateEndpointSlices", message)


ENDPOINTSLICE_CONTROLLER = Controller(
    "endpointslice-controller", EndpointSlices, component="endpoint-slice-controller", backoff_s=1.0
)
