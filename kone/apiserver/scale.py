"""The scale subresource: an autoscaling/v1 Scale as a view on another kind's replicas."""

from __future__ import annotations

from kone.apimachinery.errors import (
    FieldError,
    StatusError,
    bad_request,
    go_quote,
    internal_error,
    invalid,
    invalid_value,
)
from kone.apimachinery.kinds import GVK
from kone.apimachinery.objects import Object, dig, metadata, replace_in
from kone.apimachinery.selectors import from_label_selector
from kone.registry.resource import AGE, NAME, Column, Resource, ScaleSpec

SCALE = GVK("autoscaling", "v1", "Scale")
_NUMBERS = (
    Column("Desired", lambda scale, now: dig(scale, "spec", "replicas", default=0), type="integer"),
    Column("Available", lambda scale, now: dig(scale, "status", "replicas", default=0), type="integer"),
)
_COLUMNS = (Column("Name", NAME.cell), *_NUMBERS, AGE)
_CUSTOM_COLUMNS = (NAME, *_NUMBERS, Column("Age", AGE.cell, type="date"))
_SHOWN = ("name", "namespace", "uid", "resourceVersion", "creationTimestamp")


def scale_columns(resource: Resource) -> tuple[Column, ...]:
    """What `kubectl get --subresource=scale` prints."""
    return _COLUMNS if resource.custom is None else _CUSTOM_COLUMNS


def not_decoded() -> StatusError:
    """400 for any body that is no Scale of a custom resource: upstream knows no kind that it could name."""
    return bad_request('no kind is registered for the type v1.Scale in scheme "pkg/runtime/scheme.go:111"')


def not_applied(config: Object) -> StatusError:
    """500 for every apply to the Scale of a custom resource: upstream takes the Scale for one of its versions."""
    meta = metadata(config)
    where = f"{meta.get('namespace', '')}/{meta.get('name', '')}; autoscaling/v1, Kind=Scale"
    why = "request to convert CR to an invalid group/version: autoscaling/v1"
    return StatusError(500, "", f"failed to convert new object ({where}) to proper version: {why}")


def scale_of(spec: ScaleSpec, obj: Object) -> Object:
    """The Scale of an object."""
    replicas = dig(obj, *spec.spec_replicas, default=0)
    status: Object = {"replicas": dig(obj, *spec.status_replicas, default=0)}
    selector = (
        spec.selector(obj) if spec.selector is not None else str(from_label_selector(dig(obj, "spec", "selector")))
    )
    if selector:
        status["selector"] = selector
    meta = metadata(obj)
    return {
        "kind": SCALE.kind,
        "apiVersion": SCALE.api_version,
        "metadata": {key: meta[key] for key in _SHOWN if key in meta},
        "spec": {"replicas": replicas} if replicas else {},
        "status": status,
    }


def scaled(spec: ScaleSpec, obj: Object, scale: Object) -> Object:
    """The object with the replicas of the Scale, and with its resourceVersion, which is the lock. Raises 422."""
    replicas = dig(scale, "spec", "replicas", default=0)
    errors: list[FieldError] = []
    if replicas < 0 and not spec.custom:
        errors.append(invalid_value("spec.replicas", replicas, "must be greater than or equal to 0"))
    if errors:
        raise invalid(SCALE.group_kind, metadata(scale).get("name", ""), errors)
    version = metadata(scale).get("resourceVersion", "")
    if spec.custom and not version:  # whoever leaves it out overwrites, though the kind itself is not written so
        version = metadata(obj).get("resourceVersion", "")
    changed = replace_in(obj, spec.spec_replicas, replicas)
    return replace_in(changed, ("metadata", "resourceVersion"), version)


def check_replicas(spec: ScaleSpec, obj: Object) -> None:
    """Raises 500 where a custom resource says nothing of the replicas it is asked for."""
    if spec.custom and dig(obj, *spec.spec_replicas) is None:
        path = "." + ".".join(spec.spec_replicas)
        raise internal_error(f"the spec replicas field {go_quote(path)} does not exist")


def scale_spec(resource: Resource) -> ScaleSpec:
    assert resource.scale is not None, "only asked where discovery lists the subresource"
    return resource.scale
