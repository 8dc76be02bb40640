"""Which writes a webhook or policy is asked about: rules, selectors, equivalent versions, what is exempt.

Rules, scopes and wildcards: k8s.io/apiserver, pkg/admission/plugin/webhook/predicates. Under matchPolicy Equivalent a
rule that names another version of the same kind matches, too, and the webhook is sent that version.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from kone.admission.plugin import Attributes, Caches
from kone.apimachinery.errors import not_found
from kone.apimachinery.kinds import GVK, GVR
from kone.apimachinery.objects import Object, labels_of
from kone.apimachinery.selectors import from_label_selector
from kone.registry import versions
from kone.registry.resource import Registry

CONFIGURATIONS = frozenset(
    (
        "mutatingwebhookconfigurations",
        "validatingwebhookconfigurations",
        "validatingadmissionpolicies",
        "validatingadmissionpolicybindings",
        "mutatingadmissionpolicies",
        "mutatingadmissionpolicybindings",
    )
)
"""No webhook and no policy may stand in the way of mending webhooks and policies."""


@dataclass(frozen=True, slots=True)
class Invocation:
    """As what the write is shown: its own resource and kind, or an equivalent version's."""

    resource: GVR
    kind: GVK


def is_exempt(a: Attributes) -> bool:
    return a.resource.group == "admissionregistration.k8s.io" and a.resource.resource in CONFIGURATIONS


class Matcher:
    """Judges rules and selectors against the registry and the namespaces as they are."""

    def __init__(self, caches: Caches, registry: Registry | None) -> None:
        self._namespaces = caches.of("", "namespaces")
        self._registry = registry
        self._version = -1
        self._equivalents: dict[GVR, list[Invocation]] = {}

    def invocation(
        self, a: Attributes, hook: Mapping[str, Any], rules: Iterable[Mapping[str, Any]]
    ) -> Invocation | None:
        """What the write is shown as where the hook's or policy's rules and selectors match; else None.

        Raises StatusError 404 where the namespace is not there.
        """
        if not self._selected(a, hook):
            return None
        rules = list(rules)
        own = Invocation(a.resource, a.kind)
        if any(rule_matches(rule, a, a.resource) for rule in rules):
            return own
        if hook.get("matchPolicy", "Equivalent") == "Exact":
            return None
        return next((found for rule in rules for found in self._also(a) if rule_matches(rule, a, found.resource)), None)

    def _also(self, a: Attributes) -> list[Invocation]:
        """The other versions under which the same objects are served."""
        registry = self._registry
        if registry is None:
            return []
        if registry.version != self._version:
            self._version, self._equivalents = registry.version, {}
        found = self._equivalents.get(a.resource)
        if found is None:
            own = registry.get(a.resource)
            found = self._equivalents[a.resource] = [
                Invocation(each.gvr, each.gvk)
                for each in registry
                if own is not None and each.storage_key == own.storage_key and each.gvr != own.gvr and not each.virtual
            ]
        return found

    def _selected(self, a: Attributes, hook: Mapping[str, Any]) -> bool:
        wanted = hook.get("namespaceSelector") or {}
        in_namespace = a.namespace or a.group_resource == ("", "namespaces")
        if wanted and in_namespace and not from_label_selector(wanted).matches(self._namespace_labels(a)):
            return False
        wanted = hook.get("objectSelector") or {}
        if not wanted:
            return True
        selector = from_label_selector(wanted)
        return any(each is not None and selector.matches(labels_of(each)) for each in (a.obj, a.old))

    def _namespace_labels(self, a: Attributes) -> Mapping[str, str]:
        if a.group_resource == ("", "namespaces") and a.operation == "CREATE" and not a.subresource:
            return labels_of(a.object)
        namespace = self.namespace(a)
        if namespace is None:
            raise not_found("namespaces", a.namespace or a.name)
        return labels_of(namespace)

    def namespace(self, a: Attributes) -> Object | None:
        """The namespace that the write is in, or is of."""
        entry = self._namespaces.get("", a.namespace or (a.name if a.group_resource == ("", "namespaces") else ""))
        return entry.obj if entry is not None else None

    async def converted(self, obj: Object | None, invocation: Invocation, own: GVR) -> Object | None:
        """The object as another version shows it. Raises StatusError where it cannot be converted."""
        if obj is None or invocation.resource == own or self._registry is None:
            return obj
        source, target = self._registry.get(own), self._registry.get(invocation.resource)
        if source is None or target is None:
            return obj
        shown = await versions.converted(obj, source, target)
        return {**shown, "kind": invocation.kind.kind, "apiVersion": invocation.kind.api_version}


def rule_matches(rule: Mapping[str, Any], a: Attributes, resource: GVR) -> bool:
    scope = rule.get("scope") or "*"
    namespaced = bool(a.namespace) and a.group_resource != ("", "namespaces")
    return (
        (scope == "*" or (scope == "Namespaced") == namespaced)
        and _lists(rule.get("operations"), a.operation)
        and _lists(rule.get("apiGroups"), resource.group)
        and _lists(rule.get("apiVersions"), resource.version)
        and any(_resource_matches(text, resource.resource, a.subresource) for text in rule.get("resources") or ())
        and (not rule.get("resourceNames") or a.name in rule["resourceNames"])
    )


def _lists(found: Iterable[str] | None, wanted: str) -> bool:
    return any(each in ("*", wanted) for each in found or ())


def _resource_matches(text: str, resource: str, subresource: str) -> bool:
    main, _, sub = text.partition("/")
    return main in ("*", resource) and sub in (("*", subresource) if "/" in text else (subresource,))


def hooks_of(objects: Iterable[Object]) -> Iterator[tuple[Object, Mapping[str, Any], str]]:
    """Every webhook of the configurations, by their names: (configuration, webhook, a key of its own)."""
    for configuration in sorted(objects, key=lambda obj: obj["metadata"]["name"]):
        seen: dict[str, int] = {}
        for hook in configuration.get("webhooks") or ():
            name = hook.get("name", "")
            seen[name] = seen.get(name, -1) + 1
            yield configuration, hook, f"{configuration['metadata']['name']}/{name}/{seen[name]}"
