"""Everything of v1."""

from __future__ import annotations

from collections.abc import Sequence

from kone.registry.core.bindings import BINDINGS, COMPONENTSTATUSES
from kone.registry.core.configmap import CONFIGMAPS
from kone.registry.core.endpoints import ENDPOINTS
from kone.registry.core.event import EVENTS
from kone.registry.core.limitrange import LIMITRANGES
from kone.registry.core.namespace import NAMESPACES
from kone.registry.core.node import NODES
from kone.registry.core.persistentvolume import PERSISTENTVOLUMES
from kone.registry.core.persistentvolumeclaim import PERSISTENTVOLUMECLAIMS
from kone.registry.core.pod import PODS
from kone.registry.core.podtemplate import PODTEMPLATES
from kone.registry.core.replicationcontroller import REPLICATIONCONTROLLERS
from kone.registry.core.resourcequota import RESOURCEQUOTAS
from kone.registry.core.secret import SECRETS
from kone.registry.core.service import SERVICES
from kone.registry.core.serviceaccount import SERVICEACCOUNTS
from kone.registry.resource import Resource

RESOURCES: Sequence[Resource] = (
    BINDINGS,
    COMPONENTSTATUSES,
    CONFIGMAPS,
    ENDPOINTS,
    EVENTS,
    LIMITRANGES,
    NAMESPACES,
    NODES,
    PERSISTENTVOLUMECLAIMS,
    PERSISTENTVOLUMES,
    PODS,
    PODTEMPLATES,
    REPLICATIONCONTROLLERS,
    RESOURCEQUOTAS,
    SECRETS,
    SERVICEACCOUNTS,
    SERVICES,
)
