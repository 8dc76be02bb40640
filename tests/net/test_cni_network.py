"""Pods attached by Debian's CNI plugins, in namespaces of their own."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from kone.net.cni_conf import CniError
from kone.net.cni_network import CniNetwork, find_network
from kone.net.host_ports import HostPort
from kone.net.names import Names
from tests.net.world import HOST_IP, OUTSIDE_IP, World, run

pytestmark = [
    pytest.mark.ring3,
    pytest.mark.skipif(not os.path.exists("/usr/lib/cni/bridge"), reason="containernetworking-plugins is not there"),
]

PLUGINS = ["/opt/cni/bin", "/usr/lib/cni"]


def network_of(folder: Path, *, subnet: str = "10.77.0.0/24", version: str = "1.0.0") -> dict[str, Any]:
    return {
        "cniVersion": version,
        "name": "mine",
        "plugins": [
            {
                "type": "bridge",
                "bridge": f"cni-{subnet.split('.')[1]}",
                "isGateway": True,
                "ipMasq": True,
                "ipam": {
                    "type": "host-local",
                    "dataDir": str(folder / "leases"),
                    "ranges": [[{"subnet": subnet}]],
                    "routes": [{"dst": "0.0.0.0/0"}],
                },
            },
            {"type": "portmap", "capabilities": {"portMappings": True}},
            {"type": "bandwidth", "capabilities": {"bandwidth": True}},
        ],
    }


class Setting:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.conf_dir = folder / "net.d"
        self.conf_dir.mkdir()
        self.write(network_of(folder))
        self.network = self.anew()

    def anew(self) -> CniNetwork:
        return CniNetwork(Names(), self.conf_dir, PLUGINS, self.folder, local_addresses=["10.96.0.10"])

    def write(self, content: dict[str, Any], name: str = "10-mine.conflist") -> None:
        (self.conf_dir / name).write_text(json.dumps(content))

    @property
    def leases(self) -> set[str]:
        folder = self.folder / "leases" / "mine"
        return {path.name for path in folder.iterdir() if path.name[0].isdigit()} if folder.is_dir() else set()

    async def attach(self, uid: str, netns: str, *ports: HostPort, **annotations: str) -> list[str]:
        return await self.network.attach(
            pod_uid=uid, pod_name=uid, namespace="default", netns=netns, host_ports=ports, annotations=annotations
        )

    async def restart(self) -> None:
        """As after kill -9: what is in the file and the kernel is all there is."""
        await self.network.stop()
        self.network = self.anew()
        await self.network.start()


@pytest.fixture
async def setting(world: World, tmp_path: Path) -> AsyncIterator[Setting]:
    setting = Setting(tmp_path)
    await setting.network.start()
    yield setting
    await setting.network.detach_all()
    await setting.network.stop()


async def test_a_pod_is_attached_by_all_plugins_of_the_list(world: World, setting: Setting) -> None:
    a, b = world.namespace(), world.namespace()
    (ip_a,) = await setting.attach("a", a, HostPort("TCP", "", 8080, 80))
    (ip_b,) = await setting.attach("b", b)
    assert ip_a != ip_b
    assert setting.leases == {ip_a, ip_b}
    async with await world.serve(a, 80, "a"), await world.serve(world.outside, 82, "outside"):
        assert (await world.ask(b, ip_a, 80))[0] == "a"
        assert (await world.ask(world.outside, HOST_IP, 8080))[0] == "a", "portmap was told of the host port"
        assert (await world.ask(b, OUTSIDE_IP, 82))[0] == "outside"
    assert "10.96.0.10/32" in run("ip", "addr", "show", "kone0"), "cluster DNS has its address all the same"
    await setting.network.detach(pod_uid="a")
    await setting.network.detach(pod_uid="a")
    assert setting.leases == {ip_b}
    assert "8080" not in run("iptables-save")


async def test_attach_is_idempotent_and_a_new_sandbox_is_attached_anew(world: World, setting: Setting) -> None:
    a, again = world.namespace(), world.namespace()
    ips = await setting.attach("a", a)
    assert await setting.attach("a", a) == ips
    assert len(setting.leases) == 1
    world.forget(a)
    assert await setting.attach("a", again)
    assert len(setting.leases) == 1, "what the old one had is free"


async def test_a_pod_that_lost_its_link_is_attached_anew(world: World, setting: Setting) -> None:
    a = world.namespace()
    await setting.attach("a", a)
    run("ip", "-n", a.rpartition("/")[2], "link", "del", "eth0")
    await setting.attach("a", a)
    assert "eth0" in run("ip", "-n", a.rpartition("/")[2], "-br", "link")


async def test_a_restart_keeps_the_living_and_frees_the_dead(world: World, setting: Setting) -> None:
    live, dead = world.namespace(), world.namespace()
    ips = await setting.attach("live", live)
    await setting.attach("dead", dead)
    world.forget(dead)
    setting.write(network_of(setting.folder, subnet="10.78.0.0/24"))
    await setting.restart()
    await setting.network.restore({"live"})
    assert setting.leases == set(ips), "by the configuration that they were added with"
    assert await setting.attach("live", live) == ips
    assert (await setting.attach("new", world.namespace()))[0].startswith("10.78.0.")


@pytest.mark.parametrize("version", ["0.3.1", "0.4.0"])
async def test_older_versions_of_results(world: World, setting: Setting, version: str) -> None:
    setting.write(network_of(setting.folder, version=version))
    a = world.namespace()
    ips = await setting.attach("a", a)
    assert ips[0].startswith("10.77.0.")
    assert await setting.attach("a", a) == ips


async def test_what_a_plugin_refuses_is_said_and_leaves_nothing(world: World, setting: Setting) -> None:
    setting.write(network_of(setting.folder, subnet="10.79.0.0/30"))
    await setting.attach("a", world.namespace())
    b = world.namespace()
    with pytest.raises(CniError) as caught:
        await setting.attach("b", b)
    assert str(caught.value).startswith(
        'failed to setup network for sandbox "b": plugin type="bridge" name="mine" failed (add): '
    )
    assert "no IP addresses available" in str(caught.value)
    assert "eth0" not in run("ip", "-n", b.rpartition("/")[2], "-br", "link")
    assert len(setting.leases) == 1


async def test_a_plugin_that_is_not_there_is_said(world: World, setting: Setting) -> None:
    setting.write({"cniVersion": "1.0.0", "name": "n", "plugins": [{"type": "nowhere"}]})
    with pytest.raises(CniError, match=r'failed to find plugin "nowhere" in path \[/opt/cni/bin /usr/lib/cni\]'):
        await setting.attach("a", world.namespace())


async def test_bandwidth_annotations_reach_the_plugin(world: World, setting: Setting) -> None:
    await setting.attach("a", world.namespace(), **{"kubernetes.io/ingress-bandwidth": "10M"})
    try:
        shown = run("tc", "qdisc", "show")
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("tc is not installed")
    assert "tbf" in shown


async def test_links_of_a_run_without_cni_make_way(world: World, setting: Setting) -> None:
    a = world.namespace()
    name = Names().veth("a")
    run("ip", "link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", a.rpartition("/")[2])
    await setting.restart()
    assert await setting.attach("a", a)


def test_the_first_configuration_that_can_be_read_is_taken(tmp_path: Path) -> None:
    assert find_network(tmp_path / "nowhere") is None
    (tmp_path / "00-broken.conf").write_text("{")
    (tmp_path / "05-note.txt").write_text("no configuration")
    (tmp_path / "20-other.conf").write_text('{"name": "other", "type": "ptp"}')
    (tmp_path / "10-mine.conflist").write_text(json.dumps(network_of(tmp_path)))
    network = find_network(tmp_path)
    assert network is not None
    assert network.name == "mine"
