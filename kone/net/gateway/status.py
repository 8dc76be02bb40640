"""The status of GatewayClasses, Gateways and routes: pure, from what was found about them and what was there.

A condition keeps the time of its last transition while its status stays. What other controllers have said of a route
stays as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from kone.apimachinery.objects import Object, dig, generation_of
from kone.net.gateway.listeners import CONTROLLER, Condition, Gateway, Listener, class_condition
from kone.net.gateway.routes import Parent, Routes

# What kone has of the Gateway API beyond what each implementation has, in the API's own names (pkg/features).
FEATURES = (
    "GRPCRoute",
    "GRPCRouteNamedRouteRule",
    "Gateway",
    "GatewayAddressEmpty",
    "GatewayHTTPListenerIsolation",
    "GatewayHTTPSListenerDetectMisdirectedRequests",
    "GatewayPort8080",
    "HTTPRoute",
    "HTTPRoute303RedirectStatusCode",
    "HTTPRoute307RedirectStatusCode",
    "HTTPRoute308RedirectStatusCode",
    "HTTPRouteBackendProtocolH2C",
    "HTTPRouteBackendProtocolWebSocket",
    "HTTPRouteBackendRequestHeaderModification",
    "HTTPRouteBackendTimeout",
    "HTTPRouteDestinationPortMatching",
    "HTTPRouteHostRewrite",
    "HTTPRouteMethodMatching",
    "HTTPRouteNamedRouteRule",
    "HTTPRouteParentRefPort",
    "HTTPRoutePathRedirect",
    "HTTPRoutePathRewrite",
    "HTTPRoutePortRedirect",
    "HTTPRouteQueryParamMatching",
    "HTTPRouteRequestTimeout",
    "HTTPRouteResponseHeaderModification",
    "HTTPRouteSchemeRedirect",
    "ReferenceGrant",
)


def class_status(gateway_class: Object, now: str) -> Object:
    old = dig(gateway_class, "status", default={})
    wanted = [class_condition(gateway_class)]
    conditions = conditions_of(old.get("conditions") or (), wanted, generation_of(gateway_class), now)
    return {**old, "conditions": conditions, "supportedFeatures": [{"name": name} for name in FEATURES]}


def gateway_status(gateway: Gateway, routes: Routes, node_ips: Sequence[str], problem: str, now: str) -> Object:
    """`problem` is why nothing is served; "" where all is."""
    old, generation = dig(gateway.obj, "status", default={}), generation_of(gateway.obj)
    before = {listener.get("name"): listener for listener in old.get("listeners") or ()}
    listeners = []
    for listener in gateway.listeners:
        wanted = [*listener.conditions, _programmed(listener.wrong, problem)]
        known = dig(before.get(listener.name), "conditions", default=())
        listeners.append(
            {
                "name": listener.name,
                "supportedKinds": [{"group": group, "kind": kind} for group, kind in listener.kinds],
                "attachedRoutes": routes.attached.get((listener.gateway, listener.name), 0),
                "conditions": conditions_of(known, wanted, generation, now, keep=False),
            }
        )
    conditions = conditions_of(old.get("conditions") or (), _conditions(gateway, problem), generation, now)
    ips = () if gateway.address_problem else gateway.addresses or node_ips
    addresses = [{"type": "IPAddress", "value": ip} for ip in ips]
    return {**old, "addresses": addresses, "conditions": conditions, "listeners": listeners}


def _conditions(gateway: Gateway, problem: str) -> Iterable[Condition]:
    refused = [listener for listener in gateway.listeners if not listener.accepted]
    trouble = gateway.address_problem
    accepted = Condition("Accepted", True, "Accepted", "the Gateway is accepted")
    if trouble is not None and trouble.type == "Accepted":
        accepted = trouble
    elif refused:
        message = f"listeners that are not accepted: {', '.join(_names(refused))}"
        accepted = Condition("Accepted", len(refused) < len(gateway.listeners), "ListenersNotValid", message)
    yield accepted
    if trouble is not None and trouble.type == "Programmed":
        yield trouble
    elif not accepted.status:
        yield Condition("Programmed", False, "Invalid", accepted.message)
    elif not any(listener.serves for listener in gateway.listeners):
        yield Condition("Programmed", False, "Invalid", "no listener can serve")
    else:
        yield _programmed("", problem)


def _names(listeners: Iterable[Listener]) -> list[str]:
    return [listener.name for listener in listeners]


def _programmed(wrong: str, problem: str) -> Condition:
    if wrong:
        return Condition("Programmed", False, "Invalid", wrong)
    if problem:
        return Condition("Programmed", False, "Pending", problem)
    return Condition("Programmed", True, "Programmed", "requests are served")


def route_parents(route: Object, parents: Iterable[Parent], now: str) -> list[Object]:
    """status.parents: what others said, then what we say."""
    old = dig(route, "status", "parents", default=())
    made = [entry for entry in old if entry.get("controllerName") != CONTROLLER]
    mine = [entry for entry in old if entry.get("controllerName") == CONTROLLER]
    for parent in parents:
        known: Object = next((entry for entry in mine if entry.get("parentRef") == parent.ref), {})
        before: Sequence[Object] = known.get("conditions") or ()
        conditions = conditions_of(before, parent.conditions, parent.generation, now, keep=False)
        made.append({"parentRef": parent.ref, "controllerName": CONTROLLER, "conditions": conditions})
    return made


def conditions_of(
    old: Iterable[Object], wanted: Iterable[Condition], generation: int, now: str, *, keep: bool = True
) -> list[Object]:
    """The conditions as they are written; with `keep` others that are there stay."""
    before = {condition.get("type"): condition for condition in old}
    made: dict[str, Object] = {}
    for each in wanted:
        status = "True" if each.status else "False"
        known = before.get(each.type, {})
        made[each.type] = {
            "type": each.type,
            "status": status,
            "observedGeneration": generation,
            "lastTransitionTime": known["lastTransitionTime"] if known.get("status") == status else now,
            "reason": each.reason,
            "message": each.message,
        }
    others = [condition for kind, condition in before.items() if kind not in made] if keep else []
    return [*others, *made.values()]
