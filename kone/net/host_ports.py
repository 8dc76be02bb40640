"""hostPort: which port of the node leads into which pod, kept in a file so that a restart drops none, and its rules."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Protocol

log = logging.getLogger(__name__)

_ANY = ("0.0.0.0", "::")
MASQUERADE = "MASQUERADE --random-fully"


class HostPortLike(Protocol):
    """What the kubelet asks for; runtime/pod_network.py's HostPort."""

    @property
    def protocol(self) -> str: ...
    @property
    def host_ip(self) -> str: ...
    @property
    def host_port(self) -> int: ...
    @property
    def container_port(self) -> int: ...


@dataclass(frozen=True, slots=True, order=True)
class HostPort:
    """A port of the node that leads into a pod; `host_ip` "" is every address of the node."""

    protocol: str  # "TCP", "UDP", "SCTP"
    host_ip: str
    host_port: int
    container_port: int


PodPorts = tuple[Sequence[str], Sequence[HostPort]]
"""A pod's IPs and the ports that lead to it."""

FamilyPorts = tuple[str, Sequence[HostPort]]
"""The same of one family: its IP and its ports."""


class PortTaken(Exception):
    """Another pod has the port of the node; the text says which."""


class HostPortTable:
    """Ports by pod UID. Written as a whole on every change; no fsync, since pods do not outlive a power cut."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._pods: dict[str, PodPorts] = {}

    @property
    def pods(self) -> Mapping[str, PodPorts]:
        return self._pods

    def load(self) -> None:
        try:
            content = json.loads(self._path.read_text())
            self._pods = {
                str(uid): (tuple(map(str, ips)), tuple(HostPort(*port) for port in ports))
                for uid, (ips, ports) in content.items()
            }
        except FileNotFoundError:
            return
        except (OSError, ValueError, TypeError, AttributeError) as error:
            log.warning("host ports in %s cannot be read (%s): those of running pods are closed", self._path, error)

    def taken(self, pod_uid: str, ports: Iterable[HostPort]) -> Iterator[tuple[HostPort, str]]:
        """Those of the ports that another pod has, and the UID of that pod. One for every address meets all others."""
        for port in ports:
            for uid, (_, others) in self._pods.items():
                if uid != pod_uid and any(_meet(port, other) for other in others):
                    yield port, uid

    def put(self, pod_uid: str, ports: PodPorts | None) -> None:
        """Note a pod's ports; None for none. Raises OSError."""
        if ports is None:
            self._pods.pop(pod_uid, None)
        else:
            self._pods[pod_uid] = ports
        self._path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._path.with_suffix(".new")
        table = {uid: [list(ips), [astuple(port) for port in listed]] for uid, (ips, listed) in self._pods.items()}
        temporary.write_text(json.dumps(table))
        os.replace(temporary, self._path)


def host_ports_of(ports: Iterable[HostPortLike]) -> tuple[HostPort, ...]:
    """The ports as this room's own values, any address written as ""."""
    return tuple(
        HostPort(
            p.protocol or "TCP", "" if p.host_ip in ("0.0.0.0", "::") else p.host_ip, p.host_port, p.container_port
        )
        for p in ports
        if p.host_port
    )


def ports_of_family(version: int, pod: PodPorts) -> FamilyPorts:
    """The pod's address of that family, "" where it has none, and the ports of the node's addresses of that family."""
    ips, ports = pod
    ip = next((ip for ip in ips if _version(ip) == version), "")
    return ip, tuple(port for port in ports if ip and (not port.host_ip or _version(port.host_ip) == version))


def dnat_rules(pods: Iterable[FamilyPorts]) -> list[str]:
    """Rules for one family's DNAT chain; a rule with an address comes before one without.

    The chain is entered from PREROUTING and OUTPUT.
    """
    rules = []
    pods = sorted(pods)
    for ports_first in (True, False):
        for ip, ports in pods:
            for port in ports:
                if bool(port.host_ip) is not ports_first:
                    continue
                protocol = port.protocol.lower()
                where = f"-d {port.host_ip}/{_length(port.host_ip)} " if port.host_ip else ""
                to = f"[{ip}]:{port.container_port}" if ":" in ip else f"{ip}:{port.container_port}"
                rules.append(
                    f"{where}-p {protocol} -m {protocol} --dport {port.host_port} -m addrtype --dst-type LOCAL "
                    f"-j DNAT --to-destination {to}"
                )
    return rules


def return_rules(pods: Iterable[FamilyPorts], bridge: str) -> list[str]:
    """Rules for one family's POSTROUTING: what came from 127.0.0.1, or from the pod itself, must be answered through
    the host.
    """
    led = sorted(ip for ip, ports in pods if ports)
    whole = [f"{ip}/{_length(ip)}" for ip in led]
    rules = [f"-s {ip} -d {ip} -m conntrack --ctstate DNAT -j {MASQUERADE}" for ip in whole]
    if rules:
        loopback = "::1/128" if ":" in led[0] else "127.0.0.0/8"
        rules.append(f"-s {loopback} -o {bridge} -m conntrack --ctstate DNAT -j {MASQUERADE}")
    return rules


def _meet(one: HostPort, other: HostPort) -> bool:
    same_address = not one.host_ip or not other.host_ip or one.host_ip == other.host_ip
    return (one.protocol, one.host_port) == (other.protocol, other.host_port) and same_address


def _length(ip: str) -> int:
    return 128 if ":" in ip else 32


def _version(ip: str) -> int:
    return 6 if ":" in ip else 4
