"""What the API offers: /api, /apis, their groups and versions, one by one or all at once (aggregated discovery).

Made from the registry, and made again only when it has changed.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Mapping
from typing import Final

import orjson

from kone.apimachinery.kinds import version_rank
from kone.apimachinery.objects import Object
from kone.registry.resource import Registry, Resource, Subresource

# Upstream's order: by the priorities of the groups' APIServices. Other groups follow in alphabetical order.
GROUP_ORDER: Final = (
    "apiregistration.k8s.io",
    "apps",
    "events.k8s.io",
    "authentication.k8s.io",
    "authorization.k8s.io",
    "autoscaling",
    "batch",
    "certificates.k8s.io",
    "networking.k8s.io",
    "policy",
    "rbac.authorization.k8s.io",
    "storage.k8s.io",
    "admissionregistration.k8s.io",
    "apiextensions.k8s.io",
    "scheduling.k8s.io",
    "coordination.k8s.io",
    "node.k8s.io",
    "discovery.k8s.io",
    "resource.k8s.io",
    "flowcontrol.apiserver.k8s.io",
    "storagemigration.k8s.io",
)


class Discovery:
    """Documents about the registry's resources."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._version = -1
        self._groups: dict[str, dict[str, list[Resource]]] = {}
        self._aggregated: dict[bool, tuple[bytes, str]] = {}
        self._joined: dict[str, dict[str, Object]] = {}

    def join(self, group: str, version: str, resources: Object) -> None:
        """A group-version of another server, as its APIResourceList says."""
        versions = self._joined.setdefault(group, {})
        if versions.get(version) != resources:
            versions[version] = resources
            self._version = -1

    def leave(self, group: str, version: str) -> None:
        """It is no longer there."""
        if self._joined.get(group, {}).pop(version, None) is not None:
            self._joined = {name: versions for name, versions in self._joined.items() if versions}
            self._version = -1

    def _refresh(self) -> None:
        if self._version == self._registry.version:
            return
        groups: dict[str, dict[str, list[Resource]]] = {}
        for resource in sorted(self._registry.resources(), key=lambda r: r.gvr.resource):
            groups.setdefault(resource.gvr.group, {}).setdefault(resource.gvr.version, []).append(resource)
        for name, versions in self._joined.items():
            for version in versions:
                groups.setdefault(name, {})[version] = []
        rank = {name: i for i, name in enumerate(GROUP_ORDER)}
        ordered = sorted(groups, key=lambda name: (rank.get(name, len(rank)), name))
        self._groups = {name: _newest_first(groups[name]) for name in ordered}
        self._aggregated = {}
        self._version = self._registry.version

    def api_versions(self) -> Object:
        """/api."""
        return {
            "kind": "APIVersions",
            "versions": ["v1"],
            "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": ""}],
        }

    def groups(self) -> Object:
        """/apis."""
        self._refresh()
        found = [_group(name, versions) for name, versions in self._groups.items() if name]
        return {"kind": "APIGroupList", "apiVersion": "v1", "groups": found}

    def group(self, name: str) -> Object | None:
        """/apis/<group>."""
        self._refresh()
        versions = self._groups.get(name)
        if not versions or not name:
            return None
        return {"kind": "APIGroup", "apiVersion": "v1", **_group(name, versions)}

    def resources(self, group: str, version: str) -> Object | None:
        """/api/v1 and /apis/<group>/<version>."""
        self._refresh()
        resources = self._groups.get(group, {}).get(version)
        if resources is None:
            return None
        made: Object = {"kind": "APIResourceList"}
        if group:
            made["apiVersion"] = "v1"
        made["groupVersion"] = f"{group}/{version}" if group else version
        made["resources"] = [row for resource in resources for row in _rows(resource)]
        return made

    def aggregated(self, *, core: bool) -> tuple[bytes, str]:
        """(APIGroupDiscoveryList of /api or of /apis as JSON, its ETag)."""
        self._refresh()
        found = self._aggregated.get(core)
        if found is None:
            items = [
                _group_discovery(name, versions, self._joined.get(name, {}))
                for name, versions in self._groups.items()
                if core == (not name)
            ]
            document = {
                "kind": "APIGroupDiscoveryList",
                "apiVersion": "apidiscovery.k8s.io/v2",
                "metadata": {},
                "items": items,
            }
            body = orjson.dumps(document)
            found = self._aggregated[core] = body, f'"{hashlib.sha512(body).hexdigest().upper()}"'
        return found


def _newest_first(versions: dict[str, list[Resource]]) -> dict[str, list[Resource]]:
    return {name: versions[name] for name in sorted(versions, key=version_rank, reverse=True)}


def _group(name: str, versions: Iterable[str]) -> Object:
    found = [{"groupVersion": f"{name}/{version}", "version": version} for version in versions]
    return {"name": name, "versions": found, "preferredVersion": found[0]}


def storage_version_hash(resource: Resource) -> str:
    """Tells clients whether the stored form has changed (discovery.StorageVersionHash)."""
    gvk = resource.gvk
    digest = hashlib.sha256(f"{gvk.group}/{gvk.version}/{gvk.kind}".encode()).digest()
    return base64.b64encode(digest[:8]).decode()


def _rows(resource: Resource) -> list[Object]:
    name = resource.gvr.resource
    row: Object = {
        "name": name,
        "singularName": resource.singular_name,
        "namespaced": resource.namespaced,
        "kind": resource.kind,
        "verbs": list(resource.verbs),
    }
    if resource.short_names:
        row["shortNames"] = list(resource.short_names)
    if resource.categories:
        row["categories"] = list(resource.categories)
    if not resource.virtual and "watch" in resource.verbs:
        row["storageVersionHash"] = storage_version_hash(resource)
    return [row, *(_subrow(resource, sub, part) for sub, part in sorted(resource.all_subresources().items()))]


def _subrow(resource: Resource, name: str, part: Subresource) -> Object:
    row: Object = {
        "name": f"{resource.gvr.resource}/{name}",
        "singularName": "",
        "namespaced": resource.namespaced,
    }
    if part.version:
        row["group"], row["version"] = part.group, part.version
    row["kind"] = part.kind or resource.kind
    row["verbs"] = list(part.verbs)
    return row


def _group_discovery(name: str, versions: dict[str, list[Resource]], joined: Mapping[str, Object]) -> Object:
    return {
        "metadata": {"name": name, "creationTimestamp": None} if name else {"creationTimestamp": None},
        "versions": [
            {
                "version": version,
                "resources": _of_another(name, version, joined[version])
                if version in joined
                else [_resource_discovery(resource) for resource in resources],
                "freshness": "Current",
            }
            for version, resources in versions.items()
        ],
    }


def _of_another(group: str, version: str, listed: Object) -> list[Object]:
    """The rows of an APIResourceList in the form of aggregated discovery; "pods/status" belongs to "pods"."""
    found: dict[str, Object] = {}
    for row in listed["resources"]:
        kind = {
            "group": row.get("group") or group,
            "version": row.get("version") or version,
            "kind": row.get("kind", ""),
        }
        name, _, part = row.get("name", "").partition("/")
        if part:
            if name in found:
                sub = {"subresource": part, "responseKind": kind, "verbs": row.get("verbs") or []}
                found[name].setdefault("subresources", []).append(sub)
            continue
        made = found[name] = {
            "resource": name,
            "responseKind": kind,
            "scope": "Namespaced" if row.get("namespaced") else "Cluster",
            "singularResource": row.get("singularName", ""),
            "verbs": row.get("verbs") or [],
        }
        for key in ("shortNames", "categories"):
            if row.get(key):
                made[key] = row[key]
    return list(found.values())


def _resource_discovery(resource: Resource) -> Object:
    gvk = resource.gvk
    made: Object = {
        "resource": resource.gvr.resource,
        "responseKind": {"group": gvk.group, "version": gvk.version, "kind": gvk.kind},
        "scope": "Namespaced" if resource.namespaced else "Cluster",
        "singularResource": resource.singular_name,
        "verbs": list(resource.verbs),
    }
    if resource.short_names:
        made["shortNames"] = list(resource.short_names)
    if resource.categories:
        made["categories"] = list(resource.categories)
    parts = [
        {
            "subresource": name,
            "responseKind": {
                "group": part.group if part.version else gvk.group,
                "version": part.version or gvk.version,
                "kind": part.kind or gvk.kind,
            },
            "verbs": list(part.verbs),
        }
        for name, part in sorted(resource.all_subresources().items())
    ]
    if parts:
        made["subresources"] = parts
    return made
