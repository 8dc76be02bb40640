"""Words to speak of a pod's spec as the kubelet does: its containers by kind, and who restarts, QoS class, sums of
resources.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from kone.apimachinery.objects import Object, dig, name_of, namespace_of, uid_of
from kone.apimachinery.quantity import Quantity, parse_quantity
from kone.runtime.runtime import PodMeta

ContainerKind = Literal["init", "regular", "ephemeral"]


def pod_meta(pod: Object) -> PodMeta:
    return PodMeta(name_of(pod), namespace_of(pod), uid_of(pod))


def format_pod(pod: Object) -> str:
    """As the kubelet's messages name a pod: "web_default(1234-…)"."""
    return f"{name_of(pod)}_{namespace_of(pod)}({uid_of(pod)})"


def init_containers(pod: Object) -> list[Object]:
    found: list[Object] = dig(pod, "spec", "initContainers", default=[])
    return found


def regular_containers(pod: Object) -> list[Object]:
    found: list[Object] = dig(pod, "spec", "containers", default=[])
    return found


def ephemeral_containers(pod: Object) -> list[Object]:
    found: list[Object] = dig(pod, "spec", "ephemeralContainers", default=[])
    return found


def all_containers(pod: Object) -> Iterator[tuple[ContainerKind, Object]]:
    for container in init_containers(pod):
        yield "init", container
    for container in regular_containers(pod):
        yield "regular", container
    for container in ephemeral_containers(pod):
        yield "ephemeral", container


def find_container(pod: Object, name: str) -> Object | None:
    return next((c for _, c in all_containers(pod) if c["name"] == name), None)


def is_sidecar(container: Object) -> bool:
    """An init container with restartPolicy Always; only meaningful for init containers."""
    return container.get("restartPolicy") == "Always"


def sidecars(pod: Object) -> list[Object]:
    return [c for c in init_containers(pod) if is_sidecar(c)]


def is_host_network(pod: Object) -> bool:
    return bool(dig(pod, "spec", "hostNetwork", default=False))


def restart_policy(pod: Object) -> str:
    return str(dig(pod, "spec", "restartPolicy", default="Always"))


def matching_rule(container: Object, exit_code: int) -> str:
    """The action of the first of the container's restart rules that is for this exit code, "" where none is."""
    for rule in container.get("restartPolicyRules") or ():
        codes = rule.get("exitCodes") or {}
        listed = exit_code in (codes.get("values") or ())
        if listed == (codes.get("operator") == "In"):
            return str(rule.get("action", ""))
    return ""


def could_restart_all(pod: Object) -> bool:
    """Whether some exit code of some container restarts the whole pod in place."""
    return any(
        rule.get("action") == "RestartAllContainers"
        for kind, container in all_containers(pod)
        if kind != "ephemeral"
        for rule in container.get("restartPolicyRules") or ()
    )


def should_restart(pod: Object, container: Object, exit_code: int) -> bool:
    """Whether a container that ended so is started again: its own rules, its own policy, then the pod's."""
    policy = container.get("restartPolicy")
    if policy and matching_rule(container, exit_code) in ("Restart", "RestartAllContainers"):
        return True
    match policy or restart_policy(pod):
        case "OnFailure":
            return exit_code != 0
        case "Never":
            return False
        case _:
            return True


def grace_period_s(pod: Object) -> int:
    """How long the pod's containers may take to end: what the deletion says, else what the spec says."""
    asked = dig(pod, "metadata", "deletionGracePeriodSeconds")
    if asked is not None:
        return int(asked)
    return int(dig(pod, "spec", "terminationGracePeriodSeconds", default=30))


def quantity(container: Mapping[str, Any], kind: Literal["requests", "limits"], resource: str) -> Quantity | None:
    found = dig(container, "resources", kind, resource)
    return parse_quantity(found) if found is not None else None
