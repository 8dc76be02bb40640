"""Rules on resource names and quantities: of containers, pods, nodes, quotas and limit ranges."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from kone.apimachinery.errors import FieldError, duplicate, forbidden_field, invalid_value, not_supported, required
from kone.apimachinery.names import is_dns1123_label, is_qualified_name
from kone.apimachinery.quantity import Quantity, parse_quantity
from kone.registry.generic import NOT_NEGATIVE
from kone.registry.rules import NOT_ABOVE_ZERO, Errors, check

HUGE_PAGES = "hugepages-"
_REQUESTS_HUGE_PAGES = "requests.hugepages-"
_CONTAINER_RESOURCES = frozenset(("cpu", "memory", "ephemeral-storage"))
_INTEGER_RESOURCES = frozenset(
    (
        "pods",
        "resourcequotas",
        "services",
        "replicationcontrollers",
        "secrets",
        "configmaps",
        "persistentvolumeclaims",
        "services.nodeports",
        "services.loadbalancers",
    )
)
QUOTA_RESOURCES = (
    _INTEGER_RESOURCES
    | _CONTAINER_RESOURCES
    | {f"{side}.{name}" for side in ("requests", "limits") for name in _CONTAINER_RESOURCES}
    | {"requests.storage"}
)
_STANDARD_RESOURCES = QUOTA_RESOURCES | {"storage"}
_NOT_INTEGER = "must be an integer"

NameRule = Callable[[Errors, str, str], None]


def is_huge_page(name: str) -> bool:
    return name.startswith(HUGE_PAGES)


def is_quota_huge_page(name: str) -> bool:
    return name.startswith((HUGE_PAGES, _REQUESTS_HUGE_PAGES))


def is_native(name: str) -> bool:
    """Of Kubernetes itself: without a domain, or in kubernetes.io/."""
    return "/" not in name or "kubernetes.io/" in name


@lru_cache(maxsize=1024)
def is_extended(name: str) -> bool:
    """An extended resource such as example.com/gpu."""
    return not is_native(name) and not name.startswith("requests.") and not is_qualified_name(f"requests.{name}")


def is_overcommit_allowed(name: str) -> bool:
    return is_native(name) and not is_huge_page(name)


def is_integer(name: str) -> bool:
    return name in _INTEGER_RESOURCES or is_extended(name)


def is_pod_level(name: str) -> bool:
    """Whether a pod may ask for it as a whole (KEP-2837)."""
    return name in ("cpu", "memory") or is_huge_page(name)


def quantity(value: Any) -> Quantity:
    """The quantity of a value that decoding has already found well formed."""
    return parse_quantity(value) if value is not None else Quantity(0)


def resource_name(errors: Errors, path: str, name: str) -> None:
    """validateResourceName: a standard name, or one with a domain."""
    wrong = is_qualified_name(name)
    if wrong:
        check(errors, path, name, wrong)
    elif "/" not in name and name not in _STANDARD_RESOURCES and not is_quota_huge_page(name):
        errors.append(invalid_value(path, name, "must be a standard resource type or fully qualified"))


def container_resource_name(errors: Errors, path: str, name: str) -> None:
    if name in _CONTAINER_RESOURCES:
        return
    resource_name(errors, path, name)
    if "/" not in name:
        if not is_huge_page(name):
            errors.append(invalid_value(path, name, "must be a standard resource for containers"))
    elif not is_native(name) and not is_extended(name):
        errors.append(invalid_value(path, name, "doesn't follow extended resource name standard"))


def pod_resource_name(errors: Errors, path: str, name: str) -> None:
    before = len(errors)
    resource_name(errors, path, name)
    if len(errors) == before and not is_pod_level(name):
        errors.append(not_supported(path, name, ("cpu", "hugepages-", "memory")))


def quota_resource_name(errors: Errors, path: str, name: str) -> None:
    resource_name(errors, path, name)
    if "/" not in name and name not in QUOTA_RESOURCES and not is_quota_huge_page(name):
        errors.append(invalid_value(path, name, "must be a standard resource for quota"))


def resource_quantity(errors: Errors, path: str, name: str, value: Any) -> None:
    """ValidateResourceQuantityValue: not negative, and whole where pieces are counted."""
    amount = quantity(value)
    if amount.nanos < 0:
        errors.append(invalid_value(path, amount.canonical(), NOT_NEGATIVE))
    if is_integer(name) and amount.milli() % 1000:
        errors.append(invalid_value(path, amount.canonical(), _NOT_INTEGER))


def positive_quantity(errors: Errors, path: str, value: Any) -> None:
    amount = quantity(value)
    if amount.nanos <= 0:
        errors.append(invalid_value(path, amount.canonical(), NOT_ABOVE_ZERO))


def basic_quantity(errors: Errors, path: str, value: Any) -> None:
    """validateBasicResource: only not negative."""
    amount = quantity(value)
    if amount.value() < 0:
        errors.append(invalid_value(path, amount.value(), "must be a valid resource quantity"))


def is_divisible(name: str, amount: Quantity) -> bool:
    """Whether a huge page resource's amount is a multiple of its page size."""
    try:
        page = parse_quantity(name.removeprefix(HUGE_PAGES))
    except ValueError:
        return False
    if page.nanos <= 0 or page.milli() % 1000:
        return False
    return amount.value() % page.value() == 0


def requirements(
    errors: Errors,
    path: str,
    found: Mapping[str, Any],
    claim_names: Sequence[str],
    name_rule: NameRule = container_resource_name,
) -> None:
    """ResourceRequirements of a container or a pod: names, amounts, requests against limits, claims."""
    limits, requests = found.get("limits") or {}, found.get("requests") or {}
    compute = huge = False
    for side, resources in (("limits", limits), ("requests", requests)):
        for name in sorted(resources):
            value = resources[name]
            at = f"{path}.{side}[{name}]"
            name_rule(errors, at, name)
            resource_quantity(errors, at, name, value)
            if side == "requests":
                _request_within_limit(errors, path, name, value, limits.get(name))
            if is_huge_page(name):
                huge = True
                amount = quantity(value)
                if not is_divisible(name, amount):
                    text = f"{amount.canonical()} is not positive integer multiple of {name}"
                    errors.append(invalid_value(at, amount.canonical(), text))
            elif name in ("cpu", "memory"):
                compute = True
    if huge and not compute:
        errors.append(forbidden_field(path, "HugePages require cpu or memory"))
    if found.get("claims"):
        _claims(errors, f"{path}.claims", found["claims"], claim_names)


def _request_within_limit(errors: Errors, path: str, name: str, value: Any, limit: Any) -> None:
    if limit is None:
        if not is_overcommit_allowed(name):
            errors.append(required(f"{path}.limits", "Limit must be set for non overcommitable resources"))
        return
    if value == limit:
        return
    request, most = quantity(value), quantity(limit)
    if request != most and not is_overcommit_allowed(name):
        text = f"must be equal to {name} limit of {most.canonical()}"
    elif request > most:
        text = f"must be less than or equal to {name} limit of {most.canonical()}"
    else:
        return
    errors.append(invalid_value(f"{path}.requests", request.canonical(), text))


def _claims(errors: Errors, path: str, claims: Sequence[Mapping[str, Any]], known: Sequence[str]) -> None:
    seen: set[str] = set()
    for i, claim in enumerate(claims):
        name, request, at = claim.get("name", ""), claim.get("request", ""), f"{path}[{i}]"
        if not name:
            errors.append(required(at))
            continue
        if name in seen:
            errors.append(duplicate(at, name))  # all requests of that claim are referenced already
        else:
            key = name
            if request:
                check(errors, f"{at}.request", request, is_dns1123_label(request))
                key = f"{name}/{request}"
            if key in seen:
                errors.append(duplicate(at, key))
            elif not request and any(other.startswith(f"{name}/") for other in seen):
                errors.append(duplicate(at, name))
            seen.add(key)
        if name not in known:
            detail = "must be one of the names in pod.spec.resourceClaims"
            detail += f": {', '.join(sorted(known))}" if known else " which is empty"
            errors.append(FieldError("FieldValueNotFound", at, detail, name))
