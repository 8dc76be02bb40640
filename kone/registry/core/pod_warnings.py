"""What a client is warned of about a pod or a template: things that are allowed and do not do what they seem to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from kone.apimachinery.errors import go_quote
from kone.apimachinery.names import is_valid_label_value, parse_ip
from kone.registry.core.claim_rules import claim_warnings
from kone.registry.core.pod_parts import containers_with_path
from kone.registry.core.pod_security import (
    APPARMOR_CONTAINER,
    SECCOMP_CONTAINER,
    SECCOMP_POD,
    apparmor_from_annotation,
)
from kone.registry.core.resource_rules import quantity

DEPRECATED_NODE_LABELS = {
    "beta.kubernetes.io/arch": 'deprecated since v1.14; use "kubernetes.io/arch" instead',
    "beta.kubernetes.io/os": 'deprecated since v1.14; use "kubernetes.io/os" instead',
    "failure-domain.beta.kubernetes.io/region": 'deprecated since v1.17; use "topology.kubernetes.io/region" instead',
    "failure-domain.beta.kubernetes.io/zone": 'deprecated since v1.17; use "topology.kubernetes.io/zone" instead',
    "beta.kubernetes.io/instance-type": 'deprecated since v1.17; use "node.kubernetes.io/instance-type" instead',
    "app.kubernetes.io/created-by": "deprecated since v1.9",
    "scheduler.alpha.kubernetes.io/preferAvoidPods": "deprecated since v1.22; use Taints and Tolerations instead",
    "node-role.kubernetes.io/master": 'use "node-role.kubernetes.io/control-plane" instead',
}
_ANNOTATIONS = {
    "scheduler.alpha.kubernetes.io/critical-pod": 'non-functional in v1.16+; use the "priorityClassName" field instead',
    "security.alpha.kubernetes.io/sysctls": 'non-functional in v1.11+; use the "sysctls" field instead',
    "security.alpha.kubernetes.io/unsafe-sysctls": 'non-functional in v1.11+; use the "sysctls" field instead',
}
_VOLUMES = {
    "photonPersistentDisk": ("photonPersistentDisk", "deprecated in v1.11, non-functional in v1.16+"),
    "gitRepo": ("gitRepo", "deprecated in v1.11, and disabled by default in v1.33+"),
    "scaleIO": ("scaleIO", "deprecated in v1.16, non-functional in v1.22+"),
    "flocker": ("flocker", "deprecated in v1.22, non-functional in v1.25+"),
    "storageos": ("storageOS", "deprecated in v1.22, non-functional in v1.25+"),
    "quobyte": ("quobyte", "deprecated in v1.22, non-functional in v1.25+"),
    "glusterfs": ("glusterfs", "deprecated in v1.25, non-functional in v1.26+"),
    "cephfs": ("cephfs", "deprecated in v1.28, non-functional in v1.31+"),
    "rbd": ("rbd", "deprecated in v1.28, non-functional in v1.31+"),
}
_NULL_SELECTOR = "a null labelSelector results in matching no pod"
_SECCOMP_TEXT = 'non-functional in v1.27+; use the "seccompProfile" field instead'


def pod_warnings(
    spec: Mapping[str, Any], annotations: Mapping[str, str], *, path: str = "", is_template: bool = False
) -> Iterator[str]:
    """`path` is that of the pod or template: "" or e.g. "spec.template."; paths in the texts go on from it."""
    at = f"{path}spec"
    for key in sorted(spec.get("nodeSelector") or ()):
        if key in DEPRECATED_NODE_LABELS:
            yield f"{at}.nodeSelector[{key}]: {DEPRECATED_NODE_LABELS[key]}"
    if spec.get("affinity"):
        yield from _node_affinity(f"{at}.affinity.nodeAffinity", spec["affinity"].get("nodeAffinity") or {})
    for i, constraint in enumerate(spec.get("topologySpreadConstraints") or ()):
        topology, where = constraint.get("topologyKey", ""), f"{at}.topologySpreadConstraints[{i}]"
        if topology in DEPRECATED_NODE_LABELS:
            yield f"{where}.topologyKey: {topology} is {DEPRECATED_NODE_LABELS[topology]}"
        if constraint.get("labelSelector") is None:
            yield f"{where}.labelSelector: {_NULL_SELECTOR}"
    if annotations:
        for key, text in _ANNOTATIONS.items():
            if key in annotations:
                yield f"{path}metadata.annotations[{key}]: {text}"
    if spec.get("volumes"):
        yield from _volumes(f"{at}.volumes", spec["volumes"])
    yield from _duplicates(at, spec)
    yield from _fractions(f"{at}.overhead", spec.get("overhead"))
    if annotations:
        context = spec.get("securityContext") or {}
        if SECCOMP_POD in annotations and context.get("seccompProfile") is None:
            yield f"{path}metadata.annotations[{SECCOMP_POD}]: {_SECCOMP_TEXT}"
    for container, where in containers_with_path(spec, at):
        if annotations:
            yield from _container_annotations(path, container, spec, annotations, is_template)
        resources = container.get("resources")
        if resources:
            yield from _fractions(f"{where}.resources.limits", resources.get("limits"), ("memory",))
            yield from _fractions(f"{where}.resources.requests", resources.get("requests"), ("memory",))
            yield from _fractions(f"{where}.resources.limits", resources.get("limits"), ("ephemeral-storage",))
            yield from _fractions(f"{where}.resources.requests", resources.get("requests"), ("ephemeral-storage",))
        if len(container.get("env") or ()) > 1:
            yield from _environment(f"{where}.env", container["env"])
    yield from _ports(at, spec)
    if (spec.get("terminationGracePeriodSeconds") or 0) < 0:
        text = "must be >= 0; negative values are invalid and will be treated as 1"
        yield f"{at}.terminationGracePeriodSeconds: {text}"
    if spec.get("affinity"):
        yield from _pod_affinity(f"{at}.affinity", spec["affinity"])
    for i, server in enumerate((spec.get("dnsConfig") or {}).get("nameservers") or ()):
        yield from ip_warnings(f"{at}.dnsConfig.nameservers[{i}]", server)
    for i, alias in enumerate(spec.get("hostAliases") or ()):
        yield from ip_warnings(f"{at}.hostAliases[{i}].ip", alias.get("ip", ""))


def ip_warnings(path: str, value: str) -> Iterator[str]:
    """GetWarningsForIP: only IPv6 can be valid and yet not canonical, since v1.36."""
    address = parse_ip(value)
    if address is not None and address.version == 6 and str(address) != value:
        yield f'{path}: IPv6 address {go_quote(value)} should be in RFC 5952 canonical format ("{address}")'


def _node_affinity(path: str, affinity: Mapping[str, Any]) -> Iterator[str]:
    must = affinity.get("requiredDuringSchedulingIgnoredDuringExecution") or {}
    at = f"{path}.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms"
    for i, term in enumerate(must.get("nodeSelectorTerms") or ()):
        yield from node_selector_term_warnings(f"{at}[{i}]", term, values=False)
    at = f"{path}.preferredDuringSchedulingIgnoredDuringExecution"
    for i, term in enumerate(affinity.get("preferredDuringSchedulingIgnoredDuringExecution") or ()):
        yield from node_selector_term_warnings(f"{at}[{i}].preference", term.get("preference") or {}, values=True)


def node_selector_term_warnings(path: str, term: Mapping[str, Any], *, values: bool) -> Iterator[str]:
    """`values`: warn of values that are no label values, where validation lets them pass."""
    for i, expression in enumerate(term.get("matchExpressions") or ()):
        at, key = f"{path}.matchExpressions[{i}]", expression.get("key", "")
        if key in DEPRECATED_NODE_LABELS:
            yield f"{at}.key: {key} is {DEPRECATED_NODE_LABELS[key]}"
        if values:
            for j, value in enumerate(expression.get("values") or ()):
                for text in is_valid_label_value(value):
                    yield f"{at}.values[{j}]: {value} is invalid, {text}"


def _volumes(path: str, volumes: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for i, volume in enumerate(volumes):
        for kind in volume:
            if kind in _VOLUMES and volume[kind] is not None:
                printed, text = _VOLUMES[kind]
                yield f"{path}[{i}].{printed}: {text}"
        template = (volume.get("ephemeral") or {}).get("volumeClaimTemplate")
        if template:
            yield from claim_warnings(f"{path}[{i}].ephemeral.volumeClaimTemplate.spec", template.get("spec") or {})
    for volume in volumes:
        yield from _overlaps(volume)


class _Placed(NamedTuple):
    path: str
    source: str

    def __str__(self) -> str:
        return f"{go_quote(self.path)} ({self.source})" if self.source else go_quote(self.path)


def _overlaps(volume: Mapping[str, Any]) -> Iterator[str]:
    """Files of one volume that would lie on or below each other."""
    name = go_quote(volume.get("name", ""))
    for kind, named, by in (("configMap", "ConfigMap", "name"), ("secret", "Secret", "secretName")):
        source = volume.get(kind)
        if source and source.get("items"):
            where = f"{named} {go_quote(source.get(by, ''))}"
            for text in _collisions(_Placed(item.get("path", ""), "") for item in source["items"]):
                yield f"volume {name} ({where}): overlapping paths: {text}"
    source = volume.get("downwardAPI")
    if source and source.get("items"):
        for text in _collisions(_Placed(item.get("path", ""), "") for item in source["items"]):
            yield f"volume {name} (DownwardAPI): overlapping paths: {text}"
    if volume.get("projected") is None:
        return
    placed: list[_Placed] = []
    for part in volume["projected"].get("sources") or ():
        if not any(value is not None for value in part.values()):
            yield f"volume {name} (Projected) has no sources provided"
        placed.extend(_projected(part))
    for text in _collisions(placed):
        yield f"volume {name} (Projected): overlapping paths: {text}"


def _projected(part: Mapping[str, Any]) -> Iterator[_Placed]:
    for kind, named in (("configMap", "ConfigMap"), ("secret", "Secret"), ("downwardAPI", "DownwardAPI")):
        source = part.get(kind)
        if source is not None and source.get("items"):
            where = named if kind == "downwardAPI" else f"{named} {go_quote(source.get('name', ''))}"
            for item in source["items"]:
                yield _Placed(item.get("path", ""), where)
            return
    if part.get("serviceAccountToken") is not None:
        yield _Placed(part["serviceAccountToken"].get("path", ""), "ServiceAccountToken")
    elif part.get("clusterTrustBundle") is not None:
        bundle = part["clusterTrustBundle"]
        name = bundle["name"] if bundle.get("name") is not None else bundle.get("signerName", "")
        yield _Placed(bundle.get("path", ""), f"ClusterTrustBundle {go_quote(name)}")
    elif part.get("podCertificate") is not None:
        for field, what in (
            ("certificateChainPath", "chain"),
            ("keyPath", "key"),
            ("credentialBundlePath", "credential bundle"),
        ):
            if part["podCertificate"].get(field):
                yield _Placed(part["podCertificate"][field], f"PodCertificate {what}")


def _collisions(found: Iterable[_Placed]) -> Iterator[str]:
    before: list[_Placed] = []
    for place in found:
        place = _Placed(place.path.rstrip("/"), place.source)
        for other in before:
            inside = f"{other.path}/".startswith(f"{place.path}/") or f"{place.path}/".startswith(f"{other.path}/")
            if place.path and other.path and (other == place or inside):
                yield f"{place} with {other}"
        before.append(place)


def _duplicates(at: str, spec: Mapping[str, Any]) -> Iterator[str]:
    for field, by in (("hostAliases", "ip"), ("imagePullSecrets", "name")):
        seen: set[str] = set()
        for i, item in enumerate(spec.get(field) or ()):
            value = item.get(by, "")
            if value in seen:
                yield f"{at}.{field}[{i}].{by}: duplicate {by} {go_quote(value)}"
            seen.add(value)
    for i, secret in enumerate(spec.get("imagePullSecrets") or ()):
        if not secret.get("name"):
            yield f'{at}.imagePullSecrets[{i}].name: invalid empty name ""'


def _fractions(
    path: str, resources: Mapping[str, Any] | None, names: Sequence[str] = ("memory", "ephemeral-storage")
) -> Iterator[str]:
    for name in names:
        value = (resources or {}).get(name)
        if value is not None and quantity(value).milli() % 1000:
            amount = quantity(value).canonical()
            yield f"{path}[{name}]: fractional byte value {go_quote(amount)} is invalid, must be an integer"


def _container_annotations(
    path: str,
    container: Mapping[str, Any],
    spec: Mapping[str, Any],
    annotations: Mapping[str, str],
    is_template: bool,
) -> Iterator[str]:
    context, name = container.get("securityContext") or {}, container.get("name", "")
    key = f"{SECCOMP_CONTAINER}{name}"
    if key in annotations and context.get("seccompProfile") is None:
        yield f"{path}metadata.annotations[{key}]: {_SECCOMP_TEXT}"
    key = f"{APPARMOR_CONTAINER}{name}"
    # A pod's own annotation is warned of where it is turned into the field, in `prepare`.
    if is_template and key in annotations and context.get("appArmorProfile") is None:
        of_pod = (spec.get("securityContext") or {}).get("appArmorProfile")
        if of_pod is None or of_pod != apparmor_from_annotation(annotations[key]):
            yield apparmor_warning(path, key)


def apparmor_warning(path: str, key: str) -> str:
    return f'{path}metadata.annotations[{key}]: deprecated since v1.30; use the "appArmorProfile" field instead'


def _environment(path: str, variables: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    seen: set[str] = set()
    for i, variable in enumerate(variables):
        name, value = variable.get("name", ""), variable.get("value", "")
        reference = f"$({name})"
        if name not in seen:
            seen.add(name)
        elif variable.get("valueFrom") is not None or value == reference or reference not in value:
            text = f"hides previous definition of {go_quote(name)}, which may be dropped when using apply"
            yield f"{path}[{i}]: {text}"


def _ports(at: str, spec: Mapping[str, Any]) -> Iterator[str]:
    by_number: dict[tuple[int, str], list[tuple[str, Mapping[str, Any]]]] = {}
    named: list[tuple[str, str]] = []
    for container, where in containers_with_path(spec, at):
        for i, port in enumerate(container.get("ports") or ()):
            path = f"{where}.ports[{i}]"
            if port.get("hostIP") and not port.get("hostPort"):
                yield f"{path}: hostIP set without hostPort: {_go_port(port)}"
            others = by_number.setdefault((port.get("containerPort", 0), port.get("protocol", "")), [])
            for other_path, other in others:
                kind = _port_conflict(port, other)
                if kind:
                    yield f"{path}: {kind} port definition with {other_path}"
            others.append((path, port))
            if port.get("name"):
                named.append((port["name"], path))
    first: dict[str, str] = {}
    for name, path in named:
        other_path = first.setdefault(name, path)
        if other_path != path:
            text = f"services and probes that select ports by name will use {other_path}"
            yield f"{path}: duplicate port name {go_quote(name)} with {other_path}, {text}"


def _go_port(port: Mapping[str, Any]) -> str:
    """A port as Go's %+v prints the struct."""
    host, number = port.get("hostPort", 0), port.get("containerPort", 0)
    ends = f"Protocol:{port.get('protocol', '')} HostIP:{port.get('hostIP', '')}"
    return f"{{Name:{port.get('name', '')} HostPort:{host} ContainerPort:{number} {ends}}}"


def _port_conflict(port: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    ip, other_ip = port.get("hostIP", ""), other.get("hostIP", "")
    host, other_host = port.get("hostPort", 0), other.get("hostPort", 0)
    if (ip, host) == (other_ip, other_host):
        return "duplicate"
    if not host or not other_host:
        return "overlapping"
    if host == other_host and bool(ip) != bool(other_ip):
        return "dangerously ambiguous"
    return ""


def _pod_affinity(path: str, affinity: Mapping[str, Any]) -> Iterator[str]:
    for kind in ("podAffinity", "podAntiAffinity"):
        found = affinity.get(kind) or {}
        at = f"{path}.{kind}.requiredDuringSchedulingIgnoredDuringExecution"
        for i, term in enumerate(found.get("requiredDuringSchedulingIgnoredDuringExecution") or ()):
            if term.get("labelSelector") is None:
                yield f"{at}[{i}].labelSelector: {_NULL_SELECTOR}"
        at = f"{path}.{kind}.preferredDuringSchedulingIgnoredDuringExecution"
        for i, term in enumerate(found.get("preferredDuringSchedulingIgnoredDuringExecution") or ()):
            if (term.get("podAffinityTerm") or {}).get("labelSelector") is None:
                yield f"{at}[{i}].podAffinityTerm.labelSelector: {_NULL_SELECTOR}"
