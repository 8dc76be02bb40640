"""Which admission plugins there are, in which order they are asked, and which of them are on.

Upstream's list and order (pkg/kubeapiserver/options/plugins.go); RoleEscalation and those of devices are none of
its plugins, but stand where upstream's storage asks, and are always on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from kone.apimachinery.errors import go_quote

ORDER: Final[Mapping[str, bool]] = {
    "AlwaysAdmit": False,
    "NamespaceAutoProvision": False,
    "NamespaceLifecycle": True,
    "NamespaceExists": False,
    "LimitPodHardAntiAffinityTopology": False,
    "LimitRanger": True,
    "ServiceAccount": True,
    "NodeRestriction": True,
    "TaintNodesByCondition": True,
    "AlwaysPullImages": False,
    "ImagePolicyWebhook": False,
    "PodSecurity": True,
    "PodNodeSelector": False,
    "Priority": True,
    "DefaultTolerationSeconds": True,
    "PodTolerationRestriction": False,
    "EventRateLimit": False,
    "ExtendedResourceToleration": False,
    "DefaultStorageClass": True,
    "StorageObjectInUseProtection": True,
    "PodGroupProtection": True,
    "OwnerReferencesPermissionEnforcement": False,
    "PersistentVolumeClaimResize": True,
    "RuntimeClass": True,
    "CertificateApproval": True,
    "CertificateSigning": True,
    "ClusterTrustBundleAttest": True,
    "CertificateSubjectRestriction": True,
    "DefaultIngressClass": True,
    "DenyServiceExternalIPs": False,
    "PodTopologyLabels": True,
    "NodeDeclaredFeatureValidator": True,
    "PodResizeValidator": True,
    "RoleEscalation": True,
    "DeviceAdminAccess": True,
    "DeviceStatusAuthorization": True,
    "MutatingAdmissionPolicy": True,
    "MutatingAdmissionWebhook": True,
    "ValidatingAdmissionPolicy": True,
    "ValidatingAdmissionWebhook": True,
    "ResourceQuota": True,
    "AlwaysDeny": False,
}
"""Every plugin in the order in which it is asked, and whether it is on by default. NodeRestriction is off upstream;
kone switches it on, as kubeadm does."""

ALWAYS: Final = frozenset({"RoleEscalation", "DeviceAdminAccess", "DeviceStatusAuthorization"})


def choose(enable: Iterable[str] = (), disable: Iterable[str] = ()) -> tuple[str, ...]:
    """The plugins that are on, in order. Raises ValueError: an unknown name, or one in both lists."""
    enabled, disabled = set(enable), set(disable)
    for flag, names in (("enable-admission-plugins", enabled), ("disable-admission-plugins", disabled)):
        for name in sorted(names):
            if name not in ORDER or name in ALWAYS:
                raise ValueError(f"{flag} plugin {go_quote(name)} is unknown")
    if both := sorted(enabled & disabled):
        raise ValueError(f"[{' '.join(both)}] in enable-admission-plugins and disable-admission-plugins overlapped")
    return tuple(name for name, is_on in ORDER.items() if name in enabled or (is_on and name not in disabled))
