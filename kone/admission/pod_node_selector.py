"""PodNodeSelector: a namespace says on which nodes its pods run, by an annotation; a file does for others.

The namespace's selector is added to each new pod's. A file may also bound what a namespace's pods may select at all.
"""

from __future__ import annotations

from collections.abc import Mapping

from kone.admission.configuration import unversioned
from kone.admission.plugin import Attributes, Caches, Plugin
from kone.apimachinery.config_files import ConfigFileError
from kone.apimachinery.errors import StatusError, forbidden, invalid_value, not_found
from kone.apimachinery.names import is_qualified_name, is_valid_label_value
from kone.apimachinery.objects import annotations_of, name_of

ANNOTATION = "scheduler.alpha.kubernetes.io/node-selector"
KEY = "podNodeSelectorPluginConfig"
DEFAULT = "clusterDefaultNodeSelector"


def parse(text: str) -> Mapping[str, str]:
    """Node selectors by namespace, and the cluster's default. Raises ConfigFileError."""
    found = unversioned(text, KEY)
    for name, selector in found.items():
        if not isinstance(selector, str):
            raise ConfigFileError(f"{KEY}.{name}: expected a string")
    return found


class PodNodeSelector(Plugin):
    name = "PodNodeSelector"
    operations = frozenset({"CREATE"})
    resources = frozenset({("", "pods")})

    def __init__(self, caches: Caches, selectors: Mapping[str, str]) -> None:
        self._namespaces = caches.of("", "namespaces")
        self._selectors = selectors

    async def mutate(self, a: Attributes) -> None:
        selector = self._selector(a)
        spec = a.object["spec"]
        if merged := selector | (spec.get("nodeSelector") or {}):
            spec["nodeSelector"] = merged
        self._judge(a)

    async def validate(self, a: Attributes) -> None:
        self._selector(a)
        self._judge(a)

    def _selector(self, a: Attributes) -> dict[str, str]:
        """The namespace's. Raises StatusError where the pod's own says otherwise."""
        entry = self._namespaces.get("", a.namespace)
        if entry is None:
            raise not_found("namespaces", a.namespace)
        given = annotations_of(entry.obj).get(ANNOTATION)
        selector = labels_map(self._selectors.get(DEFAULT, "") if given is None else given)
        own = a.object["spec"].get("nodeSelector") or {}
        if any(own.get(key, value) != value for key, value in selector.items()):
            raise _refusal(a, "pod node label selector conflicts with its namespace node label selector")
        return selector

    def _judge(self, a: Attributes) -> None:
        allowed = labels_map(self._selectors.get(a.namespace, ""))
        own = a.object["spec"].get("nodeSelector") or {}
        if allowed and any(allowed.get(key) != value for key, value in own.items()):
            raise _refusal(a, "pod node label selector labels conflict with its namespace whitelist")


def labels_map(selector: str) -> dict[str, str]:
    """The labels that "a=b,c=d" names (labels.ConvertSelectorToLabelsMap). Raises StatusError 500 for anything else."""
    found: dict[str, str] = {}
    for part in selector.split(",") if selector else ():
        halves = part.split("=")
        if len(halves) != 2:
            raise StatusError(500, "", f"invalid selector: [{' '.join(halves)}]")
        key, value = (half.strip() for half in halves)
        if problems := is_qualified_name(key):
            raise StatusError(500, "", str(invalid_value("<nil>", key, "; ".join(problems))))
        if problems := is_valid_label_value(value):
            raise StatusError(500, "", str(invalid_value(f"[{key}]", value, "; ".join(problems))))
        found[key] = value
    return found


def _refusal(a: Attributes, why: str) -> StatusError:
    return forbidden("pods", name_of(a.object), why)
