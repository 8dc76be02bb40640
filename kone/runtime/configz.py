"""What this kubelet is configured to, in KubeletConfiguration's words: the answer of /configz, which tests and tools
read to learn a node's thresholds and intervals.
"""

from __future__ import annotations

from kone.apimachinery.objects import Object
from kone.apimachinery.timestamps import go_duration
from kone.runtime import eviction_signals, image_gc, images, node_status, server_auth
from kone.runtime.kubelet_config import KubeletConfig


def kubelet_configuration(config: KubeletConfig, cgroup_driver: str = "") -> Object:
    """Only settings that are in force."""
    settings: Object = {
        "enableServer": True,
        "address": config.server_address,
        "port": config.port,
        "authentication": {
            "x509": {"clientCAFile": str(config.client_ca or "")},
            "webhook": {"enabled": True, "cacheTTL": go_duration(server_auth.TOKEN_S)},
            "anonymous": {"enabled": False},
        },
        "authorization": {
            "mode": "Webhook",
            "webhook": {
                "cacheAuthorizedTTL": go_duration(server_auth.ALLOWED_S),
                "cacheUnauthorizedTTL": go_duration(server_auth.REFUSED_S),
            },
        },
        "clusterDomain": config.cluster_domain,
        "clusterDNS": [config.cluster_dns],
        "nodeStatusUpdateFrequency": go_duration(node_status.STATUS_LOOK_S),
        "nodeStatusReportFrequency": go_duration(node_status.STATUS_REPORT_S),
        "nodeLeaseDurationSeconds": node_status.LEASE_DURATION_S,
        "imageMinimumGCAge": go_duration(image_gc.MIN_AGE_S),
        "imageGCHighThresholdPercent": image_gc.HIGH_PERCENT,
        "imageGCLowThresholdPercent": image_gc.LOW_PERCENT,
        "serializeImagePulls": False,
        "maxParallelImagePulls": images.PULLS_AT_ONCE,
        "imagePullCredentialsVerificationPolicy": config.pull_policy.verification.value,
        "maxPods": config.max_pods,
        "enableDebuggingHandlers": True,
        "enableSystemLogHandler": True,
        "evictionHard": dict(eviction_signals.HARD),
        "evictionPressureTransitionPeriod": go_duration(eviction_signals.TRANSITION_S),
        "nodeStatusMaxImages": node_status.IMAGES_MAX,
        "containerLogMaxSize": "10Mi",
        "containerLogMaxFiles": 5,
    }
    if cgroup_driver:
        settings["cgroupDriver"] = cgroup_driver
    if config.pod_cidrs:
        settings["podCIDR"] = ",".join(config.pod_cidrs)
    if config.allowed_unsafe_sysctls:
        settings["allowedUnsafeSysctls"] = list(config.allowed_unsafe_sysctls)
    return {"kubeletconfig": settings}
