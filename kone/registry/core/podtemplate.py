"""PodTemplates: templates that stand for themselves."""

from __future__ import annotations

from collections.abc import Iterable

from kone.apimachinery.errors import FieldError
from kone.apimachinery.kinds import PODTEMPLATES as GVR_PODTEMPLATES
from kone.apimachinery.objects import Object, dig
from kone.registry.core.pod_defaults import default_template
from kone.registry.core.pod_gates import drop_disabled
from kone.registry.core.pod_spec import pod_template
from kone.registry.equality import same
from kone.registry.printing import container_images, container_names, selector_text
from kone.registry.resource import NAME, Column, Resource
from kone.registry.rules import Errors
from kone.registry.strategy import SpecStrategy
from kone.registry.workloads import template_warnings


class _PodTemplate(SpecStrategy):
    has_status = False

    def default(self, obj: Object) -> None:
        default_template(obj.setdefault("template", {}))
        drop_disabled(obj["template"]["spec"])

    def is_changed(self, obj: Object, old: Object) -> bool:
        return not same(obj["template"], old["template"])

    def validate(self, obj: Object, old: Object | None) -> Iterable[FieldError]:
        errors: Errors = []
        pod_template(errors, "template", obj["template"])
        return errors

    def warnings(self, obj: Object, old: Object | None) -> Iterable[str]:
        if old is None or obj["metadata"].get("generation") != old["metadata"].get("generation"):
            yield from template_warnings(obj["template"], "template")


PODTEMPLATES = Resource(
    gvr=GVR_PODTEMPLATES,
    kind="PodTemplate",
    strategy=_PodTemplate(),
    columns=(
        NAME,
        Column("Containers", lambda obj, now: container_names(dig(obj, "template", "spec", default={}))),
        Column("Images", lambda obj, now: container_images(dig(obj, "template", "spec", default={}))),
        Column("Pod Labels", lambda obj, now: selector_text(dig(obj, "template", "metadata", "labels"))),
    ),
)
