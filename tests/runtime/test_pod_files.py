"""hosts, resolv.conf and hostname of pods."""

from __future__ import annotations

from pathlib import Path

import pytest

from kone.apimachinery.objects import Object
from kone.runtime.kubelet_config import KubeletConfig
from kone.runtime.pod_files import DnsConfig, PodFiles, dns_config, hosts_text, parse_resolv_conf
from tests.runtime.kubelet_world import make_container, make_pod

HOST = DnsConfig(("9.9.9.9",), ("example.org",), ("timeout:1",))
CLUSTER = ("default.svc.cluster.local", "svc.cluster.local", "cluster.local", "example.org")


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({}, DnsConfig(("10.96.0.10",), CLUSTER, ("ndots:5",))),
        ({"dnsPolicy": "Default"}, HOST),
        ({"hostNetwork": True}, HOST),
        (
            {"hostNetwork": True, "dnsPolicy": "ClusterFirstWithHostNet"},
            DnsConfig(("10.96.0.10",), CLUSTER, ("ndots:5",)),
        ),
        ({"dnsPolicy": "None", "dnsConfig": {"nameservers": ["1.1.1.1"]}}, DnsConfig(("1.1.1.1",))),
        (
            {
                "dnsConfig": {
                    "nameservers": ["1.1.1.1", "10.96.0.10", "2.2.2.2", "3.3.3.3"],
                    "searches": ["x.example"],
                    "options": [{"name": "ndots", "value": "3"}, {"name": "edns0"}],
                }
            },
            DnsConfig(("10.96.0.10", "1.1.1.1", "2.2.2.2"), (*CLUSTER, "x.example"), ("ndots:3", "edns0")),
        ),
    ],
    ids=[
        "cluster first",
        "the node's",
        "on the host's network",
        "cluster first there, too",
        "none",
        "merged, three at most",
    ],
)
def test_who_answers_names(spec: dict[str, object], expected: DnsConfig) -> None:
    found = dns_config(make_pod("p", **spec), HOST, cluster_dns=["10.96.0.10"], cluster_domain="cluster.local")
    assert found == expected


def test_the_file_is_written_as_resolvers_read_it() -> None:
    text = DnsConfig(("1.1.1.1", "2.2.2.2"), ("a", "b"), ("ndots:5",)).text()
    assert text == "search a b\nnameserver 1.1.1.1\nnameserver 2.2.2.2\noptions ndots:5\n"
    assert parse_resolv_conf("# x\nsearch old\n" + text) == DnsConfig(("1.1.1.1", "2.2.2.2"), ("a", "b"), ("ndots:5",))
    assert DnsConfig().text() == ""


@pytest.mark.parametrize(
    ("spec", "end"),
    [
        ({}, "fe00::2\tip6-allrouters\n10.0.0.5\tp\n"),
        ({"hostname": "h", "subdomain": "s"}, "\n10.0.0.5\th.s.default.svc.cluster.local\th\n"),
        (
            {"hostAliases": [{"ip": "10.1.2.3", "hostnames": ["a", "b"]}, {"ip": "fd00::5", "hostnames": ["c"]}]},
            "10.0.0.5\tp\n\n# Entries added by HostAliases.\n10.1.2.3\ta\tb\nfd00::5\tc\n",
        ),
    ],
)
def test_hosts(spec: dict[str, object], end: str) -> None:
    text = hosts_text(make_pod("p", **spec), ["10.0.0.5"], "cluster.local")
    assert text.startswith("# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost")
    assert text.endswith(end)


def test_a_pod_on_the_hosts_network_sees_the_nodes_hosts() -> None:
    text = hosts_text(make_pod("p", hostNetwork=True), [], "cluster.local", "127.0.0.1 localhost\n")
    assert text == "# Kubernetes-managed hosts file (host network).\n127.0.0.1 localhost\n"


@pytest.fixture
def pod() -> Object:
    made = make_pod("p")
    made["metadata"]["uid"] = "u1"
    return made


@pytest.fixture
def files(tmp_path: Path) -> PodFiles:
    return PodFiles(KubeletConfig("n1", ("192.0.2.1",), tmp_path))


def test_files_of_a_pod_are_written_and_removed(files: PodFiles, pod: Object, tmp_path: Path) -> None:
    files.prepare(pod)
    files.write_hosts(pod, ["10.0.0.5"])
    mounts = {mount.container_path: Path(mount.host_path).read_text() for mount in files.mounts(pod, make_container())}
    assert mounts["/etc/hostname"] == "p\n"
    assert mounts["/etc/hosts"].endswith("10.0.0.5\tp\n")
    assert "nameserver 10.96.0.10\n" in mounts["/etc/resolv.conf"]
    last_words = files.termination_file("u1", "c", 0)
    assert last_words.stat().st_mode & 0o777 == 0o666
    assert files.known() == {"u1"}
    files.remove("u1")
    files.remove("u1")
    assert files.known() == set()


def test_what_the_pod_added_to_its_hosts_stays(files: PodFiles, pod: Object) -> None:
    files.prepare(pod)
    files.write_hosts(pod, ["10.0.0.5"])
    [hosts] = [Path(m.host_path) for m in files.mounts(pod, make_container()) if m.container_path == "/etc/hosts"]
    hosts.write_text(hosts.read_text() + "10.9.9.9 added\n")
    files.prepare(pod)
    files.write_hosts(pod, ["10.0.0.5"])
    assert hosts.read_text().endswith("10.9.9.9 added\n")


def test_a_container_may_mount_its_own_hosts_file(files: PodFiles, pod: Object) -> None:
    container = make_container(volumeMounts=[{"name": "v", "mountPath": "/etc/hosts"}])
    assert {mount.container_path for mount in files.mounts(pod, container)} == {"/etc/resolv.conf", "/etc/hostname"}
