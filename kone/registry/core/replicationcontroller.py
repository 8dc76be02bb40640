"""ReplicationControllers, which ReplicaSets have replaced."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from kone.apimachinery.errors import FieldError, invalid_value, required
from kone.apimachinery.kinds import REPLICATIONCONTROLLERS as GVR_REPLICATIONCONTROLLERS
from kone.apimachinery.names import is_dns1123_subdomain, max_bytes_error
from kone.apimachinery.objects import Object, dig
from kone.apimachinery.selectors import from_labels
from kone.registry import workloads
from kone.registry.core.pod_defaults import default_template
from kone.registry.internal import sorted_map
from kone.registry.printing import selector_text
from kone.registry.resource import AGE, NAME, Column, Resource, ScaleSpec
from kone.registry.rules import Errors, at_least_0, check
from kone.registry.strategy import StatusStrategy

_COUNTS = ("replicas", "fullyLabeledReplicas", "readyReplicas", "availableReplicas", "observedGeneration")


class _ReplicationController(workloads.WorkloadStrategy):
    default_propagation = "Orphan"
    zeros = ("replicas",)
    name_rule = staticmethod(lambda name, prefix: ())  # upstream's newer kind of validation, which comes last, has it

    def default(self, obj: Object) -> None:
        spec = obj.setdefault("spec", {})
        template = spec.get("template")
        if template is not None:
            default_template(template)
            labels = template["metadata"].get("labels")
            if labels and not spec.get("selector"):
                spec["selector"] = dict(labels)
            if labels and not obj["metadata"].get("labels"):
                obj["metadata"]["labels"] = dict(labels)
        if spec.get("replicas") is None:
            spec["replicas"] = 1

    def validate(self, obj: Object, old: Object | None) -> Iterable[FieldError]:
        errors: Errors = []
        spec = obj["spec"]
        selector, template = spec.get("selector"), spec.get("template")
        if not selector:
            errors.append(required("spec.selector"))
        if template is None:
            errors.append(required("spec.template"))
        else:
            labels = (template.get("metadata") or {}).get("labels")
            if selector and not from_labels(selector).matches(labels or {}):
                path = "spec.template.metadata.labels"
                errors.append(invalid_value(path, sorted_map(labels), workloads.NO_MATCH))
            workloads.template_rules(errors, template)
            workloads.always_running(errors, template, "ReplicationController")
        if old is None:
            name = obj["metadata"].get("name", "")
            check(errors, "metadata.name", name, _long_name(name) if name else ())
        at_least_0(errors, "spec.replicas", spec["replicas"])
        at_least_0(errors, "spec.minReadySeconds", spec.get("minReadySeconds"))
        return errors

    def warnings(self, obj: Object, old: Object | None) -> Iterable[str]:
        if old is None:
            yield from super().warnings(obj, old)
        elif obj["metadata"].get("generation") != old["metadata"].get("generation"):
            yield from workloads.template_warnings(old["spec"].get("template"))  # upstream looks at the old one

    def selectable_fields(self, obj: Object) -> dict[str, str]:
        return {"status.replicas": str((obj.get("status") or {}).get("replicas", 0))}


def _long_name(name: str) -> Sequence[str]:
    """A DNS subdomain, whose length is counted in bytes."""
    return [max_bytes_error(253)] if len(name.encode()) > 253 else is_dns1123_subdomain(name)


def _status(obj: Object, old: Object) -> Iterable[FieldError]:
    errors: Errors = []
    status = obj.get("status") or {}
    workloads.counts(errors, status, *_COUNTS)
    workloads.at_most_replicas(errors, status, "fullyLabeledReplicas", "readyReplicas", "availableReplicas")
    return errors


_strategy = _ReplicationController()

REPLICATIONCONTROLLERS = Resource(
    gvr=GVR_REPLICATIONCONTROLLERS,
    kind="ReplicationController",
    short_names=("rc",),
    categories=("all",),
    strategy=_strategy,
    status=StatusStrategy(_strategy, rules=_status),
    scale=ScaleSpec(selector=lambda obj: str(from_labels(dig(obj, "spec", "selector")))),
    columns=(
        NAME,
        Column("Desired", workloads.number("spec", "replicas"), type="integer"),
        Column("Current", workloads.number("status", "replicas"), type="integer"),
        Column("Ready", workloads.number("status", "readyReplicas"), type="integer"),
        AGE,
        workloads.CONTAINERS,
        workloads.IMAGES,
        Column("Selector", lambda obj, now: selector_text(dig(obj, "spec", "selector")), priority=1),
    ),
)
