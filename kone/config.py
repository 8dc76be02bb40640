"""Settings: one field, one unit, one default, one flag, one environment variable, one key of the config file.

A flag beats the environment (`KONE_DATA_DIR`), which beats the file given by `--config` (`data-dir: …`), which beats
the default. What is not given is derived: the DNS address is the tenth of the service range, and an instance with a
name gets a data directory, address ranges and a kubelet port of its own, so that two nodes live on one host.
"""

from __future__ import annotations

import argparse
import dataclasses
import ipaddress
import os
import re
import socket
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, Protocol, TypeVar

from kone.apimachinery.timestamps import parse_go_duration

PARTS = (
    "controllers",
    "scheduler",
    "kubelet",
    "proxy",
    "dns",
    "ingress",
    "networkpolicy",
    "local-storage",
    "loadbalancer",
    "metrics",
)
PROXY_MODES = ("auto", "ipvs", "nftables", "iptables", "userspace")
PROXY_MODE = "kone.dev/proxy-mode"  # annotation of the node: which one it is
IPVS_SCHEDULERS = ("rr", "wrr", "lc", "wlc", "sh", "dh", "sed", "nq")
AUTHORIZATION_MODES = ("AlwaysAllow", "AlwaysDeny", "Node", "RBAC", "Webhook")
LOG_LEVELS = ("debug", "info", "warning", "error")
SOCKET_PATH_MAX = 107  # bytes, unix(7)
_INSTANCE = re.compile(r"[a-z0-9]([a-z0-9-]{0,8}[a-z0-9])?")


class ConfigError(Exception):
    """A setting that cannot be; the text is one line that says what to do."""


def _setting(default: Any, help: str, *, metavar: str = "", choices: Sequence[str] = ()) -> Any:
    return field(default=default, metadata={"help": help, "metavar": metavar, "choices": tuple(choices)})


@dataclass(frozen=True, slots=True)
class Settings:
    """What `kone server` was told. An empty value means: derive it (`resolve`)."""

    data_dir: str = _setting("", "where everything is kept (default /var/lib/kone)", metavar="DIR")
    bind_address: str = _setting("0.0.0.0", "address that the API listens on", metavar="IP")
    secure_port: int = _setting(6443, "port of the HTTPS API; 0 takes a free one", metavar="PORT")
    node_name: str = _setting("", "name of this node (default: the host's name)", metavar="NAME")
    node_ip: str = _setting(
        "", "address of this node, or one of each family (default: those that lead to the world)", metavar="IP[,IP]"
    )
    cluster_cidr: str = _setting(
        "", "addresses of pods, a range or one of each family (default 10.244.0.0/16)", metavar="CIDR[,CIDR]"
    )
    service_cidr: str = _setting(
        "",
        "addresses of Services, a range or one of each family, the default family's first (default 10.96.0.0/16)",
        metavar="CIDR[,CIDR]",
    )
    cluster_dns: str = _setting(
        "", "address of cluster DNS (default: the tenth of the first service range)", metavar="IP"
    )
    cluster_domain: str = _setting("cluster.local", "domain of the cluster's names", metavar="DOMAIN")
    service_node_port_range: str = _setting("30000-32767", "ports of NodePort Services", metavar="FIRST-LAST")
    nodeport_addresses: str = _setting(
        "", "which of the host's addresses have node ports, as ranges (default: all of them)", metavar="CIDR[,CIDR…]"
    )
    datastore: str = _setting(
        "", "sqlite:///PATH, memory:// or postgresql://… (default: in the data directory)", metavar="URL"
    )
    proxy_mode: str = _setting("auto", "how Services reach the kernel", choices=PROXY_MODES)
    ipvs_scheduler: str = _setting("rr", "how IPVS chooses among endpoints", choices=IPVS_SCHEDULERS)
    ipvs_strict_arp: str = _setting(
        "off", "with IPVS, answer ARP for the asked link's own addresses only", choices=("off", "on")
    )
    proxy_healthz_port: int = _setting(
        -1,
        "port where the service proxy tells of its health (default 10256; 0, and with --instance, none)",
        metavar="PORT",
    )
    proxy_status_port: int = _setting(
        -1, "port of localhost with its mode, /proxyMode (default 10249; 0, and with --instance, none)", metavar="PORT"
    )
    load_balancer_pool: str = _setting(
        "",
        "addresses given to LoadBalancer Services, ranges and FIRST-LAST (default: the node's own)",
        metavar="CIDR[,CIDR]",
    )
    ingress_http_port: int = _setting(80, "port that Ingresses are served on; 0 leaves it out", metavar="PORT")
    ingress_https_port: int = _setting(
        443, "port that Ingresses are served on with TLS; 0 leaves it out", metavar="PORT"
    )
    disable: str = _setting("", f"parts to leave out, of {','.join(PARTS)}", metavar="LIST")
    non_masquerade_cidrs: str = _setting(
        "", "ranges that pods reach with their own addresses, beside other pods", metavar="CIDR[,CIDR…]"
    )
    cni_conf_dir: str = _setting(
        "/etc/cni/net.d", "where CNI configurations are; the first makes the pods' network", metavar="DIR"
    )
    cni_bin_dir: str = _setting("/opt/cni/bin:/usr/lib/cni", "where CNI plugins are", metavar="DIR[:DIR]")
    instance: str = _setting("", "name that keeps a second node on this host apart", metavar="NAME")
    docker_host: str = _setting("", "Docker's socket (default unix:///var/run/docker.sock)", metavar="URL")
    kubelet_port: int = _setting(
        -1, "port of the kubelet's HTTPS server (default 10250; 0 takes a free one)", metavar="PORT"
    )
    kubelet_dir: str = _setting(
        "",
        "where plugins look for the kubelet's files: made a link to <data-dir>/kubelet (default /var/lib/kubelet; none "
        "with --instance)",
        metavar="DIR",
    )
    pod_manifest_path: str = _setting(
        "", "manifests of static pods, a directory or one file (default: there are none)", metavar="PATH"
    )
    image_credential_provider_config: str = _setting(
        "",
        "which programs give registry credentials, a file or directory of kind CredentialProviderConfig",
        metavar="FILE",
    )
    image_credential_provider_bin_dir: str = _setting("", "where those programs are", metavar="DIR")
    image_pull_credentials_verification: str = _setting(
        "NeverVerifyPreloadedImages",
        "for which images that are here a pod must show credentials",
        choices=("NeverVerify", "NeverVerifyPreloadedImages", "NeverVerifyAllowlistedImages", "AlwaysVerify"),
    )
    preloaded_images_verification_allowlist: str = _setting(
        "", "with NeverVerifyAllowlistedImages, the images that any pod may use", metavar="IMAGE[,REGISTRY/*…]"
    )
    max_pods: int = _setting(110, "how many pods this node takes", metavar="N")
    scheduler_config_file: str = _setting(
        "", "profiles of the scheduler, a file of kind KubeSchedulerConfiguration", metavar="FILE"
    )
    encryption_provider_config: str = _setting(
        "",
        "what is encrypted at rest, a file of kind EncryptionConfiguration; it is read again when it changes",
        metavar="FILE",
    )
    token_auth_file: str = _setting(
        "", "bearer tokens of users, a CSV file: token, user name, UID and groups in one quoted column", metavar="FILE"
    )
    enable_admission_plugins: str = _setting(
        "", "admission plugins that are on beside those that are by default", metavar="LIST"
    )
    disable_admission_plugins: str = _setting("", "admission plugins that are off", metavar="LIST")
    admission_control_config_file: str = _setting(
        "", "how admission plugins are configured, a file of kind AdmissionConfiguration", metavar="FILE"
    )
    authentication_config: str = _setting(
        "",
        "whose tokens are believed and who may be anonymous, a file of kind AuthenticationConfiguration; it is read "
        "again when it changes",
        metavar="FILE",
    )
    anonymous_auth: str = _setting(
        "on", "whether requests without credentials are served, as far as roles let them", choices=("off", "on")
    )
    oidc_issuer_url: str = _setting("", "OpenID Connect provider whose tokens are believed, https://…", metavar="URL")
    oidc_client_id: str = _setting("", "audience that the provider's tokens must be for", metavar="ID")
    oidc_username_claim: str = _setting("sub", "claim that is the user's name", metavar="CLAIM")
    oidc_username_prefix: str = _setting(
        "", "put before the name; - is nothing (default: URL# unless the claim is email)", metavar="TEXT"
    )
    oidc_groups_claim: str = _setting("", "claim that is the user's groups", metavar="CLAIM")
    oidc_groups_prefix: str = _setting("", "put before each group", metavar="TEXT")
    oidc_required_claim: str = _setting("", "claims that a token must have", metavar="KEY=VALUE[,KEY=VALUE…]")
    oidc_signing_algs: str = _setting("RS256", "algorithms that tokens may be signed by", metavar="LIST")
    oidc_ca_file: str = _setting("", "CAs that the provider is trusted by (default: the host's)", metavar="FILE")
    authentication_token_webhook_config_file: str = _setting(
        "", "a webhook that knows bearer tokens, a kubeconfig", metavar="FILE"
    )
    authentication_token_webhook_version: str = _setting(
        "v1beta1", "version of the TokenReviews that it is sent", choices=("v1", "v1beta1")
    )
    authentication_token_webhook_cache_ttl: str = _setting("2m0s", "how long its answers hold", metavar="TIME")
    authorization_mode: str = _setting(
        "Node,RBAC", f"who is asked whether a user may, in order, of {','.join(AUTHORIZATION_MODES)}", metavar="LIST"
    )
    authorization_config: str = _setting(
        "",
        "the same with webhooks, a file of kind AuthorizationConfiguration; it is read again when it changes",
        metavar="FILE",
    )
    authorization_webhook_config_file: str = _setting("", "the webhook of mode Webhook, a kubeconfig", metavar="FILE")
    authorization_webhook_version: str = _setting(
        "v1beta1", "version of the SubjectAccessReviews that it is sent", choices=("v1", "v1beta1")
    )
    authorization_webhook_cache_authorized_ttl: str = _setting("5m0s", "how long its yes holds", metavar="TIME")
    authorization_webhook_cache_unauthorized_ttl: str = _setting("30s", "how long its no holds", metavar="TIME")
    audit_policy_file: str = _setting(
        "", "what the audit log records, a file of kind Policy (audit.k8s.io/v1)", metavar="FILE"
    )
    audit_log_path: str = _setting("", "where the audit log is kept; - is standard output", metavar="FILE")
    audit_log_maxage: int = _setting(0, "days that a full audit log is kept; 0 keeps it", metavar="DAYS")
    audit_log_maxbackup: int = _setting(0, "how many full audit logs are kept; 0 keeps all", metavar="N")
    audit_log_maxsize: int = _setting(100, "megabytes at which an audit log is full", metavar="MB")
    audit_webhook_config_file: str = _setting("", "where audit events are sent, a kubeconfig", metavar="FILE")
    audit_webhook_batch_max_size: int = _setting(400, "how many are sent at a time", metavar="N")
    audit_webhook_batch_max_wait: str = _setting("30s", "how long one waits for others", metavar="TIME")
    max_requests_inflight: int = _setting(
        400, "seats for requests served at a time, which priority levels share; with the next", metavar="N"
    )
    max_mutating_requests_inflight: int = _setting(200, "more of these seats", metavar="N")
    request_timeout: str = _setting(
        "1m0s", "how long a request may take that is no watch or stream; it may ask for less", metavar="TIME"
    )
    shutdown_delay_duration: str = _setting(
        "0s", "how long to serve on after /readyz says that the server stops", metavar="TIME"
    )
    log_level: str = _setting("info", "how much is logged", choices=LOG_LEVELS)
    config: str = _setting("", "YAML file of these settings", metavar="FILE")

    @property
    def disabled(self) -> frozenset[str]:
        return frozenset(part.strip() for part in self.disable.split(",") if part.strip())

    @property
    def cluster_cidrs(self) -> tuple[str, ...]:
        """The ranges of pods, IPv4 first."""
        return _by_family(self.cluster_cidr)

    @property
    def service_cidrs(self) -> tuple[str, ...]:
        """The ranges of Services, that of the default family first."""
        return tuple(part.strip() for part in self.service_cidr.split(",") if part.strip())

    @property
    def node_ips(self) -> tuple[str, ...]:
        """The node's addresses that were given, IPv4 first."""
        return _by_family(self.node_ip)

    @property
    def plain_cidrs(self) -> tuple[str, ...]:
        """What is not masqueraded beside what goes to pods."""
        return _by_family(self.non_masquerade_cidrs)

    @property
    def node_port_cidrs(self) -> tuple[str, ...]:
        """Where of the host's addresses node ports are; of a family that is not named, everywhere."""
        return _by_family(self.nodeport_addresses)

    @property
    def load_balancer_networks(self) -> tuple[str, ...]:
        """The load balancer's pool as networks. Raises ValueError with what is wrong."""
        found: list[str] = []
        for part in filter(None, (part.strip() for part in self.load_balancer_pool.split(","))):
            first, dash, last = part.partition("-")
            if dash:
                ends = ipaddress.ip_address(first.strip()), ipaddress.ip_address(last.strip())
                if ends[0].version != ends[1].version:
                    raise ValueError(f"{part} begins and ends in two families")
                found += [str(network) for network in ipaddress.summarize_address_range(*ends)]
            else:
                found.append(str(ipaddress.ip_network(part)))
        return tuple(found)

    @property
    def server_seats(self) -> int:
        """What flow control shares out among its priority levels."""
        return self.max_requests_inflight + self.max_mutating_requests_inflight

    @property
    def authorization_modes(self) -> tuple[str, ...]:
        return tuple(mode.strip() for mode in self.authorization_mode.split(",") if mode.strip())

    @property
    def authentication_token_webhook_cache_ttl_s(self) -> float:
        return parse_go_duration(self.authentication_token_webhook_cache_ttl)

    @property
    def authorization_webhook_cache_authorized_ttl_s(self) -> float:
        return parse_go_duration(self.authorization_webhook_cache_authorized_ttl)

    @property
    def authorization_webhook_cache_unauthorized_ttl_s(self) -> float:
        return parse_go_duration(self.authorization_webhook_cache_unauthorized_ttl)

    @property
    def audit_webhook_batch_max_wait_s(self) -> float:
        return parse_go_duration(self.audit_webhook_batch_max_wait)

    @property
    def request_timeout_s(self) -> float:
        return parse_go_duration(self.request_timeout)

    @property
    def shutdown_delay_s(self) -> float:
        return parse_go_duration(self.shutdown_delay_duration)

    @property
    def data(self) -> Path:
        return Path(self.data_dir)

    @property
    def socket_path(self) -> Path:
        """The local door: the API as plain HTTP for programs on this host."""
        return self.data / "kone.sock"

    @property
    def kubeconfig_path(self) -> Path:
        return self.data / "admin.kubeconfig"

    def runs(self, part: str) -> bool:
        return part not in self.disabled


def resolve(settings: Settings) -> Settings:
    """Every derived setting filled in and every given one checked. Raises ConfigError."""
    instance = settings.instance
    if instance and not _INSTANCE.fullmatch(instance):
        raise ConfigError(f"--instance {instance}: use up to 10 lower-case letters, digits and inner dashes")
    # A named instance draws its ranges from its name: 60 pairs beside the default one, e.g. 10.130/10.190 for number 0.
    number = zlib.crc32(instance.encode()) % 60
    filled = dataclasses.replace(
        settings,
        data_dir=settings.data_dir or (f"/var/lib/kone-{instance}" if instance else "/var/lib/kone"),
        node_name=(settings.node_name or socket.gethostname()).lower(),
        cluster_cidr=settings.cluster_cidr or (f"10.{130 + number}.0.0/16" if instance else "10.244.0.0/16"),
        service_cidr=settings.service_cidr
        or (f"10.{190 + number // 2}.{number % 2 * 128}.0/17" if instance else "10.96.0.0/16"),
        docker_host=settings.docker_host or os.environ.get("DOCKER_HOST") or "unix:///var/run/docker.sock",
        kubelet_dir=settings.kubelet_dir or ("" if instance else "/var/lib/kubelet"),
        kubelet_port=settings.kubelet_port if settings.kubelet_port >= 0 else (0 if instance else 10250),
        proxy_healthz_port=settings.proxy_healthz_port
        if settings.proxy_healthz_port >= 0
        else (0 if instance else 10256),
        proxy_status_port=settings.proxy_status_port if settings.proxy_status_port >= 0 else (0 if instance else 10249),
    )
    services = _service_networks(filled)
    if not filled.cluster_dns:
        filled = dataclasses.replace(filled, cluster_dns=str(services[0][10]))
    dns = _address("--cluster-dns", filled.cluster_dns)
    if not any(dns in network for network in services):
        raise ConfigError(
            f"--cluster-dns {filled.cluster_dns} is not in --service-cidr {filled.service_cidr}: "
            "choose one of its addresses"
        )
    try:
        _ = filled.load_balancer_networks
    except ValueError as error:
        raise ConfigError(
            f"--load-balancer-pool {filled.load_balancer_pool}: {error}: give ranges such as 192.0.2.240/28"
        ) from None
    if len(os.fsencode(filled.socket_path)) > SOCKET_PATH_MAX:
        raise ConfigError(
            f"--data-dir {filled.data_dir} is too long for {filled.socket_path.name} in it: give a shorter one"
        )
    _address("--bind-address", filled.bind_address)
    _each_family("--node-ip", filled.node_ips, _address)
    for plain in filled.plain_cidrs:
        _network("--non-masquerade-cidrs", plain)
    for cidr in filled.node_port_cidrs:
        _network("--nodeport-addresses", cidr)
    for flag, port in (
        ("--secure-port", filled.secure_port),
        ("--kubelet-port", filled.kubelet_port),
        ("--proxy-healthz-port", filled.proxy_healthz_port),
        ("--proxy-status-port", filled.proxy_status_port),
        ("--ingress-http-port", filled.ingress_http_port),
        ("--ingress-https-port", filled.ingress_https_port),
    ):
        if not 0 <= port <= 65535:
            raise ConfigError(f"{flag} {port}: give a port from 0 to 65535")
    if filled.ingress_http_port == filled.ingress_https_port != 0:
        raise ConfigError(f"--ingress-https-port {filled.ingress_https_port} is --ingress-http-port too: give another")
    if bool(filled.oidc_issuer_url) != bool(filled.oidc_client_id):
        raise ConfigError("--oidc-issuer-url and --oidc-client-id go together: give both or neither")
    if filled.oidc_issuer_url and filled.authentication_config:
        raise ConfigError("--oidc-issuer-url and --authentication-config exclude each other: give one")
    for flag, given in (
        ("--audit-log-path", filled.audit_log_path),
        ("--audit-webhook-config-file", filled.audit_webhook_config_file),
    ):
        if given and not filled.audit_policy_file:
            raise ConfigError(f"{flag} needs --audit-policy-file: say what is recorded")
    if filled.audit_webhook_batch_max_size < 1:
        raise ConfigError(f"--audit-webhook-batch-max-size {filled.audit_webhook_batch_max_size}: give 1 at least")
    _duration("--audit-webhook-batch-max-wait", filled.audit_webhook_batch_max_wait)
    _check_authorization(filled)
    _duration("--request-timeout", filled.request_timeout, least_s=1e-9)
    _duration("--shutdown-delay-duration", filled.shutdown_delay_duration)
    if filled.server_seats <= 0:
        raise ConfigError(
            f"--max-requests-inflight {filled.max_requests_inflight} and --max-mutating-requests-inflight "
            f"{filled.max_mutating_requests_inflight} add up to nothing: give more"
        )
    if bool(filled.image_credential_provider_config) != bool(filled.image_credential_provider_bin_dir):
        raise ConfigError(
            "--image-credential-provider-config and --image-credential-provider-bin-dir go together: give both"
        )
    if unknown := filled.disabled - set(PARTS):
        raise ConfigError(f"--disable {','.join(sorted(unknown))}: choose from {','.join(PARTS)}")
    node_ports(filled)
    if not filled.datastore:
        filled = dataclasses.replace(filled, datastore=f"sqlite:///{filled.data.absolute()}/kone.db")
    return filled


def _service_networks(settings: Settings) -> list[ipaddress.IPv4Network | ipaddress.IPv6Network]:
    """The ranges of Services, each beside its family's range of pods. Raises ConfigError."""
    pods = {network.version: network for network in _each_family("--cluster-cidr", settings.cluster_cidrs, _network)}
    found = _each_family("--service-cidr", settings.service_cidrs, _network)
    for services in found:
        same = pods.get(services.version)
        if same is not None and services.overlaps(same):
            raise ConfigError(f"--service-cidr {services} overlaps --cluster-cidr {same}: give two ranges apart")
        if services.num_addresses < 32:
            raise ConfigError(f"--service-cidr {services} is too small: give at least 32 addresses")
        if services.version == 6 and services.prefixlen < 64:
            raise ConfigError(f"--service-cidr {services} is too large: give a /64 or less")
        if same is None and settings.runs("kubelet"):
            raise ConfigError(f"--service-cidr {services} has no pods of its family: give --cluster-cidr a range too")
    return found


def node_ports(settings: Settings) -> range:
    """The NodePort range. Raises ConfigError."""
    match = re.fullmatch(r"(\d+)-(\d+)", settings.service_node_port_range)
    if match is None or not 1 <= int(match[1]) <= int(match[2]) <= 65535:
        raise ConfigError(
            f"--service-node-port-range {settings.service_node_port_range}: give FIRST-LAST, e.g. 30000-32767"
        )
    return range(int(match[1]), int(match[2]) + 1)


def _by_family(text: str) -> tuple[str, ...]:
    """The entries of a list of addresses or ranges, IPv4 first."""
    return tuple(sorted((part.strip() for part in text.split(",") if part.strip()), key=lambda part: ":" in part))


class _OfFamily(Protocol):
    @property
    def version(self) -> int: ...


Entry = TypeVar("Entry", bound=_OfFamily)


def _each_family(flag: str, texts: Sequence[str], read: Callable[[str, str], Entry]) -> list[Entry]:
    """The entries of a list that has one of each family at the most. Raises ConfigError."""
    found = [read(flag, text) for text in texts]
    if len({entry.version for entry in found}) < len(found):
        raise ConfigError(f"{flag} {','.join(texts)}: give one of IPv4, one of IPv6, or one of each")
    return found


def _network(flag: str, text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    try:
        return ipaddress.ip_network(text)
    except ValueError as error:
        raise ConfigError(f"{flag} {text}: {error}; give a range such as 10.96.0.0/16") from None


def _address(flag: str, text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        raise ConfigError(f"{flag} {text}: this is not an IP address") from None


def _check_authorization(settings: Settings) -> None:
    modes = settings.authorization_modes
    flag = f"--authorization-mode {settings.authorization_mode}"
    if unknown := [mode for mode in modes if mode not in AUTHORIZATION_MODES]:
        raise ConfigError(f"{flag}: {unknown[0]} is none: choose from {','.join(AUTHORIZATION_MODES)}")
    if not modes or len(set(modes)) < len(modes):
        raise ConfigError(f"{flag}: give each mode once, and one at least")
    if ("Webhook" in modes) != bool(settings.authorization_webhook_config_file):
        raise ConfigError(f"{flag}: Webhook and --authorization-webhook-config-file go together: give both or neither")
    if settings.authorization_config and settings.authorization_mode != "Node,RBAC":
        raise ConfigError("--authorization-mode and --authorization-config exclude each other: give one")
    for name in (
        "authentication_token_webhook_cache_ttl",
        "authorization_webhook_cache_authorized_ttl",
        "authorization_webhook_cache_unauthorized_ttl",
    ):
        _duration(f"--{name.replace('_', '-')}", getattr(settings, name))


def _duration(flag: str, text: str, *, least_s: float = 0.0) -> None:
    try:
        seconds = parse_go_duration(text)
    except ValueError:
        raise ConfigError(f"{flag} {text}: give a time such as 90s or 1m30s") from None
    if seconds < least_s:
        raise ConfigError(f"{flag} {text}: give a longer time")


class OneLineParser(argparse.ArgumentParser):
    """argparse that answers a wrong flag with one line and exit code 2."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def add_flags(parser: argparse.ArgumentParser, names: Sequence[str] = ()) -> None:
    """One flag for each setting, or for those named; a flag that is not given leaves no trace in the result."""
    for setting in dataclasses.fields(Settings):
        if names and setting.name not in names:
            continue
        parser.add_argument(
            "--" + setting.name.replace("_", "-"),
            dest=setting.name,
            default=argparse.SUPPRESS,
            type=int if isinstance(setting.default, int) else str,
            help=setting.metadata["help"],
            metavar=setting.metadata["metavar"] or None,
            choices=setting.metadata["choices"] or None,
        )


def from_arguments(arguments: argparse.Namespace, environ: Mapping[str, str] = os.environ) -> Settings:
    """Flags over environment over file over defaults, resolved. Raises ConfigError."""
    flags = {f.name: getattr(arguments, f.name) for f in dataclasses.fields(Settings) if hasattr(arguments, f.name)}
    given = _from_environment(environ) | flags
    in_file = _from_file(Path(given["config"])) if given.get("config") else {}
    return resolve(Settings(**(in_file | given)))


def _from_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    return {
        setting.name: _typed(setting, environ[variable], variable)
        for setting in dataclasses.fields(Settings)
        if (variable := "KONE_" + setting.name.upper()) in environ
    }


def _from_file(path: Path) -> dict[str, Any]:
    import yaml  # only where a file is given: start-up time is imports

    try:
        content = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ConfigError(f"--config {path}: {error.strerror}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"--config {path} is not YAML: {' '.join(str(error).split())}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"--config {path}: give a mapping of settings, e.g. secure-port: 6443")
    known = {setting.name.replace("_", "-"): setting for setting in dataclasses.fields(Settings)}
    if unknown := sorted(str(key) for key in content if key not in known):
        raise ConfigError(f"--config {path}: unknown setting {unknown[0]}; known are {', '.join(sorted(known))}")
    values = {}
    for key, value in content.items():
        text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
        values[known[key].name] = _typed(known[key], text, f"--config {path}: {key}")
    return values


def _typed(setting: dataclasses.Field[Any], text: str, origin: str) -> Any:
    choices = setting.metadata["choices"]
    if choices and text not in choices:
        raise ConfigError(f"{origin}: {text} is not one of {', '.join(choices)}")
    if not isinstance(setting.default, int):
        return text
    try:
        return int(text)
    except ValueError:
        raise ConfigError(f"{origin}: {text} is not a number") from None


def reload_log_level(settings: Settings) -> str:
    """The log level as the config file says now; the one in force where there is no file. Raises ConfigError."""
    in_file = _from_file(Path(settings.config)) if settings.config else {}
    return str(in_file.get("log_level", settings.log_level))
