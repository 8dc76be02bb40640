"""A resource of the API: how it is named, found, printed and stored, and the strategy that says what it is.

`registry.builtin()` makes the Registry of all resources; custom resources are added to it and removed at run time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from kone.apimachinery.kinds import GVK, GVR
from kone.apimachinery.objects import Object
from kone.apimachinery.structure import Structure
from kone.apimachinery.timestamps import parse_time
from kone.registry.conversion import Conversion
from kone.registry.printing import age
from kone.registry.strategy import StatusStrategy, Strategy

ALL_VERBS = ("create", "delete", "deletecollection", "get", "list", "patch", "update", "watch")
STATUS_VERBS = ("get", "patch", "update")

Cell = Callable[[Object, float], Any]
"""(object, now in Unix seconds) -> what its table cell shows: a string, an integer or a boolean."""


Decode = Callable[[Object], tuple[Object, list[str]]]
"""(what a client sent) -> (the object, sharing nothing with it; the paths of unknown fields). Raises StatusError."""


@dataclass(frozen=True, slots=True)
class Column:
    """A column of `kubectl get`; priority 1 columns are for `-o wide`."""

    name: str
    cell: Cell
    type: str = "string"
    format: str = ""
    priority: int = 0


def _created(obj: Object) -> str:
    return str((obj.get("metadata") or {}).get("creationTimestamp") or "")


def _age(obj: Object, now: float) -> str:
    created = _created(obj)
    return age(parse_time(created), now) if created else "<unknown>"


NAME = Column("Name", lambda obj, now: (obj.get("metadata") or {}).get("name", ""), format="name")
AGE = Column("Age", _age)
CREATED_AT = Column("Created At", lambda obj, now: _created(obj), type="date")
DEFAULT_COLUMNS = (NAME, CREATED_AT)
"""What a kind without columns of its own shows."""


@dataclass(frozen=True, slots=True)
class Subresource:
    """How discovery lists `<resource>/<name>`. `kind` "" means the parent's kind."""

    kind: str = ""
    verbs: tuple[str, ...] = STATUS_VERBS
    group: str = ""
    version: str = ""
    """Set, with `group`, where the kind belongs to another group-version (autoscaling/v1 Scale)."""
    strategy: Strategy | None = None
    """What governs an update through it, where it is the parent object that is written (pods/resize)."""


SCALE = Subresource("Scale", group="autoscaling", version="v1")


@dataclass(frozen=True, slots=True)
class ScaleSpec:
    """Where the scale subresource finds its numbers in the parent."""

    spec_replicas: tuple[str, ...] = ("spec", "replicas")
    status_replicas: tuple[str, ...] = ("status", "replicas")
    selector: Callable[[Object], str] | None = None
    """The text of status.selector; None means spec.selector as a label selector."""
    custom: bool = False
    """Of a custom resource: replicas must be there to be read, and its own rules judge what is set."""


@dataclass(frozen=True, slots=True)
class Resource:
    """Everything that the API server knows about one resource of one version."""

    gvr: GVR
    kind: str
    strategy: Strategy
    namespaced: bool = True
    singular: str = ""
    """"" means the kind in lower case."""
    short_names: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    verbs: tuple[str, ...] = ALL_VERBS
    columns: tuple[Column, ...] = DEFAULT_COLUMNS
    null_rows: bool = False
    """Whether its table without rows says null, as that of DEFAULT_COLUMNS does."""
    status: StatusStrategy | None = None
    scale: ScaleSpec | None = None
    subresources: Mapping[str, Subresource] = field(default_factory=dict)
    """All but status and scale, which follow from the fields above."""
    storage: tuple[str, str] | None = None
    """(group, resource) of the WatchCache that holds its objects; None means its own."""
    conversion: Conversion | None = None
    """Between this version and what is stored; None where they are the same."""
    versions: Mapping[str, Resource] = field(default_factory=dict, compare=False, repr=False)
    """Of a custom resource: every version of its definition by apiVersion, those that are not served among them."""
    structure: Structure | None = None
    """How the fields of a custom resource are owned (structure.custom of its schema); built-in kinds have their own."""
    virtual: bool = False
    """Nothing is stored: reviews, bindings."""
    custom: Decode | None = None
    """How a custom resource is read by its own schema; None for built-in kinds."""
    custom_schema: Mapping[str, Any] = field(default_factory=dict)
    """That schema, as its definition has it (OpenAPI v3)."""
    named_list_kind: str = ""
    """Where it is not the kind with "List" behind it."""
    deprecation: str = ""
    """What every request for it is warned of."""

    @property
    def gvk(self) -> GVK:
        return GVK(self.gvr.group, self.gvr.version, self.kind)

    @property
    def list_kind(self) -> str:
        return self.named_list_kind or f"{self.kind}List"

    @property
    def singular_name(self) -> str:
        return self.singular or self.kind.lower()

    @property
    def storage_key(self) -> tuple[str, str]:
        return self.storage or (self.gvr.group, self.gvr.resource)

    def all_subresources(self) -> dict[str, Subresource]:
        """Every subresource by name, status and scale among them."""
        found = dict(self.subresources)
        if self.status is not None:
            found["status"] = Subresource(strategy=self.status)
        if self.scale is not None:
            found["scale"] = SCALE
        return found


class Registry:
    """All resources that the API serves at this moment."""

    def __init__(self) -> None:
        self._by_gvr: dict[GVR, Resource] = {}
        self._by_gvk: dict[GVK, Resource] = {}
        self.version = 0
        """Rises with every change, so that discovery knows when to look again."""

    def add(self, resource: Resource) -> None:
        """Add, or replace the one of the same group, version and plural."""
        self.remove(resource.gvr)
        self._by_gvr[resource.gvr] = resource
        self._by_gvk[resource.gvk] = resource
        self.version += 1

    def remove(self, gvr: GVR) -> None:
        resource = self._by_gvr.pop(gvr, None)
        if resource is not None:
            self._by_gvk.pop(resource.gvk, None)
            self.version += 1

    def find(self, group: str, version: str, resource: str) -> Resource | None:
        return self._by_gvr.get(GVR(group, version, resource))

    def get(self, gvr: GVR) -> Resource | None:
        return self._by_gvr.get(gvr)

    def by_kind(self, gvk: GVK) -> Resource | None:
        return self._by_gvk.get(gvk)

    def is_built_in(self, group: str) -> bool:
        """Whether the group has resources of kone's own."""
        return any(gvr.group == group and resource.custom is None for gvr, resource in self._by_gvr.items())

    def resources(self) -> list[Resource]:
        return list(self._by_gvr.values())

    def __iter__(self) -> Iterator[Resource]:
        return iter(list(self._by_gvr.values()))

    def __len__(self) -> int:
        return len(self._by_gvr)
