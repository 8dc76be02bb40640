"""Every controller of kone: what kube-controller-manager runs, in the order in which they start."""

from __future__ import annotations

from kone.controllers.admission_policy_status import ADMISSION_POLICY_STATUS_CONTROLLER
from kone.controllers.attach_detach import ATTACH_DETACH_CONTROLLER
from kone.controllers.bootstrap_tokens import BOOTSTRAP_SIGNER, TOKEN_CLEANER
from kone.controllers.certificates import (
    APPROVING_CONTROLLER,
    CLEANER_CONTROLLER,
    POD_REQUEST_CLEANER_CONTROLLER,
    SIGNING_CONTROLLER,
)
from kone.controllers.clusterrole_aggregation import CLUSTERROLE_AGGREGATION_CONTROLLER
from kone.controllers.controller import Controller
from kone.controllers.cronjob import CRONJOB_CONTROLLER
from kone.controllers.daemonset import DAEMONSET_CONTROLLER
from kone.controllers.deployment import DEPLOYMENT_CONTROLLER
from kone.controllers.device_taints import DEVICE_TAINT_EVICTION_CONTROLLER
from kone.controllers.disruption import DISRUPTION_CONTROLLER, STALE_DISRUPTION_CONTROLLER
from kone.controllers.endpoints import ENDPOINTS_CONTROLLER
from kone.controllers.endpointslice import ENDPOINTSLICE_CONTROLLER
from kone.controllers.endpointslice_mirroring import ENDPOINTSLICE_MIRRORING_CONTROLLER
from kone.controllers.ephemeral_volumes import EPHEMERAL_VOLUME_CONTROLLER
from kone.controllers.garbage_collector import GARBAGE_COLLECTOR
from kone.controllers.hpa import HPA_CONTROLLER
from kone.controllers.job import JOB_CONTROLLER, JOB_LEFTOVERS_CONTROLLER
from kone.controllers.legacy_tokens import LEGACY_TOKEN_CLEANER_CONTROLLER
from kone.controllers.local_path import LOCAL_PATH_PROVISIONER
from kone.controllers.namespace import NAMESPACE_CONTROLLER
from kone.controllers.node_lifecycle import NODE_LIFECYCLE_CONTROLLER
from kone.controllers.node_ttl import NODE_TTL_CONTROLLER
from kone.controllers.persistent_volumes import PERSISTENT_VOLUME_BINDER
from kone.controllers.pod_gc import POD_GC_CONTROLLER
from kone.controllers.replicaset import REPLICASET_CONTROLLER, REPLICATION_CONTROLLER_CONTROLLER
from kone.controllers.resource_claims import RESOURCE_CLAIM_CONTROLLER, RESOURCE_CLAIM_RELEASE_CONTROLLER
from kone.controllers.resource_quota import RESOURCE_QUOTA_CONTROLLER
from kone.controllers.root_ca import ROOT_CA_PUBLISHER
from kone.controllers.service_account import SERVICE_ACCOUNT_CONTROLLER
from kone.controllers.service_account_tokens import TOKENS_CONTROLLER
from kone.controllers.service_cidrs import SERVICE_CIDR_CONTROLLER
from kone.controllers.statefulset import STATEFULSET_CONTROLLER
from kone.controllers.storage_version_migrator import STORAGE_VERSION_MIGRATOR_CONTROLLER
from kone.controllers.taint_eviction import TAINT_EVICTION_CONTROLLER
from kone.controllers.trust_bundles import SERVING_BUNDLE_PUBLISHER
from kone.controllers.ttl_after_finished import TTL_AFTER_FINISHED_CONTROLLER
from kone.controllers.volume_expansion import VOLUME_EXPANSION_CONTROLLER
from kone.controllers.volume_protection import (
    ATTRIBUTES_CLASS_PROTECTION_CONTROLLER,
    CLAIM_PROTECTION_CONTROLLER,
    VOLUME_PROTECTION_CONTROLLER,
)


def all_controllers() -> list[Controller]:
    """The controllers in start order; their names are unique."""
    return [
        SERVICE_ACCOUNT_CONTROLLER,
        TOKENS_CONTROLLER,
        LEGACY_TOKEN_CLEANER_CONTROLLER,
        ROOT_CA_PUBLISHER,
        BOOTSTRAP_SIGNER,
        TOKEN_CLEANER,
        DEPLOYMENT_CONTROLLER,
        REPLICASET_CONTROLLER,
        REPLICATION_CONTROLLER_CONTROLLER,
        STATEFULSET_CONTROLLER,
        DAEMONSET_CONTROLLER,
        JOB_CONTROLLER,
        JOB_LEFTOVERS_CONTROLLER,
        TTL_AFTER_FINISHED_CONTROLLER,
        CRONJOB_CONTROLLER,
        HPA_CONTROLLER,
        DISRUPTION_CONTROLLER,
        STALE_DISRUPTION_CONTROLLER,
        ENDPOINTSLICE_CONTROLLER,
        ENDPOINTS_CONTROLLER,
        ENDPOINTSLICE_MIRRORING_CONTROLLER,
        RESOURCE_QUOTA_CONTROLLER,
        NAMESPACE_CONTROLLER,
        GARBAGE_COLLECTOR,
        CLUSTERROLE_AGGREGATION_CONTROLLER,
        APPROVING_CONTROLLER,
        SIGNING_CONTROLLER,
        CLEANER_CONTROLLER,
        POD_REQUEST_CLEANER_CONTROLLER,
        SERVING_BUNDLE_PUBLISHER,
        PERSISTENT_VOLUME_BINDER,
        LOCAL_PATH_PROVISIONER,
        ATTACH_DETACH_CONTROLLER,
        CLAIM_PROTECTION_CONTROLLER,
        VOLUME_PROTECTION_CONTROLLER,
        ATTRIBUTES_CLASS_PROTECTION_CONTROLLER,
        VOLUME_EXPANSION_CONTROLLER,
        EPHEMERAL_VOLUME_CONTROLLER,
        RESOURCE_CLAIM_CONTROLLER,
        RESOURCE_CLAIM_RELEASE_CONTROLLER,
        NODE_LIFECYCLE_CONTROLLER,
        ADMISSION_POLICY_STATUS_CONTROLLER,
        NODE_TTL_CONTROLLER,
        TAINT_EVICTION_CONTROLLER,
        DEVICE_TAINT_EVICTION_CONTROLLER,
        POD_GC_CONTROLLER,
        SERVICE_CIDR_CONTROLLER,
        STORAGE_VERSION_MIGRATOR_CONTROLLER,
    ]
