"""What kinds with a pod template share: their generation, their template's rules, warnings and columns."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from kone.apimachinery.errors import forbidden_field, invalid_value, not_supported, required
from kone.apimachinery.names import is_dns1123_label
from kone.apimachinery.objects import Object, dig
from kone.apimachinery.selectors import from_label_selector
from kone.registry.core.pod_defaults import default_template
from kone.registry.core.pod_gates import drop_disabled
from kone.registry.core.pod_spec import pod_template
from kone.registry.core.pod_warnings import pod_warnings
from kone.registry.equality import same
from kone.registry.internal import internal, sorted_map
from kone.registry.printing import container_images, container_names, label_selector_text
from kone.registry.resource import Column
from kone.registry.rules import Errors, at_least_0, label_selector
from kone.registry.strategy import SpecStrategy

TEMPLATE = "spec.template"
NO_MATCH = "`selector` does not match template `labels`"


class WorkloadStrategy(SpecStrategy):
    """A kind whose spec.template is a pod template. Its pods are named after it, where `names_pods`."""

    names_pods: bool = True
    zeros: tuple[str, ...] = ()
    """The counts of status that are shown though they are zero."""

    def default(self, obj: Object) -> None:
        default_template(obj.setdefault("spec", {}).setdefault("template", {}))

    def initial_status(self, obj: Object) -> Object:
        self.drop_disabled(obj)
        return dict.fromkeys(self.zeros, 0)

    def keep(self, obj: Object, old: Object) -> None:
        self.drop_disabled(obj)

    def drop_disabled(self, obj: Object) -> None:
        """Take fields of alpha features away, in place."""
        template = obj["spec"].get("template")
        if template:
            drop_disabled(template["spec"])

    def is_changed(self, obj: Object, old: Object) -> bool:
        return not same(obj["spec"], old["spec"])

    def warnings(self, obj: Object, old: Object | None) -> Iterable[str]:
        if old is None:
            if self.names_pods:
                yield from name_warnings(obj["metadata"].get("name", ""))
        elif obj["metadata"].get("generation") == old["metadata"].get("generation"):
            return
        yield from template_warnings(obj["spec"].get("template"))


def name_warnings(name: str) -> Iterator[str]:
    wrong = is_dns1123_label(name)
    if wrong:
        why = "this is used in Pod names and hostnames, which can result in surprising behavior"
        yield f"metadata.name: {why}; a DNS label is recommended: [{' '.join(wrong)}]"


def template_warnings(template: Mapping[str, Any] | None, path: str = TEMPLATE) -> Iterator[str]:
    if template is not None:
        annotations = (template.get("metadata") or {}).get("annotations") or {}
        yield from pod_warnings(template.get("spec") or {}, annotations, path=f"{path}.", is_template=True)


def selector(errors: Errors, found: Mapping[str, Any] | None, kind: str) -> bool:
    """spec.selector, which must be there and select something; False where it is no selector at all."""
    if found is None:
        errors.append(required("spec.selector"))
        return True
    before = len(errors)
    label_selector(errors, "spec.selector", found)
    well_formed = len(errors) == before
    if not found.get("matchLabels") and not found.get("matchExpressions"):
        text = f"empty selector is invalid for {kind}"
        errors.append(invalid_value("spec.selector", selector_value(found), text))
    return well_formed


def selector_value(found: Mapping[str, Any] | None) -> Any:
    """A label selector as errors print it."""
    return None if found is None else internal("#metav1.LabelSelector", found)


def selected(errors: Errors, template: Mapping[str, Any], found: Mapping[str, Any] | None) -> None:
    """The selector, which must be well formed, matches the template's labels."""
    labels = (template.get("metadata") or {}).get("labels")
    if not from_label_selector(found).matches(labels or {}):
        errors.append(invalid_value(f"{TEMPLATE}.metadata.labels", sorted_map(labels), NO_MATCH))


def template_rules(errors: Errors, template: Mapping[str, Any]) -> None:
    pod_template(errors, TEMPLATE, template)


def always_running(errors: Errors, template: Mapping[str, Any], kind: str) -> None:
    """Pods that are kept running end neither by themselves nor by a deadline."""
    spec = template.get("spec") or {}
    policy = spec.get("restartPolicy", "")
    if policy != "Always":
        errors.append(not_supported(f"{TEMPLATE}.spec.restartPolicy", policy, ("Always",)))
    if spec.get("activeDeadlineSeconds") is not None:
        text = f"activeDeadlineSeconds in {kind} is not Supported"
        errors.append(forbidden_field(f"{TEMPLATE}.spec.activeDeadlineSeconds", text))


def amount(value: int | str) -> int:
    """The number, be it of pieces or of percents; 0 for nonsense."""
    if isinstance(value, int):
        return value
    text = value.removesuffix("%")
    return int(text) if text.isascii() and text.isdigit() else 0


def counts(errors: Errors, status: Mapping[str, Any], *fields: str) -> None:
    """None of them is negative."""
    for field in fields:
        at_least_0(errors, f"status.{field}", status.get(field))


def at_most_replicas(errors: Errors, status: Mapping[str, Any], *fields: str, ready: str = "readyReplicas") -> None:
    """None of them exceeds status.replicas, nor do available ones exceed the ready ones."""
    for field in fields:
        value = status.get(field, 0)
        if value > status.get("replicas", 0):
            errors.append(invalid_value(f"status.{field}", value, "cannot be greater than status.replicas"))
    available = status.get("availableReplicas", 0)
    if available > status.get("readyReplicas", 0):
        errors.append(invalid_value("status.availableReplicas", available, f"cannot be greater than {ready}"))


def collisions(errors: Errors, status: Mapping[str, Any], before: Mapping[str, Any]) -> None:
    """The count of collisions only rises."""
    now, then = status.get("collisionCount"), before.get("collisionCount")
    if then is not None and (now is None or now < then):
        errors.append(invalid_value("status.collisionCount", now or 0, "cannot be decremented"))


def number(*path: str) -> Any:
    """A cell that shows a count."""
    return lambda obj, now: dig(obj, *path, default=0) or 0


def _pod_spec(obj: Object) -> Mapping[str, Any]:
    return dig(obj, "spec", "template", "spec", default=None) or {}


CONTAINERS = Column("Containers", lambda obj, now: container_names(_pod_spec(obj)), priority=1)
IMAGES = Column("Images", lambda obj, now: container_images(_pod_spec(obj)), priority=1)
SELECTOR = Column("Selector", lambda obj, now: label_selector_text(dig(obj, "spec", "selector")), priority=1)
