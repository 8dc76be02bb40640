"""`kone cleanup` leaves nothing of any proxy mode, with one family of addresses and with both.

The control plane and the service proxy are enough for that, so it runs where there is no Docker as well: ipvs, in few
kernels of machines that run tests, is tried in the virtual machine (`make rounds`).
"""

from __future__ import annotations

import pytest

from kone.net import modes
from tests.contracts.proxiers import REQUIRED
from tests.e2e.conftest import cleaned_up
from tests.e2e.node_process import eventually, node, run
from tests.e2e.test_no_traces import BOTH_FAMILIES, FOUR, network_traces

pytestmark = pytest.mark.ring4

INSTANCE = ("--instance", "e2e-t")
WITHOUT = ("--disable", "controllers,scheduler,kubelet,dns,ingress,loadbalancer,networkpolicy")
SERVED = """
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  type: LoadBalancer
  ipFamilyPolicy: PreferDualStack
  sessionAffinity: ClientIP
  externalIPs: [203.0.113.5]
  loadBalancerSourceRanges: [198.51.100.0/24]
  ports: [{name: http, port: 80}, {name: dns, port: 53, protocol: UDP}]
"""
SLICE = """
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: {name}, labels: {{kubernetes.io/service-name: web}}}}
addressType: {family}
endpoints: [{{addresses: ["{ip}"], conditions: {{ready: true}}}}]
ports: [{{name: http, port: 80}}, {{name: dns, port: 53, protocol: UDP}}]
"""
SLICES = (
    {"name": "web-4", "family": "IPv4", "ip": "10.108.0.5"},
    {"name": "web-6", "family": "IPv6", "ip": "fd00:108::5"},
)
SHOWS = {  # what shows that the mode serves an address
    "ipvs": ("ip", "addr"),
    "nftables": ("nft", "list", "ruleset"),
    "iptables": ("sh", "-c", "iptables-save; ip6tables-save"),
    "userspace": ("ss", "-ltn"),
}


@pytest.mark.parametrize("ranges", [FOUR, BOTH_FAMILIES], ids=["one family", "both families"])
@pytest.mark.parametrize("mode", modes.KINDS)
def test_cleanup_leaves_no_trace(mode: modes.Mode, ranges: tuple[str, ...]) -> None:
    if REQUIRED and mode not in REQUIRED:
        pytest.skip(f"only {', '.join(REQUIRED)} here")
    if why := modes.KINDS[mode].why_not():
        pytest.skip(f"{mode} cannot be had here: {why}")
    before = network_traces()
    with node(*INSTANCE, "--proxy-mode", mode, *ranges, *WITHOUT) as process:
        try:
            process.apply(SERVED + "".join(SLICE.format(**fields) for fields in SLICES))
            addresses = process.get("service", "web")["spec"]["clusterIPs"]
            assert len(addresses) == (2 if ranges is BOTH_FAMILIES else 1)
            for address in addresses:
                eventually(lambda address=address: address in run(*SHOWS[mode]))
        finally:
            cleaned_up(process, *INSTANCE)
    after = network_traces()
    for kind, found in before.items():
        assert after[kind] == found, kind
    assert "fd00:108" not in run("ip", "-6", "route", "show", "table", "all")
