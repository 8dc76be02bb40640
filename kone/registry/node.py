"""node.k8s.io: RuntimeClasses, which container runtime a pod is run by."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from kone.apimachinery.errors import FieldError, duplicate, invalid_value, required
from kone.apimachinery.kinds import GVR
from kone.apimachinery.names import is_dns1123_label, max_bytes_error
from kone.apimachinery.objects import Object, dig
from kone.registry.core.pod_scheduling import tolerations
from kone.registry.core.pod_warnings import DEPRECATED_NODE_LABELS
from kone.registry.core.resource_rules import requirements
from kone.registry.generic import IMMUTABLE
from kone.registry.internal import internal
from kone.registry.resource import AGE, NAME, Column, Resource
from kone.registry.rules import Errors, check, labels
from kone.registry.strategy import Strategy

RUNTIMECLASSES = GVR("node.k8s.io", "v1", "runtimeclasses")
_MAX_HANDLER = 63


class _RuntimeClass(Strategy):
    create_on_update = True
    unconditional_update = False
    kube_finalizers = False

    def validate(self, obj: Object, old: Object | None) -> Iterable[FieldError]:
        errors: Errors = []
        handler = obj.get("handler", "")
        if obj.get("overhead") is not None:
            requirements(errors, "overhead", {"limits": obj["overhead"].get("podFixed")}, ())
        scheduling = obj.get("scheduling") or {}
        labels(errors, "scheduling.nodeSelector", scheduling.get("nodeSelector"))
        found = scheduling.get("tolerations") or ()
        tolerations(errors, "scheduling.tolerations", found)
        seen: list[tuple[str, ...]] = []
        for i, each in enumerate(found):
            key = tuple(each.get(name, "") for name in ("key", "operator", "value", "effect"))
            if key in seen:
                errors.append(duplicate(f"scheduling.tolerations[{i}]", internal("#core.Toleration", each)))
            seen.append(key)
        if not handler:
            errors.append(required("handler"))
        elif len(handler.encode()) > _MAX_HANDLER:
            errors.append(invalid_value("handler", handler, max_bytes_error(_MAX_HANDLER)))
        else:
            check(errors, "handler", handler, is_dns1123_label(handler))
        if old is not None and handler != old.get("handler"):
            errors.append(invalid_value("handler", None, IMMUTABLE))
        return errors

    def warnings(self, obj: Object, old: Object | None) -> Iterable[str]:
        for key in dig(obj, "scheduling", "nodeSelector", default=()):
            if key in DEPRECATED_NODE_LABELS:
                yield f"scheduling.nodeSelector: {DEPRECATED_NODE_LABELS[key]}"


RESOURCES: Sequence[Resource] = (
    Resource(
        RUNTIMECLASSES,
        "RuntimeClass",
        _RuntimeClass(),
        namespaced=False,
        columns=(NAME, Column("Handler", lambda obj, now: obj.get("handler", "")), AGE),
    ),
)
