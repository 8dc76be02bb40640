"""Names of API resources: group, version and plural as one value, and the resources that kone's own loops speak of."""

from __future__ import annotations

import re
from typing import NamedTuple


class GVR(NamedTuple):
    """GroupVersionResource, e.g. GVR("apps", "v1", "deployments"); the core group is ""."""

    group: str
    version: str
    resource: str

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def group_resource(self) -> str:
        """As error messages write it: "deployments.apps", "pods"."""
        return f"{self.resource}.{self.group}" if self.group else self.resource


class GVK(NamedTuple):
    """GroupVersionKind, e.g. GVK("apps", "v1", "Deployment")."""

    group: str
    version: str
    kind: str

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def group_kind(self) -> str:
        """As error messages write it: "Deployment.apps", "Pod"."""
        return f"{self.kind}.{self.group}" if self.group else self.kind


def parse_api_version(api_version: str) -> tuple[str, str]:
    """(group, version) of an apiVersion: "apps/v1" -> ("apps", "v1"), "v1" -> ("", "v1")."""
    group, _, version = api_version.rpartition("/")
    return group, version


BINDINGS = GVR("", "v1", "bindings")
CONFIGMAPS = GVR("", "v1", "configmaps")
ENDPOINTS = GVR("", "v1", "endpoints")
EVENTS = GVR("", "v1", "events")
LIMITRANGES = GVR("", "v1", "limitranges")
NAMESPACES = GVR("", "v1", "namespaces")
NODES = GVR("", "v1", "nodes")
PERSISTENTVOLUMECLAIMS = GVR("", "v1", "persistentvolumeclaims")
PERSISTENTVOLUMES = GVR("", "v1", "persistentvolumes")
PODS = GVR("", "v1", "pods")
PODTEMPLATES = GVR("", "v1", "podtemplates")
REPLICATIONCONTROLLERS = GVR("", "v1", "replicationcontrollers")
RESOURCEQUOTAS = GVR("", "v1", "resourcequotas")
SECRETS = GVR("", "v1", "secrets")
SERVICEACCOUNTS = GVR("", "v1", "serviceaccounts")
SERVICES = GVR("", "v1", "services")
TOKENREVIEWS = GVR("authentication.k8s.io", "v1", "tokenreviews")
SUBJECTACCESSREVIEWS = GVR("authorization.k8s.io", "v1", "subjectaccessreviews")
CONTROLLERREVISIONS = GVR("apps", "v1", "controllerrevisions")
DAEMONSETS = GVR("apps", "v1", "daemonsets")
DEPLOYMENTS = GVR("apps", "v1", "deployments")
REPLICASETS = GVR("apps", "v1", "replicasets")
STATEFULSETS = GVR("apps", "v1", "statefulsets")
CUSTOMRESOURCEDEFINITIONS = GVR("apiextensions.k8s.io", "v1", "customresourcedefinitions")
CLUSTERTRUSTBUNDLES = GVR("certificates.k8s.io", "v1", "clustertrustbundles")
CRONJOBS = GVR("batch", "v1", "cronjobs")
JOBS = GVR("batch", "v1", "jobs")
LEASES = GVR("coordination.k8s.io", "v1", "leases")
ENDPOINTSLICES = GVR("discovery.k8s.io", "v1", "endpointslices")
FLOWSCHEMAS = GVR("flowcontrol.apiserver.k8s.io", "v1", "flowschemas")
PRIORITYLEVELCONFIGURATIONS = GVR("flowcontrol.apiserver.k8s.io", "v1", "prioritylevelconfigurations")
INGRESSCLASSES = GVR("networking.k8s.io", "v1", "ingressclasses")
INGRESSES = GVR("networking.k8s.io", "v1", "ingresses")
IPADDRESSES = GVR("networking.k8s.io", "v1", "ipaddresses")
NETWORKPOLICIES = GVR("networking.k8s.io", "v1", "networkpolicies")
SERVICECIDRS = GVR("networking.k8s.io", "v1", "servicecidrs")
PODDISRUPTIONBUDGETS = GVR("policy", "v1", "poddisruptionbudgets")
CLUSTERROLEBINDINGS = GVR("rbac.authorization.k8s.io", "v1", "clusterrolebindings")
CLUSTERROLES = GVR("rbac.authorization.k8s.io", "v1", "clusterroles")
ROLEBINDINGS = GVR("rbac.authorization.k8s.io", "v1", "rolebindings")
ROLES = GVR("rbac.authorization.k8s.io", "v1", "roles")
PRIORITYCLASSES = GVR("scheduling.k8s.io", "v1", "priorityclasses")
DEVICECLASSES = GVR("resource.k8s.io", "v1", "deviceclasses")
DEVICETAINTRULES = GVR("resource.k8s.io", "v1", "devicetaintrules")
RESOURCECLAIMS = GVR("resource.k8s.io", "v1", "resourceclaims")
RESOURCESLICES = GVR("resource.k8s.io", "v1", "resourceslices")
CSIDRIVERS = GVR("storage.k8s.io", "v1", "csidrivers")
CSINODES = GVR("storage.k8s.io", "v1", "csinodes")
CSISTORAGECAPACITIES = GVR("storage.k8s.io", "v1", "csistoragecapacities")
STORAGECLASSES = GVR("storage.k8s.io", "v1", "storageclasses")
VOLUMEATTACHMENTS = GVR("storage.k8s.io", "v1", "volumeattachments")


_VERSION = re.compile(r"v(?P<major>[1-9]\d*)(?:(?P<stage>alpha|beta)(?P<minor>[1-9]\d*))?")


def version_rank(name: str) -> tuple[int, int, int, tuple[int, ...]]:
    """The order of versions, least first: what is no version, then alpha, beta, and stable ones by their numbers; of
    others those that come later in the alphabet are less (apimachinery/pkg/version, CompareKubeAwareVersionStrings).

    Example: foo, v1alpha1, v1beta1, v1beta2, v1, v2.
    """
    match = _VERSION.fullmatch(name)
    if match is None:
        return 0, 0, 0, tuple(-ord(letter) for letter in name)
    stage = {"beta": 2, "alpha": 1}.get(match["stage"] or "", 3)
    return stage, int(match["major"]), int(match["minor"] or 0), ()
