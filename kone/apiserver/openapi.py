"""OpenAPI v3: what every group-version serves and what its objects look like, made from the schema's table and the
registry.

Clients read two things here: which parameters a verb takes (kubectl looks for fieldValidation before it leaves
validation to the server), and the shape of kinds (`kubectl explain`, editors, generators). A document is made when it
is first asked for and kept until the registry changes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, Final

import orjson

from kone import KUBERNETES_VERSION
from kone.apimachinery import schema
from kone.apimachinery.kinds import GVK
from kone.apimachinery.objects import Object
from kone.apimachinery.schema import Definition, Field, GoType
from kone.apiserver import prose
from kone.registry.resource import Registry, Resource

_PACKAGES: Final[Mapping[str, str]] = {
    "meta": "io.k8s.apimachinery.pkg.apis.meta",
    "apiextensions": "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions",
    "apiregistration": "io.k8s.kube-aggregator.pkg.apis.apiregistration",
}
_TIME, _MICRO_TIME = "io.k8s.apimachinery.pkg.apis.meta.v1.Time", "io.k8s.apimachinery.pkg.apis.meta.v1.MicroTime"
_QUANTITY = "io.k8s.apimachinery.pkg.api.resource.Quantity"
_INT_OR_STRING = "io.k8s.apimachinery.pkg.util.intstr.IntOrString"
_RAW_EXTENSION = "io.k8s.apimachinery.pkg.runtime.RawExtension"
_STRING_OR_NUMBER: Final = [{"type": "string"}, {"type": "number"}]
_SPECIAL: Final[Mapping[str, Object]] = {
    _TIME: {"type": "string", "format": "date-time"},
    _MICRO_TIME: {"type": "string", "format": "date-time"},
    _QUANTITY: {"oneOf": _STRING_OR_NUMBER},
    _INT_OR_STRING: {"format": "int-or-string", "oneOf": [{"type": "integer"}, {"type": "string"}]},
    _RAW_EXTENSION: {"type": "object"},
}
_BY_KIND: Final[Mapping[str, str]] = {
    schema.TIME: _TIME,
    schema.MICRO_TIME: _MICRO_TIME,
    schema.QUANTITY: _QUANTITY,
    schema.INT_OR_STRING: _INT_OR_STRING,
}
_PLAIN: Final[Mapping[int, Object]] = {
    schema.STRING: {"type": "string"},
    schema.BOOLEAN: {"type": "boolean"},
    schema.STRINGS: {"type": "array", "items": {"type": "string"}},
    schema.STRING_MAP: {"type": "object", "additionalProperties": {"type": "string"}},
}
_PATCHES: Final = (
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
)
_DELETE_OPTIONS: Final = GVK("", "v1", "DeleteOptions")
_ACTIONS: Final[Mapping[str, tuple[str, str]]] = {
    # verb: (HTTP method, x-kubernetes-action)
    "get": ("get", "get"),
    "list": ("get", "list"),
    "create": ("post", "post"),
    "update": ("put", "put"),
    "patch": ("patch", "patch"),
    "delete": ("delete", "delete"),
    "deletecollection": ("delete", "deletecollection"),
}


_SECURITY_SCHEMES: Final = {
    "BearerToken": {
        "type": "apiKey",
        "description": "Bearer Token authentication",
        "name": "authorization",
        "in": "header",
    }
}


def schema_name(identifier: str) -> str:
    """OpenAPI's name of a struct: "core.v1.Pod" -> "io.k8s.api.core.v1.Pod"."""
    group, rest = identifier.split(".", 1)
    return f"{_PACKAGES.get(group, f'io.k8s.api.{group}')}.{rest}"


def _ref(name: str) -> Object:
    return {"$ref": f"#/components/schemas/{name}"}


class OpenApi:
    """The documents of a registry."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._version = -1
        self._documents: dict[str, bytes] = {}
        self._index = b""

    def index(self) -> bytes:
        """/openapi/v3: where each document is, with a hash so that clients may keep it."""
        self._refresh()
        if not self._index:
            paths = {
                path: {"serverRelativeURL": f"/openapi/v3/{path}?hash={self._hash(path)}"} for path in self._paths()
            }
            self._index = orjson.dumps({"paths": paths})
        return self._index

    def document(self, path: str) -> bytes | None:
        """/openapi/v3/<path>, e.g. "apis/apps/v1"; None where there is no such group-version."""
        self._refresh()
        found = self._documents.get(path)
        if found is None and path in self._paths():
            found = self._documents[path] = orjson.dumps(self._build(path))
        return found

    def _refresh(self) -> None:
        if self._version != self._registry.version:
            self._version = self._registry.version
            self._documents.clear()
            self._index = b""

    def _paths(self) -> list[str]:
        versions = {(r.gvr.group, r.gvr.version) for r in self._registry}
        return ["version", *sorted(_prefix(group, version) for group, version in versions)]

    def _hash(self, path: str) -> str:
        """What would change the document: built-in kinds are fixed by kone's version, custom ones by the registry's,
        and descriptions by the package they are read from."""
        facts = f"{KUBERNETES_VERSION} {self._version} {prose.source()} {path}"
        return hashlib.sha256(facts.encode()).hexdigest()[:32].upper()

    def _build(self, path: str) -> Object:
        schemas: dict[str, Object] = {}
        if path == "version":
            paths = {"/version/": {"get": _version_operation(schemas)}}
        else:
            paths = {}
            for resource in sorted(self._registry, key=lambda r: r.gvr.resource):
                if _prefix(resource.gvr.group, resource.gvr.version) == path:
                    paths |= _Paths(resource, schemas).build()
        return {
            "openapi": "3.0.0",
            "info": {"title": "Kubernetes", "version": ".".join(KUBERNETES_VERSION.lstrip("v").split(".")[:2])},
            "paths": dict(sorted(paths.items())),
            "components": {"schemas": dict(sorted(schemas.items())), "securitySchemes": _SECURITY_SCHEMES},
        }


def _prefix(group: str, version: str) -> str:
    return f"apis/{group}/{version}" if group else f"api/{version}"


# ---- schemas


def _add(schemas: dict[str, Object], identifier: str) -> str:
    """Put a struct and all that it holds among the schemas; its name."""
    name = schema_name(identifier)
    if name not in schemas:
        schemas[name] = {}
        schemas[name] = _struct_schema(schemas, schema.definition(identifier), prose.of_type(name))
    return name


def _struct_schema(schemas: dict[str, Object], found: Definition, texts: Mapping[str, str]) -> Object:
    properties = {
        name: _described(_field_schema(schemas, each), texts.get(name, ""))
        for name, each in sorted(found.fields.items())
    }
    made: Object = _described({"type": "object"}, texts.get(prose.TYPE, ""))
    if required := sorted(name for name, each in found.fields.items() if each.required):
        made["required"] = required
    if properties:
        made["properties"] = properties
    if found.atomic:
        made["x-kubernetes-map-type"] = "atomic"
    return made


def _described(made: Object, text: str) -> Object:
    return {"description": text, **made} if text else made


def _field_schema(schemas: dict[str, Object], each: Field) -> Object:
    made = dict(_type_schema(schemas, each.type))
    if "$ref" in made and each.type.code == schema.STRUCT:
        made = {"default": {}, "allOf": [made]}
    if each.list_type:
        made["x-kubernetes-list-type"] = each.list_type
    if each.map_keys:
        made["x-kubernetes-list-map-keys"] = list(each.map_keys)
    if each.strategies:
        made["x-kubernetes-patch-strategy"] = ",".join(each.strategies)
    if each.merge_key:
        made["x-kubernetes-patch-merge-key"] = each.merge_key
    if each.atomic_map:
        made["x-kubernetes-map-type"] = "atomic"
    return made


def _type_schema(schemas: dict[str, Object], go_type: GoType) -> Object:
    if go_type.code in _PLAIN:
        return _PLAIN[go_type.code]
    if go_type.code == schema.INTEGER:
        return {"type": "integer", "format": "int64" if go_type.bits == 64 else "int32"}
    if go_type.code == schema.STRUCT:
        return _ref(_add(schemas, go_type.struct))
    if go_type.kind in _BY_KIND:
        return _special(schemas, _BY_KIND[go_type.kind])
    if go_type.kind == "bytes":
        return {"type": "string", "format": "byte"}
    if go_type.kind == "float64":
        return {"type": "number", "format": "double"}
    if go_type.element is not None:
        element = dict(_type_schema(schemas, go_type.element))
        if "$ref" in element and go_type.element.code == schema.STRUCT:
            element = {"default": {}, "allOf": [element]}
        if go_type.kind == "map":
            return {"type": "object", "additionalProperties": element}
        return {"type": "array", "items": element}
    return _special(schemas, _RAW_EXTENSION)


def _special(schemas: dict[str, Object], name: str) -> Object:
    if name not in schemas:
        schemas[name] = _described(_SPECIAL[name], prose.of_type(name).get(prose.TYPE, ""))
    return _ref(name)


def _kind_schema(schemas: dict[str, Object], gvk: GVK) -> Object:
    """The schema of a whole kind, marked as one; any object where the kind is neither built in nor custom."""
    found = schema.definition_of(gvk)
    if found is None:
        custom = custom_name(gvk)
        anything: Object = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
        return _ref(custom) if custom in schemas else anything
    name = _add(schemas, found.name)
    mark = _mark(gvk)
    marks = schemas[name].setdefault("x-kubernetes-group-version-kind", [])
    if mark not in marks:
        marks.append(mark)
    return _ref(name)


def custom_name(gvk: GVK) -> str:
    """OpenAPI's name of a custom kind: its group backwards, "com.example.v1.Widget"."""
    return ".".join((*reversed(gvk.group.split(".")), gvk.version, gvk.kind))


def _mark(gvk: GVK) -> Object:
    return {"group": gvk.group, "kind": gvk.kind, "version": gvk.version}


def _add_custom(schemas: dict[str, Object], resource: Resource) -> None:
    """Put a custom kind and its list among the schemas: what its definition says, and what every object has."""
    own: Object = dict(resource.custom_schema)
    every = {name: _described({"type": "string"}, prose.of_every_kind(name)) for name in ("apiVersion", "kind")}
    meta = _holds(schemas, "meta.v1.ObjectMeta")
    own["properties"] = dict(sorted({**(own.get("properties") or {}), **every, "metadata": meta}.items()))
    schemas[custom_name(resource.gvk)] = {**own, "x-kubernetes-group-version-kind": [_mark(resource.gvk)]}
    listed = resource.gvk._replace(kind=resource.list_kind)
    items = {"type": "array", "items": _ref(custom_name(resource.gvk))}
    list_meta = _holds(schemas, "meta.v1.ListMeta")
    schemas[custom_name(listed)] = {
        "type": "object",
        "required": ["items"],
        "properties": {**every, "items": items, "metadata": list_meta},
        "x-kubernetes-group-version-kind": [_mark(listed)],
    }


def _holds(schemas: dict[str, Object], identifier: str) -> Object:
    """The metadata of a custom kind or list: an object, and what is said of it."""
    text = prose.of_every_kind("metadata")
    ref = _ref(_add(schemas, identifier))
    return {"description": text, "allOf": [ref]} if text else ref


# ---- paths


def _query(name: str, kind: str = "string") -> Object:
    return {"name": name, "in": "query", "schema": {"type": kind, "uniqueItems": True}}


def _in_path(name: str) -> Object:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string", "uniqueItems": True}}


_PRETTY: Final = _query("pretty")
_LIST_PARAMETERS: Final = [
    _query("allowWatchBookmarks", "boolean"),
    _query("continue"),
    _query("fieldSelector"),
    _query("labelSelector"),
    _query("limit", "integer"),
    _query("resourceVersion"),
    _query("resourceVersionMatch"),
    _query("sendInitialEvents", "boolean"),
    _query("timeoutSeconds", "integer"),
    _query("watch", "boolean"),
]
_WRITE_PARAMETERS: Final = [_query("dryRun"), _query("fieldManager"), _query("fieldValidation")]
_DELETE_PARAMETERS: Final = [
    _query("dryRun"),
    _query("gracePeriodSeconds", "integer"),
    _query("ignoreStoreReadErrorWithClusterBreakingPotential", "boolean"),
    _query("orphanDependents", "boolean"),
    _query("propagationPolicy"),
]
_PARAMETERS: Final[Mapping[str, list[Object]]] = {
    "get": [],
    "list": _LIST_PARAMETERS,
    "create": _WRITE_PARAMETERS,
    "update": _WRITE_PARAMETERS,
    "patch": [*_WRITE_PARAMETERS, _query("force", "boolean")],
    "delete": _DELETE_PARAMETERS,
    "deletecollection": [*_DELETE_PARAMETERS, *_LIST_PARAMETERS[1:6]],
}


class _Paths:
    """The paths of one resource."""

    def __init__(self, resource: Resource, schemas: dict[str, Object]) -> None:
        self._resource, self._schemas = resource, schemas

    def build(self) -> dict[str, Object]:
        resource = self._resource
        if resource.custom is not None:
            _add_custom(self._schemas, resource)
        top = f"/{_prefix(resource.gvr.group, resource.gvr.version)}/"
        where = f"{top}namespaces/{{namespace}}/" if resource.namespaced else top
        place = [_in_path("namespace")] if resource.namespaced else []
        collection, item = where + resource.gvr.resource, where + resource.gvr.resource + "/{name}"
        paths: dict[str, Object] = {}
        self._put(paths, collection, place, ("list", "create", "deletecollection"), resource.verbs, resource.gvk)
        self._put(
            paths, item, [_in_path("name"), *place], ("get", "update", "patch", "delete"), resource.verbs, resource.gvk
        )
        if resource.namespaced and "list" in resource.verbs:
            self._put(paths, top + resource.gvr.resource, [], ("list",), resource.verbs, resource.gvk)
        for name, part in resource.all_subresources().items():
            gvk = GVK(
                part.group if part.version else resource.gvr.group,
                part.version or resource.gvr.version,
                part.kind or resource.kind,
            )
            verbs = ("get", "create", "update", "patch", "delete")
            self._put(paths, f"{item}/{name}", [_in_path("name"), *place], verbs, part.verbs, gvk)
        return paths

    def _put(
        self,
        paths: dict[str, Object],
        path: str,
        place: list[Object],
        order: tuple[str, ...],
        verbs: tuple[str, ...],
        gvk: GVK,
    ) -> None:
        served = [verb for verb in order if verb in verbs]
        if served:
            operations = {_ACTIONS[verb][0]: self._operation(path, verb, gvk) for verb in served}
            paths[path] = {**operations, "parameters": [*place, _PRETTY]}

    def _operation(self, path: str, verb: str, gvk: GVK) -> Object:
        resource = self._resource
        shape = self._list_schema() if verb == "list" else self._answer(verb, gvk)
        content = {kind: {"schema": shape} for kind in ("application/json", "application/yaml")}
        made: Object = {
            "tags": [_tag(resource)],
            "operationId": _operation_id(path, verb, resource),
            # Clients read an empty list as none: what they write again would be another document.
            **({"parameters": _PARAMETERS[verb]} if _PARAMETERS[verb] else {}),
            "responses": {"200": {"description": "OK", "content": content}, "401": {"description": "Unauthorized"}},
            "x-kubernetes-action": _ACTIONS[verb][1],
            "x-kubernetes-group-version-kind": {"group": gvk.group, "kind": gvk.kind, "version": gvk.version},
        }
        if verb in ("create", "update"):
            made["requestBody"] = {"content": {"*/*": {"schema": _kind_schema(self._schemas, gvk)}}, "required": True}
        elif verb == "patch":
            patch = {"type": "object"}
            kinds = [kind for kind in _PATCHES if resource.custom is None or "strategic" not in kind]
            made["requestBody"] = {"content": {kind: {"schema": patch} for kind in kinds}, "required": True}
        elif verb in ("delete", "deletecollection"):
            made["requestBody"] = {"content": {"*/*": {"schema": _kind_schema(self._schemas, _DELETE_OPTIONS)}}}
        return made

    def _answer(self, verb: str, gvk: GVK) -> Object:
        if verb in ("delete", "deletecollection"):
            return _kind_schema(self._schemas, GVK("", "v1", "Status"))
        return _kind_schema(self._schemas, gvk)

    def _list_schema(self) -> Object:
        resource = self._resource
        return _kind_schema(self._schemas, GVK(resource.gvr.group, resource.gvr.version, resource.list_kind))


def _tag(resource: Resource) -> str:
    group = resource.gvr.group.removesuffix(".k8s.io").replace(".", "_") or "core"
    return f"{group}_{resource.gvr.version}"


_WORDS: Final[Mapping[str, str]] = {
    "get": "read",
    "list": "list",
    "create": "create",
    "update": "replace",
    "patch": "patch",
    "delete": "delete",
    "deletecollection": "deleteCollection",
}


def _operation_id(path: str, verb: str, resource: Resource) -> str:
    """As upstream forms it: "patchCoreV1NamespacedPodStatus"."""
    group = "".join(part.capitalize() for part in (resource.gvr.group.split(".")[0] or "core").split("-"))
    scope = "Namespaced" if "{namespace}" in path else ""
    tail = path.split("{name}/")[1].capitalize() if "{name}/" in path else ""
    everywhere = "ForAllNamespaces" if resource.namespaced and not scope and verb == "list" else ""
    return f"{_WORDS[verb]}{group}{resource.gvr.version.capitalize()}{scope}{resource.kind}{tail}{everywhere}"


# ---- /version


_VERSION_INFO: Final = "io.k8s.apimachinery.pkg.version.Info"
_VERSION_REQUIRED: Final = (
    "major",
    "minor",
    "gitVersion",
    "gitCommit",
    "gitTreeState",
    "buildDate",
    "goVersion",
    "compiler",
    "platform",
)
_VERSION_OPTIONAL: Final = ("emulationMajor", "emulationMinor", "minCompatibilityMajor", "minCompatibilityMinor")
_VERSION_PROSE: Final = {
    "major": "Major is the major version of the binary version",
    "minor": "Minor is the minor version of the binary version",
    "emulationMajor": "EmulationMajor is the major version of the emulation version",
    "emulationMinor": "EmulationMinor is the minor version of the emulation version",
    "minCompatibilityMajor": "MinCompatibilityMajor is the major version of the minimum compatibility version",
    "minCompatibilityMinor": "MinCompatibilityMinor is the minor version of the minimum compatibility version",
}


def _version_operation(schemas: dict[str, Object]) -> Object:
    properties: dict[str, Any] = {name: {"type": "string", "default": ""} for name in _VERSION_REQUIRED}
    properties |= {name: {"type": "string"} for name in _VERSION_OPTIONAL}
    for name, text in _VERSION_PROSE.items():
        properties[name] = {"description": text, **properties[name]}
    schemas[_VERSION_INFO] = {
        "description": "Info contains versioning information. how we'll want to distribute that information.",
        "type": "object",
        "required": list(_VERSION_REQUIRED),
        "properties": dict(sorted(properties.items())),
    }
    return {
        "tags": ["version"],
        "description": "get the version information for this server",
        "operationId": "getCodeVersion",
        "responses": {
            "200": {"description": "OK", "content": {"application/json": {"schema": _ref(_VERSION_INFO)}}},
            "401": {"description": "Unauthorized"},
        },
    }
