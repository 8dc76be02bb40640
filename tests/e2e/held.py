"""All that a node holds for its pods, on the host, in its files, in its API and in its process.

What is looked for carries the marks of the node's instance, so others' nodes and containers may come and go meanwhile.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kone.net.names import Names
from kone.runtime import loop_devices
from tests.e2e.node_process import NodeProcess, eventually, run

CGROUPS = Path("/sys/fs/cgroup")
DOCKER = "unix:///var/run/docker.sock"


@dataclass
class Held:
    node: NodeProcess
    instance: str
    docker: str = DOCKER

    def on_host(self) -> dict[str, list[str]]:
        """Nothing of it should be left when there are no pods."""
        prefix, data = Names(self.instance).veth_prefix, str(self.node.data)
        mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
        links = json.loads(run("ip", "-j", "link"))
        tops = [*CGROUPS.glob(f"kubepods-{self.instance}"), *CGROUPS.glob(f"*/kubepods-{self.instance}")]
        return {
            "containers": self.containers("--all"),
            "links": [link["ifname"] for link in links if link["ifname"].startswith(prefix)],
            "mounts": sorted(point for point in mounts if point.startswith(f"{data}/kubelet/")),
            "networks": sorted(self._network_namespaces()),
            "groups": sorted(str(group) for top in tops for group in top.glob("**/pod*")),
            "loop devices": loop_devices.below(self.node.data),
            "directories": sorted(
                str(path) for top in ("kubelet/pods", "storage") for path in (self.node.data / top).glob("*")
            ),
        }

    def _network_namespaces(self) -> Iterator[str]:
        """Those that the node's process keeps open: with its containers, and no mount of them, the others are gone."""
        assert self.node.process is not None
        own = os.readlink("/proc/self/ns/net")
        for descriptor in Path(f"/proc/{self.node.process.pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                if (found := os.readlink(descriptor)).startswith("net:") and found != own:
                    yield found

    def containers(self, *flags: str) -> list[str]:
        """The names of the node's containers and sandboxes that run; with "--all" of those that ended, too."""
        label = f"label=kone.instance={self.instance}"
        return run("docker", "-H", self.docker, "ps", "--format", "{{.Names}}", "--filter", label, *flags).split()

    def in_files(self) -> dict[str, Any]:
        """The files of the data directory (of the database not which), and the pods that have addresses and ports."""
        paths = [path.relative_to(self.node.data) for path in self.node.data.rglob("*")]
        network = self.node.data / "net"
        return {
            "files": sorted(str(path) for path in paths if not path.name.startswith("kone.db")),
            "addresses": json.loads((network / "ipam.json").read_text())["pods"],
            "ports": json.loads((network / "host-ports.json").read_text()),
        }

    def in_api(self) -> list[str]:
        return self.node.kubectl("get", "pods,pvc,pv,volumeattachments", "-A", "-o", "name").split()

    def in_process(self) -> dict[str, float]:
        text = self.node.kubectl("get", "--raw", "/metrics")
        wanted = ("python_asyncio_tasks", "process_open_fds", "process_resident_memory_bytes")
        lines = (line.split() for line in text.splitlines() if line.startswith(wanted))
        return {name: float(value) for name, value in lines}

    def until_nothing(self) -> None:
        """Wait until the host has nothing left; what it has after that is the failure."""
        until(self.on_host, {kind: [] for kind in self.on_host()})


def until(look: Callable[[], dict[str, Any]], wanted: dict[str, Any]) -> None:
    """Wait until what is seen is as wanted; what is not after that is the failure."""
    try:
        eventually(lambda: look() == wanted, within_s=30, every_s=0.5)
    except AssertionError:
        if left := {kind: found for kind, found in look().items() if found != wanted[kind]}:
            raise AssertionError(f"not as wanted: {left}") from None
