"""apiregistration.k8s.io: APIServices, which group-versions are served and by whom."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence

from kone.apimachinery.errors import FieldError, invalid_value, not_supported, required
from kone.apimachinery.kinds import GVR
from kone.apimachinery.names import is_dns1035_label, is_dns1123_subdomain, is_path_segment_name, is_valid_port_num
from kone.apimachinery.objects import Object, dig, find_condition
from kone.apimachinery.timestamps import format_time
from kone.apimachinery.users import User
from kone.registry.resource import AGE, NAME, Column, Resource
from kone.registry.rules import Errors, check
from kone.registry.strategy import StatusStrategy, Strategy

APISERVICES = GVR("apiregistration.k8s.io", "v1", "apiservices")

_MAX_GROUP_PRIORITY, _MAX_VERSION_PRIORITY = 20_000, 1000
_STATUSES = ("True", "False", "Unknown")


def _any_name(name: str, prefix: bool) -> Sequence[str]:
    return ()


class _APIService(Strategy):
    name_rule = staticmethod(_any_name)  # the name follows from the spec: see validate
    unconditional_update = False
    kube_finalizers = False

    def default(self, obj: Object) -> None:
        service = dig(obj, "spec", "service")
        if service is not None and service.get("port") is None:
            service["port"] = 443

    def prepare(self, obj: Object, old: Object | None, *, user: User) -> None:
        if old is not None:
            obj["status"] = old.get("status") or {}
            return
        obj["status"] = {}
        if dig(obj, "spec", "service") is None:
            condition = {
                "type": "Available",
                "status": "True",
                "lastTransitionTime": format_time(time.time()),
                "reason": "Local",
                "message": "Local APIServices are always available",
            }
            obj["status"]["conditions"] = [condition]

    def validate(self, obj: Object, old: Object | None) -> Iterable[FieldError]:
        errors: Errors = []
        spec = obj.get("spec") or {}
        group, version = spec.get("group", ""), spec.get("version", "")
        for field in ("generateName", "name"):
            name = obj["metadata"].get(field)
            if name:
                check(errors, f"metadata.{field}", name, _name(name, f"{version}.{group}"))
        if not group and version != "v1":
            errors.append(required("spec.group", "only v1 may have an empty group and it better be legacy kube"))
        if group:
            check(errors, "spec.group", group, is_dns1123_subdomain(group))
        check(errors, "spec.version", version, is_dns1035_label(version))
        for field, most in (
            ("groupPriorityMinimum", _MAX_GROUP_PRIORITY),
            ("versionPriority", _MAX_VERSION_PRIORITY),
        ):
            if not 0 < spec.get(field, 0) <= most:
                text = f"must be positive and less than {most}"
                errors.append(invalid_value(f"spec.{field}", spec.get(field, 0), text))
        _backend(errors, spec)
        return errors


def _name(name: str, wanted: str) -> Sequence[str]:
    texts = is_path_segment_name(name)
    return texts if texts or name == wanted else [f'must be `spec.version+"."+spec.group`: "{wanted}"']


def _backend(errors: Errors, spec: Object) -> None:
    service, bundle, insecure = spec.get("service"), spec.get("caBundle"), bool(spec.get("insecureSkipTLSVerify"))
    if service is None:
        if bundle:
            shown = f"{len(bundle) * 3 // 4 - bundle.count('=')} bytes"
            errors.append(invalid_value("spec.caBundle", shown, "local APIServices may not have a caBundle"))
        if insecure:
            text = "local APIServices may not have insecureSkipTLSVerify"
            errors.append(invalid_value("spec.insecureSkipTLSVerify", insecure, text))
        return
    for field in ("namespace", "name"):
        if not service.get(field):
            errors.append(required(f"spec.service.{field}"))
    texts = is_valid_port_num(service.get("port", 0))
    if texts:
        errors.append(invalid_value("spec.service.port", service["port"], f"port is not valid: {', '.join(texts)}"))
    if insecure and bundle:
        text = "may not be true if caBundle is present"
        errors.append(invalid_value("spec.insecureSkipTLSVerify", insecure, text))


def _status(obj: Object, old: Object) -> Iterable[FieldError]:
    for i, condition in enumerate(dig(obj, "status", "conditions", default=())):
        if condition.get("status") not in _STATUSES:
            yield not_supported(f"status.conditions[{i}].status", condition.get("status", ""), _STATUSES)


def _service(obj: Object, now: float) -> str:
    service = dig(obj, "spec", "service")
    return "Local" if service is None else f"{service.get('namespace', '')}/{service.get('name', '')}"


def _available(obj: Object, now: float) -> str:
    condition = find_condition(obj, "Available")
    if condition is None:
        return "Unknown"
    status, reason = condition.get("status", ""), condition.get("reason", "")
    return f"{status} ({reason})" if status != "True" and reason else str(status)


_api_service = _APIService()

RESOURCES: Sequence[Resource] = (
    Resource(
        APISERVICES,
        "APIService",
        _api_service,
        namespaced=False,
        categories=("api-extensions",),
        status=StatusStrategy(
            _api_service, kept_metadata=("labels", "annotations", "finalizers", "ownerReferences"), rules=_status
        ),
        columns=(NAME, Column("Service", _service), Column("Available", _available), AGE),
    ),
)
