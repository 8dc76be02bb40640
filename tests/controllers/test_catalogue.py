"""Which controllers there are."""

from __future__ import annotations

from kone.controllers.catalogue import all_controllers

# cmd/kube-controller-manager/names at v1.37, less those that docs/scheduling.md names as left out.
UPSTREAM = """
serviceaccount-token endpoints endpointslice endpointslice-mirroring replicationcontroller pod-garbage-collector
resourcequota namespace serviceaccount garbage-collector daemonset job deployment replicaset horizontal-pod-autoscaler
disruption statefulset cronjob certificatesigningrequest-signing certificatesigningrequest-approving
certificatesigningrequest-cleaner podcertificaterequest-cleaner ttl bootstrap-signer token-cleaner node-lifecycle
taint-eviction device-taint-eviction persistentvolume-binder persistentvolume-attach-detach persistentvolume-expander
clusterrole-aggregation persistentvolumeclaim-protection persistentvolume-protection ttl-after-finished
root-ca-certificate-publisher kube-apiserver-serving-clustertrustbundle-publisher ephemeral-volume resourceclaim
legacy-serviceaccount-token-cleaner validatingadmissionpolicy-status volumeattributesclass-protection service-cidr
storage-version-migrator
"""


def test_every_controller_that_upstream_runs_by_default_is_there_under_its_name() -> None:
    names = [controller.name for controller in all_controllers()]
    assert len(names) == len(set(names))
    assert {f"{name}-controller" for name in UPSTREAM.split()} - set(names) == set()
