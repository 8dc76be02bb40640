"""apiextensions.k8s.io: CustomResourceDefinitions, as objects. What their schemas may hold is judged elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from kone.apimachinery.errors import FieldError, forbidden_field, go_quote, invalid_value, required
from kone.apimachinery.kinds import CUSTOMRESOURCEDEFINITIONS
from kone.apimachinery.names import is_dns1035_label, is_dns1123_subdomain
from kone.apimachinery.objects import Object, annotations_of, dig
from kone.apimachinery.users import User
from kone.registry.admissionregistration import REVIEW_VERSIONS, review_versions, webhook_service, webhook_url
from kone.registry.definition_names import CLEANUP_FINALIZER, terminating
from kone.registry.equality import same
from kone.registry.generic import immutable
from kone.registry.internal import internal
from kone.registry.resource import CREATED_AT, NAME, Column, Resource
from kone.registry.rules import Errors, one_of
from kone.registry.schema_rules import prune_embedded_defaults, schema_findings, schema_warnings, selectable_findings
from kone.registry.strategy import SpecStrategy, StatusStrategy

_SCOPES = ("Cluster", "Namespaced")
_STRATEGIES = ("None", "Webhook")
_COLUMN_TYPES = ("boolean", "date", "integer", "number", "string")
_COLUMN_FORMATS = ("byte", "date", "date-time", "double", "float", "int32", "int64", "password")
_COMMUNITY = ("k8s.io", "kubernetes.io")
_APPROVAL = "api-approved.kubernetes.io"
_PRESERVE_IN_SCHEMAS = (
    "cannot set to true, set x-kubernetes-preserve-unknown-fields to true in spec.versions[*].schema instead"
)
_PER_VERSION = ("schema", "subresources", "additionalPrinterColumns", "selectableFields")


class _CustomResourceDefinition(SpecStrategy):
    unconditional_update = False
    kube_finalizers = False

    def default(self, obj: Object) -> None:
        spec = obj.get("spec") or {}
        names = spec.get("names") or {}
        kind = names.get("kind", "")
        if kind and not names.get("singular"):
            names["singular"] = kind.lower()
        if kind and not names.get("listKind"):
            names["listKind"] = f"{kind}List"
        if spec.get("conversion") is None:
            spec["conversion"] = {"strategy": "None"}
        conversion = dig(spec, "conversion", "webhook", "clientConfig", "service")
        if conversion is not None and conversion.get("port") is None:
            conversion["port"] = 443
        for version in spec.get("versions") or ():
            if schema := dig(version, "schema", "openAPIV3Schema"):
                prune_embedded_defaults(schema)
        status = obj.get("status")
        if status is not None and not status.get("storedVersions"):
            status["storedVersions"] = _storage_versions(obj)[:1]

    def initial_status(self, obj: Object) -> Object:
        names = {"plural": "", "kind": ""}
        return {"conditions": None, "acceptedNames": names, "storedVersions": _storage_versions(obj)[:1]}

    def prepare(self, obj: Object, old: Object | None, *, user: User) -> None:
        super().prepare(obj, old, user=user)
        stored = dig(obj, "status", "storedVersions", default=[])
        for version in _storage_versions(obj)[:1]:
            if version not in stored:
                obj["status"] = {**(obj.get("status") or {}), "storedVersions": [*stored, version]}

    def is_changed(self, obj: Object, old: Object) -> bool:
        return not same(obj.get("spec"), old.get("spec"))

    def has_finalizers(self, obj: Object) -> bool:
        """A deletion begins by waiting for the definition's objects to go."""
        return not obj["metadata"].get("deletionTimestamp") or super().has_finalizers(obj)

    def mark_deleting(self, obj: Object) -> None:
        metadata = obj["metadata"]
        # Upstream marks definitions by a handler of its own, which knows no grace and counts no generation.
        metadata.pop("deletionGracePeriodSeconds", None)
        metadata["generation"] -= 1
        finalizers = metadata.get("finalizers") or []
        if CLEANUP_FINALIZER not in finalizers:
            metadata["finalizers"] = [*finalizers, CLEANUP_FINALIZER]
        status = obj.setdefault("status", {})
        status["conditions"] = terminating(
            status.get("conditions") or (),
            "InstanceDeletionPending",
            "CustomResourceDefinition marked for deletion; CustomResource deletion will begin soon",
            metadata["deletionTimestamp"],
        )

    def warnings(self, obj: Object, old: Object | None) -> Iterable[str]:
        schemas = (
            dig(version, "schema", "openAPIV3Schema", default={})
            for version in dig(obj, "spec", "versions", default=())
        )
        return list(dict.fromkeys(text for schema in schemas for text in schema_warnings(schema)))

    def validate(self, obj: Object, old: Object | None) -> Iterable[FieldError]:
        errors: Errors = []
        if old is not None and old["metadata"].get("deletionTimestamp"):
            return errors  # it goes, whatever it says
        spec = obj.get("spec") or {}
        if old is None:
            _own_name(errors, obj, spec)
        _spec(errors, spec, None if old is None else old.get("spec") or {})
        if old is not None:
            _kept(errors, spec, old)
        errors += _accepted_names(obj, obj)
        stored = dig(obj, "status", "storedVersions", default=[])
        _stored_versions(errors, "status.storedVersions", stored, spec.get("versions") or ())
        _approval(errors, obj, old)
        if spec.get("preserveUnknownFields") and not dig(old, "spec", "preserveUnknownFields"):
            errors.append(invalid_value("spec.preserveUnknownFields", True, _PRESERVE_IN_SCHEMAS))
        return errors


def _storage_versions(obj: Object) -> list[str]:
    return [version.get("name", "") for version in dig(obj, "spec", "versions", default=()) if version.get("storage")]


def _own_name(errors: Errors, obj: Object, spec: Mapping[str, Any]) -> None:
    wanted = f"{dig(spec, 'names', 'plural', default='')}.{spec.get('group', '')}"
    for field in ("generateName", "name"):
        name = obj["metadata"].get(field)
        if name and name != wanted:
            errors.append(invalid_value(f"metadata.{field}", name, 'must be spec.names.plural+"."+spec.group'))


def _kept(errors: Errors, spec: Mapping[str, Any], old: Object) -> None:
    paths: list[tuple[str, ...]] = [("group",), ("names", "plural")]
    if _is_established(old):
        paths = [("scope",), ("names", "kind"), *paths]
    for path in paths:
        errors += immutable(
            dig(spec, *path, default=""), dig(old, "spec", *path, default=""), ".".join(("spec", *path))
        )


def _accepted_names(obj: Object, old: Object) -> Errors:
    errors: Errors = []
    _names(errors, "status.acceptedNames", dig(obj, "status", "acceptedNames", default={}))
    return errors


# -- the spec ---------------------------------------------------------------------------------------------------------


def _spec(errors: Errors, spec: Mapping[str, Any], before: Mapping[str, Any] | None) -> None:
    versions, names = spec.get("versions") or (), spec.get("names") or {}
    group = spec.get("group", "")
    if not group:
        errors.append(required("spec.group"))
    elif texts := is_dns1123_subdomain(group):
        errors.append(invalid_value("spec.group", group, ",".join(texts)))
    elif "." not in group:
        errors.append(invalid_value("spec.group", group, "should be a domain with at least one dot"))
    one_of(errors, "spec.scope", spec.get("scope"), _SCOPES)
    if before is None or all(_has_schema(version) for version in before.get("versions") or ()):
        for i, version in enumerate(versions):
            if not _has_schema(version):
                errors.append(required(f"spec.versions[{i}].schema.openAPIV3Schema"))
    shared = _in_common(versions)
    schemas = {version.get("name", ""): _schema(version) for version in (before or {}).get("versions") or ()}
    for i, version in enumerate(versions):
        _version(errors, f"spec.versions[{i}]", version, shared, schemas.get(version.get("name", "")))
    _versions_together(errors, versions, shared)
    first = versions[0].get("name", "") if versions else ""
    if first and (texts := is_dns1035_label(first)):  # upstream has it in a field of old as well
        errors.append(invalid_value("spec.version", first, ",".join(texts)))
    for field in ("plural", "singular", "kind", "listKind"):
        if not names.get(field):
            errors.append(required(f"spec.names.{field}"))
    _names(errors, "spec.names", names)
    if versions:
        # What all versions have in common is one thing to upstream, which finds fault with it once.
        _subresources(errors, "spec.subresources", _part(versions[0], "subresources", shared))
        _columns(errors, "spec.additionalPrinterColumns", _part(versions[0], "additionalPrinterColumns", shared))
        schema = _schema(versions[0])
        if "schema" in shared and _has_schema(versions[0]):
            was = schemas.get(versions[0].get("name", ""))
            errors += schema_findings(schema, "spec.validation.openAPIV3Schema", was)
        if "selectableFields" in shared:
            errors += selectable_findings(versions[0].get("selectableFields") or (), schema, "spec.selectableFields")
    strategy = dig(spec, "conversion", "strategy", default="None")
    if strategy != "None" and spec.get("preserveUnknownFields"):
        why = "must be None if spec.preserveUnknownFields is true"
        errors.append(invalid_value("spec.conversion.strategy", strategy, why))
    _conversion(errors, "spec.conversion", spec.get("conversion") or {}, before)


def _in_common(versions: Sequence[Mapping[str, Any]]) -> set[str]:
    return {field for field in _PER_VERSION if all(same(v.get(field), versions[0].get(field)) for v in versions)}


def _has_schema(version: Mapping[str, Any]) -> bool:
    return dig(version, "schema", "openAPIV3Schema") is not None


def _schema(version: Mapping[str, Any]) -> Object:
    found: Object = dig(version, "schema", "openAPIV3Schema", default={})
    return found


def _part(version: Mapping[str, Any], field: str, fields: Iterable[str]) -> Any:
    return version.get(field) if field in fields else None


def _version(
    errors: Errors, path: str, version: Mapping[str, Any], shared: set[str], schema_before: Object | None
) -> None:
    name, warning = version.get("name", ""), version.get("deprecationWarning")
    if texts := is_dns1035_label(name):
        errors.append(invalid_value(f"{path}.name", name, ",".join(texts)))
    if warning is not None:
        for text in _deprecation_warning(warning, deprecated=version.get("deprecated", False)):
            errors.append(invalid_value(f"{path}.deprecationWarning", warning, text))
    own = set(_PER_VERSION) - shared
    _subresources(errors, f"{path}.subresources", _part(version, "subresources", own))
    _columns(errors, f"{path}.additionalPrinterColumns", _part(version, "additionalPrinterColumns", own))
    schema = _schema(version)
    if "schema" in own:
        errors += schema_findings(schema, f"{path}.schema.openAPIV3Schema", schema_before)
    if "selectableFields" in own:
        errors += selectable_findings(version.get("selectableFields") or (), schema, f"{path}.selectableFields")


def _deprecation_warning(warning: str, *, deprecated: bool) -> Iterable[str]:
    if not deprecated:
        yield "can only be set for deprecated versions"
        return
    if len(warning.encode()) > 256:
        yield "must be <= 256 characters long"
    if not warning:
        yield "must not be an empty string"
    at = next((i for i, character in enumerate(warning) if not character.isprintable()), None)
    if at is not None:
        i = len(warning[:at].encode())
        yield f"must only contain printable UTF-8 characters; non-printable character found at index {i}"


def _versions_together(errors: Errors, versions: Sequence[Mapping[str, Any]], shared: set[str]) -> None:
    names = [version.get("name", "") for version in versions]
    wrong = []
    if len(set(names)) != len(names):
        wrong.append("must contain unique version names")
    if sum(bool(version.get("storage")) for version in versions) != 1:
        wrong.append("must have exactly one version marked as storage version")
    if wrong:
        own = [{field: value for field, value in version.items() if field not in shared} for version in versions]
        shown = internal("[#apiextensions.CustomResourceDefinitionVersion", own or None)
        errors.extend(invalid_value("spec.versions", shown, text) for text in wrong)


def _names(errors: Errors, path: str, names: Mapping[str, Any]) -> None:
    for field in ("plural", "singular", "kind", "listKind"):
        name = names.get(field, "")
        mixed = field in ("kind", "listKind")
        texts = is_dns1035_label(name.lower() if mixed else name) if name else ()
        if texts:
            head = "may have mixed case, but should otherwise match: " if mixed else ""
            errors.append(invalid_value(f"{path}.{field}", name, head + ",".join(texts)))
    _labels(errors, f"{path}.shortNames", names.get("shortNames") or ())
    if names.get("kind") and names["kind"] == names.get("listKind"):
        errors.append(invalid_value(f"{path}.listKind", names["kind"], "kind and listKind may not be the same"))
    _labels(errors, f"{path}.categories", names.get("categories") or ())


def _labels(errors: Errors, path: str, values: Sequence[str]) -> None:
    for i, value in enumerate(values):
        if texts := is_dns1035_label(value):
            errors.append(invalid_value(f"{path}[{i}]", value, ",".join(texts)))


def _columns(errors: Errors, path: str, columns: Sequence[Mapping[str, Any]] | None) -> None:
    for i, column in enumerate(columns or ()):
        at = f"{path}[{i}]"
        kind, form = column.get("type", ""), column.get("format", "")
        if not column.get("name"):
            errors.append(required(f"{at}.name"))
        types = f"must be one of {','.join(_COLUMN_TYPES)}"
        if not kind:
            errors.append(required(f"{at}.type", types))
        elif kind not in _COLUMN_TYPES:
            errors.append(invalid_value(f"{at}.type", kind, types))
        if form and form not in _COLUMN_FORMATS:
            errors.append(invalid_value(f"{at}.format", form, f"must be one of {','.join(_COLUMN_FORMATS)}"))
        _json_path(errors, f"{at}.JSONPath", column.get("jsonPath", ""))


def _json_path(errors: Errors, path: str, value: str) -> bool:
    if not value:
        errors.append(required(path))
    elif not value.startswith("."):
        errors.append(invalid_value(path, value, "must be a simple json path starting with ."))
    else:
        return True
    return False


def _subresources(errors: Errors, path: str, found: Mapping[str, Any] | None) -> None:
    scale = (found or {}).get("scale")
    if scale is None:
        return
    for field, root in (("specReplicasPath", ".spec"), ("statusReplicasPath", ".status")):
        at, value = f"{path}.scale.{field}", scale.get(field, "")
        if _json_path(errors, at, value) and not value.startswith(f"{root}."):
            errors.append(invalid_value(at, value, f"should be a json path under {root}"))
    at, value = f"{path}.scale.labelSelectorPath", scale.get("labelSelectorPath")
    if value and _json_path(errors, at, value) and not value.startswith((".spec.", ".status.")):
        errors.append(invalid_value(at, value, "should be a json path under either .spec or .status"))


def _conversion(errors: Errors, path: str, conversion: Mapping[str, Any], before: Mapping[str, Any] | None) -> None:
    strategy, webhook = conversion.get("strategy", ""), conversion.get("webhook") or {}
    config, versions = webhook.get("clientConfig"), webhook.get("conversionReviewVersions") or ()
    one_of(errors, f"{path}.strategy", strategy, _STRATEGIES)
    at = f"{path}.webhookClientConfig"
    if strategy != "Webhook":
        why = "should not be set when strategy is not set to Webhook"
        if config is not None:
            errors.append(forbidden_field(at, why))
        if versions:
            errors.append(forbidden_field(f"{path}.conversionReviewVersions", why))
        return
    if config is None:
        errors.append(required(at, "required when strategy is set to Webhook"))
    elif (config.get("url") is None) == (config.get("service") is None):
        errors.append(required(at, "exactly one of url or service is required"))
    elif config.get("url") is not None:
        webhook_url(errors, f"{at}.url", config["url"])
    else:
        webhook_service(errors, f"{at}.service", config["service"])
    at = f"{path}.conversionReviewVersions"
    if not versions:
        errors.append(required(at))
    else:
        known = dig(before, "conversion", "webhook", "conversionReviewVersions", default=())
        review_versions(errors, at, versions, recognized=not known or not {*REVIEW_VERSIONS}.isdisjoint(known))


# -- beside the spec --------------------------------------------------------------------------------------------------


def _stored_versions(errors: Errors, path: str, stored: list[str], versions: Sequence[Mapping[str, Any]]) -> None:
    if not stored:
        errors.append(invalid_value(path, None, "must have at least one stored version"))
        return
    names = [version.get("name", "") for version in versions]
    for version in versions:
        name = version.get("name", "")
        if version.get("storage") and name not in stored:
            errors.append(invalid_value(path, stored, f"must have the storage version {name}"))
    for i, name in enumerate(stored):
        if name not in names:
            why = (
                f"missing from spec.versions; {name} was previously a storage version, and must remain in "
                f"spec.versions until a storage migration ensures no data remains persisted in {name} and removes "
                f"{name} from status.storedVersions"
            )
            errors.append(invalid_value(f"{path}[{i}]", name, why))


def _approval(errors: Errors, obj: Object, old: Object | None) -> None:
    """Groups of the Kubernetes community need someone's word for it."""
    group = dig(obj, "spec", "group", default="")
    if not any(group == owned or group.endswith(f".{owned}") for owned in _COMMUNITY):
        return
    given = annotations_of(obj).get(_APPROVAL, "")
    state = _approval_state(given)
    if state in ("approved", "bypassed") or (
        old is not None and state == _approval_state(annotations_of(old).get(_APPROVAL, ""))
    ):
        return
    path, see = f"metadata.annotations[{_APPROVAL}]", "see https://github.com/kubernetes/enhancements/pull/1111"
    why = f"protected groups must have approval annotation {go_quote(_APPROVAL)}"
    if state == "missing":
        errors.append(required(path, f"{why}, {see}"))
    else:
        why = f'{why} with either a URL or a reason starting with "unapproved", {see}'
        errors.append(invalid_value(path, given, why))


def _approval_state(given: str) -> str:
    if not given:
        return "missing"
    if given.startswith("unapproved"):
        return "bypassed"
    try:
        url = urlsplit(given)
    except ValueError:
        return "invalid"
    return "approved" if url.scheme and url.netloc else "invalid"


# -- tables -----------------------------------------------------------------------------------------------------------


def _is_established(obj: Object) -> bool:
    return any(
        condition.get("type") == "Established" and condition.get("status") == "True"
        for condition in dig(obj, "status", "conditions", default=())
    )


def _versions_cell(obj: Object, now: float) -> str:
    versions = dig(obj, "spec", "versions", default=())
    return ",".join(
        sorted(v.get("name", "") + ("(storage)" if v.get("storage") else "") for v in versions if v.get("served"))
    )


def _text(*path: str) -> Callable[[Object, float], Any]:
    return lambda obj, now: dig(obj, "spec", *path, default="")


_definition = _CustomResourceDefinition()

RESOURCES: Sequence[Resource] = (
    Resource(
        CUSTOMRESOURCEDEFINITIONS,
        "CustomResourceDefinition",
        _definition,
        namespaced=False,
        short_names=("crd", "crds"),
        categories=("api-extensions",),
        status=StatusStrategy(_definition, rules=_accepted_names),
        null_rows=True,
        columns=(
            NAME,
            Column("Scope", _text("scope")),
            Column("Versions", _versions_cell),
            CREATED_AT,
            Column("Group", _text("group"), priority=1),
            Column("Kind", _text("names", "kind"), priority=1),
            Column(
                "ShortNames",
                lambda obj, now: ",".join(dig(obj, "spec", "names", "shortNames", default=())),
                priority=1,
            ),
            Column("Established", lambda obj, now: _is_established(obj), type="boolean", priority=1),
        ),
    ),
)
