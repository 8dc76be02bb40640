"""The rules of ResourceClaims: what they ask for, and what they were given."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from kone.apimachinery.errors import (
    FieldError,
    forbidden_field,
    invalid_value,
    not_supported,
    required,
    too_long,
    too_many,
)
from kone.apimachinery.names import is_dns1123_subdomain, is_interface_address
from kone.apimachinery.objects import Object, dig
from kone.registry import device_rules as rules
from kone.registry.conditions import conditions
from kone.registry.core.pod_scheduling import node_selector
from kone.registry.equality import same
from kone.registry.rules import Errors, check

_MODES = ("All", "ExactCount")
_SOURCES = ("FromClaim", "FromClass")
_MAX_REQUESTS = _MAX_CONSTRAINTS = _MAX_CONFIGS = _MAX_RESULTS = 32
_MAX_ALTERNATIVES, _MAX_RESERVED, _MAX_DEVICE_CONDITIONS, _MAX_IPS = 8, 256, 8, 16
_MAX_INTERFACE_NAME, _MAX_HARDWARE_ADDRESS = 256, 128
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_UUID_TEXT = "must be a lowercase UUID in 8-4-4-4-12 format"
_NO_SUCH_REQUEST = (
    "must be the name of a request in the claim or the name of a request and a subrequest separated by '/'"
)


def default_claim(spec: Object) -> None:
    """Put the defaults into what a claim, or a template of claims, asks for."""
    for request in dig(spec, "devices", "requests", default=()):
        for wish in (request.get("exactly"), *(request.get("firstAvailable") or ())):
            if wish is None:
                continue
            if not wish.get("allocationMode"):
                wish["allocationMode"] = "ExactCount"
            if wish["allocationMode"] == "ExactCount" and not wish.get("count"):
                wish["count"] = 1
            _default_operators(wish)


def default_status(status: Mapping[str, Any]) -> None:
    for result in dig(status, "allocation", "devices", "results", default=()):
        _default_operators(result)


def _default_operators(found: Mapping[str, Any]) -> None:
    for toleration in found.get("tolerations") or ():
        if not toleration.get("operator"):
            toleration["operator"] = "Equal"


def drop_alpha(spec: Object) -> None:
    """Take out, in place, what only features that v1.37 has off would read."""
    for request in dig(spec, "devices", "requests", default=()):
        for wish in (request.get("exactly"), *(request.get("firstAvailable") or ())):
            if wish is not None:
                wish.pop("derivedAttributes", None)


def claim_rules(errors: Errors, later: Errors, path: str, spec: Mapping[str, Any]) -> None:
    """ResourceClaimSpec."""
    devices = spec.get("devices") or {}
    names, at = request_names(devices), f"{path}.devices"
    requests = devices.get("requests") or ()
    if rules.each(errors, later, f"{at}.requests", requests, _MAX_REQUESTS, partial(_request, later)):
        rules.distinct(later, f"{at}.requests", requests, "name")
    constraints = devices.get("constraints") or ()
    rules.each(errors, later, f"{at}.constraints", constraints, _MAX_CONSTRAINTS, partial(_constraint, later, names))
    configs = devices.get("config") or ()
    rules.each(errors, later, f"{at}.config", configs, _MAX_CONFIGS, partial(_config, later, names))


def request_names(devices: Mapping[str, Any]) -> dict[str, set[str]]:
    """The names of a claim's requests, with those of their alternatives."""
    return {
        request.get("name", ""): {wish.get("name", "") for wish in request.get("firstAvailable") or ()}
        for request in devices.get("requests") or ()
    }


def _request(later: Errors, errors: Errors, path: str, request: Mapping[str, Any]) -> None:
    rules.label(errors, f"{path}.name", request.get("name", ""))
    exactly, alternatives = request.get("exactly"), request.get("firstAvailable") or ()
    why = "exactly one of `exactly` or `firstAvailable` is required"
    if exactly is None and not alternatives:
        errors.append(required(path, why))
    elif exactly is not None and alternatives:
        errors.append(invalid_value(path, None, f"{why}, but multiple fields are set"))
        _declared(later, path, exactly, alternatives)
    elif exactly is not None:
        _wish(errors, later, f"{path}.exactly", exactly, declared=False)
    elif rules.each(
        errors, later, f"{path}.firstAvailable", alternatives, _MAX_ALTERNATIVES, partial(_alternative, later)
    ):
        rules.distinct(later, f"{path}.firstAvailable", alternatives, "name")


def _alternative(later: Errors, errors: Errors, path: str, wish: Mapping[str, Any]) -> None:
    rules.label(errors, f"{path}.name", wish.get("name", ""))
    _wish(errors, later, path, wish, declared=True)


def _declared(later: Errors, path: str, exactly: Object, alternatives: Sequence[Object]) -> None:
    """Declared rules look at either, whichever it should have been."""
    nowhere: Errors = []
    _wish(nowhere, later, f"{path}.exactly", exactly, declared=False)
    rule = partial(_alternative, later)
    if rules.each(nowhere, later, f"{path}.firstAvailable", alternatives, _MAX_ALTERNATIVES, rule):
        rules.distinct(later, f"{path}.firstAvailable", alternatives, "name")


def _wish(errors: Errors, later: Errors, path: str, wish: Mapping[str, Any], *, declared: bool) -> None:
    """What is asked for; `declared` says whether the rule on the class is a declared one, as it is of alternatives."""
    name, mode, count = wish.get("deviceClassName", ""), wish.get("allocationMode", ""), wish.get("count", 0)
    of_class, texts = later if declared else errors, is_dns1123_subdomain(name)
    if not name:
        of_class.append(required(f"{path}.deviceClassName"))
    else:
        check(of_class, f"{path}.deviceClassName", name, rules.declared(texts) if declared else texts)
    rules.selectors(errors, later, f"{path}.selectors", wish.get("selectors") or ())
    if mode == "All":
        if count:
            why = "must not be specified when allocationMode is 'All'"
            errors.append(invalid_value(f"{path}.count", count, why))
    elif mode != "ExactCount":
        later.append(not_supported(f"{path}.allocationMode", mode, _MODES))
    elif count <= 0:
        errors.append(invalid_value(f"{path}.count", count, "must be greater than zero"))
    rules.tolerations(errors, later, f"{path}.tolerations", wish.get("tolerations") or ())


def _constraint(
    later: Errors, names: Mapping[str, set[str]], errors: Errors, path: str, constraint: Mapping[str, Any]
) -> None:
    _references(errors, later, f"{path}.requests", constraint.get("requests") or (), names)
    given = [field for field in ("matchAttribute", "distinctAttribute") if constraint.get(field) is not None]
    for field in given:
        rules.declared_full_name(later, f"{path}.{field}", constraint[field])
    if given:
        return
    why = 'exactly one of "matchAttribute" or "distinctAttribute" is required, but multiple fields are set'
    errors.append(required(path, why))


def _config(later: Errors, names: Mapping[str, set[str]], errors: Errors, path: str, config: Mapping[str, Any]) -> None:
    _references(errors, later, f"{path}.requests", config.get("requests") or (), names)
    rules.configuration(errors, later, path, config)


def _references(errors: Errors, later: Errors, path: str, found: Sequence[str], names: Mapping[str, set[str]]) -> None:
    if rules.each(errors, later, path, found, _MAX_REQUESTS, partial(_reference, names)):
        rules.distinct(later, path, found)


def _reference(names: Mapping[str, set[str]], errors: Errors, path: str, name: str) -> None:
    parts = name.split("/")
    if len(parts) > 2:
        errors.append(invalid_value(path, name, _NO_SUCH_REQUEST))
        return
    for part in parts:
        rules.label(errors, path, part)
    if parts[0] not in names or (len(parts) == 2 and parts[1] not in names[parts[0]]):
        errors.append(invalid_value(path, name, _NO_SUCH_REQUEST))


# -- status -----------------------------------------------------------------------------------------------------------


def claim_status_rules(obj: Object, old: Object) -> Iterable[FieldError]:
    """ResourceClaimStatus."""
    errors: Errors = []
    later: Errors = []
    status, before = obj.get("status") or {}, old.get("status") or {}
    allocation, reserved = status.get("allocation"), status.get("reservedFor") or ()
    if rules.each(errors, later, "status.reservedFor", reserved, _MAX_RESERVED, _consumer):
        rules.distinct(later, "status.reservedFor", reserved, "uid")
    given = {_device_id(result) for result in dig(allocation, "devices", "results", default=())}
    devices = status.get("devices") or ()
    for i, device in enumerate(devices):
        _device_status(errors, later, f"status.devices[{i}]", device, given)
    rules.distinct(later, "status.devices", devices, "driver", "pool", "device", "shareID")
    if reserved and allocation is None:
        errors.append(forbidden_field("status.reservedFor", "may not be specified when `allocated` is not set"))
    elif obj["metadata"].get("deletionTimestamp") and any(
        consumer not in (before.get("reservedFor") or ()) for consumer in reserved
    ):
        why = "new entries may not be added while `deallocationRequested` or `deletionTimestamp` are set"
        errors.append(forbidden_field("status.reservedFor", why))
    if allocation is not None and before.get("allocation") is not None:
        if not same(allocation, before["allocation"]):
            later.append(invalid_value("status.allocation", None, "field cannot be modified once set"))
    elif allocation is not None:
        _allocation(errors, later, allocation, request_names(dig(obj, "spec", "devices", default={})))
    return errors + later


def drop_deallocated(obj: Object, old: Object) -> None:
    """The status of a device goes, in place, with its allocation."""
    status = obj.get("status") or {}
    now = {_device_id(result) for result in dig(status, "allocation", "devices", "results", default=())}
    gone = {_device_id(result) for result in dig(old, "status", "allocation", "devices", "results", default=())} - now
    if gone and status.get("devices"):
        kept = [device for device in status["devices"] if _device_id(device) not in gone]
        if kept:
            status["devices"] = kept
        else:
            del status["devices"]


def _device_id(found: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(found.get(field) or "" for field in ("driver", "pool", "device", "shareID"))


def _consumer(errors: Errors, path: str, consumer: Mapping[str, Any]) -> None:
    for field in ("resource", "name", "uid"):
        if not consumer.get(field):
            errors.append(required(f"{path}.{field}"))


def _device_status(
    errors: Errors, later: Errors, path: str, device: Mapping[str, Any], given: set[tuple[str, ...]]
) -> None:
    rules.driver_name(errors, f"{path}.driver", device.get("driver", ""))
    rules.pool_name(errors, f"{path}.pool", device.get("pool", ""))
    rules.label(errors, f"{path}.device", device.get("device", ""))
    _share_id(later, path, device)
    named = _device_id(device)
    if named not in given:
        shown = dict(zip(("Driver", "Pool", "Device", "ShareID"), named, strict=True))
        errors.append(invalid_value(path, shown, "must be an allocated device in the claim"))
    found = device.get("conditions") or ()
    if len(found) > _MAX_DEVICE_CONDITIONS:
        errors.append(too_many(f"{path}.conditions", len(found), _MAX_DEVICE_CONDITIONS))
    conditions(errors, f"{path}.conditions", found)
    if device.get("data") is not None:
        rules.json_object(errors, f"{path}.data", device["data"])
    network = device.get("networkData") or {}
    for field, most in (("interfaceName", _MAX_INTERFACE_NAME), ("hardwareAddress", _MAX_HARDWARE_ADDRESS)):
        if len(network.get(field, "").encode()) > most:
            later.append(too_long(f"{path}.networkData.{field}", most))
    ips, at = network.get("ips") or (), f"{path}.networkData.ips"
    if rules.each(errors, later, at, ips, _MAX_IPS, _interface_address):
        rules.distinct(later, at, ips)


def _interface_address(errors: Errors, path: str, address: str) -> None:
    check(errors, path, address, is_interface_address(address))


def _share_id(later: Errors, path: str, found: Mapping[str, Any]) -> None:
    share = found.get("shareID")
    if share is not None and not _UUID.fullmatch(share):
        later.append(invalid_value(f"{path}.shareID", share, _UUID_TEXT))


def _allocation(errors: Errors, later: Errors, allocation: Object, names: Mapping[str, set[str]]) -> None:
    path, devices = "status.allocation.devices", allocation.get("devices") or {}
    results, configs = devices.get("results") or (), devices.get("config") or ()
    rules.each(errors, later, f"{path}.results", results, _MAX_RESULTS, partial(_result, later, names))
    rules.each(errors, later, f"{path}.config", configs, 2 * _MAX_CONFIGS, partial(_given_config, later, names))
    if allocation.get("nodeSelector") is not None:
        node_selector(errors, "status.allocation.nodeSelector", allocation["nodeSelector"])


def _result(later: Errors, names: Mapping[str, set[str]], errors: Errors, path: str, result: Object) -> None:
    _reference(names, errors, f"{path}.request", result.get("request", ""))
    rules.declared_driver_name(later, f"{path}.driver", result.get("driver", ""))
    rules.declared_pool_name(later, f"{path}.pool", result.get("pool", ""))
    rules.label(errors, f"{path}.device", result.get("device", ""))
    rules.binding_conditions(errors, later, path, result)
    rules.tolerations(errors, later, f"{path}.tolerations", result.get("tolerations") or ())
    _share_id(later, path, result)


def _given_config(
    later: Errors, names: Mapping[str, set[str]], errors: Errors, path: str, config: Mapping[str, Any]
) -> None:
    source = config.get("source", "")
    if not source:
        later.append(required(f"{path}.source"))
    elif source not in _SOURCES:
        later.append(not_supported(f"{path}.source", source, _SOURCES))
    _config(later, names, errors, path, config)
