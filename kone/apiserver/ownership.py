"""Field ownership on the write path: under which name a request writes, by which rules, and what an apply patch says.

The bookkeeping itself is apimachinery/managedfields.py. Texts: k8s.io/apiserver, endpoints/handlers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from kone.apimachinery import field_sets, managedfields, schema
from kone.apimachinery.errors import bad_request
from kone.apimachinery.field_sets import FieldSet
from kone.apimachinery.kinds import GVK, parse_api_version
from kone.apimachinery.managedfields import Filter, InVersion, Manager, Rules, Steps, T, Wanted
from kone.apimachinery.objects import Object, metadata
from kone.apimachinery.structure import CUSTOM, built_in
from kone.apiserver import codec, yaml_text
from kone.apiserver.context import RequestContext
from kone.registry import versions
from kone.registry.resource import Registry, Resource
from kone.registry.strategy import StatusStrategy

MANAGER_MAX_BYTES: Final = 128
_CONTROLLER_MANAGER: Final = "system:serviceaccount:kube-system:"
_ONLY: Final[dict[tuple[str, str, str], tuple[tuple[str, ...], ...]]] = {
    ("", "pods", "ephemeralcontainers"): (("f:spec", "f:ephemeralContainers"),),
    ("", "pods", "resize"): (
        ("f:spec", "f:containers", "*", "f:resources"),
        ("f:spec", "f:containers", "*", "f:resizePolicy"),
        ("f:spec", "f:initContainers", "*", "f:resources"),
        ("f:spec", "f:initContainers", "*", "f:resizePolicy"),
    ),
    ("", "namespaces", "finalize"): (("f:spec", "f:finalizers"),),
    ("certificates.k8s.io", "certificatesigningrequests", "approval"): (("f:status", "f:conditions"),),
}
"""(group, resource, subresource) -> the only paths that a write through it can change."""


def manager_of_agent(user_agent: str) -> str:
    """The manager of a request that names none: the program in its User-Agent."""
    return (
        "".join(c for c in user_agent.partition("/")[0] if c.isprintable())
        .encode()[:MANAGER_MAX_BYTES]
        .decode(errors="ignore")
    )


def manager_of_user(name: str) -> str:
    """Under which name a loop of this process writes: as upstream's component of the same identity."""
    if name.startswith("system:node:"):
        return "kubelet"
    if name.startswith(_CONTROLLER_MANAGER):
        return "kube-controller-manager"
    if name == "system:apiserver":
        return "kube-apiserver"
    return name.removeprefix("system:")


class Ownership:
    """The rules of every resource of the registry, made when first asked for."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._rules: dict[tuple[int, str], tuple[Resource, Rules]] = {}

    def rules(self, resource: Resource, subresource: str) -> Rules:
        key = (id(resource), subresource)
        found = self._rules.get(key)
        if found is None or found[0] is not resource:
            found = self._rules[key] = (resource, _rules(resource, subresource))
        return found[1]

    async def update(
        self,
        ctx: RequestContext,
        resource: Resource,
        subresource: str,
        live: Object | None,
        obj: Object,
        given: Any,
        time: str,
    ) -> None:
        """Put the managedFields of an update (creation: `live` is None) into `obj`."""
        manager = Manager(
            ctx.field_manager or ctx.user_agent_manager or managedfields.UNKNOWN,
            "Update",
            resource.gvr.api_version,
            subresource,
        )
        steps = managedfields.updated(self.rules(resource, subresource), live, obj, given, manager, time)
        entries = await self._settled(steps, resource, subresource)
        if entries:
            obj["metadata"]["managedFields"] = entries
        else:
            obj["metadata"].pop("managedFields", None)

    async def apply(
        self,
        ctx: RequestContext,
        resource: Resource,
        subresource: str,
        live: Object | None,
        config: Object,
        time: str,
    ) -> Object:
        """What applying `config` makes of `live`, with its managedFields, not decoded. Raises StatusError."""
        manager = Manager(ctx.field_manager, "Apply", resource.gvr.api_version, subresource)
        rules = self.rules(resource, subresource)
        steps = managedfields.applied(rules, live, config, manager, time, force=ctx.force)
        return await self._settled(steps, resource, subresource)

    async def _settled(self, steps: Steps[T], resource: Resource, subresource: str) -> T:
        """What the steps come to, given the objects that they want in other versions. Raises StatusError."""
        try:
            wanted = next(steps)
            while True:
                wanted = steps.send(await self._in_version(resource, subresource, wanted))
        except StopIteration as done:
            found: T = done.value
            return found

    async def _in_version(self, resource: Resource, subresource: str, wanted: Wanted) -> InVersion | None:
        target = versions.version_of(self._registry, resource, wanted.api_version)
        source = versions.version_of(self._registry, resource, wanted.obj.get("apiVersion", ""))
        if target is None or source is None:
            return None
        obj = await versions.converted(wanted.obj, source, target)
        by_name_alone = target.conversion is not None and target.conversion.by_name_alone
        return InVersion(obj, self.rules(target, subresource), by_name_alone)


def keep_times(obj: Object, old: Object) -> None:
    """A write that changes nothing but times in managedFields changes nothing."""
    after, before = managedfields.entries_of(obj), managedfields.entries_of(old)
    if after is before or after == before or not managedfields.same_but_times(after, before):
        return
    if {**obj, "metadata": {**obj["metadata"], "managedFields": before}} == old:
        obj["metadata"]["managedFields"] = before


def _rules(resource: Resource, subresource: str) -> Rules:
    gvk = resource.gvk
    zero: Object = {"kind": gvk.kind, "apiVersion": gvk.api_version, "metadata": {}}
    structure = built_in(gvk)
    if structure is not None:
        found = schema.definition_of(gvk)
        assert found is not None
        zero = {**found.zero(), **zero}
    return Rules(structure or resource.structure or CUSTOM, zero, _filter(resource, subresource))


def _filter(resource: Resource, subresource: str) -> Filter:
    only = _ONLY.get((resource.gvr.group, resource.gvr.resource, subresource))
    if only is not None:

        def included(fields: FieldSet) -> FieldSet:
            found: FieldSet = {}
            for prefix in only:
                found = field_sets.union(found, field_sets.only(fields, prefix))
            return found

        return included
    excluded: list[Sequence[str]] = []
    if subresource == "status" and isinstance(resource.status, StatusStrategy):
        excluded += [(f"f:{name}",) for name in resource.status.kept]
        excluded += [("f:metadata", f"f:{name}") for name in resource.status.kept_metadata]
    elif not subresource and resource.status is not None:
        excluded.append(("f:status",))

    def filtered(fields: FieldSet) -> FieldSet:
        for path in excluded:
            if path[0] in fields:
                fields = field_sets.without(fields, path)
        return fields

    return filtered


def parse_apply(body: bytes) -> tuple[Object, list[str]]:
    """(the config of an apply patch, what of it is given twice). Raises 400."""
    try:
        value, twice = yaml_text.load(body)
    except yaml_text.YamlError as error:
        raise bad_request(f"error encoding patch: yaml: {error}") from None
    if value is None:
        return {}, twice
    if not isinstance(value, dict):
        raise bad_request(
            "error decoding patch: error unmarshaling JSON: while decoding JSON: json: cannot unmarshal "
            f"{codec.go_type(value)} into Go value of type map[string]interface {{}}"
        )
    return value, twice


def judge_twice(ctx: RequestContext, twice: Sequence[str]) -> None:
    """What becomes of fields that an apply patch gives twice. Raises 400 where validation is strict."""
    if twice and ctx.field_validation == "Strict":
        lines = "\n  ".join(twice)
        raise bad_request(f"error strict decoding YAML: yaml: unmarshal errors:\n  {lines}")
    if ctx.field_validation == "Warn":
        for text in twice:
            ctx.warn(text)


def check_config(config: Object, want: GVK) -> None:
    """Raises 400 where the config is of another kind than the URL, or says whose its fields are."""
    api_version, kind = config.get("apiVersion") or "", config.get("kind") or ""
    group, version = parse_api_version(api_version) if api_version else ("", "")
    if (group, version, kind) != (want.group, want.version, want.kind):
        raise bad_request(f"invalid object type: {group}/{version}, Kind={kind}")
    if isinstance(config.get("metadata"), dict) and metadata(config).get("managedFields") is not None:
        raise bad_request("metadata.managedFields must be nil")
