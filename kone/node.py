"""The composition root: builds every part of a node, starts them in named stages and stops them in reverse.

Nothing else knows all the rooms. Each stage says how many seconds its stop may take; a part that is disabled is not
even imported, so that a bare API starts quickly.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import socket
from collections.abc import Sequence
from ipaddress import ip_network
from pathlib import Path
from typing import TYPE_CHECKING

from kone.aio.clock import Clock, SystemClock
from kone.aio.stages import Stage, Stages
from kone.aio.tasks import TaskGroup
from kone.apimachinery.config_files import ConfigFileError
from kone.apimachinery.errors import StatusError
from kone.apimachinery.users import AUTHENTICATED, User, service_account_user
from kone.client.client import Client
from kone.client.events import EventRecorder
from kone.config import PROXY_MODE, Settings
from kone.control_plane import ADMINISTRATOR, ControlPlane, StartError

if TYPE_CHECKING:
    from kone.net.bridge import BridgeNetwork
    from kone.net.cni_network import CniNetwork
    from kone.net.dns.server import DnsServer
    from kone.net.firewall import Firewall
    from kone.net.ingress.controller import IngressController
    from kone.net.ingress.rules import Certificate
    from kone.net.load_balancer import LoadBalancerController
    from kone.net.modes import Mode
    from kone.net.policy_enforcer import PolicyEnforcer
    from kone.net.proxier import Proxier, ServiceProxy
    from kone.net.proxy_health import ProxyServer
    from kone.net.rule_config import RuleConfig
    from kone.net.service_map import Family
    from kone.net.uplink_addresses import UplinkAddresses
    from kone.runtime.credential_provider_config import Provider
    from kone.runtime.docker import DockerRuntime
    from kone.runtime.kubelet import Kubelet

__all__ = ["Node", "StartError"]

log = logging.getLogger(__name__)

PROXY = User("system:kube-proxy", groups=("system:node-proxier", AUTHENTICATED))
DNS = User("system:serviceaccount:kube-system:coredns", groups=("system:serviceaccounts", AUTHENTICATED))
INGRESS = User("system:serviceaccount:kube-system:kone-ingress", groups=("system:serviceaccounts", AUTHENTICATED))
BALANCER = service_account_user("kube-system", "service-controller")
POLICIES = service_account_user("kube-system", "network-policy")
ADDRESS_SETTLE_S = 0.5  # a change of address is usually several notices
NODE_PREFIX = {4: 24, 6: 64}  # how much of the cluster range one node's pods have, as upstream's node-cidr-mask-size


class Node:
    """One kone. `start` raises StartError; `stop` never raises and leaves containers running."""

    def __init__(self, settings: Settings, *, clock: Clock | None = None) -> None:
        self.settings = settings
        self.clock = clock or SystemClock()
        self.node_ips = settings.node_ips or own_addresses(settings.cluster_cidrs)
        self.node_ip = self.node_ips[0]
        self._lock: int | None = None
        self._stages = Stages()
        self._tasks = TaskGroup("node")
        self._control_plane = ControlPlane(settings, self.node_ips, self.clock)
        self._firewalls: dict[int, Firewall] = {}
        self._network: BridgeNetwork | CniNetwork | None = None
        self._runtime: DockerRuntime | None = None
        self._kubelet: Kubelet | None = None
        self._kubelet_events: EventRecorder | None = None
        self._policies: PolicyEnforcer | None = None
        self._proxy: ServiceProxy | None = None
        self._proxy_server: ProxyServer | None = None
        self._proxy_events: EventRecorder | None = None
        self._proxy_mode: Mode | None = None
        self._balancer: LoadBalancerController | None = None
        self._balancer_events: EventRecorder | None = None
        self._uplink: UplinkAddresses | None = None
        self._dns: DnsServer | None = None
        self._ingress: IngressController | None = None
        self._ingress_events: EventRecorder | None = None

    @property
    def url(self) -> str:
        return self._control_plane.url

    @property
    def client(self) -> Client:
        """Acts as an administrator."""
        return self._control_plane.client_for(ADMINISTRATOR)

    async def start(self) -> None:
        settings = self.settings
        if settings.runs("kubelet") or settings.runs("proxy"):
            require_root()
        stages = [Stage("data", self._take_data, self._leave_data, 1.0), *self._control_plane.stages]
        if settings.runs("kubelet") or settings.runs("proxy"):
            stages.append(Stage("network", self._start_network, self._stop_network, 5.0))
        if settings.runs("kubelet"):
            stages.append(Stage("networkpolicy", self._start_policies, self._stop_policies, 2.0))
        if settings.runs("proxy"):
            stages.append(Stage("proxy", self._start_proxy, self._stop_proxy, 5.0))
        elif settings.runs("kubelet"):
            stages.append(Stage("proxy", self._without_proxy, self._stop_proxy, 5.0))
        if settings.runs("proxy") and settings.runs("loadbalancer"):
            stages.append(Stage("loadbalancer", self._start_balancer, self._stop_balancer, 2.0))
        elif settings.runs("kubelet"):
            stages.append(Stage("loadbalancer", self._without_balancer, self._stop_balancer, 2.0))
        if settings.runs("dns"):
            stages.append(Stage("dns", self._start_dns, self._stop_dns, 2.0))
        elif settings.runs("kubelet"):
            stages.append(Stage("dns", self._without_dns, self._stop_dns, 2.0))
        if settings.runs("kubelet"):
            stages.append(Stage("kubelet", self._start_kubelet, self._stop_kubelet, 15.0))
        if settings.runs("ingress") and settings.runs("kubelet"):
            stages.append(Stage("ingress", self._start_ingress, self._stop_ingress, 3.0))
        else:
            stages.append(Stage("ingress", self._without_ingress, self._stop_ingress, 3.0))
        if not settings.node_ips and hasattr(socket, "AF_NETLINK"):
            stages.append(Stage("addresses", self._watch_addresses, self._tasks.cancel, 1.0))
        for stage in stages:
            await self._stages.start(stage)
        took = " ".join(f"{name}={seconds * 1000:.0f}ms" for name, seconds in self._stages.took_s.items())
        log.info("started: %s", took)

    async def stop(self) -> None:
        await self._control_plane.announce_stop()
        await self._stages.stop()

    async def reload_certificates(self) -> None:
        await self._control_plane.reload_certificates()

    async def reload_files(self) -> None:
        await self._control_plane.reload_files()

    # ---- the data directory

    async def _take_data(self) -> None:
        """One server a data directory, whatever its datastore is."""
        data = self.settings.data
        try:
            data.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock = os.open(data / "kone.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StartError(f"{data} cannot be written ({error.strerror}): choose another --data-dir") from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StartError(f"another kone runs on {data}: stop it or choose another --data-dir") from None

    async def _leave_data(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    # ---- the host's addresses

    async def _watch_addresses(self) -> None:
        from kone.net.link_watch import watch_addresses

        changed = asyncio.Event()
        self._tasks.guard(lambda: watch_addresses(changed.set), name="addresses-watch")
        self._tasks.guard(lambda: self._follow_addresses(changed), name="addresses-follow")

    async def _follow_addresses(self, changed: asyncio.Event) -> None:
        """When the host has lost an address of the node's, the node moves to those that lead to the world by then."""
        while True:
            await changed.wait()
            await self.clock.sleep(ADDRESS_SETTLE_S)
            changed.clear()
            if all(is_here(ip) for ip in self.node_ips):
                continue  # a host whose default route is gone is still the same
            found = own_addresses(self.settings.cluster_cidrs)
            if found[0].startswith("127.") or not is_here(found[0]):
                continue  # it is between two addresses
            log.warning("the host has another address: %s, it was %s", ",".join(found), ",".join(self.node_ips))
            self.node_ips, self.node_ip = found, found[0]
            await self._control_plane.move(found)
            if self._kubelet is not None:
                self._kubelet.move(found)
            if self._balancer is not None:
                self._balancer.move(found)
            if self._ingress is not None:
                self._ingress.move((self.node_ip,))

    # ---- the network

    async def _start_network(self) -> None:
        from kone.net.bridge import BridgeNetwork, NetworkConfig
        from kone.net.cni_network import CniNetwork, find_network
        from kone.net.firewall import Firewall, FirewallError
        from kone.net.links import LinkError
        from kone.net.names import Names

        settings = self.settings
        names = Names(settings.instance)
        config = NetworkConfig(
            pod_cidrs=self._pod_cidrs,
            cluster_cidrs=settings.cluster_cidrs,
            plain_cidrs=settings.plain_cidrs,
            service_cidrs=settings.service_cidrs,
            local_addresses=[settings.cluster_dns] if settings.runs("dns") else [],
        )
        families = sorted({4, *map(_family, (*config.pod_cidrs, *config.service_cidrs))})
        self._firewalls = {family: Firewall(names, family=family) for family in families}
        cni = CniNetwork(
            names,
            Path(settings.cni_conf_dir),
            settings.cni_bin_dir.split(":"),
            settings.data,
            local_addresses=config.local_addresses,
            service_cidrs=config.service_cidrs,
        )
        if (chosen := find_network(Path(settings.cni_conf_dir))) is not None:
            log.info("pods' network by CNI: %s of %s", chosen.name, settings.cni_conf_dir)
            self._network = cni
        else:
            if detached := await cni.detach_all():
                log.info("pods of a run with CNI were detached: %d", len(detached))
            self._network = BridgeNetwork(names, config, settings.data, *self._firewalls.values())
        try:
            for firewall in self._firewalls.values():
                await firewall.start()
            await self._network.start()
        except (FirewallError, LinkError) as error:
            raise StartError(f"the pods' network cannot be made: {error}") from None

    @property
    def _pod_cidrs(self) -> tuple[str, ...]:
        """The first /24 of the cluster's range (/64 of its IPv6 range), or all of a smaller one; IPv4 first."""
        clusters = [ip_network(cidr) for cidr in self.settings.cluster_cidrs]
        return tuple(
            str(next(cluster.subnets(new_prefix=max(NODE_PREFIX[cluster.version], cluster.prefixlen))))
            for cluster in clusters
        )

    async def _stop_network(self) -> None:
        if self._network is not None:
            await self._network.stop()
        for firewall in self._firewalls.values():
            await firewall.stop()

    async def _start_policies(self) -> None:
        """NetworkPolicies are enforced from here on; where that is disabled, those of an earlier run no more."""
        from kone.net.names import Names
        from kone.net.nft_table import NftError, NftTable
        from kone.net.policy_enforcer import PolicyEnforcer

        table = NftTable(Names(self.settings.instance).policy_table)
        if self.settings.runs("networkpolicy"):
            client = self._control_plane.client_for(POLICIES)
            self._policies = PolicyEnforcer(client, table, self.settings.node_name, self.clock)
            await self._policies.start()
            assert self._network is not None
            self._network.isolation = self._policies
            return
        try:
            await table.remove()
        except NftError as error:
            log.info("whether an earlier run left NetworkPolicies in force is not known: %s", error)
        await table.stop()

    async def _stop_policies(self) -> None:
        if self._policies is not None:
            await self._policies.stop()

    async def _start_proxy(self) -> None:
        from kone.net import conntrack_settings, modes
        from kone.net.proxier import ServiceProxy

        try:
            choice = await modes.choose(self.settings.proxy_mode)
        except modes.NoMode as error:
            raise StartError(str(error)) from None
        log.info("Services by %s", choice)
        conntrack_settings.apply(self.settings.data)
        self._proxy_mode = choice.mode
        client = self._control_plane.client_for(PROXY)
        proxiers: dict[Family, Proxier] = {
            "IPv6" if family == 6 else "IPv4": modes.make(
                choice.mode, self._firewalls[family], self._rule_config(family)
            )
            for family in self._service_families
        }
        node_name = self.settings.node_name
        self._proxy_events = EventRecorder(client, "kube-proxy", host=node_name, clock=self.clock)
        self._proxy = ServiceProxy(
            client,
            proxiers,
            node_name,
            self.clock,
            synced=self._only_this_mode,
            recorder=self._proxy_events,
            node_port_cidrs=self.settings.node_port_cidrs,
        )
        await self._proxy.start()
        self._proxy_server = self._proxy.server(
            choice.mode,
            healthz_port=self.settings.proxy_healthz_port,
            status_port=self.settings.proxy_status_port,
        )
        await self._proxy_server.start()

    async def _only_this_mode(self) -> None:
        """What a run with another mode or another family left goes, as soon as this one serves."""
        from kone.net import modes
        from kone.net.firewall import Firewall, FirewallError
        from kone.net.names import Names
        from kone.net.rule_config import any_config

        served, names = self._service_families if self._proxy_mode is not None else [], Names(self.settings.instance)
        for family in served:
            await modes.remove_others(self._proxy_mode, self._firewalls[family], self._rule_config(family))
        for family in {4, 6}.difference(served):
            firewall = Firewall(names, family=family)
            try:
                await firewall.start()
                await modes.remove_others(None, firewall, any_config(names, family))
            except FirewallError as error:
                log.debug("what an earlier run left of IPv%d is not known: %s", family, error)
            finally:
                await firewall.stop()

    async def _without_proxy(self) -> None:
        """The rules of an earlier run would lead Services to where pods were then."""
        await self._only_this_mode()

    @property
    def _service_families(self) -> list[int]:
        return [_family(cidr) for cidr in self.settings.service_cidrs]

    def _rule_config(self, family: int) -> RuleConfig:
        from kone.net.names import Names
        from kone.net.rule_config import RuleConfig

        settings = self.settings
        return RuleConfig(
            Names(settings.instance),
            [cidr for cidr in settings.cluster_cidrs if _family(cidr) == family],
            [cidr for cidr in settings.service_cidrs if _family(cidr) == family],
            node_ips=[ip for ip in self.node_ips if _family(ip) == family],
            pod_cidrs=[cidr for cidr in self._pod_cidrs if _family(cidr) == family],
            ipvs_scheduler=settings.ipvs_scheduler,
            strict_arp=settings.ipvs_strict_arp == "on",
            node_port_cidrs=[cidr for cidr in settings.node_port_cidrs if _family(cidr) == family],
        )

    async def _stop_proxy(self) -> None:
        if self._proxy_server is not None:
            await self._proxy_server.stop()
        if self._proxy is not None:
            await self._proxy.stop()
        if self._proxy_events is not None:
            await self._proxy_events.stop()

    async def _start_balancer(self) -> None:
        from kone.net.load_balancer import COMPONENT, BalancerConfig, LoadBalancerController
        from kone.net.uplink_addresses import UplinkAddresses, is_listened_on

        settings, client = self.settings, self._control_plane.client_for(BALANCER)
        mine = [settings.secure_port, settings.kubelet_port]
        if settings.runs("ingress"):
            mine += [settings.ingress_http_port, settings.ingress_https_port]
        config = BalancerConfig(
            self.node_ips, settings.load_balancer_networks, frozenset(("TCP", port) for port in mine if port)
        )
        self._balancer_events = EventRecorder(client, COMPONENT, host=settings.node_name, clock=self.clock)
        self._uplink = UplinkAddresses(settings.data, self.node_ip)
        await self._uplink.start()
        self._balancer = LoadBalancerController(
            client, self._balancer_events, self.clock, config, self._uplink, is_listened_on
        )
        await self._balancer.start()

    async def _without_balancer(self) -> None:
        """Addresses that an earlier run gave the uplink would lead nowhere."""
        from kone.net.uplink_addresses import remove_given

        try:
            remove_given(self.settings.data)
        except OSError as error:
            log.warning("addresses of load balancers stay on the uplink: %s", error)

    async def _stop_balancer(self) -> None:
        for part in (self._balancer, self._balancer_events, self._uplink):
            if part is not None:
                await part.stop()

    async def _start_dns(self) -> None:
        from kone.net.dns.server import DnsServer
        from kone.net.dns.service import ensure_dns_service
        from kone.net.firewall import FirewallError

        client, address = self._control_plane.client_for(DNS), self.settings.cluster_dns
        firewall = self._firewalls.get(_family(address))
        self._dns = DnsServer(client, self.settings.cluster_domain, [address], firewall=firewall)
        try:
            await self._dns.start()
        except (OSError, FirewallError) as error:
            raise StartError(f"cluster DNS cannot serve at {address}: {error}") from None
        self._control_plane.release_dns_address()
        try:
            await ensure_dns_service(self.client, address)
        except StatusError as error:
            self._control_plane.hold_dns_address()
            log.warning("the Service kube-dns is not there, cluster DNS serves without it: %s", error)

    async def _without_dns(self) -> None:
        """The Service that an earlier run made for its DNS would stand in the way of another's."""
        from kone.net.dns.service import withdraw_dns_service

        await withdraw_dns_service(self.client)

    async def _stop_dns(self) -> None:
        if self._dns is not None:
            await self._dns.stop()

    # ---- ingress

    async def _start_ingress(self) -> None:
        from kone.net.ingress.controller import COMPONENT, IngressConfig, IngressController

        settings = self.settings
        client = self._control_plane.client_for(INGRESS)
        self._ingress_events = EventRecorder(client, COMPONENT, host=settings.node_name, clock=self.clock)
        self._ingress = IngressController(
            client,
            self._ingress_events,
            self.clock,
            IngressConfig(
                settings.data,
                (self.node_ip,),
                settings.ingress_http_port,
                settings.ingress_https_port,
                own_addresses=bool(settings.load_balancer_networks),
            ),
            default_certificate=self._ingress_certificate,
        )
        await self._ingress.start()
        self._control_plane.on_new_certificates.append(self._ingress.reload_certificates)

    def _ingress_certificate(self) -> Certificate:
        """What clients get who ask for a host without a certificate of its own."""
        from kone.net.ingress.rules import Certificate

        pki, name = self._control_plane.pki, "ingress-default"
        return Certificate(pki.certificate(name).read_text(), pki.key(name).read_text())

    async def _without_ingress(self) -> None:
        from kone.net.ingress.controller import withdraw_ingress

        await withdraw_ingress(self.client, self.settings.data)

    async def _stop_ingress(self) -> None:
        if self._ingress is not None:
            await self._ingress.stop()
        if self._ingress_events is not None:
            await self._ingress_events.stop()

    # ---- the kubelet

    async def _start_kubelet(self) -> None:
        from kone.apiserver.pod_manifest import read_pod_manifest
        from kone.auth.pod_keys import new_key
        from kone.runtime import kubelet_home
        from kone.runtime.credential_providers import read_providers
        from kone.runtime.docker import DockerRuntime
        from kone.runtime.kubelet import Kubelet
        from kone.runtime.kubelet_config import KubeletConfig
        from kone.runtime.pull_records import Policy, Verification

        settings, pki = self.settings, self._control_plane.pki
        bin_dir = Path(settings.image_credential_provider_bin_dir)
        try:
            providers: Sequence[Provider] = ()
            if settings.image_credential_provider_config:
                providers = read_providers(Path(settings.image_credential_provider_config), bin_dir)
            allowlist = filter(None, settings.preloaded_images_verification_allowlist.split(","))
            policy = Policy(Verification(settings.image_pull_credentials_verification), allowlist)
        except ConfigFileError as error:
            raise StartError(f"credentials for images: {error}") from None
        user = User(f"system:node:{settings.node_name}", groups=("system:nodes", AUTHENTICATED))
        client = self._control_plane.client_for(user)
        config = KubeletConfig(
            node_name=settings.node_name,
            node_ips=self.node_ips,
            data_dir=settings.data,
            cluster_dns=settings.cluster_dns,
            cluster_domain=settings.cluster_domain,
            instance=settings.instance or "default",
            max_pods=settings.max_pods,
            credential_providers=tuple(providers),
            credential_provider_dir=bin_dir,
            pull_policy=policy,
            manifests=Path(settings.pod_manifest_path).absolute() if settings.pod_manifest_path else None,
            public_dir=Path(settings.kubelet_dir) if settings.kubelet_dir else None,
            port=settings.kubelet_port,
            pod_cidrs=self._pod_cidrs,
            server_cert=pki.certificate("kubelet-serving"),
            server_key=pki.key("kubelet-serving"),
            client_ca=pki.certificate("ca"),
            node_annotations={PROXY_MODE: self._proxy_mode or "none"},
        )
        kubelet_home.share(config.root_dir)
        assert self._network is not None
        self._kubelet_events = EventRecorder(client, "kubelet", host=settings.node_name, clock=self.clock)
        self._runtime = DockerRuntime(settings.docker_host, instance=config.instance)
        self._kubelet = Kubelet(
            client,
            self._runtime,
            self._network,
            self._kubelet_events,
            self.clock,
            config,
            new_key=new_key,
            read_pod=read_pod_manifest,
        )
        self._control_plane.on_new_certificates.append(self._kubelet.reload_certificates)
        try:
            await self._kubelet.start()
        except OSError as error:
            raise StartError(
                f"the kubelet cannot listen on port {config.port} ({error.strerror}): give another with --kubelet-port"
            ) from None

    async def _stop_kubelet(self) -> None:
        if self._kubelet is not None:
            await self._kubelet.stop()
        if self._kubelet_events is not None:
            await self._kubelet_events.stop()
        if self._runtime is not None:
            await self._runtime.close()


def _family(text: str) -> int:
    """4 or 6, of an address or a range."""
    return 6 if ":" in text else 4


def is_here(address: str) -> bool:
    """Whether the host has the address."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((address, 0))
    except OSError:
        return False
    return True


def require_root() -> None:
    """Raises StartError where this is not root."""
    if os.geteuid() != 0:
        raise StartError("pods and Services need root: run as root, or add --disable kubelet,proxy,dns")


def own_addresses(cluster_cidrs: Sequence[str]) -> tuple[str, ...]:
    """The host's IPv4 address and, where pods have IPv6 ones, its IPv6 address that leads to the world."""
    addresses = [own_address()]
    if any(":" in cidr for cidr in cluster_cidrs):
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
            try:
                probe.connect(("2001:db8::1", 9))
                addresses.append(str(probe.getsockname()[0]))
            except OSError:
                pass  # it has none
    return tuple(addresses)


def own_address() -> str:
    """The address that leads to the world; the first of the host's name, or loopback, where no route does.

    Connecting a datagram socket sends nothing: it only asks the kernel which address it would use.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
            return str(probe.getsockname()[0])
        except OSError:
            pass
    try:
        found = socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)
    except OSError:
        return "127.0.0.1"
    return str(found[0][4][0]) if found else "127.0.0.1"
