"""Settings of the kubelet: one field, one unit, one default; and where its files lie."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from kone.runtime.credential_provider_config import Provider
from kone.runtime.pull_records import Policy


@dataclass(slots=True)
class KubeletConfig:
    """What node.py tells the kubelet. Times are in seconds."""

    node_name: str
    node_ips: tuple[str, ...]  # IPv4 first; the one setting that changes (Kubelet.move)
    data_dir: Path  # kone's; the kubelet's files are below kubelet/
    cluster_dns: str = "10.96.0.10"
    cluster_domain: str = "cluster.local"
    instance: str = "default"
    pod_cidrs: tuple[str, ...] = ()
    max_pods: int = 110
    port: int = 10250  # 0: any free one
    server_address: str = "0.0.0.0"
    server_cert: Path | None = None  # without certificates the kubelet serves nothing
    server_key: Path | None = None
    client_ca: Path | None = None
    node_labels: dict[str, str] = field(default_factory=dict)
    node_annotations: dict[str, str] = field(default_factory=dict)
    allowed_unsafe_sysctls: tuple[str, ...] = ()
    credential_providers: tuple[Provider, ...] = ()
    credential_provider_dir: Path = Path("/")  # where their programs are
    pull_policy: Policy = field(default_factory=Policy)  # who must show credentials for images that are here
    manifests: Path | None = None  # of static pods, a directory or one file
    public_dir: Path | None = None  # where plugins look for the kubelet's files; None: where they lie

    @property
    def root_dir(self) -> Path:
        return self.data_dir / "kubelet"

    @property
    def pods_dir(self) -> Path:
        return self.root_dir / "pods"

    def pod_dir(self, pod_uid: str) -> Path:
        """A pod's files: etc/ (hosts, resolv.conf, hostname), containers/<name>/ (termination messages), volumes/."""
        return self.pods_dir / pod_uid
