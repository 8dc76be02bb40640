"""Whether this node takes a pod that was bound to it: the kubelet's own check, whoever did the binding. Pure.

What is refused stays so: the pod becomes Failed and is not tried again.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from kone.apimachinery import selectors
from kone.apimachinery.declared_features import INIT_CONTAINER_RESIZE, RESTART_ALL, WEB_SOCKETS, needed_to_run
from kone.apimachinery.objects import Object, dig, labels_of, name_of
from kone.apimachinery.pod_resources import Amounts, amounts, pod_requests
from kone.apimachinery.taints import taints_of, tolerates_any, with_effect
from kone.runtime.pod_network import HostPort
from kone.runtime.pod_spec import all_containers, is_host_network, sidecars
from kone.runtime.pod_status import Verdict
from kone.runtime.static_pods import is_static

REJECTED = "Pod was rejected: "
DECLARED_FEATURES = (WEB_SOCKETS, INIT_CONTAINER_RESIZE, RESTART_ALL)  # what this kubelet does, sorted

# namespaced, and of no consequence outside the pod (docs, Using sysctls in a Kubernetes Cluster)
SAFE_SYSCTLS = frozenset(
    {
        "kernel.shm_rmid_forced",
        "net.ipv4.ip_local_port_range",
        "net.ipv4.tcp_syncookies",
        "net.ipv4.ping_group_range",
        "net.ipv4.ip_unprivileged_port_start",
        "net.ipv4.ip_local_reserved_ports",
        "net.ipv4.tcp_keepalive_time",
        "net.ipv4.tcp_fin_timeout",
        "net.ipv4.tcp_keepalive_intvl",
        "net.ipv4.tcp_keepalive_probes",
        "net.ipv4.tcp_rmem",
        "net.ipv4.tcp_wmem",
        "net.ipv4.tcp_slow_start_after_idle",
        "net.ipv4.tcp_notsent_lowat",
    }
)
_OPERATORS = {
    "In": selectors.IN,
    "NotIn": selectors.NOT_IN,
    "Exists": selectors.EXISTS,
    "DoesNotExist": selectors.DOES_NOT_EXIST,
    "Gt": selectors.GREATER_THAN,
    "Lt": selectors.LESS_THAN,
}
_OUT_OF = {
    "cpu": "OutOfcpu",
    "memory": "OutOfmemory",
    "ephemeral-storage": "OutOfephemeral-storage",
    "pods": "OutOfpods",
}


def refuse(
    pod: Object, node: Object, others: Sequence[Object], *, unsafe_sysctls: Iterable[str] = ()
) -> Verdict | None:
    """Why the pod cannot run here, None where it can. `others` are the active pods of the node, `node` may be {}.

    The verdict's message is that of the event; in the status it is preceded by REJECTED.
    """
    return (
        _refuse_sysctls(pod, unsafe_sysctls)
        or _refuse_os(pod)
        or _refuse_features(pod)
        or refuse_resources(pod, node, others)
        or _refuse_affinity(pod, node)
        or _refuse_ports(pod, others)
        or _refuse_taints(pod, node)
    )


def _refuse_sysctls(pod: Object, unsafe: Iterable[str]) -> Verdict | None:
    allowed = [*SAFE_SYSCTLS, *unsafe]
    for sysctl in dig(pod, "spec", "securityContext", "sysctls", default=()):
        name = sysctl["name"].replace("/", ".")
        problem = ""
        if not any(name == a or (a.endswith("*") and name.startswith(a[:-1])) for a in allowed):
            problem = f'"{name}" not allowlisted'
        elif name.startswith("net.") and is_host_network(pod):
            problem = f'"{name}" not allowed with host net enabled'
        elif name.startswith(("kernel.shm", "kernel.msg", "kernel.sem", "fs.mqueue.")) and pod["spec"].get("hostIPC"):
            problem = f'"{name}" not allowed with host ipc enabled'
        if problem:
            return Verdict("SysctlForbidden", f"forbidden sysctl: {problem}")
    return None


def _refuse_os(pod: Object) -> Verdict | None:
    if dig(pod, "spec", "os", "name", default="linux") != "linux":
        return Verdict("PodOSNotSupported", "Failed to admit pod as the OS field doesn't match node OS")
    if labels_of(pod).get("kubernetes.io/os", "linux") != "linux":
        message = "Failed to admit pod as the `kubernetes.io/os` label doesn't match node label"
        return Verdict("PodOSSelectorNodeLabelDoesNotMatch", message)
    return None


def _refuse_features(pod: Object) -> Verdict | None:
    if missing := [feature for feature in needed_to_run(pod["spec"]) if feature not in DECLARED_FEATURES]:
        message = f"Pod requires node features that are not available: {', '.join(missing)}"
        return Verdict("PodFeatureUnsupported", message)
    return None


def refuse_resources(pod: Object, node: Object, others: Sequence[Object]) -> Verdict | None:
    """Whether what is left of the node is enough. Only what it counts itself is checked: extended resources that it
    does not know may be the cluster's."""
    allocatable = amounts(dig(node, "status", "allocatable"))
    used: Amounts = {"pods": len(others)}
    for other in others:
        for name, amount in pod_requests(other).items():
            used[name] = used.get(name, 0) + amount
    wanted = {"pods": 1, **pod_requests(pod)}
    for name in sorted(wanted, key=lambda n: (n != "pods", n != "cpu", n != "memory", n)):
        requested = wanted[name]
        if requested and name in allocatable and requested > allocatable[name] - used.get(name, 0):
            figures = f"requested: {requested}, used: {used.get(name, 0)}, capacity: {allocatable[name]}"
            message = f"Node didn't have enough resource: {name}, {figures}"
            return Verdict(_OUT_OF.get(name, f"OutOf{name}"), message)
    return None


def _refuse_affinity(pod: Object, node: Object) -> Verdict | None:
    if node and not matches_node(pod, node):
        return _predicate("NodeAffinity", "node(s) didn't match Pod's node affinity/selector")
    return None


def matches_node(pod: Object, node: Object) -> bool:
    """nodeSelector, and the required part of nodeAffinity: any term, of which every expression must hold."""
    labels = labels_of(node)
    selector = dig(pod, "spec", "nodeSelector", default={})
    if any(labels.get(key) != value for key, value in selector.items()):
        return False
    required = dig(pod, "spec", "affinity", "nodeAffinity", "requiredDuringSchedulingIgnoredDuringExecution")
    if required is None:
        return True
    return any(_matches_term(term, labels, name_of(node)) for term in required.get("nodeSelectorTerms") or ())


def _matches_term(term: Object, labels: dict[str, str], name: str) -> bool:
    expressions, fields = term.get("matchExpressions") or [], term.get("matchFields") or []
    if not expressions and not fields:
        return False
    return all(_holds(e, labels) for e in expressions) and all(_holds(f, {"metadata.name": name}) for f in fields)


def _holds(expression: Object, values: dict[str, str]) -> bool:
    try:
        operator = _OPERATORS[expression["operator"]]
        requirement = selectors.make_requirement(expression["key"], operator, expression.get("values") or ())
    except (KeyError, ValueError):
        return False
    return requirement.matches(values)


def _refuse_ports(pod: Object, others: Sequence[Object]) -> Verdict | None:
    taken = [port for other in others for port in claimed_ports(other)]
    if any(_clash(mine, other) for mine in claimed_ports(pod) for other in taken):
        return _predicate("NodePorts", "node(s) didn't have free ports for the requested pod ports")
    return None


def claimed_ports(pod: Object) -> list[HostPort]:
    """The node's ports that the pod takes; with the host's network every port it names is one."""
    running = [c for kind, c in all_containers(pod) if kind == "regular"] + sidecars(pod)
    return [
        HostPort(p.get("protocol", "TCP"), p.get("hostIP", ""), int(p["hostPort"]), int(p["containerPort"]))
        for container in running
        for p in container.get("ports") or ()
        if p.get("hostPort")
    ]


def _clash(one: HostPort, other: HostPort) -> bool:
    everywhere = ("", "0.0.0.0", "::")
    same_ip = one.host_ip == other.host_ip or one.host_ip in everywhere or other.host_ip in everywhere
    return same_ip and (one.protocol, one.host_port) == (other.protocol, other.host_port)


def _refuse_taints(pod: Object, node: Object) -> Verdict | None:
    """NoExecute taints that the pod does not tolerate; what the node runs by itself runs whatever its taints."""
    if is_static(pod):
        return None
    tolerations = dig(pod, "spec", "tolerations", default=())
    if all(tolerates_any(tolerations, taint) for taint in with_effect(taints_of(node), "NoExecute")):
        return None
    return _predicate("TaintToleration", "node(s) had taints that the pod didn't tolerate")


def _predicate(name: str, why: str) -> Verdict:
    return Verdict(name, f"Predicate {name} failed: {why}")
