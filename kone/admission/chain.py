"""Policy on writes: the plugins in their fixed order.

A write passes twice: `mutate` before the kind's own validation, where plugins may change the object in place (it is a
private copy), and `validate` after it, where they may only refuse. The order is upstream's (options/plugins.go); the
table in docs/admission.md names every plugin.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from kone.admission import (
    event_rate_limit,
    image_policy_webhook,
    pod_node_selector,
    pod_security_policy,
    pod_toleration_restriction,
)
from kone.admission.always import AlwaysAdmit, AlwaysDeny
from kone.admission.always_pull_images import AlwaysPullImages
from kone.admission.certificates import (
    CertificateApproval,
    CertificateSigning,
    CertificateSubjectRestriction,
    ClusterTrustBundleAttest,
)
from kone.admission.choice import choose
from kone.admission.configuration import Configurations
from kone.admission.default_classes import DefaultIngressClass, DefaultStorageClass
from kone.admission.default_toleration_seconds import DefaultTolerationSeconds
from kone.admission.deny_service_external_ips import DenyServiceExternalIPs
from kone.admission.device_admin_access import DeviceAdminAccess
from kone.admission.device_status_authorization import DeviceStatusAuthorization
from kone.admission.event_rate_limit import EventRateLimit
from kone.admission.extended_resource_toleration import ExtendedResourceToleration
from kone.admission.image_policy_webhook import ImagePolicyWebhook
from kone.admission.limit_pod_hard_anti_affinity_topology import LimitPodHardAntiAffinityTopology
from kone.admission.limit_ranger import LimitRanger
from kone.admission.metrics import AdmissionMetrics, Kind
from kone.admission.namespace_lifecycle import NamespaceLifecycle
from kone.admission.namespace_presence import MakeNamespace, NamespaceAutoProvision, NamespaceExists
from kone.admission.node_declared_features import NodeDeclaredFeatureValidator
from kone.admission.node_restriction import NodeRestriction
from kone.admission.owner_references_permission_enforcement import OwnerReferencesPermissionEnforcement
from kone.admission.persistent_volume_claim_resize import PersistentVolumeClaimResize
from kone.admission.plugin import Attributes, Authorizer, Caches, Plugin
from kone.admission.pod_node_selector import PodNodeSelector
from kone.admission.pod_resize_validator import PodResizeValidator
from kone.admission.pod_security import PodSecurity
from kone.admission.pod_toleration_restriction import PodTolerationRestriction
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
from kone.admission.webhooks import (
    MutatingAdmissionWebhook,
    ValidatingAdmissionWebhook,
    WebhookCaller,
    WebhookDoor,
    finisher,
    parse_kubeconfig_file,
)
from kone.admission.webhooks_matching import Matcher
from kone.aio.clock import Clock
from kone.apimachinery.errors import StatusError, go_quote
from kone.registry.resource import Registry


class _Measured:
    """How long a pass takes, of one plugin or (without a name) of all of them, and whether it refuses."""

    __slots__ = ("_kind", "_metrics", "_name", "_operation", "_start")

    def __init__(self, metrics: AdmissionMetrics, kind: Kind, operation: str, name: str) -> None:
        self._metrics, self._kind, self._operation, self._name = metrics, kind, operation, name

    def __enter__(self) -> None:
        self._start = self._metrics.now()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        seconds, is_rejected = self._metrics.now() - self._start, isinstance(error, StatusError)
        if self._name:
            self._metrics.plugin(self._name, self._kind, self._operation, seconds, is_rejected=is_rejected)
        else:
            self._metrics.step(self._kind, self._operation, seconds, is_rejected=is_rejected)


class Chain:
    """Asks each plugin in turn; the first refusal ends it. Which plugins concern a kind of write is worked out once."""

    def __init__(self, plugins: Iterable[Plugin], metrics: AdmissionMetrics) -> None:
        self.plugins = tuple(plugins)
        self.metrics = metrics
        self._known: dict[tuple[str, str, str, str], tuple[list[Plugin], list[Plugin]]] = {}

    async def mutate(self, a: Attributes) -> None:
        plugins = self._for(a)[0]
        with self._measured("admit", a):
            for plugin in plugins:
                with self._measured("admit", a, plugin):
                    await plugin.mutate(a)
            if a.changed:
                a.reinvoking = True
                for plugin in plugins:
                    if plugin.reinvoked:
                        a.reinvoke_where_changed()
                    with self._measured("admit", a, plugin):
                        await plugin.mutate(a)

    async def validate(self, a: Attributes) -> None:
        plugins = self._for(a)[1]
        with self._measured("validate", a):
            for plugin in plugins:
                with self._measured("validate", a, plugin):
                    await plugin.validate(a)

    def _measured(self, kind: Kind, a: Attributes, plugin: Plugin | None = None) -> _Measured:
        return _Measured(self.metrics, kind, a.operation, plugin.name if plugin is not None else "")

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


@dataclass(frozen=True, slots=True)
class Doors:
    """How plugins reach beyond what they are shown; without one, the plugins that need it are left out."""

    registry: Registry | None = None
    webhooks: WebhookDoor | None = None
    make_namespace: MakeNamespace | None = None


NO_DOORS = Doors()


def default_chain(
    caches: Caches,
    clock: Clock,
    authorizer: Authorizer,
    doors: Doors = NO_DOORS,
    *,
    names: Iterable[str] | None = None,
    configurations: Configurations = MappingProxyType({}),
) -> Chain:
    """The plugins that are named, by default those of upstream's defaults, in upstream's order, each as configured.

    Raises ValueError where a plugin cannot be configured so.
    """
    metrics = AdmissionMetrics(clock)
    made = _factories(caches, clock, authorizer, doors, metrics)
    plugins = []
    for name in choose() if names is None else names:
        if name in made:
            try:
                plugins.append(made[name](configurations.get(name)))
            except ValueError as error:
                raise ValueError(f"couldn't init admission plugin {go_quote(name)}: {error}") from None
    return Chain(plugins, metrics)


Factory = Callable[[str | None], Plugin]
"""Makes a plugin of its configuration's text, None where it has none. Raises ValueError."""


def _factories(
    caches: Caches, clock: Clock, authorizer: Authorizer, doors: Doors, metrics: AdmissionMetrics
) -> Mapping[str, Factory]:
    """How each plugin is made."""
    found: dict[str, Factory] = {
        "AlwaysAdmit": lambda _: AlwaysAdmit(),
        "NamespaceLifecycle": lambda _: NamespaceLifecycle(caches),
        "NamespaceExists": lambda _: NamespaceExists(caches),
        "LimitPodHardAntiAffinityTopology": lambda _: LimitPodHardAntiAffinityTopology(),
        "LimitRanger": lambda _: LimitRanger(caches),
        "ServiceAccount": lambda _: ServiceAccount(caches, clock),
        "NodeRestriction": lambda _: NodeRestriction(caches, authorizer),
        "TaintNodesByCondition": lambda _: TaintNodesByCondition(),
        "AlwaysPullImages": lambda _: AlwaysPullImages(),
        "PodSecurity": lambda text: PodSecurity(
            caches, pod_security_policy.parse(text) if text else pod_security_policy.NOTHING_CONFIGURED
        ),
        "PodNodeSelector": lambda text: PodNodeSelector(caches, pod_node_selector.parse(text) if text else {}),
        "Priority": lambda _: Priority(caches),
        "DefaultTolerationSeconds": lambda _: DefaultTolerationSeconds(),
        "PodTolerationRestriction": lambda text: PodTolerationRestriction(
            caches, pod_toleration_restriction.parse(text) if text else pod_toleration_restriction.Restriction()
        ),
        "EventRateLimit": lambda text: EventRateLimit(event_rate_limit.parse(text) if text else (), clock),
        "ExtendedResourceToleration": lambda _: ExtendedResourceToleration(),
        "DefaultStorageClass": lambda _: DefaultStorageClass(caches),
        "StorageObjectInUseProtection": lambda _: StorageObjectInUseProtection(),
        "PersistentVolumeClaimResize": lambda _: PersistentVolumeClaimResize(caches),
        "RuntimeClass": lambda _: RuntimeClass(caches),
        "CertificateApproval": lambda _: CertificateApproval(authorizer),
        "CertificateSigning": lambda _: CertificateSigning(authorizer),
        "ClusterTrustBundleAttest": lambda _: ClusterTrustBundleAttest(authorizer),
        "CertificateSubjectRestriction": lambda _: CertificateSubjectRestriction(),
        "DefaultIngressClass": lambda _: DefaultIngressClass(caches),
        "DenyServiceExternalIPs": lambda _: DenyServiceExternalIPs(),
        "PodTopologyLabels": lambda _: PodTopologyLabels(caches),
        "NodeDeclaredFeatureValidator": lambda _: NodeDeclaredFeatureValidator(caches),
        "PodResizeValidator": lambda _: PodResizeValidator(caches),
        "RoleEscalation": lambda _: RoleEscalation(authorizer.escalation),
        "DeviceAdminAccess": lambda _: DeviceAdminAccess(caches),
        "DeviceStatusAuthorization": lambda _: DeviceStatusAuthorization(authorizer),
        "ResourceQuota": lambda _: ResourceQuota(caches, clock),
        "AlwaysDeny": lambda _: AlwaysDeny(),
    }
    if (make := doors.make_namespace) is not None:
        found["NamespaceAutoProvision"] = lambda _: NamespaceAutoProvision(caches, make)
    if (registry := doors.registry) is not None:
        found["OwnerReferencesPermissionEnforcement"] = lambda _: OwnerReferencesPermissionEnforcement(
            authorizer, registry
        )
        if (webhooks := doors.webhooks) is not None:
            found |= _asking(caches, authorizer, registry, webhooks, metrics)
            found["ImagePolicyWebhook"] = lambda text: _image_policy(text, webhooks, clock)
    return found


def _image_policy(text: str | None, webhooks: WebhookDoor, clock: Clock) -> Plugin:
    policy = image_policy_webhook.parse(text)
    return ImagePolicyWebhook(policy, webhooks.backend(policy.kubeconfig), clock)


def _asking(
    caches: Caches, authorizer: Authorizer, registry: Registry, webhooks: WebhookDoor, metrics: AdmissionMetrics
) -> Mapping[str, Factory]:
    """The plugins that ask policies and other programs."""
    matcher, finish = Matcher(caches, registry), finisher(registry)

    def caller(text: str | None) -> WebhookCaller:
        path = parse_kubeconfig_file(text) if text else ""
        return webhooks.identified(path) if path else webhooks

    return {
        "MutatingAdmissionPolicy": lambda _: MutatingAdmissionPolicy(
            caches, matcher, registry, authorizer, metrics, finish
        ),
        "MutatingAdmissionWebhook": lambda text: MutatingAdmissionWebhook(
            caches, matcher, caller(text), authorizer, metrics, finish
        ),
        "ValidatingAdmissionPolicy": lambda _: ValidatingAdmissionPolicy(
            caches, matcher, registry, authorizer, metrics
        ),
        "ValidatingAdmissionWebhook": lambda text: ValidatingAdmissionWebhook(
            caches, matcher, caller(text), authorizer, metrics
        ),
    }
