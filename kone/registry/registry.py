"""The Registry of everything that kone serves: one table of the modules that declare resources."""

from __future__ import annotations

from collections.abc import Sequence

from kone.registry import (
    admission_policies,
    admissionregistration,
    apiextensions,
    apiregistration,
    apps,
    autoscaling,
    batch,
    certificates,
    coordination,
    discovery,
    dynamicresources,
    events,
    flowcontrol,
    networking,
    node,
    pod_certificates,
    policy,
    rbac,
    scheduling,
    storage,
    storagemigration,
    structural,
)
from kone.registry.core import resources as core
from kone.registry.resource import Registry, Resource

_MODULES: Sequence[Sequence[Resource]] = (
    admission_policies.RESOURCES,
    admissionregistration.RESOURCES,
    apiextensions.RESOURCES,
    apiregistration.RESOURCES,
    apps.RESOURCES,
    autoscaling.RESOURCES,
    batch.RESOURCES,
    certificates.RESOURCES,
    coordination.RESOURCES,
    core.RESOURCES,
    discovery.RESOURCES,
    dynamicresources.RESOURCES,
    events.RESOURCES,
    flowcontrol.RESOURCES,
    networking.RESOURCES,
    node.RESOURCES,
    policy.RESOURCES,
    rbac.RESOURCES,
    scheduling.RESOURCES,
    storage.RESOURCES,
    storagemigration.RESOURCES,
)
"""One line a module, each the RESOURCES of an API group, in the order of discovery."""


def builtin(x509: pod_certificates.X509 | None = None) -> Registry:
    """A new Registry with every built-in resource; what is added to it later (custom resources) stays its own.

    `x509` judges certificates and requests for them, signatures included (auth.x509_checks has the library).
    """
    registry = Registry()
    for resource in structural.resources():
        registry.add(resource)
    for resources in _MODULES:
        for resource in resources:
            registry.add(resource)
    if x509 is not None:
        for resource in certificates.resources(x509):
            registry.add(resource)
    return registry
