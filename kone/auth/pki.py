"""The cluster's own certificates: two CAs and what they sign, kept in <data-dir>/pki, renewed before they expire.

`Pki.ensure()` makes the directory right and says what it changed; it is called at start and then daily, so that a node
that is never restarted never serves an expired certificate. What it signed is remembered in `index.json` (names,
expiry, digests of the files), so that a start with everything in order reads a few small files and does not even
import the x509 builders. A file that somebody replaced no longer has the digest written there and is issued anew,
save for the CAs: a CA put there by hand is taken as it is.
"""

from __future__ import annotations

import base64
import hashlib
import ipaddress
import json
import os
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from kone.apimachinery.users import SYSTEM_MASTERS

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec

CA_DAYS = 3650
LEAF_DAYS = 365
RENEW_BEFORE_DAYS = 90  # of a leaf: a node that is switched off for a quarter still comes up with valid certificates
RENEW_CA_BEFORE_DAYS = 365
BACKDATED_S = 3600.0  # clocks of peers may be behind

Usage = Literal["server", "client", "both"]


class PkiError(Exception):
    """A file of the pki directory that kone must not replace and cannot read; the text says what to do."""


CA = "ca"
FRONT_PROXY_CA = "front-proxy-ca"
SERVICE_ACCOUNT = "service-account"


@dataclass(frozen=True, slots=True)
class Names:
    """What this node answers to."""

    node_name: str
    host_name: str = ""
    node_ips: tuple[str, ...] = ()
    service_ip: str = "10.96.0.1"  # the first address of the service range: the "kubernetes" Service
    cluster_domain: str = "cluster.local"

    def of_api_server(self) -> tuple[str, ...]:
        svc = "kubernetes.default.svc"
        names = ["localhost", self.node_name, self.host_name, "kubernetes", "kubernetes.default", svc]
        return (*names, f"{svc}.{self.cluster_domain}", "127.0.0.1", "::1", *self.node_ips, self.service_ip)

    def of_kubelet(self) -> tuple[str, ...]:
        return ("localhost", self.node_name, self.host_name, "127.0.0.1", "::1", *self.node_ips)


@dataclass(frozen=True, slots=True)
class Leaf:
    """One certificate to have: subject, uses and alternative names (DNS names and addresses, "" left out)."""

    name: str  # of the files: <name>.crt, <name>.key
    common_name: str
    organizations: tuple[str, ...] = ()
    usage: Usage = "client"
    names: tuple[str, ...] = ()
    issuer: str = CA

    def wanted_names(self) -> list[str]:
        return sorted({name for name in self.names if name})


def leaves(names: Names) -> tuple[Leaf, ...]:
    """Every certificate of a node; the identities are those of upstream's components."""
    return (
        Leaf("apiserver", "kube-apiserver", usage="server", names=names.of_api_server()),
        Leaf("kubelet-serving", f"system:node:{names.node_name}", ("system:nodes",), "server", names.of_kubelet()),
        Leaf("admin", "kubernetes-admin", (SYSTEM_MASTERS,)),
        Leaf("apiserver-kubelet-client", "kube-apiserver-kubelet-client", (SYSTEM_MASTERS,)),
        Leaf("controller-manager", "system:kube-controller-manager"),
        Leaf("scheduler", "system:kube-scheduler"),
        Leaf("kubelet", f"system:node:{names.node_name}", ("system:nodes",)),
        Leaf("kube-proxy", "system:kube-proxy", ("system:node-proxier",)),
        Leaf("ingress-default", "kone ingress default", usage="server", names=("ingress.invalid",)),
        Leaf("front-proxy-client", "front-proxy-client", issuer=FRONT_PROXY_CA),
    )


@dataclass(slots=True)
class Pki:
    """The pki directory: <name>.crt and <name>.key (0600) of each leaf and CA, service-account.key, admin.token."""

    directory: Path
    names: Names
    _index: dict[str, Any] = field(default_factory=dict)

    def certificate(self, name: str) -> Path:
        return self.directory / f"{name}.crt"

    def key(self, name: str) -> Path:
        return self.directory / f"{name}.key"

    @property
    def ca_pem(self) -> str:
        return self.certificate(CA).read_text()

    @property
    def admin_token(self) -> str:
        """The bearer token of admin.kubeconfig: made at random once, valid as long as the file stands."""
        return (self.directory / "admin.token").read_text().strip()

    @property
    def service_account_key_pem(self) -> bytes:
        return self.key(SERVICE_ACCOUNT).read_bytes()

    def ensure(self, now: float) -> frozenset[str]:
        """Issue what is missing, expires soon, or names other addresses; return the names of what was issued.

        `now` in seconds since the epoch. Raises OSError where the directory cannot be written, PkiError for a CA that
        cannot be read.
        """
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._index = self._read_index()
        before = json.dumps(self._index, sort_keys=True)
        issued: set[str] = set()
        for name in (CA, FRONT_PROXY_CA):
            if not self._is_good_ca(name, now):
                self._issue_ca(name, now)
                issued.add(name)
        for leaf in leaves(self.names):
            if not self._is_good(leaf, now):
                self._issue(leaf, now)
                issued.add(leaf.name)
        if not self.key(SERVICE_ACCOUNT).exists():
            _write(self.key(SERVICE_ACCOUNT), _private_pem(_new_key()))
            issued.add(SERVICE_ACCOUNT)
        if not (token := self.directory / "admin.token").exists():
            _write(token, secrets.token_urlsafe(32).encode() + b"\n")
            issued.add("admin.token")
        if json.dumps(self._index, sort_keys=True) != before:
            _write(self.directory / "index.json", json.dumps(self._index, indent=1, sort_keys=True).encode())
        return frozenset(issued)

    def _read_index(self) -> dict[str, Any]:
        try:
            found = json.loads((self.directory / "index.json").read_bytes())
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def _digest(self, name: str) -> str:
        """One digest of certificate and key, "" where either is missing."""
        try:
            return hashlib.sha256(self.certificate(name).read_bytes() + self.key(name).read_bytes()).hexdigest()
        except OSError:
            return ""

    def _is_good_ca(self, name: str, now: float) -> bool:
        digest = self._digest(name)
        if not digest:
            return False
        entry = self._index.get(name, {})
        if entry.get("digest") != digest:
            entry = self._index[name] = {"digest": digest, "expires": _expiry_of(self.certificate(name))}
        return bool(entry["expires"] - now > RENEW_CA_BEFORE_DAYS * 86400)

    def _is_good(self, leaf: Leaf, now: float) -> bool:
        entry = self._index.get(leaf.name, {})
        wanted = self._describe(leaf)
        return (
            bool(entry)
            and entry.get("digest") == self._digest(leaf.name)
            and entry.get("expires", 0) - now > RENEW_BEFORE_DAYS * 86400
            and {key: entry.get(key) for key in wanted} == wanted
        )

    def _describe(self, leaf: Leaf) -> dict[str, Any]:
        """What would make the certificate another one."""
        return {
            "subject": [leaf.common_name, *leaf.organizations],
            "usage": leaf.usage,
            "names": leaf.wanted_names(),
            "issuer": self._index[leaf.issuer]["digest"],
        }

    def _issue_ca(self, name: str, now: float) -> None:
        key = _new_key()
        subject = "kone" if name == CA else "kone-front-proxy"
        certificate = _sign(subject, (), key, None, key, now=now, days=CA_DAYS, usage=None, names=())
        self._store(name, certificate, key)
        self._index[name] = {"digest": self._digest(name), "expires": now + CA_DAYS * 86400.0}

    def _issue(self, leaf: Leaf, now: float) -> None:
        issuer, issuer_key = _load(self.certificate(leaf.issuer), self.key(leaf.issuer))
        key = _new_key()
        certificate = _sign(
            leaf.common_name,
            leaf.organizations,
            key,
            issuer,
            issuer_key,
            now=now,
            days=LEAF_DAYS,
            usage=leaf.usage,
            names=leaf.wanted_names(),
        )
        self._store(leaf.name, certificate, key)
        self._index[leaf.name] = {
            **self._describe(leaf),
            "digest": self._digest(leaf.name),
            "expires": now + LEAF_DAYS * 86400.0,
        }

    def _store(self, name: str, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
        from cryptography.hazmat.primitives.serialization import Encoding

        _write(self.key(name), _private_pem(key))
        _write(self.certificate(name), certificate.public_bytes(Encoding.PEM), mode=0o644)


def kubeconfig(
    server: str,
    ca_pem: str,
    *,
    user: str,
    token: str = "",
    client_certificate_pem: str = "",
    client_key_pem: str = "",
    cluster: str = "kone",
    context: str = "",
) -> str:
    """The text of a kubeconfig with one cluster, one user (by token, or by client certificate) and one context."""
    credentials: Mapping[str, str] = (
        {"token": token}
        if token
        else {"client-certificate-data": _b64(client_certificate_pem), "client-key-data": _b64(client_key_pem)}
    )
    context = context or cluster
    lines = [
        "apiVersion: v1",
        "kind: Config",
        "clusters:",
        f"- name: {cluster}",
        "  cluster:",
        f"    server: {server}",
        f"    certificate-authority-data: {_b64(ca_pem)}",
        "users:",
        f"- name: {user}",
        "  user:",
        *(f"    {key}: {value}" for key, value in credentials.items()),
        "contexts:",
        f"- name: {context}",
        "  context:",
        f"    cluster: {cluster}",
        f"    user: {user}",
        f"current-context: {context}",
    ]
    return "\n".join(lines) + "\n"


def _b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def _write(path: Path, content: bytes, mode: int = 0o600) -> None:
    """Replace the file in one step, so that a crash leaves the old one or the new one."""
    temporary = path.with_name(path.name + ".new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(descriptor, "wb") as file:
        os.fchmod(file.fileno(), mode)
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _new_key() -> ec.EllipticCurvePrivateKey:
    from cryptography.hazmat.primitives.asymmetric import ec

    return ec.generate_private_key(ec.SECP256R1())


def _private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _load(certificate: Path, key: Path) -> tuple[x509.Certificate, Any]:
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    return x509.load_pem_x509_certificate(certificate.read_bytes()), load_pem_private_key(key.read_bytes(), None)


def _expiry_of(certificate: Path) -> float:
    from cryptography import x509

    try:
        return x509.load_pem_x509_certificate(certificate.read_bytes()).not_valid_after_utc.timestamp()
    except ValueError as error:
        raise PkiError(f"{certificate} is no certificate ({error}): restore it, or remove it with its key") from error


def _sign(
    common_name: str,
    organizations: Iterable[str],
    key: ec.EllipticCurvePrivateKey,
    issuer: x509.Certificate | None,
    issuer_key: Any,
    *,
    now: float,
    days: int,
    usage: Usage | None,
    names: Iterable[str],
) -> x509.Certificate:
    """A certificate for `key`; a CA where `usage` is None, self-signed where `issuer` is None."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    subject = x509.Name(
        [
            *(x509.NameAttribute(NameOID.ORGANIZATION_NAME, name) for name in organizations),
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
        ]
    )
    start = datetime.fromtimestamp(now - BACKDATED_S, UTC)
    is_ca = usage is None
    signer: Any = issuer_key.public_key()
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject if issuer is None else issuer.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(datetime.fromtimestamp(now, UTC) + timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
        .add_extension(
            x509.KeyUsage(
                digital_signature=True,
                key_cert_sign=is_ca,
                crl_sign=False,
                content_commitment=False,
                key_encipherment=False,
                data_encipherment=False,
                key_agreement=False,
                encipher_only=False,
                decipher_only=False,
            ),
            critical=True,
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer), critical=False)
    )
    if usage is not None:
        uses = [
            *([ExtendedKeyUsageOID.SERVER_AUTH] if usage in ("server", "both") else []),
            *([ExtendedKeyUsageOID.CLIENT_AUTH] if usage in ("client", "both") else []),
        ]
        builder = builder.add_extension(x509.ExtendedKeyUsage(uses), critical=False)
    if alternatives := [_general_name(name) for name in names]:
        builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
    return builder.sign(issuer_key, hashes.SHA256())


def _general_name(name: str) -> x509.GeneralName:
    from cryptography import x509

    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)
