"""The pods' network by CNI plugins, where the host has a configuration for them: users bring their own network.

Each pod's attachment is noted in a file before the first plugin runs, with the configuration it is made by. So what a
killed kone began is undone or checked by the next one, even when the configuration is another one by then.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kone.net.bridge import Isolation
from kone.net.cni_conf import (
    SUFFIXES,
    CniError,
    NetworkList,
    PluginCrash,
    addresses_of,
    bandwidth_of,
    can_check,
    describe,
    parse_network,
    plugin_error,
    plugin_input,
    pod_arguments,
    port_mappings,
)
from kone.net.host_ports import HostPortLike, host_ports_of
from kone.net.links import POD_LINK, BridgeSpec, Links
from kone.net.names import Names
from kone.net.pod_locks import PodLocks

log = logging.getLogger(__name__)

PLUGIN_TIMEOUT_S = 60.0


def find_network(directory: Path) -> NetworkList | None:
    """The first configuration of the directory, in the order of names, that can be read; None where there is none."""
    try:
        files = sorted(path for path in directory.iterdir() if path.suffix in SUFFIXES and path.is_file())
    except OSError:
        return None
    for path in files:
        try:
            return parse_network(path.read_text(), is_list=path.suffix == ".conflist")
        except (OSError, UnicodeDecodeError, CniError) as error:
            log.warning("CNI configuration %s is passed by: %s", path, error)
    return None


@dataclass(slots=True)
class Attachment:
    """A pod's place in a network: what it was asked for with, and what came of it."""

    network: NetworkList
    netns: str
    inode: int  # of the namespace: its path may be another's by now
    arguments: str
    capabilities: dict[str, Any]
    result: dict[str, Any] | None = None  # None: it was begun

    def to_json(self) -> dict[str, Any]:
        return {
            "network": self.network.content,
            "netns": self.netns,
            "inode": self.inode,
            "arguments": self.arguments,
            "capabilities": self.capabilities,
            "result": self.result,
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Attachment:
        network = parse_network(json.dumps(content["network"]), is_list=True)
        named = {key: content[key] for key in ("netns", "inode", "arguments", "capabilities", "result")}
        return cls(network, **named)


class CniNetwork:
    """PodNetwork by plugins. Raises CniError, LinkError, OSError.

    The instance's bridge is there too, without pods: cluster DNS and the way to Services are on it.
    """

    def __init__(
        self,
        names: Names,
        conf_dir: Path,
        bin_dirs: Sequence[str],
        data_dir: Path,
        *,
        local_addresses: Sequence[str] = (),
        service_cidrs: Sequence[str] = (),
    ) -> None:
        self._conf_dir = conf_dir
        self._path = list(bin_dirs)
        self._file = data_dir / "net" / "cni.json"
        self._pods: dict[str, Attachment] = {}
        self._locks = PodLocks()
        own = [f"{a}/{128 if ':' in a else 32}" for a in local_addresses]
        self._bridge = BridgeSpec(names.bridge, (), own, list(service_cidrs))
        self._veth_prefix = names.veth_prefix
        self._links = Links()
        self.isolation: Isolation | None = None

    async def start(self) -> None:
        """Make the bridge, take away the pods' links of a run without CNI, and learn what earlier runs attached."""
        await self._links.ensure_bridge(self._bridge, await self._links.uplink_mtu())
        await self._links.delete_prefixed(self._veth_prefix)
        self.load()

    async def stop(self) -> None:
        """Let go; attachments stay."""
        await self._links.close()

    def load(self) -> None:
        """Read the file of attachments."""
        try:
            content = json.loads(self._file.read_text())
            self._pods = {uid: Attachment.from_json(attachment) for uid, attachment in content.items()}
        except FileNotFoundError:
            return
        except (OSError, ValueError, KeyError, TypeError, AttributeError, CniError) as error:
            log.warning("attachments in %s cannot be read (%s): plugins keep what they gave", self._file, error)

    async def restore(self, live_pod_uids: set[str]) -> None:
        """Keep what these pods have; detach all others."""
        for uid in self._pods.keys() - live_pod_uids:
            try:
                await self.detach(pod_uid=uid)
            except (CniError, OSError) as error:
                log.warning("pod %s, which is gone, could not be detached: %s", uid, error)

    async def attach(
        self,
        *,
        pod_uid: str,
        pod_name: str,
        namespace: str,
        netns: str,
        host_ports: Sequence[HostPortLike],
        annotations: Mapping[str, str] | None = None,
    ) -> list[str]:
        """ADD the pod's namespace to the network; its IPs, IPv4 first. One that is there already is checked."""
        async with self._locks.alone(pod_uid):
            inode = os.stat(netns).st_ino
            known = self._pods.get(pod_uid)
            if known is not None:
                if known.inode == inode and known.result is not None and await self._is_right(pod_uid, known):
                    return await self._told(pod_uid, known.result)
                await self._delete(pod_uid, known, begun=known.result is None)
            network = find_network(self._conf_dir)
            if network is None:
                raise CniError(f"cni plugin not initialized: no network config found in {self._conf_dir}")
            ports = [(p.protocol, p.host_ip, p.host_port, p.container_port) for p in host_ports_of(host_ports)]
            capabilities = {"portMappings": port_mappings(ports), "bandwidth": bandwidth_of(annotations or {})}
            made = Attachment(network, netns, inode, pod_arguments(namespace, pod_name, pod_uid), capabilities)
            self._put(pod_uid, made)
            try:
                made.result = await self._add(pod_uid, made)
                addresses_of(made.result)
            except BaseException as error:
                await asyncio.shield(self._delete(pod_uid, made, begun=True))
                if isinstance(error, CniError):
                    raise CniError(f'failed to setup network for sandbox "{pod_uid}": {error}') from error
                raise
            self._put(pod_uid, made)
            return await self._told(pod_uid, made.result)

    async def detach(self, *, pod_uid: str) -> None:
        """DEL the pod from the network it was added to. Idempotent; works when the namespace is gone."""
        async with self._locks.alone(pod_uid):
            if (known := self._pods.get(pod_uid)) is not None:
                await self._delete(pod_uid, known, begun=known.result is None)
            if self.isolation is not None:
                self.isolation.unwired(pod_uid)

    async def detach_all(self) -> list[str]:
        """Detach every pod that the file knows; which ones could be."""
        self.load()
        before = set(self._pods)
        await self.restore(set())
        return sorted(before - self._pods.keys())

    async def _told(self, pod_uid: str, result: Mapping[str, Any]) -> list[str]:
        addresses = addresses_of(result)
        if self.isolation is not None:
            await self.isolation.wired(pod_uid, addresses)
        return addresses

    async def _add(self, pod_uid: str, made: Attachment) -> dict[str, Any]:
        result: dict[str, Any] | None = None
        for plugin in made.network.plugins:
            answer = await self._run("ADD", pod_uid, made, plugin, result)
            try:
                result = json.loads(answer)
            except ValueError:
                raise CniError(f"plugin {describe(made.network, plugin)} failed (add): no result") from None
        assert result is not None
        return result

    async def _is_right(self, pod_uid: str, known: Attachment) -> bool:
        if not (known.network.check and can_check(known.network.version)):
            return True
        try:
            for plugin in known.network.plugins:
                try:
                    await self._run("CHECK", pod_uid, known, plugin, known.result)
                except PluginCrash as error:  # no verdict: a running pod does not lose its address for that
                    log.warning("whether pod %s is attached is not known: %s", pod_uid, error)
        except CniError as error:
            log.warning("pod %s is attached anew: %s", pod_uid, error)
            return False
        return True

    async def _delete(self, pod_uid: str, known: Attachment, *, begun: bool) -> None:
        """DEL by every plugin. Where ADD did not end well (`begun`), one that finds less than it made is passed by."""
        previous = known.result if can_check(known.network.version) else None  # DEL has it since 0.4.0
        for plugin in reversed(known.network.plugins):
            try:
                await self._run("DEL", pod_uid, known, plugin, previous)
            except CniError as error:
                if not begun:
                    raise
                log.info("what was begun for pod %s is undone as far as it can be: %s", pod_uid, error)
        self._put(pod_uid, None)

    async def _run(
        self,
        command: str,
        pod_uid: str,
        attachment: Attachment,
        plugin: Mapping[str, Any],
        previous: Mapping[str, Any] | None,
    ) -> str:
        """One call of a plugin; what it printed."""
        failed = f"plugin {describe(attachment.network, plugin)} failed ({command.lower()})"
        binary = self._find(str(plugin["type"]))
        netns = attachment.netns if _inode(attachment.netns) == attachment.inode else ""
        environment = os.environ | {
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": pod_uid,
            "CNI_NETNS": netns,
            "CNI_IFNAME": POD_LINK,
            "CNI_ARGS": attachment.arguments,
            "CNI_PATH": ":".join(self._path),
        }
        text = plugin_input(attachment.network, plugin, attachment.capabilities, previous)
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(binary, stdin=pipe, stdout=pipe, stderr=pipe, env=environment)
        try:
            async with asyncio.timeout(PLUGIN_TIMEOUT_S):
                output, stderr = await process.communicate(text.encode())
        except BaseException as error:
            if process.returncode is None:
                process.kill()
                await process.wait()
            if isinstance(error, TimeoutError):
                raise CniError(f"{failed}: it did not end within {PLUGIN_TIMEOUT_S:.0f} s") from None
            raise
        if process.returncode != 0:
            raise plugin_error(failed, output.decode(errors="replace"), stderr.decode(errors="replace"))
        return output.decode(errors="replace")

    def _find(self, kind: str) -> str:
        for directory in self._path if "/" not in kind else ():
            if os.access(os.path.join(directory, kind), os.X_OK):
                return os.path.join(directory, kind)
        raise CniError(f'failed to find plugin "{kind}" in path [{" ".join(self._path)}]')

    def _put(self, pod_uid: str, attachment: Attachment | None) -> None:
        """Note an attachment, or its end. Raises OSError."""
        if attachment is None:
            self._pods.pop(pod_uid, None)
        else:
            self._pods[pod_uid] = attachment
        self._file.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._file.with_suffix(".new")
        temporary.write_text(json.dumps({uid: known.to_json() for uid, known in self._pods.items()}))
        os.replace(temporary, self._file)


def _inode(path: str) -> int:
    try:
        return os.stat(path).st_ino
    except OSError:
        return 0
