"""Extended resources that drivers serve with devices: a pod asks for an amount, as of a device plugin, and the
scheduler makes the ResourceClaim. Pure.

A DeviceClass gives its devices the name `spec.extendedResourceName`, and always
`deviceclass.resource.kubernetes.io/<class>`. What a node offers by a device plugin is taken from there.

Worked case: an init container asks for 3 and a container for 2: the init container, which ends before the other begins,
uses the other's 2 and one more of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from kone.apimachinery.objects import Object, annotations_of, controller_of, metadata, name_of, uid_of
from kone.apimachinery.quantity import parse_quantity

PREFIX = "deviceclass.resource.kubernetes.io/"
ANNOTATION = "resource.kubernetes.io/extended-resource-claim"
IN_MEMORY = "<extended-resources>"  # the claim's name until the API gives it one


def classes_by_resource(classes: Iterable[Object]) -> dict[str, Object]:
    """Which class serves a resource; of several the newest, so that one can be put in another's place."""
    found: dict[str, Object] = {}
    ordered = sorted(classes, key=name_of, reverse=True)
    for each in sorted(ordered, key=lambda each: str(metadata(each).get("creationTimestamp") or "")):
        found[PREFIX + name_of(each)] = each
        if name := each["spec"].get("extendedResourceName"):
            found[name] = each
    return found


def is_extended(resource: str) -> bool:
    """Whether a node has it only because somebody says so (IsDRAExtendedResourceName)."""
    if resource.startswith(PREFIX):
        return True
    return "/" in resource and "kubernetes.io/" not in resource and not resource.startswith("requests.")


def is_of_pod(claim: Object, pod: Object) -> bool:
    """Whether the claim was made for the pod's extended resources."""
    owner = controller_of(claim)
    return annotations_of(claim).get(ANNOTATION) == "true" and owner is not None and owner.get("uid") == uid_of(pod)


def claim_for(pod: Object, uid: str) -> Object:
    """The claim before it is known which node the pod goes to, and what is wanted there."""
    owner = {"apiVersion": "v1", "kind": "Pod", "name": name_of(pod), "uid": uid_of(pod), "controller": True}
    meta = {
        "name": IN_MEMORY,
        "generateName": f"{name_of(pod)}-extended-resources-",
        "namespace": metadata(pod).get("namespace", ""),
        "uid": uid,
        "annotations": {ANNOTATION: "true"},
        "ownerReferences": [owner],
    }
    return {"apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaim", "metadata": meta, "spec": {"devices": {}}}


@dataclass(frozen=True, slots=True)
class Request:
    """So many devices of a class, under a name of the claim."""

    name: str
    device_class: str
    count: int

    def written(self) -> Object:
        exactly = {"deviceClassName": self.device_class, "allocationMode": "ExactCount", "count": self.count}
        return {"name": self.name, "exactly": exactly}


def requests_and_mappings(
    spec: Object, resources: Iterable[str], classes: Mapping[str, Object]
) -> tuple[list[Object], list[Object]]:
    """The claim's requests, by name, and which container uses which (status.extendedResourceClaimStatus)."""
    initial = spec.get("initContainers") or []
    containers = [*initial, *(spec.get("containers") or ())]
    ends = {i for i, container in enumerate(initial) if container.get("restartPolicy") != "Always"}
    requests: list[Request] = []
    mappings: list[Object] = []
    for resource in sorted(resources):
        device_class = name_of(classes[resource])
        lasting: dict[int, Request] = {}
        passing: list[tuple[Request, list[Object]]] = []  # with the mappings of its container
        early: list[Object] = []
        for i, container in enumerate(containers):
            if i not in ends:
                request, used = _request(i, container, resource, device_class, ())
                mappings += used
                if request is not None:
                    lasting[i] = request
        for i in sorted(ends):
            reusable = [request for j, request in lasting.items() if j >= i]
            request, used = _request(i, containers[i], resource, device_class, reusable)
            early += used
            if request is not None:
                passing.append((request, used))
        if passing:
            # Those that end before the next begins share the largest request of them.
            largest = max((request for request, _ in passing), key=lambda request: request.count)
            for request, used in passing:
                for mapping in used:
                    if mapping["requestName"] == request.name:
                        mapping["requestName"] = largest.name
            requests.append(largest)
        requests += lasting.values()
        mappings += early
    return [request.written() for request in sorted(requests, key=lambda request: request.name)], mappings


def _request(
    index: int, container: Object, resource: str, device_class: str, reusable: Sequence[Request]
) -> tuple[Request | None, list[Object]]:
    """What the container wants beyond what it may use of later containers' requests, and all that it uses."""
    amounts = (container.get("resources") or {}).get("requests") or {}
    wanted = parse_quantity(amounts[resource]).value() if resource in amounts else 0
    used: list[Object] = []
    if not wanted:
        return None, used
    have = 0
    for request in reusable:
        have += request.count
        used.append(_mapping(container, resource, request.name))
        if have >= wanted:
            return None, used
    own = Request(f"container-{index}-request-{sorted(amounts).index(resource)}", device_class, wanted - have)
    return own, [*used, _mapping(container, resource, own.name)]


def _mapping(container: Object, resource: str, request: str) -> Object:
    return {"containerName": container["name"], "resourceName": resource, "requestName": request}
