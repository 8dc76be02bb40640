"""Objects as the API holds them, short to write."""

from __future__ import annotations

from typing import Any

from kone.apimachinery.objects import Object


def service(name: str, namespace: str = "default", **spec: Any) -> Object:
    """A Service; `ports` as (name, port) or (name, port, protocol)."""
    ports = [
        {"name": p[0], "port": p[1], "protocol": p[2] if len(p) > 2 else "TCP"}
        | ({"nodePort": p[3]} if len(p) > 3 else {})
        for p in spec.pop("ports", [("http", 80)])
    ]
    ports = [{k: v for k, v in port.items() if v != ""} for port in ports]
    status = spec.pop("status", {})
    labels = spec.pop("labels", {})
    spec.setdefault("type", "ClusterIP")
    if spec["type"] != "ExternalName":
        spec.setdefault("clusterIP", "10.96.0.20")
        spec.setdefault("clusterIPs", [spec["clusterIP"]])
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": namespace, "labels": labels},
        "spec": {"ports": ports, **spec},
        "status": status,
    }


def endpoint(ip: str, **more: Any) -> Object:
    """An endpoint of a slice; conditions by name, `node`, `hostname`."""
    conditions = {name: more.pop(name) for name in ("ready", "serving", "terminating") if name in more}
    entry: Object = {"addresses": [ip], "conditions": conditions or {"ready": True}}
    if "node" in more:
        entry["nodeName"] = more.pop("node")
    return entry | more


def endpoint_slice(
    of: str, *endpoints: Object, namespace: str = "default", ports: Any = (("http", 8080),), name: str = "", **more: Any
) -> Object:
    """A slice of the Service `of`."""
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": name or f"{of}-1",
            "namespace": namespace,
            "labels": {"kubernetes.io/service-name": of} | more.pop("labels", {}),
        },
        "addressType": more.pop("family", "IPv4"),
        "endpoints": list(endpoints),
        "ports": [{"name": p[0], "port": p[1], "protocol": p[2] if len(p) > 2 else "TCP"} for p in ports],
    } | more


def namespace(name: str) -> Object:
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}


def ingress(
    name: str,
    rules: Any = (),
    *,
    namespace: str = "default",
    default: str = "",
    tls: Any = (),
    ingress_class: str = "kone",
    created: str = "2026-01-01T00:00:00Z",
) -> Object:
    """An Ingress; `rules` as (host, path, type, Service's name or a whole backend), `tls` as (hosts, Secret's name)."""

    def backend(of: str | Object) -> Object:
        return {"service": {"name": of, "port": {"number": 80}}} if isinstance(of, str) else of

    by_host: dict[str, list[Object]] = {}
    for host, path, kind, to in rules:
        by_host.setdefault(host, []).append({"path": path, "pathType": kind, "backend": backend(to)})
    spec: Object = {"ingressClassName": ingress_class} if ingress_class else {}
    if by_host:
        spec["rules"] = [({"host": host} if host else {}) | {"http": {"paths": p}} for host, p in by_host.items()]
    if default:
        spec["defaultBackend"] = backend(default)
    if tls:
        spec["tls"] = [({"hosts": hosts} if hosts else {}) | {"secretName": secret} for hosts, secret in tls]
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "Ingress",
        "metadata": {"name": name, "namespace": namespace, "creationTimestamp": created},
        "spec": spec,
    }


def policy(name: str, namespace: str = "default", *, pods: Any = None, **spec: Any) -> Object:
    """A NetworkPolicy on the pods with the labels `pods` (all of them by default), its directions by what is given."""
    types = [direction.capitalize() for direction in ("ingress", "egress") if direction in spec]
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"podSelector": {"matchLabels": pods} if pods else {}, "policyTypes": types} | spec,
    }


def pod(name: str, *ips: str, namespace: str = "default", node: str = "n1", **spec: Any) -> Object:
    """A running pod with the label pod=NAME and those of `labels`; `ports` as (name, number) or with a protocol."""
    ports = [
        {"name": p[0], "containerPort": p[1], "protocol": p[2] if len(p) > 2 else "TCP"} for p in spec.pop("ports", ())
    ]
    labels = {"pod": name} | spec.pop("labels", {})
    phase = spec.pop("phase", "Running")
    containers = [{"name": "c", "image": "i", "ports": ports}]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "uid": f"uid-{namespace}-{name}", "labels": labels},
        "spec": {"nodeName": node, "containers": containers} | spec,
        "status": {"phase": phase, "podIP": ips[0], "podIPs": [{"ip": ip} for ip in ips]} if ips else {"phase": phase},
    }


GATEWAY_API = "gateway.networking.k8s.io"


def gateway_definitions() -> list[Object]:
    """The Gateway API's definitions as they are once they are established."""
    made = []
    for plural, kind in (
        ("gatewayclasses", "GatewayClass"),
        ("gateways", "Gateway"),
        ("httproutes", "HTTPRoute"),
        ("grpcroutes", "GRPCRoute"),
        ("referencegrants", "ReferenceGrant"),
    ):
        made.append(
            {
                "apiVersion": "apiextensions.k8s.io/v1",
                "kind": "CustomResourceDefinition",
                "metadata": {"name": f"{plural}.{GATEWAY_API}"},
                "spec": {
                    "group": GATEWAY_API,
                    "names": {"plural": plural, "kind": kind},
                    "versions": [{"name": "v1", "served": True, "storage": True}],
                },
                "status": {"conditions": [{"type": "Established", "status": "True"}]},
            }
        )
    return made


def gateway_class(name: str = "kone", controller: str = "kone.dev/gateway-controller", **spec: Any) -> Object:
    return {
        "apiVersion": f"{GATEWAY_API}/v1",
        "kind": "GatewayClass",
        "metadata": {"name": name, "generation": 1},
        "spec": {"controllerName": controller} | spec,
    }


def listener(name: str = "http", port: int = 80, *, secret: str = "", **more: Any) -> Object:
    """HTTP, or HTTPS with the certificate of a Secret; `routes` is allowedRoutes.namespaces.from."""
    made: Object = {"name": name, "port": port, "protocol": "HTTPS" if secret else "HTTP"}
    if secret:
        made["tls"] = {"mode": "Terminate", "certificateRefs": [{"group": "", "kind": "Secret", "name": secret}]}
    if "routes" in more:
        made["allowedRoutes"] = {"namespaces": {"from": more.pop("routes")}}
    return made | more


def gateway(
    name: str = "gw",
    *listeners: Object,
    namespace: str = "default",
    created: str = "2026-01-01T00:00:00Z",
    gateway_class: str = "kone",
    **spec: Any,
) -> Object:
    return {
        "apiVersion": f"{GATEWAY_API}/v1",
        "kind": "Gateway",
        "metadata": {"name": name, "namespace": namespace, "generation": 1, "creationTimestamp": created},
        "spec": {"gatewayClassName": gateway_class, "listeners": list(listeners) or [listener()]} | spec,
    }


def http_route(
    name: str,
    *rules: Any,
    parents: Any = ("gw",),
    hosts: Any = (),
    namespace: str = "default",
    created: str = "2026-01-01T00:00:00Z",
) -> Object:
    """An HTTPRoute; a rule is one of its own or (path, Service's name), a parent a Gateway's name or a parentRef."""

    def rule(of: Any) -> Object:
        if isinstance(of, dict):
            return of
        return {"matches": [path_match(of[0])], "backendRefs": [backend_ref(of[1])]}

    return {
        "apiVersion": f"{GATEWAY_API}/v1",
        "kind": "HTTPRoute",
        "metadata": {"name": name, "namespace": namespace, "generation": 1, "creationTimestamp": created},
        "spec": {
            "parentRefs": [{"name": parent} if isinstance(parent, str) else parent for parent in parents],
            **({"hostnames": list(hosts)} if hosts else {}),
            "rules": [rule(of) for of in rules],
        },
    }


def path_match(path: str, kind: str = "PathPrefix", **more: Any) -> Object:
    return {"path": {"type": kind, "value": path}} | more


def backend_ref(name: str, **more: Any) -> Object:
    return {"name": name, "port": 80} | more


def reference_grant(name: str, namespace: str, source: tuple[str, str], target: str, to: str = "") -> Object:
    """Lets (kind, namespace) refer to objects of the kind `target` in `namespace`: all of them, or `to`."""
    return {
        "apiVersion": f"{GATEWAY_API}/v1",
        "kind": "ReferenceGrant",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "from": [{"group": GATEWAY_API, "kind": source[0], "namespace": source[1]}],
            "to": [{"group": "", "kind": target} | ({"name": to} if to else {})],
        },
    }
