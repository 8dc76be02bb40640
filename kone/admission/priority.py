"""Priority: a pod's priority and preemption policy come from its PriorityClass; only one class may be the default."""

from __future__ import annotations

from kone.admission.plugin import Attributes, Caches, Plugin
from kone.apimachinery.objects import Object, name_of

PODS = ("", "pods")
PRIORITY_CLASSES = ("scheduling.k8s.io", "priorityclasses")


class Priority(Plugin):
    name = "Priority"
    resources = frozenset({PODS, PRIORITY_CLASSES})

    def __init__(self, caches: Caches) -> None:
        self._classes = caches.of(*PRIORITY_CLASSES)

    async def mutate(self, a: Attributes) -> None:
        if a.group_resource != PODS:
            return
        spec = a.object["spec"]
        if a.operation == "UPDATE":
            # Who sends a pod back without these keeps them; any other change is for validation to refuse.
            old = (a.old or {}).get("spec") or {}
            for key in ("priority", "preemptionPolicy"):
                if spec.get(key) is None and old.get(key) is not None:
                    spec[key] = old[key]
            return
        name, value, policy = self._resolve(a, spec.get("priorityClassName", ""))
        if name:
            spec["priorityClassName"] = name
        given = spec.get("priority")
        if given is not None and given != value:
            raise a.refuse(
                f"the integer value of priority ({given}) must not be provided in pod spec; "
                f"priority admission controller computed {value} from the given PriorityClass name"
            )
        spec["priority"] = value
        given_policy = spec.get("preemptionPolicy")
        if given_policy is not None and given_policy != policy:
            raise a.refuse(
                f"the string value of PreemptionPolicy ({given_policy}) must not be provided in pod spec; "
                f"priority admission controller computed {policy} from the given PriorityClass name"
            )
        spec["preemptionPolicy"] = policy

    async def validate(self, a: Attributes) -> None:
        if a.group_resource != PRIORITY_CLASSES or not a.object.get("globalDefault"):
            return
        default = self._default_class()
        if default is not None and (a.operation == "CREATE" or name_of(default) != name_of(a.object)):
            raise a.refuse(f"PriorityClass {name_of(default)} is already marked as default. Only one default can exist")

    def _resolve(self, a: Attributes, name: str) -> tuple[str, int, str]:
        """(class, priority, preemption policy) of a pod that names this class, or none."""
        if not name:
            found = self._default_class()
            if found is None:
                return "", 0, "PreemptLowerPriority"
        else:
            entry = self._classes.get("", name)
            if entry is None:
                raise a.refuse(f"no PriorityClass with name {name} was found")
            found = entry.obj
        return name_of(found), int(found.get("value", 0)), found.get("preemptionPolicy") or "PreemptLowerPriority"

    def _default_class(self) -> Object | None:
        """The default class; of several, which a race can make, the lowest."""
        defaults = [entry.obj for entry in self._classes.list() if entry.obj.get("globalDefault")]
        return min(defaults, key=lambda found: int(found.get("value", 0)), default=None)
