"""What upstream's API server makes at start: namespaces, roles, priority classes, flow control, its own Service.

The objects are facts recorded from v1.37 (bootstrap_data/, one file a resource). `reconcile` compares them with what is
stored and writes only what is missing, so that a start on an existing database writes nothing.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Protocol

from kone.apimachinery.errors import StatusError
from kone.apimachinery.kinds import (
    CLUSTERROLEBINDINGS,
    CLUSTERROLES,
    CONFIGMAPS,
    FLOWSCHEMAS,
    GVR,
    NAMESPACES,
    PRIORITYCLASSES,
    PRIORITYLEVELCONFIGURATIONS,
    ROLEBINDINGS,
    ROLES,
    SERVICECIDRS,
    SERVICES,
)
from kone.apimachinery.objects import Object, annotations_of, dig, labels_of, name_of, namespace_of, replace_in
from kone.apimachinery.timestamps import format_time
from kone.auth import flow_objects
from kone.auth.rbac import compile_rule, covers

KINDS: Mapping[GVR, str] = {
    NAMESPACES: "Namespace",
    PRIORITYCLASSES: "PriorityClass",
    CLUSTERROLES: "ClusterRole",
    CLUSTERROLEBINDINGS: "ClusterRoleBinding",
    ROLES: "Role",
    ROLEBINDINGS: "RoleBinding",
    PRIORITYLEVELCONFIGURATIONS: "PriorityLevelConfiguration",
    FLOWSCHEMAS: "FlowSchema",
    SERVICECIDRS: "ServiceCIDR",
    SERVICES: "Service",
    CONFIGMAPS: "ConfigMap",
}
RBAC_AUTO_UPDATE = "rbac.authorization.kubernetes.io/autoupdate"
FLOW_CONTROL = (PRIORITYLEVELCONFIGURATIONS, FLOWSCHEMAS)
TRACKING = "kube-apiserver-legacy-service-account-token-tracking"


@dataclass(frozen=True, slots=True)
class Bootstrap:
    """One object to have."""

    resource: GVR
    obj: Object


class Writer(Protocol):
    """The part of client.Client that reconciliation writes with."""

    async def create(
        self, resource: GVR, obj: Object, *, namespace: str = "", subresource: str = "", name: str = ""
    ) -> Object: ...
    async def update(self, resource: GVR, obj: Object, *, subresource: str = "") -> Object: ...
    async def delete(self, resource: GVR, name: str, *, namespace: str = "") -> None: ...


Getter = Callable[[GVR, str, str], Object | None]
"""(resource, namespace, name) -> what is stored."""


def bootstrap_objects(
    service_cidrs: Sequence[str] = ("10.96.0.0/16",), api_port: int = 6443, now: float = 0.0
) -> list[Bootstrap]:
    """Every object, namespaces first. `now` (seconds since the epoch) dates what records when the cluster began."""
    return list(_objects(service_cidrs, api_port, now))


def extension_authentication(client_ca_pem: str, front_proxy_ca_pem: str) -> Bootstrap:
    """What servers of aggregated APIs read: whose certificates to trust, and who may speak for others."""
    data = {
        "client-ca-file": client_ca_pem,
        "requestheader-allowed-names": '["front-proxy-client"]',
        "requestheader-client-ca-file": front_proxy_ca_pem,
        "requestheader-extra-headers-prefix": '["X-Remote-Extra-"]',
        "requestheader-group-headers": '["X-Remote-Group"]',
        "requestheader-uid-headers": '["X-Remote-Uid"]',
        "requestheader-username-headers": '["X-Remote-User"]',
    }
    metadata = {"name": "extension-apiserver-authentication", "namespace": "kube-system"}
    return Bootstrap(CONFIGMAPS, {"kind": "ConfigMap", "apiVersion": "v1", "metadata": metadata, "data": data})


def metrics_reader() -> Bootstrap:
    """Who may view a namespace may see what its pods use (the role that metrics-server is installed with)."""
    aggregated = {f"rbac.authorization.k8s.io/aggregate-to-{role}": "true" for role in ("admin", "edit", "view")}
    metadata = {"name": "system:aggregated-metrics-reader", "labels": aggregated}
    rules = [{"apiGroups": ["metrics.k8s.io"], "resources": ["pods", "nodes"], "verbs": ["get", "list", "watch"]}]
    kind = {"kind": "ClusterRole", "apiVersion": CLUSTERROLES.api_version}
    return Bootstrap(CLUSTERROLES, {**kind, "metadata": metadata, "rules": rules})


def node_rules() -> list[Object]:
    """The rules of the ClusterRole system:node, which the Node authorizer falls back to."""
    return next(role["rules"] for role in _load(CLUSTERROLES) if name_of(role) == "system:node")


def _load(resource: GVR) -> list[Object]:
    found: list[Object] = json.loads((files(__package__) / "bootstrap_data" / f"{resource.resource}.json").read_bytes())
    return found


def _objects(service_cidrs: Sequence[str], api_port: int, now: float) -> Iterator[Bootstrap]:
    for resource, kind in KINDS.items():
        for obj in _load(resource):
            obj = {"kind": kind, "apiVersion": resource.api_version, **obj}
            if resource == SERVICES:
                obj = _kubernetes_service(obj, service_cidrs[0], api_port)
            elif resource == SERVICECIDRS:
                obj = replace_in(obj, ("spec", "cidrs"), [str(ipaddress.ip_network(cidr)) for cidr in service_cidrs])
            elif name_of(obj) == TRACKING:
                obj = replace_in(obj, ("data", "since"), format_time(now)[:10])
            for condition in dig(obj, "status", "conditions", default=()):
                condition["lastTransitionTime"] = format_time(now)
            yield Bootstrap(resource, obj)


def _kubernetes_service(obj: Object, service_cidr: str, api_port: int) -> Object:
    """The Service "kubernetes" has the first address of the range and leads to the API's own port."""
    network = ipaddress.ip_network(service_cidr)
    address = str(network[1])
    spec = {**obj["spec"], "clusterIP": address, "clusterIPs": [address], "ipFamilies": [f"IPv{network.version}"]}
    spec["ports"] = [{**spec["ports"][0], "targetPort": api_port}]
    return {**obj, "spec": spec}


async def reconcile(writer: Writer, get: Getter, objects: Sequence[Bootstrap]) -> int:
    """Make what is missing, complete what an older version made; return how many objects were written.

    Namespaces come first, the rest together, so that the store commits them in few transactions.
    """
    namespaces = [one for one in objects if one.resource == NAMESPACES]
    others = [one for one in objects if one.resource != NAMESPACES]
    written = 0
    for group in (namespaces, others):
        written += sum(await asyncio.gather(*(_reconcile_one(writer, get, one) for one in group)))
    return written


async def keep_flow_control(
    writer: Writer, get: Getter, listed: Callable[[GVR], Iterable[Object]], objects: Sequence[Bootstrap]
) -> None:
    """Make flow control's objects what they have to be, and remove those that are no longer suggested. Of `objects`
    only flow control's are looked at."""
    wanted = [one for one in objects if one.resource in FLOW_CONTROL]
    await reconcile(writer, get, wanted)
    for resource in reversed(FLOW_CONTROL):
        for name in flow_objects.unwanted(listed(resource), [one.obj for one in wanted if one.resource == resource]):
            await writer.delete(resource, name)


async def _reconcile_one(writer: Writer, get: Getter, one: Bootstrap) -> bool:
    resource, obj = one.resource, one.obj
    stored = get(resource, namespace_of(obj), name_of(obj))
    if stored is None:
        try:
            stored = await writer.create(resource, obj, namespace=namespace_of(obj))
        except StatusError as error:
            if error.reason == "AlreadyExists":  # another server of the same database was faster
                return False
            raise
        if dig(obj, "status", "conditions"):
            await writer.update(resource, {**stored, "status": obj["status"]}, subresource="status")
        return True
    wanted = completed(resource, stored, obj)
    if wanted is None:
        return False
    if dig(wanted, "roleRef") != dig(stored, "roleRef"):
        # A binding's role cannot be changed: it is made anew.
        await writer.delete(resource, name_of(obj), namespace=namespace_of(obj))
        await writer.create(resource, obj, namespace=namespace_of(obj))
    else:
        await writer.update(resource, wanted)
    return True


def completed(resource: GVR, stored: Object, expected: Object) -> Object | None:
    """`stored` with what `expected` adds to it, or None where nothing does or the object wants to be left alone.

    Roles and bindings keep what an administrator added, unless annotated autoupdate=false; flow control objects are
    kept up by `flow_objects`; the ServiceCIDR of the flags gets a second family that the
    flags have got; everything else is only ever created.
    """
    if resource in (ROLES, CLUSTERROLES, ROLEBINDINGS, CLUSTERROLEBINDINGS):
        if annotations_of(stored).get(RBAC_AUTO_UPDATE) == "false":
            return None
        wanted = _with_metadata(stored, expected)
        if resource in (ROLES, CLUSTERROLES):
            wanted = _with_rules(wanted, expected)
        else:
            wanted = _with_subjects(wanted, expected)
        return None if wanted == stored else wanted
    if resource in FLOW_CONTROL:
        return flow_objects.revised(stored, expected)
    if resource == SERVICECIDRS:
        have, want = stored["spec"]["cidrs"], expected["spec"]["cidrs"]
        return {**stored, "spec": expected["spec"]} if len(have) == 1 and len(want) == 2 and want[:1] == have else None
    return None


def _with_metadata(stored: Object, expected: Object) -> Object:
    for key, have, want in (
        ("annotations", annotations_of(stored), annotations_of(expected)),
        ("labels", labels_of(stored), labels_of(expected)),
    ):
        if missing := {k: v for k, v in want.items() if k not in have}:
            stored = replace_in(stored, ("metadata", key), {**have, **missing})
    return stored


def _with_rules(stored: Object, expected: Object) -> Object:
    have: list[Any] = stored.get("rules") or []
    want: list[Any] = expected.get("rules") or []
    if have != want and (missing := covers([compile_rule(rule) for rule in have], want)):
        stored = {**stored, "rules": [*have, *missing]}
    selectors = dig(stored, "aggregationRule", "clusterRoleSelectors", default=[])
    wanted = dig(expected, "aggregationRule", "clusterRoleSelectors", default=[])
    if missing_selectors := [selector for selector in wanted if selector not in selectors]:
        stored = {**stored, "aggregationRule": {"clusterRoleSelectors": [*selectors, *missing_selectors]}}
    elif selectors and not wanted:
        stored = {k: v for k, v in stored.items() if k != "aggregationRule"}
    return stored


def _with_subjects(stored: Object, expected: Object) -> Object:
    if stored.get("roleRef") != expected.get("roleRef"):
        return {**stored, "roleRef": expected["roleRef"]}
    have = stored.get("subjects") or []
    if missing := [subject for subject in expected.get("subjects") or [] if subject not in have]:
        return {**stored, "subjects": [*have, *missing]}
    return stored
