"""The files that kone writes for each pod: hosts, resolv.conf, hostname, and one for each container's last words.

The contents are pure functions; `PodFiles` writes them below the pod's directory, from where they are mounted.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from kone.apimachinery.objects import Object, dig, namespace_of, uid_of
from kone.runtime.container_config import fqdn, hostname, short_hostname
from kone.runtime.kubelet_config import KubeletConfig
from kone.runtime.pod_spec import is_host_network
from kone.runtime.runtime import Mount

HOST_RESOLVERS = ("/run/systemd/resolve/resolv.conf", "/etc/resolv.conf")
NAMESERVERS_MAX = 3
SEARCHES_MAX = 32
SEARCHES_MAX_CHARACTERS = 2048

_HOSTS = """\
# Kubernetes-managed hosts file.
127.0.0.1\tlocalhost
::1\tlocalhost ip6-localhost ip6-loopback
fe00::0\tip6-localnet
fe00::0\tip6-mcastprefix
fe00::1\tip6-allnodes
fe00::2\tip6-allrouters
"""


@dataclass(frozen=True, slots=True)
class DnsConfig:
    """A resolv.conf. `options` as they are written: "ndots:5"."""

    nameservers: tuple[str, ...] = ()
    searches: tuple[str, ...] = ()
    options: tuple[str, ...] = ()

    def text(self) -> str:
        lines = [f"search {' '.join(self.searches)}"] if self.searches else []
        lines += [f"nameserver {address}" for address in self.nameservers]
        lines += [f"options {' '.join(self.options)}"] if self.options else []
        return "".join(f"{line}\n" for line in lines)


def parse_resolv_conf(text: str) -> DnsConfig:
    """A host's resolv.conf; the last `search` counts, comments do not."""
    nameservers: list[str] = []
    searches: list[str] = []
    options: list[str] = []
    for line in text.splitlines():
        words = line.split()
        match words[:1]:
            case ["nameserver"] if len(words) > 1:
                nameservers.append(words[1])
            case ["search"]:
                searches = [word.rstrip(".") or "." for word in words[1:]]
            case ["options"]:
                options = words[1:]
    return DnsConfig(tuple(nameservers), tuple(searches), tuple(options))


def dns_config(pod: Object, host: DnsConfig, *, cluster_dns: Sequence[str], cluster_domain: str) -> DnsConfig:
    """The pod's resolv.conf by dnsPolicy and dnsConfig (docs, DNS for Services and Pods)."""
    policy = dig(pod, "spec", "dnsPolicy", default="ClusterFirst")
    if policy == "ClusterFirst" and is_host_network(pod):
        policy = "Default"
    if policy in ("ClusterFirst", "ClusterFirstWithHostNet") and cluster_dns:
        own = (f"{namespace_of(pod)}.svc.{cluster_domain}", f"svc.{cluster_domain}", cluster_domain)
        base = DnsConfig(tuple(cluster_dns), (*own, *host.searches), ("ndots:5",))
    elif policy == "None":
        base = DnsConfig()
    else:
        base = host
    more = dig(pod, "spec", "dnsConfig", default={})
    options = {option.partition(":")[0]: option for option in base.options}
    for option in more.get("options") or ():
        value = option.get("value")
        options[option["name"]] = f"{option['name']}:{value}" if value else option["name"]
    searches = list(dict.fromkeys([*base.searches, *(more.get("searches") or ())]))[:SEARCHES_MAX]
    while len(" ".join(searches)) > SEARCHES_MAX_CHARACTERS:
        searches.pop()
    nameservers = list(dict.fromkeys([*base.nameservers, *(more.get("nameservers") or ())]))[:NAMESERVERS_MAX]
    return DnsConfig(tuple(nameservers), tuple(searches), tuple(options.values()))


def hosts_text(pod: Object, ips: Iterable[str], cluster_domain: str, node_hosts: str = "") -> str:
    """The pod's /etc/hosts; `node_hosts` is the node's own file, which a pod on the host's network sees."""
    if is_host_network(pod):
        text = "# Kubernetes-managed hosts file (host network).\n" + node_hosts
    else:
        full = fqdn(pod, cluster_domain)
        names = "\t".join(name for name in (full, short_hostname(pod)) if name)
        text = _HOSTS + "".join(f"{ip}\t{names}\n" for ip in ips)
    aliases = dig(pod, "spec", "hostAliases", default=())
    if aliases:
        text += "\n# Entries added by HostAliases.\n"
        text += "".join("\t".join([alias["ip"], *(alias.get("hostnames") or ())]) + "\n" for alias in aliases)
    return text


def host_dns() -> DnsConfig:
    """The node's resolvers; behind a local stub (systemd-resolved) those the stub asks."""
    for path in HOST_RESOLVERS:
        try:
            found = parse_resolv_conf(Path(path).read_text())
        except OSError:
            continue
        if found.nameservers:
            return found
    return DnsConfig()


class PodFiles:
    """Writes and removes them. Small synchronous writes: a pod's start is not to wait for a thread."""

    def __init__(self, config: KubeletConfig) -> None:
        self._config = config

    def prepare(self, pod: Object) -> None:
        """Everything but the addresses, so that mounts have a source. Raises ConfigError, OSError."""
        folder = self._etc(uid_of(pod))
        folder.mkdir(parents=True, exist_ok=True)
        dns = dns_config(
            pod, host_dns(), cluster_dns=(self._config.cluster_dns,), cluster_domain=self._config.cluster_domain
        )
        _write(folder / "resolv.conf", dns.text())
        name = os.uname().nodename if is_host_network(pod) else hostname(pod, self._config.cluster_domain)
        _write(folder / "hostname", f"{name}\n")
        hosts = folder / "hosts"
        if not hosts.exists():
            _write(hosts, "")

    def write_hosts(self, pod: Object, ips: Iterable[str]) -> None:
        """Now that the addresses are known; in place, since it is mounted already. Leaves what the pod itself has
        added.
        """
        node_hosts = Path("/etc/hosts").read_text() if is_host_network(pod) else ""
        path = self._etc(uid_of(pod)) / "hosts"
        text = hosts_text(pod, ips, self._config.cluster_domain, node_hosts)
        if not path.read_text().startswith(text):
            _write(path, text)

    def mounts(self, pod: Object, container: Object) -> list[Mount]:
        """/etc/hosts, /etc/resolv.conf and /etc/hostname, but for those that the container mounts something else on."""
        taken = {mount["mountPath"].rstrip("/") for mount in container.get("volumeMounts") or ()}
        folder = self._etc(uid_of(pod))
        return [
            Mount(f"/etc/{name}", str(folder / name))
            for name in ("hosts", "resolv.conf", "hostname")
            if f"/etc/{name}" not in taken
        ]

    def termination_file(self, pod_uid: str, container: str, attempt: int) -> Path:
        """An empty file for the container to write its last words in, anybody may write to it."""
        folder = self._config.pod_dir(pod_uid) / "containers" / container
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / str(attempt)
        path.touch()
        path.chmod(0o666)
        return path

    def remove(self, pod_uid: str) -> None:
        """All of the pod's files but its volumes, and its directory where nothing is left in it. Idempotent."""
        folder = self._config.pod_dir(pod_uid)
        for name in ("etc", "containers"):
            shutil.rmtree(folder / name, ignore_errors=True)
        try:
            folder.rmdir()
        except OSError:  # gone, or volumes are still there
            pass

    def known(self) -> set[str]:
        """UIDs of pods that have a directory."""
        try:
            return {entry.name for entry in self._config.pods_dir.iterdir()}
        except FileNotFoundError:
            return set()

    def _etc(self, pod_uid: str) -> Path:
        return self._config.pod_dir(pod_uid) / "etc"


def _write(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o644)
