"""`kone cleanup`: remove every trace of a stopped node. Each step is found by kone's own names, none is remembered."""

from __future__ import annotations

import asyncio
import shutil
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from kone.config import Settings


class CleanupError(Exception):
    """It could not be removed; the text is one line that says what to do."""


def run(settings: Settings, *, keep_data: bool) -> Iterator[str]:
    """Remove containers, rules, links, control groups, mounts and files; one line for each kind that was there.

    Raises CleanupError while the node runs, and where the host does not let us.
    """
    if _is_running(settings.socket_path):
        raise CleanupError(f"a node runs on {settings.data_dir}: stop it first, then run this again")
    yield from asyncio.run(_collect(settings, keep_data))


async def _collect(settings: Settings, keep_data: bool) -> list[str]:
    return [line async for line in _remove(settings, keep_data)]


def _is_running(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as door:
        try:
            door.connect(str(path))
        except OSError:
            return False
        return True


async def _remove(settings: Settings, keep_data: bool) -> AsyncIterator[str]:
    async for line in _remove_containers(settings):
        yield line
    from kone.net.ingress.caddy import end_caddy

    if await end_caddy(settings.data):
        yield "ended Caddy, which served Ingresses"
    async for line in _remove_network(settings):
        yield line
    from kone.net import conntrack_settings
    from kone.net.uplink_addresses import remove_given

    try:
        conntrack_settings.give_back(settings.data)
    except OSError as error:
        raise CleanupError(f"settings of connection tracking stay: {error}; run as root") from None
    try:
        if given := remove_given(settings.data):
            yield f"removed addresses of load balancers: {', '.join(given)}"
    except OSError as error:
        raise CleanupError(f"addresses of load balancers stay: {error}; run as root") from None
    from kone.runtime import cgroups, kubelet_home, loop_devices, mounts

    await cgroups.remove_hierarchy(settings.instance)
    for point in mounts.mounts_below(str(settings.data.absolute())):
        mounts.unmount(point)
        yield f"unmounted {point}"
    for device in loop_devices.below(settings.data.resolve()):
        loop_devices.detach(device)
        yield f"detached {device}"
    if settings.kubelet_dir and kubelet_home.withdraw(settings.data / "kubelet", Path(settings.kubelet_dir)):
        yield f"removed the link {settings.kubelet_dir}"
    if settings.data.is_dir() and not keep_data:
        shutil.rmtree(settings.data)
        yield f"removed {settings.data}"


async def _remove_containers(settings: Settings) -> AsyncIterator[str]:
    from kone.runtime.docker import DockerRuntime
    from kone.runtime.pause_image import PAUSE_IMAGE
    from kone.runtime.runtime import NotFound, RuntimeFault, RuntimeUnavailable

    runtime = DockerRuntime(settings.docker_host, instance=settings.instance or "default")
    try:
        containers, sandboxes = await runtime.containers(), await runtime.sandboxes()
        await asyncio.gather(*(runtime.remove_container(c.id) for c in containers))
        await asyncio.gather(*(runtime.remove_sandbox(s.id) for s in sandboxes))
        if containers or sandboxes:
            yield f"removed {len(containers)} containers of {len(sandboxes)} pods"
        try:
            await runtime.remove_image(PAUSE_IMAGE)
        except (NotFound, RuntimeFault):
            pass  # never made, or another instance's pods stand on it
    except RuntimeUnavailable:
        yield f"Docker at {settings.docker_host} does not answer: its containers stay; run this again when it does"
    finally:
        await runtime.close()


async def _remove_network(settings: Settings) -> AsyncIterator[str]:
    from kone.net import modes
    from kone.net.bridge import remove_links
    from kone.net.cni_network import CniNetwork
    from kone.net.firewall import Firewall, FirewallError
    from kone.net.firewalld import Firewalld
    from kone.net.names import Names
    from kone.net.nft_table import NftError, NftTable
    from kone.net.rule_config import any_config

    names = Names(settings.instance)
    cni = CniNetwork(names, Path(settings.cni_conf_dir), settings.cni_bin_dir.split(":"), settings.data)
    if detached := await cni.detach_all():
        yield f"detached {len(detached)} pods by CNI"
    table, firewalld = NftTable(names.policy_table), Firewalld(names, ())
    try:
        if await table.remove():
            yield f"removed table {names.policy_table}"
        await firewalld.cleanup()
    except NftError:
        pass  # what could not be run made no table either
    finally:
        await table.stop()
        await firewalld.stop()
    for family in (4, 6):
        firewall = Firewall(names, family=family)
        try:
            await firewall.start()
            await modes.remove_others(None, firewall, any_config(names, family))
            await firewall.cleanup()
        except FirewallError as error:
            if family == 4 or any(":" in cidr for cidr in settings.cluster_cidrs):
                raise CleanupError(f"the rules stay: {error}; run as root") from None
        finally:
            await firewall.stop()
    links = await remove_links(names)
    if links:
        yield f"removed rules and links: {', '.join(links)}"
