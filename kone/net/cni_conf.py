"""The Container Network Interface as text: configurations, what a plugin is told, and what it answers. Pure.

The specification is CNI 1.1.0 (github.com/containernetworking/cni, SPEC.md); results from 0.3.0 on are understood, and
the error texts are libcni's.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kone.apimachinery.quantity import parse_quantity

SUFFIXES = (".conf", ".conflist", ".json")
INGRESS_BANDWIDTH, EGRESS_BANDWIDTH = "kubernetes.io/ingress-bandwidth", "kubernetes.io/egress-bandwidth"
BANDWIDTH_MIN, BANDWIDTH_MAX = 1000, 10**15  # bits a second
BURST_BITS = 2**31 - 1  # as upstream's runtimes ask for


class CniError(Exception):
    """A configuration, a plugin or its answer is wrong; the text says which."""


class PluginCrash(CniError):
    """A plugin ended without a word of its own: what it was asked is not answered."""


@dataclass(frozen=True, slots=True)
class NetworkList:
    """A network: its plugins in order."""

    name: str
    version: str
    plugins: Sequence[Mapping[str, Any]]
    check: bool = True  # whether CHECK may be asked

    @property
    def content(self) -> dict[str, Any]:
        """As a conflist says it."""
        return {
            "name": self.name,
            "cniVersion": self.version,
            "disableCheck": not self.check,
            "plugins": list(self.plugins),
        }


def parse_network(text: str, *, is_list: bool) -> NetworkList:
    """A conflist, or a conf of one plugin. Raises CniError."""
    try:
        content = json.loads(text)
    except ValueError as error:
        raise CniError(f"error parsing configuration: {error}") from None
    if not isinstance(content, dict):
        raise CniError("error parsing configuration: it is no JSON object")
    version = str(content.get("cniVersion") or "0.1.0")
    if not is_list:
        if not content.get("type"):
            raise CniError("error parsing configuration: missing 'type'")
        if not content.get("name"):
            raise CniError("error parsing configuration: missing network name")
        return NetworkList(str(content["name"]), version, (content,))
    name, plugins = content.get("name"), content.get("plugins")
    if not isinstance(name, str) or not name:
        raise CniError("error parsing configuration list: no name")
    if not isinstance(plugins, list) or not plugins:
        raise CniError("error parsing configuration list: no plugins in list")
    for number, plugin in enumerate(plugins):
        if not isinstance(plugin, dict) or not plugin.get("type"):
            raise CniError(f"failed to parse plugin config {number}: missing 'type'")
    return NetworkList(name, version, tuple(plugins), not _truth(content.get("disableCheck")))


def plugin_input(
    network: NetworkList, plugin: Mapping[str, Any], asked: Mapping[str, Any], previous: Mapping[str, Any] | None
) -> str:
    """What a plugin reads: its configuration, the capabilities it has of those `asked` for, and the result so far."""
    capabilities = plugin.get("capabilities") or {}
    runtime = {name: value for name, value in asked.items() if capabilities.get(name) and value}
    told = {key: value for key, value in plugin.items() if key != "capabilities"}
    told |= {"name": network.name, "cniVersion": network.version}
    if runtime:
        told["runtimeConfig"] = runtime
    if previous is not None:
        told["prevResult"] = previous
    return json.dumps(told)


def describe(network: NetworkList, plugin: Mapping[str, Any]) -> str:
    """A plugin as errors name it."""
    return f'type="{plugin["type"]}" name="{network.name}"'


def plugin_error(failed: str, output: str, stderr: str) -> CniError:
    """Why a plugin failed: its error object in words, else PluginCrash with what it wrote. `failed` says which."""
    try:
        content = json.loads(output)
        message, details = content["msg"], content.get("details")
    except (ValueError, KeyError, TypeError):
        wrote = " ".join((stderr or output).split())
        return PluginCrash(f"{failed}: netplugin failed{f': {wrote}' if wrote else ' with no error message'}")
    return CniError(f"{failed}: {message}; {details}" if details else f"{failed}: {message}")


def addresses_of(result: Mapping[str, Any]) -> list[str]:
    """The pod's addresses in a result, IPv4 first. Raises CniError where it has none."""
    interfaces = result.get("interfaces") or []
    found = []
    for entry in result.get("ips") or ():
        number = entry.get("interface")
        if isinstance(number, int) and 0 <= number < len(interfaces) and not interfaces[number].get("sandbox"):
            continue  # the host's end
        found.append(str(entry.get("address", "")))
    for key in ("ip4", "ip6"):  # 0.2.0 and before
        if key in result:
            found.append(str(result[key].get("ip", "")))
    try:
        addresses = [ipaddress.ip_interface(text).ip for text in found]
    except ValueError as error:
        raise CniError(f"the plugin's result cannot be read: {error}") from None
    if not addresses:
        raise CniError("the plugin's result has no address")
    return [str(address) for address in sorted(addresses, key=lambda address: address.version)]


def can_check(version: str) -> bool:
    """CHECK came with 0.4.0."""
    try:
        return tuple(int(part) for part in version.split(".")[:2]) >= (0, 4)
    except ValueError:
        return False


def pod_arguments(namespace: str, name: str, uid: str) -> str:
    """CNI_ARGS, as upstream's runtimes give them."""
    pairs = {
        "IgnoreUnknown": "1",
        "K8S_POD_NAMESPACE": namespace,
        "K8S_POD_NAME": name,
        "K8S_POD_INFRA_CONTAINER_ID": uid,
        "K8S_POD_UID": uid,
    }
    return ";".join(f"{key}={value}" for key, value in pairs.items())


def bandwidth_of(annotations: Mapping[str, str]) -> dict[str, int]:
    """The capability "bandwidth" from a pod's annotations, rates in bits a second; {} for none. Raises CniError."""
    found: dict[str, int] = {}
    for annotation, direction in ((INGRESS_BANDWIDTH, "ingress"), (EGRESS_BANDWIDTH, "egress")):
        if not (text := annotations.get(annotation)):
            continue
        try:
            rate = parse_quantity(text).value()
        except ValueError as error:
            raise CniError(f"{annotation}: {error}") from None
        if rate < BANDWIDTH_MIN:
            raise CniError(f"{annotation}: resource is unreasonably small (< 1kbit)")
        if rate > BANDWIDTH_MAX:
            raise CniError(f"{annotation}: resource is unreasonably large (> 1Pbit)")
        found |= {f"{direction}Rate": rate, f"{direction}Burst": BURST_BITS}
    return found


def port_mappings(ports: Iterable[tuple[str, str, int, int]]) -> list[dict[str, Any]]:
    """The capability "portMappings", from (protocol, host IP, host port, container port)."""
    return [
        {"hostPort": host, "containerPort": container, "protocol": protocol.lower()} | ({"hostIP": ip} if ip else {})
        for protocol, ip, host, container in ports
    ]


def _truth(value: Any) -> bool:
    """A flag that old configurations write as text."""
    return value is True or (isinstance(value, str) and value.lower() == "true")
