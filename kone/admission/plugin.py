"""What an admission plugin is, what it is told of a write, and what it may ask."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol

from kone.apimachinery.access import AccessRequest
from kone.apimachinery.errors import StatusError, forbidden
from kone.apimachinery.kinds import GVK, GVR
from kone.apimachinery.objects import Object, deep_copy, metadata
from kone.apimachinery.users import User

Operation = Literal["CREATE", "UPDATE", "DELETE", "CONNECT"]


@dataclass(slots=True)
class Attributes:
    """One write, as plugins see it. `obj` is None for DELETE, `old` for CREATE and CONNECT; `name` may be "" on CREATE.

    A mutating plugin changes `obj` in place or puts another in its stead; `warnings` go to the client.
    """

    operation: Operation
    resource: GVR
    kind: GVK
    subresource: str
    namespace: str
    name: str
    obj: Object | None
    old: Object | None
    user: User
    dry_run: bool = False
    options: Object = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    annotations: dict[str, str] = field(default_factory=dict)
    """For the audit event."""
    changed: bool = False
    """A webhook or policy changed the object: plugins that went before look at it again, once."""
    reinvoking: bool = False
    reinvoke: set[str] = field(default_factory=set)
    """Keys of the webhooks and policies that want to look again."""

    @property
    def group_resource(self) -> tuple[str, str]:
        return self.resource.group, self.resource.resource

    @property
    def object(self) -> Object:
        """The object of a CREATE or UPDATE."""
        assert self.obj is not None
        return self.obj

    _left: list[tuple[Object, set[str]]] = field(default_factory=list)

    def left(self, keys: set[str]) -> None:
        """Those that may look again were asked, and this is what they left."""
        if keys and not self.reinvoking and self.obj is not None:
            self._left.append((deep_copy(self.obj), keys))

    def reinvoke_where_changed(self) -> None:
        """Whoever may look again does, where somebody after it changed what it left."""
        for obj, keys in self._left:
            if obj != self.obj:
                self.reinvoke |= keys

    def warn(self, text: str) -> None:
        if text not in self.warnings:
            self.warnings.append(text)

    def annotate(self, key: str, value: str) -> None:
        self.annotations.setdefault(key, value)

    def refuse(self, why: str) -> StatusError:
        """403 in upstream's words (admission.NewForbidden); a name to be generated is named by its prefix."""
        name = self.name
        if not name and self.obj is not None:
            meta = metadata(self.obj)
            name = meta.get("name") or meta.get("generateName") or ""
        return forbidden(self.resource.group_resource, name or "Unknown", why)


class Plugin:
    """One admission plugin. `operations` and `resources` say what it is asked about; a subclass overrides mutate,
    validate or both. Both raise StatusError to refuse."""

    name: ClassVar[str]
    operations: ClassVar[frozenset[Operation]] = frozenset({"CREATE", "UPDATE"})
    resources: ClassVar[frozenset[tuple[str, str]] | None] = None  # (group, resource); None: every one
    subresources: ClassVar[frozenset[str] | None] = frozenset({""})  # None: every one
    reinvoked: ClassVar[bool] = False  # whether it asks who said that it wants to look again

    def handles(self, a: Attributes) -> bool:
        return (
            a.operation in self.operations
            and (self.resources is None or a.group_resource in self.resources)
            and (self.subresources is None or a.subresource in self.subresources)
        )

    async def mutate(self, a: Attributes) -> None:
        """Change `a.obj`, or refuse."""

    async def validate(self, a: Attributes) -> None:
        """Refuse, or say nothing."""


class Entry(Protocol):
    @property
    def obj(self) -> Object: ...


class Cache(Protocol):
    """The part of cache.WatchCache that plugins read."""

    def get(self, namespace: str, name: str) -> Entry | None: ...
    def list(self, namespace: str = "") -> Sequence[Entry]: ...
    def subscribe(self, handler: Callable[[Any], None]) -> Callable[[], None]: ...


class Caches(Protocol):
    def of(self, group: str, resource: str) -> Cache: ...


class Escalation(Protocol):
    """Whether a user may grant what a role or binding grants (auth.rbac.Escalation)."""

    def check(
        self, user: User, resource: GVR, obj: Object, old: Object | None, *, namespace: str, name: str
    ) -> None: ...


class Authorizer(Protocol):
    """The part of auth.authorizer.Authorizer that plugins ask."""

    @property
    def escalation(self) -> Escalation: ...
    def allowed(self, user: User, request: AccessRequest) -> tuple[bool, str]: ...
