"""The pki directory: what is issued, when it is renewed, and what is left alone."""

from __future__ import annotations

import ssl
import stat
from pathlib import Path

import pytest
import yaml
from cryptography import x509
from cryptography.x509.oid import NameOID

from kone.auth.pki import Names, Pki, PkiError, kubeconfig, leaves

NOW = 1_790_000_000.0
DAY = 86400.0
NAMES = Names("edge-1", "edge-1.example", ("192.0.2.7",))


@pytest.fixture
def pki(tmp_path: Path) -> Pki:
    made = Pki(tmp_path / "pki", NAMES)
    made.ensure(NOW)
    return made


def load(pki: Pki, name: str) -> x509.Certificate:
    return x509.load_pem_x509_certificate(pki.certificate(name).read_bytes())


def alternative_names(certificate: x509.Certificate) -> set[str]:
    found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return {str(name.value) for name in found}


def test_the_first_start_issues_everything(tmp_path: Path) -> None:
    pki = Pki(tmp_path / "pki", NAMES)
    issued = pki.ensure(NOW)
    assert issued == {
        "ca",
        "front-proxy-ca",
        "service-account",
        "admin.token",
        *(leaf.name for leaf in leaves(NAMES)),
    }


def test_a_start_with_everything_in_order_changes_nothing(pki: Pki) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in pki.directory.iterdir()}
    assert Pki(pki.directory, NAMES).ensure(NOW + 30 * DAY) == frozenset()
    assert {path.name: path.stat().st_mtime_ns for path in pki.directory.iterdir()} == before


def test_keys_and_token_are_for_the_owner_only(pki: Pki) -> None:
    for path in pki.directory.iterdir():
        if path.suffix in (".key", ".token"):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600, path


def test_the_server_certificate_names_every_way_to_the_api(pki: Pki) -> None:
    assert alternative_names(load(pki, "apiserver")) == {
        "localhost",
        "127.0.0.1",
        "::1",
        "edge-1",
        "edge-1.example",
        "192.0.2.7",
        "10.96.0.1",
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        "kubernetes.default.svc.cluster.local",
    }


@pytest.mark.parametrize(
    ("name", "user", "groups"),
    [
        ("admin", "kubernetes-admin", ["system:masters"]),
        ("controller-manager", "system:kube-controller-manager", []),
        ("scheduler", "system:kube-scheduler", []),
        ("kubelet", "system:node:edge-1", ["system:nodes"]),
        ("kube-proxy", "system:kube-proxy", ["system:node-proxier"]),
        ("apiserver-kubelet-client", "kube-apiserver-kubelet-client", ["system:masters"]),
    ],
)
def test_client_certificates_carry_upstreams_identities(pki: Pki, name: str, user: str, groups: list[str]) -> None:
    subject = load(pki, name).subject
    assert [a.value for a in subject.get_attributes_for_oid(NameOID.COMMON_NAME)] == [user]
    assert [a.value for a in subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)] == groups


def test_a_leaf_is_renewed_a_quarter_of_a_year_before_it_ends(pki: Pki) -> None:
    assert Pki(pki.directory, NAMES).ensure(NOW + 274 * DAY) == frozenset()
    renewed = Pki(pki.directory, NAMES).ensure(NOW + 276 * DAY)
    assert renewed == {leaf.name for leaf in leaves(NAMES)}
    assert load(pki, "apiserver").not_valid_after_utc.timestamp() == pytest.approx(NOW + (276 + 365) * DAY, abs=1)


def test_a_new_address_reissues_the_serving_certificates_only(pki: Pki) -> None:
    moved = Names("edge-1", "edge-1.example", ("198.51.100.9",))
    assert Pki(pki.directory, moved).ensure(NOW + DAY) == {"apiserver", "kubelet-serving"}
    assert "198.51.100.9" in alternative_names(load(pki, "apiserver"))


def test_a_file_that_was_lost_or_replaced_is_issued_anew(pki: Pki) -> None:
    pki.key("scheduler").unlink()
    pki.certificate("admin").write_bytes(pki.certificate("kubelet").read_bytes())
    assert Pki(pki.directory, NAMES).ensure(NOW + DAY) == {"scheduler", "admin"}


def test_an_expired_ca_takes_everything_it_signed_with_it(pki: Pki) -> None:
    late = Pki(pki.directory, NAMES).ensure(NOW + 3400 * DAY)
    assert {"ca", "front-proxy-ca", "apiserver", "front-proxy-client"} <= late
    assert "service-account" not in late


def test_a_ca_put_there_by_hand_is_taken_as_it_is(pki: Pki, tmp_path: Path) -> None:
    other = Pki(tmp_path / "other", NAMES)
    other.ensure(NOW)
    for path in (pki.certificate("ca"), pki.key("ca")):
        path.write_bytes((other.directory / path.name).read_bytes())
    issued = Pki(pki.directory, NAMES).ensure(NOW + DAY)
    assert "ca" not in issued
    assert "apiserver" in issued
    assert load(pki, "apiserver").issuer == load(other, "ca").subject
    load(pki, "apiserver").verify_directly_issued_by(load(other, "ca"))


def test_a_ca_that_cannot_be_read_is_not_replaced_silently(pki: Pki) -> None:
    pki.certificate("ca").write_text("garbage")
    with pytest.raises(PkiError, match=r"ca\.crt is no certificate"):
        Pki(pki.directory, NAMES).ensure(NOW)


def test_tls_takes_the_certificates(pki: Pki) -> None:
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(pki.certificate("apiserver"), pki.key("apiserver"))
    server.load_verify_locations(pki.certificate("ca"))
    server.verify_mode = ssl.CERT_REQUIRED
    client = ssl.create_default_context(cadata=pki.ca_pem)
    client.load_cert_chain(pki.certificate("admin"), pki.key("admin"))
    assert shake_hands(server, client, "edge-1") == "kubernetes-admin"


def shake_hands(server: ssl.SSLContext, client: ssl.SSLContext, name: str) -> str:
    """The common name that the server sees after a handshake in memory."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    at_client = client.wrap_bio(to_client, to_server, server_hostname=name)
    at_server = server.wrap_bio(to_server, to_client, server_side=True)
    for side in (at_client, at_server, at_client, at_server):
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            continue
    certificate = at_server.getpeercert() or {}
    return str(dict(part[0] for part in certificate["subject"])["commonName"])  # type: ignore[misc]


def test_a_kubeconfig_is_yaml_that_says_where_and_who() -> None:
    text = kubeconfig("https://127.0.0.1:6443", "PEM", user="kubernetes-admin", token="t0p")
    read = yaml.safe_load(text)
    assert read["clusters"][0]["cluster"] == {
        "server": "https://127.0.0.1:6443",
        "certificate-authority-data": "UEVN",
    }
    assert read["users"] == [{"name": "kubernetes-admin", "user": {"token": "t0p"}}]
    assert read["contexts"] == [{"name": "kone", "context": {"cluster": "kone", "user": "kubernetes-admin"}}]
    assert read["current-context"] == "kone"
