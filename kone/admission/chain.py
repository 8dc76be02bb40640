"""Policy on writes: the plugins in their fixed order.

A write passes twice: `mutate` before the kind's own validation, where plugins may change the object in place (it is a
private copy), and `validate` after it, where they may only refuse. The order is upstream's (options/plugins.go); the
table in docs/admission.md names every plugin.
"""

from __future__ import annotations

from collections.abc import Iterable

from kone.admission.certificates import (
    CertificateApproval,
    CertificateSigning,
    CertificateSubjectRestriction,
    ClusterTrustBundleAttest,
)
from kone.admission.default_classes import DefaultIngressClass, DefaultStorageClass
from kone.admission.default_toleration_seconds import DefaultTolerationSeconds
from kone.admission.device_admin_access import DeviceAdminAccess
from kone.admission.limit_ranger import LimitRanger
from kone.admission.namespace_lifecycle import NamespaceLifecycle
from kone.admission.node_declared_features import NodeDeclaredFeatureValidator
from kone.admission.node_restriction import NodeRestriction
from kone.admission.persistent_volume_claim_resize import PersistentVolumeClaimResize
from kone.admission.plugin import Attributes, Authorizer, Caches, Plugin
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
from kone.admission.webhooks import MutatingAdmissionWebhook, ValidatingAdmissionWebhook, WebhookCaller, finisher
from kone.admission.webhooks_matching import Matcher
from kone.aio.clock import Clock
from kone.registry.resource import Registry


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
    """Every plugin that is on by default, in upstream's order; RoleEscalation and DeviceAdminAccess stand where
    upstream's storage asks.

    Webhooks and policies are asked where there is a `registry` and who calls webhooks.
    """
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
            NodeDeclaredFeatureValidator(caches),
            PodResizeValidator(caches),
            RoleEscalation(authorizer.escalation),
            DeviceAdminAccess(caches),
            *asking,
            ResourceQuota(caches, clock),
        ]
    )
