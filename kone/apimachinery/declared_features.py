"""Features that a node declares (`status.declaredFeatures`), and which of them a pod or a change of it needs.

The rules are those of component-helpers/nodedeclaredfeatures at v1.37; a feature whose gate is off there by default has
no field that the API would accept, or infers nothing, but for user namespaces beside the host's network.
"""

from __future__ import annotations

from collections.abc import Collection

from kone.apimachinery.objects import Object, dig
from kone.apimachinery.pod_resources import amounts

POD_LEVEL_RESIZE = "InPlacePodLevelResourcesVerticalScaling"
INIT_CONTAINER_RESIZE = "InPlacePodVerticalScalingInitContainers"
RESTART_ALL = "RestartAllContainersOnContainerExits"
USER_NAMESPACES_HOST_NETWORK = "UserNamespacesHostNetworkSupport"
WEB_SOCKETS = "ExtendWebSocketsToKubelet"


def needed_to_run(spec: Object) -> list[str]:
    """What a node must declare to take a pod of this spec; sorted."""
    needed = []
    if any(
        rule.get("action") == "RestartAllContainers"
        for kind in ("containers", "initContainers")
        for container in spec.get(kind) or ()
        for rule in container.get("restartPolicyRules") or ()
    ):
        needed.append(RESTART_ALL)
    if spec.get("hostNetwork") and spec.get("hostUsers") is False:
        needed.append(USER_NAMESPACES_HOST_NETWORK)
    return needed


def needed_to_change(old: Object, new: Object) -> list[str]:
    """What its node must declare for the spec of a pod to become another; sorted."""
    needed = []
    if _resources(old) != _resources(new):
        needed.append(POD_LEVEL_RESIZE)
    after = {container["name"]: container for container in new.get("initContainers") or ()}
    for container in old.get("initContainers") or ():
        is_sidecar = container.get("restartPolicy") == "Always"
        if not is_sidecar and _resources(container) != _resources(after.get(container["name"], {})):
            needed.append(INIT_CONTAINER_RESIZE)
            break
    return needed


def _resources(holder: Object) -> tuple[dict[str, int], dict[str, int]]:
    return amounts(dig(holder, "resources", "requests")), amounts(dig(holder, "resources", "limits"))


def declared_by(node: Object | None) -> Collection[str]:
    features: Collection[str] = dig(node, "status", "declaredFeatures", default=())
    return features
