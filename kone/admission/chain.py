"""Policy on writes: the plugins, their fixed order, and what a plugin is told.

A write passes twice: `mutate` before the kind's own validation, where plugins may change the object in place (it is a
private copy), and `validate` after it, where they may only refuse. The order is upstream's (options/plugins.go); the
table in docs/admission.md names every plugin.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from kone.aio.clock import Clock
from kone.apimachinery.access import AccessRequest
from kone.apimachinery.errors import StatusError, forbidden
from kone.apimachinery.kinds import GVK, GVR
from kone.apimachinery.objects import Object, deep_copy, metadata
from kone.apimachinery.users import User

if TYPE_CHECKING:
    from kone.admission.webhooks import WebhookCaller
    from kone.registry.resource import Registry

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


class Chain:
    """Asks each plugin in turn; the first refusal ends it. Which plugins concern a kind of write is worked out once."""

    def __init__(self, plugins: Iterable[Plugin]) -> None:
        self.plugins = tuple(plugins)
        self._known: dict[tuple[str, str, str, str], tuple[list[Plugin], list[Plugin]]] = {}

    async def mutate(self, a: Attributes) -> None:
        plugins = self._for(a)[0]
        for plugin in plugins:
            await plugin.mutate(a)
        if a.changed:
            a.reinvoking = True
            for plugin in plugins:
                if plugin.reinvoked:
                    a.reinvoke_where_changed()
                await plugin.mutate(a)

    async def validate(self, a: Attributes) -> None:
        for plugin in self._for(a)[1]:
            await plugin.validate(a)

    def _for(self, a: Attributes) -> tuple[list[Plugin], list[Plugin]]:
        key = (a.operation, *a.group_resource, a.subresource)
        found = self._known.get(key)
        if found is None:
            concerned = [plugin for plugin in self.plugins if plugin.handles(a)]
            found = self._known[key] = (
                [plugin for plugin in concerned if type(plugin).mutate is not Plugin.mutate],
                [plugin for plugin in concerned if type(plugin).validate is not Plugin.validate],
            )
        return found


def default_chain(
    caches: Caches,
    clock: Clock,
    authorizer: Authorizer,
    *,
    registry: Registry | None = None,
    webhooks: WebhookCaller | None = None,
) -> Chain:
    """Every plugin that is on by default, in upstream's order; RoleEscalation stands where upstream's storage asks.

    Webhooks and policies are asked where there is a `registry` and who calls webhooks.
    """
    from kone.admission.certificates import (
        CertificateApproval,
        CertificateSigning,
        CertificateSubjectRestriction,
        ClusterTrustBundleAttest,
    )
    from kone.admission.default_classes import DefaultIngressClass, DefaultStorageClass
    from kone.admission.default_toleration_seconds import DefaultTolerationSeconds
    from kone.admission.limit_ranger import LimitRanger
    from kone.admission.namespace_lifecycle import NamespaceLifecycle
    from kone.admission.node_restriction import NodeRestriction
    from kone.admission.persistent_volume_claim_resize import PersistentVolumeClaimResize
    from kone.admission.pod_resize_validator import PodResizeValidator
    from kone.admission.pod_security import PodSecurity
    from kone.admission.pod_topology_labels import PodTopologyLabels
    from kone.admission.policy import ValidatingAdmissionPolicy
    from kone.admission.policy_mutating import MutatingAdmissionPolicy
    from kone.admission.priority import Priority
    from kone.admission.resource_quota import ResourceQuota
    from kone.admission.role_escalation import RoleEscalation
    from kone.admission.runtime_class import RuntimeClass
    from kone.admission.service_account import ServiceAccount
    from kone.admission.storage_object_in_use_protection import StorageObjectInUseProtection
    from kone.admission.taint_nodes_by_condition import TaintNodesByCondition
    from kone.admission.webhooks import MutatingAdmissionWebhook, ValidatingAdmissionWebhook, finisher
    from kone.admission.webhooks_matching import Matcher

    asking: list[Plugin] = []
    if registry is not None and webhooks is not None:
        matcher = Matcher(caches, registry)
        finish = finisher(registry)
        asking = [
            MutatingAdmissionPolicy(caches, matcher, registry, authorizer, finish),
            MutatingAdmissionWebhook(caches, matcher, webhooks, authorizer, finish),
            ValidatingAdmissionPolicy(caches, matcher, registry, authorizer),
            ValidatingAdmissionWebhook(caches, matcher, webhooks, authorizer),
        ]
    return Chain(
        [
            NamespaceLifecycle(caches),
            LimitRanger(caches),
            ServiceAccount(caches, clock),
            NodeRestriction(caches),
            TaintNodesByCondition(),
            PodSecurity(caches),
            Priority(caches),
            DefaultTolerationSeconds(),
            DefaultStorageClass(caches),
            StorageObjectInUseProtection(),
            PersistentVolumeClaimResize(caches),
            RuntimeClass(caches),
            CertificateApproval(authorizer),
            CertificateSigning(authorizer),
            ClusterTrustBundleAttest(authorizer),
            CertificateSubjectRestriction(),
            DefaultIngressClass(caches),
            PodTopologyLabels(caches),
            PodResizeValidator(caches),
            RoleEscalation(authorizer.escalation),
            *asking,
            ResourceQuota(caches, clock),
        ]
    )
