"""NodeDeclaredFeatureValidator: a pod in place changes only in ways that its node declares to understand."""

from __future__ import annotations

from kone.admission.plugin import Attributes, Caches, Plugin
from kone.apimachinery.declared_features import declared_by, needed_to_change
from kone.apimachinery.errors import go_quote
from kone.apimachinery.objects import dig, generation_of


class NodeDeclaredFeatureValidator(Plugin):
    name = "NodeDeclaredFeatureValidator"
    operations = frozenset({"UPDATE"})
    resources = frozenset({("", "pods")})
    subresources = frozenset({"", "resize"})

    def __init__(self, caches: Caches) -> None:
        self._nodes = caches.of("", "nodes")

    async def validate(self, a: Attributes) -> None:
        name = dig(a.object, "spec", "nodeName")
        if not name or a.old is None or generation_of(a.old) == generation_of(a.object):
            return
        needed = needed_to_change(a.old["spec"], a.object["spec"])
        if not needed:
            return
        entry = self._nodes.get("", name)
        if entry is None:
            raise a.refuse(f"node {go_quote(name)} not found")
        if missing := [feature for feature in needed if feature not in declared_by(entry.obj)]:
            why = f"pod update requires features {', '.join(missing)} which are not available on node {go_quote(name)}"
            raise a.refuse(why)
