"""CNI's texts: configurations, what a plugin is told, its results and errors."""

from __future__ import annotations

import json
from typing import Any

import pytest

from kone.net.cni_conf import (
    BURST_BITS,
    CniError,
    NetworkList,
    PluginCrash,
    addresses_of,
    bandwidth_of,
    can_check,
    parse_network,
    plugin_error,
    plugin_input,
    pod_arguments,
    port_mappings,
)

LIST = {
    "cniVersion": "1.0.0",
    "name": "pods",
    "plugins": [{"type": "bridge"}, {"type": "portmap", "capabilities": {"portMappings": True}}],
}


def test_a_list_has_its_plugins_in_order() -> None:
    network = parse_network(json.dumps(LIST), is_list=True)
    assert (network.name, network.version, network.check) == ("pods", "1.0.0", True)
    assert [plugin["type"] for plugin in network.plugins] == ["bridge", "portmap"]
    assert parse_network(json.dumps(network.content), is_list=True) == network


def test_a_conf_is_a_list_of_one() -> None:
    conf = {"cniVersion": "0.4.0", "name": "n", "type": "ptp", "mtu": 1400}
    network = parse_network(json.dumps(conf), is_list=False)
    assert network == NetworkList("n", "0.4.0", (conf,))


@pytest.mark.parametrize("said", [True, "true", "TRUE"])
def test_check_can_be_turned_off(said: Any) -> None:
    assert not parse_network(json.dumps(LIST | {"disableCheck": said}), is_list=True).check


@pytest.mark.parametrize(
    ("text", "is_list", "error"),
    [
        ("{", False, "error parsing configuration"),
        ("[]", True, "it is no JSON object"),
        ('{"name": "n"}', False, "missing 'type'"),
        ('{"type": "t"}', False, "missing network name"),
        ('{"plugins": [{"type": "t"}]}', True, "error parsing configuration list: no name"),
        ('{"name": "n"}', True, "error parsing configuration list: no plugins in list"),
        ('{"name": "n", "plugins": [{}]}', True, "failed to parse plugin config 0"),
    ],
)
def test_a_configuration_that_cannot_be(text: str, is_list: bool, error: str) -> None:
    with pytest.raises(CniError, match=error):
        parse_network(text, is_list=is_list)


def test_a_plugin_is_told_the_capabilities_that_it_has_and_what_came_before() -> None:
    network = parse_network(json.dumps(LIST), is_list=True)
    asked = {"portMappings": [{"hostPort": 8080}], "bandwidth": {"ingressRate": 1000}}
    first = json.loads(plugin_input(network, network.plugins[0], asked, None))
    assert first == {"type": "bridge", "name": "pods", "cniVersion": "1.0.0"}
    second = json.loads(plugin_input(network, network.plugins[1], asked, {"ips": []}))
    assert second["runtimeConfig"] == {"portMappings": [{"hostPort": 8080}]}
    assert second["prevResult"] == {"ips": []}
    assert "capabilities" not in second


@pytest.mark.parametrize(
    ("result", "addresses"),
    [
        (
            {
                "cniVersion": "1.0.0",
                "interfaces": [{"name": "cni0"}, {"name": "veth1"}, {"name": "eth0", "sandbox": "/proc/1/ns/net"}],
                "ips": [{"address": "fd00::5/64", "interface": 2}, {"address": "10.1.0.5/16", "interface": 2}],
            },
            ["10.1.0.5", "fd00::5"],
        ),
        ({"cniVersion": "1.1.0", "ips": [{"address": "10.1.0.5/16"}], "routes": []}, ["10.1.0.5"]),
        ({"cniVersion": "0.4.0", "ips": [{"version": "4", "address": "10.1.0.5/16"}]}, ["10.1.0.5"]),
        (
            {
                "interfaces": [{"name": "host"}, {"name": "eth0", "sandbox": "s"}],
                "ips": [{"address": "10.1.0.1/32", "interface": 0}, {"address": "10.1.0.5/32", "interface": 1}],
            },
            ["10.1.0.5"],
        ),
        ({"cniVersion": "0.2.0", "ip4": {"ip": "10.1.0.5/16"}, "ip6": {"ip": "fd00::5/64"}}, ["10.1.0.5", "fd00::5"]),
    ],
)
def test_the_pods_addresses_in_a_result(result: dict[str, Any], addresses: list[str]) -> None:
    assert addresses_of(result) == addresses


@pytest.mark.parametrize("result", [{}, {"ips": []}, {"ips": [{"address": "10.1.0.300/16"}]}])
def test_a_result_without_an_address_is_an_error(result: dict[str, Any]) -> None:
    with pytest.raises(CniError):
        addresses_of(result)


@pytest.mark.parametrize(
    ("output", "stderr", "text", "kind"),
    [
        ('{"code": 11, "msg": "no addresses", "details": "range full"}', "", "no addresses; range full", CniError),
        ('{"code": 7, "msg": "bad config"}', "noise", "bad config", CniError),
        ("", "panic: oh\n", "netplugin failed: panic: oh", PluginCrash),
        ("", "", "netplugin failed with no error message", PluginCrash),
    ],
)
def test_why_a_plugin_failed(output: str, stderr: str, text: str, kind: type[CniError]) -> None:
    error = plugin_error("plugin p failed (add)", output, stderr)
    assert str(error) == f"plugin p failed (add): {text}"
    assert type(error) is kind


def test_check_came_with_0_4() -> None:
    assert [can_check(version) for version in ("0.3.1", "0.4.0", "1.0.0", "1.1.0", "x")] == [
        False,
        True,
        True,
        True,
        False,
    ]


def test_what_a_pod_is_called() -> None:
    assert pod_arguments("default", "web", "u1") == (
        "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web;K8S_POD_INFRA_CONTAINER_ID=u1;K8S_POD_UID=u1"
    )


def test_capabilities_of_a_pod() -> None:
    assert port_mappings([("TCP", "", 8080, 80), ("UDP", "192.0.2.1", 53, 53)]) == [
        {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
        {"hostPort": 53, "containerPort": 53, "protocol": "udp", "hostIP": "192.0.2.1"},
    ]
    assert bandwidth_of({}) == {}
    assert bandwidth_of({"kubernetes.io/egress-bandwidth": "10M"}) == {
        "egressRate": 10_000_000,
        "egressBurst": BURST_BITS,
    }


@pytest.mark.parametrize(
    ("text", "error"),
    [("10", "unreasonably small"), ("2P", "unreasonably large"), ("fast", "quantities must match")],
)
def test_a_bandwidth_that_cannot_be(text: str, error: str) -> None:
    with pytest.raises(CniError, match=error):
        bandwidth_of({"kubernetes.io/ingress-bandwidth": text})
