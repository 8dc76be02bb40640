"""Custom resources: what a CustomResourceDefinition makes of the API while it stands.

`resources(definition)` gives one Resource for each served version. Where built-in kinds have a class of their own, a
custom one has its schema: it decodes (prunes), defaults and validates by it. Order and texts:
k8s.io/apiextensions-apiserver, pkg/apiserver and pkg/registry/customresource.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from kone.apimachinery import schema, structural_schema, structure, value_validation
from kone.apimachinery.errors import FieldError, go_quote, go_type, go_value, invalid_value, required
from kone.apimachinery.json_path import compile_path, shown, simple_path
from kone.apimachinery.kinds import GVK, GVR, version_rank
from kone.apimachinery.objects import Object, deep_copy, dig
from kone.apimachinery.selectors import parse_label_selector
from kone.apimachinery.structural_schema import MetadataError, Structural
from kone.apimachinery.timestamps import parse_time
from kone.apimachinery.users import User
from kone.registry.custom_conversion import Ask, CustomConversion
from kone.registry.generic import validate_annotations, validate_labels
from kone.registry.printing import age
from kone.registry.resource import NAME, Cell, Column, Resource, ScaleSpec
from kone.registry.strategy import StatusStrategy, Strategy

if TYPE_CHECKING:
    from kone.registry.custom_rules import RuleNode

VERBS: Final = ("delete", "deletecollection", "get", "list", "patch", "create", "update", "watch")
"""In the order in which upstream lists those of custom resources."""
INT32_MAX: Final = 2**31 - 1
_PRESERVES: Final = {"x-kubernetes-preserve-unknown-fields": True}
_ANYTHING: Final = {"type": "object", **_PRESERVES}
_AGE_COLUMN: Final = {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"}


class Codec:
    """Reads what clients send of one version."""

    def __init__(self, gvk: GVK, root: Structural) -> None:
        self.gvk = gvk
        self.root = root

    def decode(self, obj: Object) -> tuple[Object, list[str]]:
        """(the object as the schema reads it, sharing nothing with `obj`; the paths of unknown fields).

        Raises StatusError 400 for metadata of a wrong type.
        """
        found: Object = deep_copy(obj)
        try:
            unknown = structural_schema.decode_metadata(found)
            unknown += structural_schema.prune(found, self.root)
            structural_schema.drop_nulls(found, self.root)
            for embedded, path in structural_schema.embedded_objects(found, self.root):
                unknown += structural_schema.decode_metadata(embedded, path)
        except MetadataError as error:
            raise schema.cannot_be_handled(self.gvk, str(error)) from None
        found.setdefault("metadata", {})
        return found, unknown


class CustomStrategy(Strategy):
    """The rules of one version of a custom resource."""

    kube_finalizers = False
    unconditional_update = False
    metadata_twice = True

    def __init__(self, codec: Codec, version: Mapping[str, Any]) -> None:
        self._codec = codec
        subresources = version.get("subresources") or {}
        self.has_status = subresources.get("status") is not None
        self._scale: Mapping[str, Any] | None = subresources.get("scale")
        self._has_rules = structural_schema.has_rules(codec.root)
        self._rules: RuleNode | None = None
        self._selectable = [str(each.get("jsonPath", "")) for each in version.get("selectableFields") or ()]

    @property
    def root(self) -> Structural:
        return self._codec.root

    def default(self, obj: Object) -> None:
        structural_schema.set_defaults(obj, self.root)

    def prepare(self, obj: Object, old: Object | None, *, user: User) -> Sequence[str] | None:
        if old is None:
            if self.has_status:
                obj.pop("status", None)
            obj["metadata"]["generation"] = 1
            return None
        if self.has_status:
            _keep(obj, old, "status")
        generation = old["metadata"].get("generation", 0)
        ignored = ("metadata", "status") if self.has_status else ("metadata",)
        changed = _without(obj, ignored) != _without(old, ignored)
        obj["metadata"]["generation"] = generation + 1 if changed else generation
        return None

    def validate(self, obj: Object, old: Object | None) -> Iterable[FieldError]:
        findings = self._schema_findings(obj)
        if old is not None and findings:
            before = {(each.field, each.kind, each.detail) for each in self._schema_findings(old)}
            findings = [f for f in findings if (f.field, f.kind, f.detail) not in before or not _is_same(f, obj, old)]
            findings = [_of_update(f) for f in findings]
        return [*findings, *self._rule_findings(obj, old, findings)]

    def _schema_findings(self, obj: Object) -> list[FieldError]:
        findings = _of_type(self._codec.gvk, obj)
        findings += value_validation.validate(obj, self.root.raw)
        if self._scale is not None:
            findings += scale_findings(self._scale, obj)
        for embedded, path in structural_schema.embedded_objects(obj, self.root):
            findings += _embedded_findings(embedded, path)
        findings += structural_schema.list_findings(obj, self.root)
        return findings

    def _rule_findings(self, obj: Object, old: Object | None, findings: list[FieldError]) -> list[FieldError]:
        if not self._has_rules:
            return []
        from kone.registry import custom_rules  # CEL is imported when the first rule comes

        if self._rules is None:
            self._rules = custom_rules.compiled(self.root)
        if self._rules is None:
            return []
        if custom_rules.is_blocked(findings):
            return [invalid_value("<nil>", None, custom_rules.NOT_CHECKED)]
        return custom_rules.value_findings(self._rules, obj, old)

    def warnings(self, obj: Object, old: Object | None) -> Iterable[str]:
        for finalizer in obj["metadata"].get("finalizers") or ():
            if "/" not in finalizer and finalizer not in ("orphan", "foregroundDeletion"):
                yield (
                    f"metadata.finalizers: {go_quote(finalizer)}: prefer a domain-qualified finalizer name to avoid "
                    "accidental conflicts with other finalizer writers"
                )

    def selectable_fields(self, obj: Object) -> dict[str, str]:
        found = {}
        for path in self._selectable:
            values = compile_path(path).find(obj)
            found[path.removeprefix(".")] = shown(values[:1])
        return found

    def unknown_field_label(self, label: str) -> str:
        return f"field label not supported: {label}"


class _CustomStatus(StatusStrategy):
    """Everything stays but the status."""

    def prepare(self, obj: Object, old: Object | None, *, user: User) -> None:
        assert old is not None, "a status is only ever updated"
        for name in {*obj, *old} - {"status", "metadata"}:
            _keep(obj, old, name)
        version = obj["metadata"].get("resourceVersion")
        obj["metadata"] = {**old["metadata"], **({"resourceVersion": version} if version else {})}

    def validate(self, obj: Object, old: Object | None) -> Iterable[FieldError]:
        return self.main.validate(obj, old)


def _keep(obj: Object, old: Object, name: str) -> None:
    if name in old:
        obj[name] = old[name]
    else:
        obj.pop(name, None)


def _without(obj: Object, names: Sequence[str]) -> Object:
    return {key: value for key, value in obj.items() if key not in names}


def _of_type(gvk: GVK, obj: Object) -> list[FieldError]:
    findings = []
    if obj.get("kind") != gvk.kind:
        findings.append(invalid_value("kind", obj.get("kind"), f"must be {gvk.kind}"))
    if obj.get("apiVersion") != gvk.api_version:
        findings.append(invalid_value("apiVersion", obj.get("apiVersion"), f"must be {gvk.api_version}"))
    return findings


def _embedded_findings(obj: Object, path: str) -> list[FieldError]:
    """An embedded object names its kind and version, and has metadata as any object."""
    findings = []
    version = obj.get("apiVersion", "")
    if not version:
        findings.append(required(f"{path}.apiVersion"))
    elif str(version).count("/") > 1:
        text = f"unexpected GroupVersion string: {version}"
        findings.append(invalid_value(f"{path}.apiVersion", version, text))
    if not obj.get("kind"):
        findings.append(required(f"{path}.kind"))
    metadata = obj.get("metadata") or {}
    findings += validate_labels(metadata.get("labels") or {}, f"{path}.metadata.labels")
    findings += validate_annotations(metadata.get("annotations") or {}, f"{path}.metadata.annotations")
    return findings


def _of_update(finding: FieldError) -> FieldError:
    """What upstream's walk over old and new together says of a wrong type: the field's own name, not its path."""
    own = finding.field.rpartition(".")[2]
    if finding.kind != "FieldValueTypeInvalid" or own == finding.field:
        return finding
    detail = finding.detail.replace(f"{finding.field} in body", f"{own} in body", 1)
    return FieldError(finding.kind, finding.field, detail, finding.value)


def _is_same(finding: FieldError, obj: Object, old: Object) -> bool:
    """Whether what the finding is about is as it was: then it is not this write's fault (KEP-4008)."""
    path = "." + finding.field.partition("[")[0]
    return compile_path(path).find(obj) == compile_path(path).find(old) if finding.field != "<nil>" else obj == old


# -- scale ------------------------------------------------------------------------------------------------------------


def scale_findings(scale: Mapping[str, Any], obj: Object) -> list[FieldError]:
    """Replicas that are numbers from 0 to 2^31-1, and a selector that is a text."""
    findings = []
    for field in ("specReplicasPath", "statusReplicasPath"):
        path = scale[field]
        value = dig(obj, *simple_path(path))
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int):
            text = f"{path} accessor error: {_plain(value)} is of the type {go_type(value)}, expected int64"
            findings.append(invalid_value(path, 0, text))
        elif value < 0:
            findings.append(invalid_value(path, value, "should be a non-negative integer"))
        elif value > INT32_MAX:
            findings.append(invalid_value(path, value, f"should be less than or equal to {INT32_MAX}"))
    if path := scale.get("labelSelectorPath"):
        value = dig(obj, *simple_path(path))
        if value is not None and not isinstance(value, str):
            text = f"{path} accessor error: {_plain(value)} is of the type {go_type(value)}, expected string"
            findings.append(invalid_value(path, "", text))
        elif value:
            try:
                parse_label_selector(value)
            except ValueError as error:
                findings.append(invalid_value(path, value, str(error)))
    return findings


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else go_value(value)


def _scale_spec(scale: Mapping[str, Any] | None) -> ScaleSpec | None:
    if scale is None:
        return None
    selector = simple_path(scale.get("labelSelectorPath") or "")
    return ScaleSpec(
        spec_replicas=simple_path(scale["specReplicasPath"]),
        status_replicas=simple_path(scale["statusReplicasPath"]),
        selector=lambda obj: str(dig(obj, *selector, default="") or "") if selector else "",
        custom=True,
    )


# -- columns ----------------------------------------------------------------------------------------------------------


def _columns(version: Mapping[str, Any]) -> tuple[Column, ...]:
    asked = version.get("additionalPrinterColumns") or (_AGE_COLUMN,)
    return (NAME, *(_column(each) for each in asked))


def _column(asked: Mapping[str, Any]) -> Column:
    return Column(
        asked["name"],
        _cell(str(asked.get("jsonPath", "")), asked["type"]),
        type=asked["type"],
        format=asked.get("format", ""),
        priority=asked.get("priority", 0),
    )


def _cell(path: str, kind: str) -> Cell:
    compiled = compile_path(path)

    def cell(obj: Object, now: float) -> Any:
        found = compiled.find(obj)
        if not found:
            return None
        return shown(found[:1]) if kind == "string" else typed_cell(found[0], kind, now)

    return cell


def typed_cell(value: Any, kind: str, now: float) -> Any:
    """The value as a cell of a column of that type; None where it is of another type."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind == "integer":
        return int(value) if number else None
    if kind == "number":
        return value if number else None
    if kind == "boolean":
        return value if isinstance(value, bool) else None
    if kind == "date" and isinstance(value, str):
        try:
            return age(parse_time(value), now)
        except ValueError:
            return "<invalid>"
    return None


# -- the resources ----------------------------------------------------------------------------------------------------


def resources(definition: Object, ask: Ask | None = None) -> list[Resource]:
    """The Resource of each served version, by the names that were accepted. `ask` is who converts, where the strategy
    is Webhook."""
    served = [version["name"] for version in definition["spec"].get("versions") or () if version.get("served")]
    return [each for each in _all_versions(definition, ask).values() if each.gvr.version in served]


def stored_resource(definition: Object) -> Resource:
    """The Resource of the version that is stored, served or not: who asks it for what is stored needs no webhook."""
    stored = _stored_version(definition["spec"])
    return _all_versions(definition, None)[f"{definition['spec']['group']}/{stored}"]


def _stored_version(spec: Object) -> str:
    return next(str(version["name"]) for version in spec.get("versions") or () if version.get("storage"))


def _all_versions(definition: Object, ask: Ask | None) -> dict[str, Resource]:
    spec = definition["spec"]
    names = dig(definition, "status", "acceptedNames", default={})
    group, stored = spec["group"], _stored_version(spec)
    schemas = {f"{group}/{v['name']}": structural_schema.parse(_raw_schema(spec, v)) for v in spec["versions"]}
    found: dict[str, Resource] = {}
    for version in spec["versions"]:
        api_version = f"{group}/{version['name']}"
        conversion = CustomConversion(api_version, f"{group}/{stored}", schemas, ask)
        made = _resource(spec, names, version, schemas[api_version])
        found[api_version] = replace(made, conversion=conversion, versions=found)
    return found


def _raw_schema(spec: Object, version: Object) -> Object:
    raw: Object = dig(version, "schema", "openAPIV3Schema") or _ANYTHING
    return {**raw, **_PRESERVES} if spec.get("preserveUnknownFields") else raw


def _resource(spec: Object, names: Object, version: Object, root: Structural) -> Resource:
    group, plural = spec["group"], names["plural"]
    gvk = GVK(group, version["name"], names["kind"])
    codec = Codec(gvk, root)
    strategy = CustomStrategy(codec, version)
    list_kind = names.get("listKind") or f"{gvk.kind}List"
    return Resource(
        gvr=GVR(group, version["name"], plural),
        kind=gvk.kind,
        strategy=strategy,
        namespaced=spec["scope"] == "Namespaced",
        singular=names.get("singular", ""),
        short_names=tuple(names.get("shortNames") or ()),
        categories=tuple(names.get("categories") or ()),
        verbs=VERBS,
        columns=_columns(version),
        status=_CustomStatus(strategy) if strategy.has_status else None,
        scale=_scale_spec((version.get("subresources") or {}).get("scale")),
        storage=(group, plural),
        custom=codec.decode,
        custom_schema=root.raw,
        structure=structure.custom(root.raw),
        named_list_kind="" if list_kind == f"{gvk.kind}List" else list_kind,
        deprecation=_deprecation(spec, names, version),
    )


def _deprecation(spec: Object, names: Object, version: Object) -> str:
    """The warning that every request for a deprecated version gets."""
    if not version.get("deprecated"):
        return ""
    if version.get("deprecationWarning") is not None:
        return str(version["deprecationWarning"])
    text = f"{spec['group']}/{version['name']} {names['kind']} is deprecated"
    newer = next(
        (
            v["name"]
            for v in sorted(spec["versions"], key=lambda v: version_rank(v["name"]), reverse=True)
            if v.get("served") and not v.get("deprecated") and version_rank(v["name"]) > version_rank(version["name"])
        ),
        "",
    )
    return f"{text}; use {spec['group']}/{newer} {names['kind']}" if newer else text
