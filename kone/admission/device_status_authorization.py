"""DeviceStatusAuthorization: who gives devices to a claim, and who speaks for a driver, needs leave for that beside the
leave to write the claim's status. Upstream asks this in its storage (DRAResourceClaimGranularStatusAuthorization).

Leave for what is no resource of the API: `resourceclaims/binding` to give and reserve, `resourceclaims/driver` by the
driver's name, where a service account on the claim's own node may also be given `associated-node:` verbs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from kone.admission.plugin import Attributes, Authorizer, Plugin
from kone.apimachinery.access import AccessRequest, access_denied
from kone.apimachinery.errors import FieldError, forbidden_field, invalid
from kone.apimachinery.objects import Object, dig
from kone.apimachinery.users import SERVICE_ACCOUNT_PREFIX, User

NODE_NAME: Final = "authentication.kubernetes.io/node-name"
_VERBS: Final = ("update", "patch")
"""Either will do: that the request itself may be made has been asked before, with the verb that it has."""


class DeviceStatusAuthorization(Plugin):
    name = "DeviceStatusAuthorization"
    operations = frozenset({"UPDATE"})
    resources = frozenset({("resource.k8s.io", "resourceclaims")})
    subresources = frozenset({"status"})

    def __init__(self, authorizer: Authorizer) -> None:
        self._authorizer = authorizer

    async def validate(self, a: Attributes) -> None:
        new, old = a.object.get("status") or {}, (a.old or {}).get("status") or {}
        errors: list[FieldError] = []
        if any(new.get(part) != old.get(part) for part in ("allocation", "reservedFor")):
            errors += self._binding(a)
        if new.get("allocation") is not None:
            for driver in drivers_changed(new, old):
                errors += self._driver(a, driver, new["allocation"])
        if errors:
            raise invalid(a.kind.group_kind, a.name, errors)

    def _binding(self, a: Attributes) -> list[FieldError]:
        refused = self._refused(a, "binding", _VERBS, "", "")
        if refused is None:
            return []
        needed = 'changing status.allocation or status.reservedFor requires resource="resourceclaims/binding"'
        return [forbidden_field("status.allocation", f'{needed}, verb="{_VERBS[0]}" permission: {refused}')]

    def _driver(self, a: Attributes, driver: str, allocation: Object) -> list[FieldError]:
        here = is_on_node(a.user, node_of(allocation))
        prefixes = ["associated-node:", "arbitrary-node:"] if here else ["arbitrary-node:"]
        verbs = [f"{prefix}{verb}" for prefix in prefixes for verb in _VERBS]
        refused = self._refused(a, "driver", verbs, a.namespace, driver)
        if refused is None:
            return []
        shown = " ".join(f"{prefix}{_VERBS[0]}" for prefix in prefixes)
        needed = f'changing status.devices requires resource="resourceclaims/driver", verb="[{shown}]"'
        return [forbidden_field("status.devices", f"{needed} permission: {refused}")]

    def _refused(
        self, a: Attributes, subresource: str, verbs: Sequence[str], namespace: str, name: str
    ) -> Exception | None:
        """Why the first of the verbs is refused; None where any is allowed."""
        first: Exception | None = None
        for verb in verbs:
            gvr = a.resource
            asked = AccessRequest(verb, gvr.group, gvr.version, gvr.resource, subresource, namespace, name)
            allowed, reason = self._authorizer.allowed(a.user, asked)
            if allowed:
                return None
            first = first or access_denied(a.user, asked, reason)
        return first


def drivers_changed(new: Mapping[str, Any], old: Mapping[str, Any]) -> list[str]:
    """The drivers whose devices came, went or are said to be otherwise."""
    keys = ("driver", "pool", "device", "shareID")
    after, before = ({tuple(d.get(k) for k in keys): d for d in s.get("devices") or ()} for s in (new, old))
    changed = [key for key in {*after, *before} if after.get(key) != before.get(key)]
    return sorted({str(key[0]) for key in changed})


def node_of(allocation: Object) -> str:
    """The node to which the devices belong; "" where they are not one node's."""
    terms: Sequence[Object] = dig(allocation, "nodeSelector", "nodeSelectorTerms", default=())
    if len(terms) != 1 or terms[0].get("matchExpressions"):
        return ""
    fields: Sequence[Object] = terms[0].get("matchFields") or ()
    if len(fields) != 1 or (fields[0].get("key"), fields[0].get("operator")) != ("metadata.name", "In"):
        return ""
    values: Sequence[str] = fields[0].get("values") or ()
    return str(values[0]) if len(values) == 1 else ""


def is_on_node(user: User, node: str) -> bool:
    """Whether the user is a service account whose token was made for a pod there."""
    nodes = tuple(user.extra.get(NODE_NAME, ()))
    return bool(node) and user.name.startswith(SERVICE_ACCOUNT_PREFIX) and nodes == (node,)
